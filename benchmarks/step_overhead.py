"""Benchmark: time per training step of our run (Lightning, callbacks, EMA, metrics, logging) against a bare PyTorch loop.

    python -m benchmarks.step_overhead [--repeats 5] [--steps N] [--threads N] [--cases NAME ...] [--json FILE]

The run is started by the code of `main.py fit` from a configuration, so it has the callbacks, logger and checkpoints of every run.
It writes its run folder into a temporary folder. turns.py describes the bare loop and how the two sides are interleaved. A repeat
is an epoch; the first epoch, which warms up and draws the curves, is not counted.

- overhead: time per step within an epoch, ours minus bare; includes a row of metrics.csv and TensorBoard every 50 steps.
- rest: overhead without the large operations that both sides have (augmentation, network, loss, backward, update), which are timed
  on each side and subtracted. For long steps, this removes most of the noise.
- epoch end: time from the last batch to the first batch of the next epoch: validation (of ten samples), best and last checkpoint,
  metrics.
- with epoch end: overhead plus epoch end per step, for epochs of 45,000 samples.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cli import main as run_main
from foundation import measuring
from foundation.measuring import Spread

LOG_EVERY = 50  # steps; the default of configs/defaults.yaml
EPOCH_SAMPLES = 45_000  # CIFAR-10 with a tenth held out


@dataclass(frozen=True)
class Case:
    """A network and its data.

    Args:
        name: Name of the case for `--cases`.
        network: Description for the table.
        batch_size: Samples in a batch.
        turn: Steps of a turn: a second or less, but long enough that cold caches at its start do not matter.
        steps: Timed steps of an epoch.
        model: `class_path` and `init_args` of the module.
        data: `class_path` and `init_args` of the datamodule, without `num_images`.
    """

    name: str
    network: str
    batch_size: int
    turn: int
    steps: int
    model: dict[str, Any]
    data: dict[str, Any]


def _resnet(name: str, network: str, quantizer: str) -> Case:
    model = {"class_path": "TernaryClassifier", "init_args": {"architecture": "resnet20", "quantizer": quantizer}}
    data = {"class_path": "benchmarks.tasks.RandomImages", "init_args": {"crop_padding": 4, "flip": True}}
    return Case(name, network, 128, 5, 50, model, data)


def _perceptron(name: str, network: str, batch_size: int, hidden: list[int], data: str, **shape: Any) -> Case:
    model = {"class_path": "benchmarks.tasks.Perceptron", "init_args": {"hidden": hidden}}
    data_module = {"class_path": f"benchmarks.tasks.{data}", "init_args": shape}
    return Case(name, network, batch_size, 25, 300, model, data_module)


CASES = [
    _perceptron(
        "free", "linear layer on 8x8 images", 128, [], "RandomImages", size=8, channels=1, crop_padding=1, flip=True
    ),
    _perceptron("head", "768-256-2 head on features", 256, [256], "RandomFeatures", size=1, channels=768, classes=2),
    _resnet("resnet20", "ResNet-20 on 32x32 images", "none"),
    _resnet("resnet20-twn", "ternary ResNet-20 (twn)", "twn"),
]


class Result(NamedTuple):
    """Measurements of a case over the repeats, in milliseconds except for ratio and weight difference."""

    bare: Spread
    ours: Spread
    overhead: Spread
    rest: Spread
    ratio: Spread
    epoch_end: Spread
    with_epoch_end: float
    weight_difference: float


def config(case: Case, repeats: int, folder: Path) -> dict[str, Any]:
    """Configuration of the run: EMA is enabled, everything else is as in every run; the times are written to `folder`."""
    batches = case.steps + 1
    classes = case.data["init_args"].get("classes", 10)
    per_class = -(-batches * case.batch_size // classes) + 1  # one for validation
    data = {"num_images": per_class * classes, "batch_size": case.batch_size, "eval_batch_size": classes}
    turns = {"turn": case.turn, "steps": case.steps, "path": str(folder / "times.json")}
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": repeats + 1,
            "limit_train_batches": batches,
            "log_every_n_steps": LOG_EVERY,
            "callbacks": [
                {"class_path": "EMA"},
                {"class_path": "benchmarks.turns.Turns", "init_args": turns},
            ],
        },
        "model": case.model,
        "data": {**case.data, "init_args": {**case.data["init_args"], **data, "val_fraction": 1 / per_class}},
        "curves": {"every_s": 1e9},  # drawn in the first epoch, which is not counted, and at the end
    }


def run(case: Case, repeats: int) -> Result:
    """Measures a case.

    Args:
        case: Network and data.
        repeats: Number of timed epochs, at least 2.

    Raises:
        RuntimeError: The run failed; the message contains its output.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = folder / "benchmark.yaml"
        path.write_text(yaml.safe_dump(config(case, repeats, folder)), encoding="utf-8")
        printed = io.StringIO()  # not shown: the progress bar would show the speed of both sides together
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = run_main(["fit", "--config", str(path), "--run_dir", str(folder / "run")])
        if code:
            raise RuntimeError(f"{case.name} ended with exit code {code}:\n{printed.getvalue()}")
        return result(case, json.loads((folder / "times.json").read_text(encoding="utf-8")))


