"""Benchmark: time of a ternary network as int8 ONNX against torch, onnxruntime and OpenVINO in fp32, bf16 and int8, on the CPU.

    python -m benchmarks.ternary_inference [--architectures resnet20 resnet18] [--counts 1 2] [--batches 1 32] [--repeats 7]
                                           [--run RUN_DIR [--root DIR]] [--only NAME ...] [--quick] [--json FILE]

Without --run, networks are ternary (twn), of random weights with the batch-norm statistics of random images of 32 pixels: time does
not depend on the values. With --run the network of that run is timed, and its int8 file is verified on the run's test split, as by
`tools.export --int8`. Every contender (benchmarks/inference_peers.py) must compute the same logits as torch in float32 within its
stated tolerance, on batches of each size, before it is timed. Contenders alternate in each repeat. A ratio is computed within each
repeat; the table shows its median. OpenVINO takes part where it is installed (pip install openvino).

--quick: a resnet20 on 8 pixels, one thread, batches of 1 and 4, 2 repeats, only the contenders that need no compilation.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from benchmarks.inference_peers import CONTENDERS, Contender, Task
from foundation import measuring
from foundation.measuring import Spread, interleave
from lightning_modules import Classifier, TernaryClassifier, load_run
from lightning_modules.loading import newest_config
from networks import ternary_layers
from tools.export.deployed import Deployed, deployed_classifier
from tools.export.int8 import Int8Settings, Logits, export_int8
from tools.export.int8_timing import warm
from tools.export.onnx import write_onnx
from tools.export.split_inputs import data_of, open_splits
from tools.export.static_quantization import Source, quantize

BASELINES = ("torch compiled fp32", "torch compiled bf16")
SLOW_TO_MAKE = ("torch compiled fp32", "torch compiled bf16")
SAMPLES = 64


def random_network(architecture: Literal["resnet18", "resnet20"], size: int) -> TernaryClassifier:
    """A ternary network of random weights whose batch norms have the statistics of random images.

    Args:
        architecture: As in `build_resnet`.
        size: Height and width of the images in pixels.
    """
    torch.manual_seed(0)
    given = {"num_classes": 10, "in_channels": 3, "image_size": size, "mean": [0.5] * 3, "std": [0.25] * 3}
    module = TernaryClassifier(architecture=architecture, **given)  # type: ignore[arg-type]
    for norm in (one for one in module.modules() if isinstance(one, nn.BatchNorm2d)):
        norm.momentum = None  # plain mean over the batches
    with torch.no_grad():
        for _ in range(2):
            module.train()((torch.rand(SAMPLES, 3, size, size) - 0.5) / 0.25)
    return module.eval()


def files_of(deployed: Deployed, samples: Tensor, folder: Path) -> tuple[Path, Path]:
    """Write the fp32 and the int8 file of a network, calibrated by min-max with samples (N, C, S, S) in 0..1."""
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    source = Source(fp32, write_onnx(deployed, fp32), list(ternary_layers(deployed.network)))
    quantize(source, int8, [batch.numpy() for batch in samples.split(32)], "minmax")
    return fp32, int8


def checked(contender: Contender, logits: Logits, task: Task, images: Sequence[Tensor]) -> float:
    """Largest difference of a contender's logits to torch in float32, as a share of the largest logit.

    Raises:
        ValueError: It is larger than the contender's tolerance.
    """
    differences = []
    for batch in images:
        with torch.no_grad():
            expected = task.network(batch)
        differences.append(float((logits(batch) - expected).abs().max() / expected.abs().max()))
    if not all(difference <= contender.tolerance for difference in differences):
        raise ValueError(
            f"{contender.name}: its logits differ by {max(differences):.2g} of the largest logit, more than its tolerance of "
            f"{contender.tolerance:g}; it does not compute the same"
        )
    return max(differences)


def measured(
    task: Task, images: Sequence[Tensor], contenders: Sequence[Contender], repeats: int
) -> list[dict[str, Any]]:
    """Check and time the contenders.

    Args:
        task: What they compute.
        images: A batch of each size.
        contenders: Those to time.
        repeats: Measurements of each.

    Returns:
        A row for each batch size and contender: seconds per batch and the difference of its logits.
    """
    torch.set_num_threads(task.threads)
    every = {one.name: one.make(task) for one in contenders}
    made = {name: logits for name, logits in every.items() if logits is not None}
    differences = {one.name: checked(one, made[one.name], task, images) for one in contenders if one.name in made}
    rows = []
    for batch in images:
        sides = {name: warm(partial(logits, batch)) for name, logits in made.items()}
        for name, values in interleave(sides, repeats).items():
            rows.append(
                {
                    "threads": task.threads,
                    "batch": len(batch),
                    "side": name,
                    "s": values,
                    "difference": differences[name],
                }
            )
    return rows


def ratio(rows: Sequence[dict[str, Any]], row: dict[str, Any], baseline: str) -> str:
    """How many times faster a row is than the baseline at the same batch and threads; a dash if that was not timed."""
    for other in rows:
        if (other["threads"], other["batch"], other["side"]) == (row["threads"], row["batch"], baseline):
            return f"{Spread.of([a / b for a, b in zip(other['s'], row['s'], strict=True)]).median:.2f}"
    return "-"


def shown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table: milliseconds, and how many times faster than compiled torch."""
    header = ["threads", "batch", "side", "ms per batch", *(f"x {name}" for name in BASELINES), "logits off by"]
    cells = [
        [
            str(row["threads"]),
            str(row["batch"]),
            row["side"],
            Spread.of([1000 * value for value in row["s"]]).text(2),
            *(ratio(rows, row, name) for name in BASELINES),
            f"{row['difference']:.1e}",
        ]
        for row in rows
    ]
    return measuring.table(header, cells)