def result(case: Case, seconds: dict[str, Any]) -> Result:
    """Computes the measurements of a case from the seconds of all epochs; the first epoch is not counted."""
    sides = ("bare", "ours", "bare_rest", "ours_rest")
    bare, ours, bare_rest, ours_rest = ([1000 * s / case.steps for s in seconds[side][1:]] for side in sides)
    overhead = Spread.of([mine - theirs for mine, theirs in zip(ours, bare, strict=True)])
    step = Spread.of(ours).median  # subtracted, because the last step of an epoch is timed together with the epoch end
    epoch_end = Spread.of([1000 * s - step for s in seconds["epoch_end"][1:]])
    return Result(
        bare=Spread.of(bare),
        ours=Spread.of(ours),
        overhead=overhead,
        rest=Spread.of([mine - theirs for mine, theirs in zip(ours_rest, bare_rest, strict=True)]),
        ratio=Spread.of([mine / theirs for mine, theirs in zip(ours, bare, strict=True)]),
        epoch_end=epoch_end,
        with_epoch_end=overhead.median + epoch_end.median / (EPOCH_SAMPLES // case.batch_size),
        weight_difference=seconds["weight_difference"],
    )


HEADER = (
    "network",
    "batch",
    "bare ms/step",
    "ours ms/step",
    "overhead ms/step",
    "rest ms/step",
    "ratio",
    "epoch end ms",
    "with epoch end",
)


def row(case: Case, metrics: Result) -> list[str]:
    """Row of the table for a case."""
    return [
        case.network,
        str(case.batch_size),
        f"{metrics.bare.median:.3f}",
        f"{metrics.ours.median:.3f}",
        metrics.overhead.text(3),
        metrics.rest.text(3),
        f"{metrics.ratio.median:.3f}",
        f"{metrics.epoch_end.median:.0f}",
        f"{metrics.with_epoch_end:.3f}",
    ]


def as_json(case: Case, metrics: Result) -> dict[str, Any]:
    """Measurements of a case as plain JSON values."""
    content = {
        name: value._asdict() if isinstance(value, Spread) else value for name, value in metrics._asdict().items()
    }
    return {"name": case.name, "network": case.network, "batch_size": case.batch_size, "steps": case.steps, **content}


def main(args: list[str] | None = None) -> None:
    """Measures the cases and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--steps", type=int, help=f"timed steps of a repeat, a multiple of {LOG_EVERY}; default depends on the case"
    )
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, help="cases to measure")
    options, before = measuring.begin(parser, args)
    if options.steps is not None and (options.steps < LOG_EVERY or options.steps % LOG_EVERY):
        parser.error(f"--steps: a multiple of {LOG_EVERY}, so that each repeat logs as often, got {options.steps}")
    cases = [case for case in CASES if case.name in options.cases]
    if options.steps is not None:
        cases = [Case(**{**vars(case), "steps": options.steps}) for case in cases]
    metrics = [run(case, options.repeats) for case in cases]
    print(measuring.table(HEADER, [row(*pair) for pair in zip(cases, metrics, strict=True)]))
    print(f"\noverhead: median (least .. most) of {options.repeats} repeats; the linear layer takes almost no time,")
    print("so its overhead is that of the framework; for a large network it is a small difference of two large times.")
    for case, each in zip(cases, metrics, strict=True):
        print(f"{case.name}: largest difference between the weights of both sides {each.weight_difference:g}")
    content = [as_json(*pair) for pair in zip(cases, metrics, strict=True)]
    measuring.report(before, {"benchmark": "step_overhead", "repeats": options.repeats, "cases": content}, options.json)


if __name__ == "__main__":
    main()