def of_run(run: Path, root: str | None, folder: Path) -> tuple[Classifier, Deployed, Path, Path, Tensor]:
    """Module and files of a run, verified on its test split, and calibration images; prints what the verification measured."""
    module = load_run(run)
    if not isinstance(module, Classifier) or module.feature_width is not None or module.image_size is None:
        raise ValueError(f"--run {run}: a classifier of images is needed")
    deployed = deployed_classifier(module)
    splits = open_splits(data_of(module, newest_config(run), None if root is None else {"root": root}), 512, 0)
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    print("\n".join(export_int8(deployed, splits, int8, Int8Settings())))
    write_onnx(deployed, fp32)
    return module, deployed, fp32, int8, torch.cat(splits.calibration)


def chosen(only: Sequence[str] | None, quick: bool) -> list[Contender]:
    """The contenders to time: those named, or all, as far as their packages are installed.

    Raises:
        ValueError: A name is unknown.
    """
    names = [one.name for one in CONTENDERS]
    if unknown := [name for name in only or () if name not in names]:
        raise ValueError(f"--only {unknown[0]}: no such contender; there are {', '.join(names)}")
    for package in sorted({one.package for one in CONTENDERS if not one.available}):
        print(f"{package} is not installed; its contenders are left out")
    wanted = only or [name for name in names if not (quick and name in SLOW_TO_MAKE)]
    return [one for one in CONTENDERS if one.available and one.name in wanted]


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; see the top of the file.

    Args:
        args: Arguments without the program's name; None takes those of the process.
    """
    parser = measuring.arguments(str(__doc__).partition("\n")[0])
    parser.set_defaults(repeats=7)
    parser.add_argument(
        "--architectures", nargs="+", default=["resnet20", "resnet18"], choices=("resnet20", "resnet18")
    )
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2], help="numbers of threads to time with")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32], help="images in a batch")
    parser.add_argument("--run", type=Path, help="time and verify the network of this run in place of random ones")
    parser.add_argument("--root", help="folder of the data of --run, in place of the run's own")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of the contenders to time")
    parser.add_argument("--quick", action="store_true", help="a small network, to see that everything works")
    options, before = measuring.begin(parser, args)
    size = 32
    if options.quick:
        options.architectures, options.counts, options.batches, options.repeats, size = ["resnet20"], [1], [1, 4], 2, 8
    try:
        contenders = chosen(options.only, options.quick)
    except ValueError as error:
        parser.error(str(error))
    results: dict[str, Any] = {}
    for name in [str(options.run)] if options.run else options.architectures:
        with tempfile.TemporaryDirectory() as folder:
            if options.run:
                module, deployed, fp32, int8, samples = of_run(options.run, options.root, Path(folder))
            else:
                module = random_network(cast(Any, name), size)
                deployed = deployed_classifier(module)
                samples = torch.rand(SAMPLES, 3, size, size, generator=torch.Generator().manual_seed(1))
                fp32, int8 = files_of(deployed, samples, Path(folder))
            network = nn.Sequential(OrderedDict(before=deployed.before, network=deployed.network)).eval()
            network.requires_grad_(False)
            ternary = module.network if ternary_layers(module.network) else None
            images = [samples[torch.arange(batch) % len(samples)] for batch in options.batches]
            rows = []
            for threads in options.counts:
                task = Task(network, fp32, int8, threads, deployed.before, ternary)
                rows += measured(task, images, contenders, options.repeats)
        print(f"\n{name}\n\n{shown(rows)}")
        results[name] = rows
    measuring.report(before, {"results": results}, options.json)
    return results


if __name__ == "__main__":
    main()
