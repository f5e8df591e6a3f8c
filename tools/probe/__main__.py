"""The command that compares frozen backbones on a data set: a kNN and a linear probe of each, with time and size.

    python -m tools.probe --data.root FOLDER --backbones resnet50 vit_small_patch14_dinov2 [--weights NAME=FILE] [--test]

    OUTPUT/probe.csv       a row for each backbone; a failed one has the reason
    OUTPUT/probe.png       accuracy against the time of an image
    OUTPUT/caches/NAME     features of a backbone, which any head can be trained on (docs/feature_cache.md)
    OUTPUT/costs/          measured time of each backbone

The same command goes on where it was interrupted. See docs/probe.md.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command_line import FAILED, OK, Parser, run_command, say, start

if TYPE_CHECKING:
    from tools.probe.backbones import Backbone, Data
    from tools.probe.extraction import Extracted
    from tools.probe.measures import Linear
    from tools.probe.results import Row

DEFAULT = "configs/cascade_extract.yaml"
EXAMPLES = """\
Data, seed, accelerator and precision come from --config; any flag of main.py predict can be added, such as
--data.image_size 224, which then holds for all backbones.

examples:
  python -m tools.probe --data.root FOLDER --backbones mobilenetv2_100 resnet18
  python -m tools.probe --config configs/image_finetune.yaml --data.root FOLDER --backbones resnet18 resnet50 --test
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; all other flags are passed on to ``main.py predict``."""
    made = Parser(
        "probe",
        "Compare frozen backbones on a data set by a kNN and a linear probe.",
        usage="--data.root FOLDER --backbones NAME ... [--weights NAME=FILE ...] [--test] [...]",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add("--backbones", nargs="+", required=True, metavar="NAME", help="networks of timm, such as resnet50.a1_in1k")
    add("--config", action="append", metavar="FILE", help=f"configuration of the data, and overlays ({DEFAULT})")
    add("--weights", nargs="+", default=[], metavar="NAME=FILE", help="a file of weights; NAME=random for random ones")
    add("--overlay", nargs="+", default=[], metavar="NAME=FILE", help="settings of one backbone, a YAML file")
    add("--k", type=int, default=20, help="neighbours of the kNN probe (default: 20)")
    add("--temperature", type=float, default=0.07, metavar="T", help="of the votes of the neighbours (default: 0.07)")
    add(
        "--select",
        choices=("linear_acc", "linear_balanced_acc", "knn_acc", "knn_balanced_acc"),
        default="linear_acc",
        help="what chooses the best backbone on the validation split (default: linear_acc)",
    )
    add("--test", action="store_true", help="test the linear probe of the best backbone on the test split, once")
    add("--output", type=Path, metavar="DIR", help="folder of the results (default: probes/<folder of the data>)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code; 1 if a backbone failed, whose row has the reason.
    """

    def command() -> int:
        options, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        check(options, flags)
        return probe(options, flags)

    return run_command(command, "stopped; the same command goes on with what is done", parser)


def check(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Check the flags before torch is imported.

    Raises:
        ValueError: A value is out of its range, a flag is for one backbone only, or the output holds other files.
    """
    if options.k < 1:
        raise ValueError(f"--k: 1 or more neighbours, got {options.k}")
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise ValueError(f"--temperature: above 0, got {options.temperature}")
    own = {
        "--model.backbone": "--backbones",
        "--model.weights": "--weights NAME=FILE",
        "--model.pretrained": "--weights",
    }
    own |= {"--cache": "--output", "--trainer.devices": "none: one device is used"}
    for flag in flags:
        if instead := own.get(flag.partition("=")[0]):
            raise ValueError(f"{flag.partition('=')[0]}: is set for each backbone; the flag for it is {instead}")
    folder: Path | None = options.output
    if folder is not None and folder.exists() and not _is_ours(folder):
        raise ValueError(f"--output {folder}: holds other files; give an empty or new folder, or that of a probe")


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and (not any(folder.iterdir()) or any((folder / n).is_dir() for n in ("caches", "costs")))


def probe(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """Probe each backbone, print the table, and write the files.

    Args:
        options: The tool's own flags, parsed and checked.
        flags: Further flags of ``main.py predict``.

    Returns:
        0, or 1 if a backbone failed.

    Raises:
        ValueError: A setting is wrong whatever the backbone is, or the data cannot be read.
    """
    import logging

    from cli.app import configure_logging
    from cli.out_of_memory import release_memory
    from foundation.durations import clock_time
    from foundation.plotting import render, write_png
    from tools.probe.backbones import Data, backbones_of
    from tools.probe.extraction import CommonError
    from tools.probe.results import Row, choose, picture, print_table, write_csv

    configure_logging()
    logging.getLogger("callbacks.feature_writer").setLevel(logging.WARNING)  # its commands are for one cache
    backbones = backbones_of(options.backbones, options.weights, options.overlay)
    data = Data.of(options.config or [DEFAULT], flags)
    place = str(data.value("root") or data.class_path.rpartition(".")[2])
    output = options.output or Path("probes") / (Path(place).name or "data")
    rows: list[Row] = []
    heads: dict[str, Linear] = {}
    begun = time.monotonic()
    for number, backbone in enumerate(backbones, start=1):
        say("backbone", f"{number} of {len(backbones)}: {backbone.name}, {_said(backbone)}")
        row = Row(backbone.name, backbone.weights)
        rows.append(row)
        try:
            heads[backbone.name] = _probe_one(backbone, data, options, output, row)
        except CommonError as error:
            raise ValueError(str(error)) from error
        except Exception as error:
            row.failed = reason(error, backbone.name)
            say("failed", f"{backbone.name}; the reason is below the table")
        release_memory()
        if number < len(backbones):
            left = (time.monotonic() - begun) / number * (len(backbones) - number)
            say("probed", f"{number} of {len(backbones)} backbones, {clock_time(left)} left")
    best, untested = choose(rows, options.select), ""
    if best is not None:
        best.best = True
        if options.test:
            chosen = next(one for one in backbones if one.name == best.backbone)
            try:
                best.test_acc, best.test_balanced_acc = _tested(chosen, data, output, heads[best.backbone])
            except Exception as error:  # what was probed must not be lost
                untested = reason(error, best.backbone)
    print()
    print_table(rows, options.select)
    print()
    for row in rows:
        if row.failed:
            say("failed", f"{row.backbone}: {row.failed}")
    if best is None and (output / "probe.csv").exists():
        say("kept", f"{output / 'probe.csv'} of an earlier probe, since no backbone of this one ended")
        return FAILED
    write_csv(output / "probe.csv", rows, options.select)
    if best is not None:
        write_png(output / "probe.png", render(picture(rows, Path(place).name, options.k)))
        say(
            "best",
            f"{best.backbone} by {options.select} on the validation split, which also chose C: a little optimistic",
        )
        if best.test_acc is not None:
            say("test", f"linear probe of {best.backbone}: {_both(best.test_acc, best.test_balanced_acc)}")
    say("written", f"{output / 'probe.csv'}{'' if best is None else ', probe.png'}; features in {output / 'caches'}")
    if untested:
        say("failed", f"the test of the best backbone: {untested}")
    return FAILED if untested or any(row.failed for row in rows) else OK


def _probe_one(backbone: Backbone, data: Data, options: argparse.Namespace, output: Path, row: Row) -> Linear:
    """Extract, probe and fill a row; returns the linear probe."""
    from foundation.sizes import size_of, size_text
    from tools.probe.extraction import CommonError, extract, read_split
    from tools.probe.measures import accuracies, knn_votes, linear_probe

    wanted = ("train", "val", "test") if options.test else ("train", "val")
    found = extract(backbone, data, ("train", "val"), output, wanted)
    classes = len(found.header.identity.class_names)
    (train, label), (held, truth) = (read_split(found, split) for split in ("train", "val"))
    if absent := sorted(set(range(classes)) - set(label.tolist())):
        names = ", ".join(found.header.identity.class_names[number] for number in absent[:5])
        raise CommonError(
            f"{len(absent)} of {classes} classes have no training sample: {names}; a probe needs one of each"
        )
    try:
        votes = knn_votes(train, label, held, classes, options.k, options.temperature)
    except ValueError as error:
        raise CommonError(str(error)) from error
    row.knn_acc, row.knn_balanced_acc = accuracies(votes, truth)
    head = linear_probe(train, label, held, truth, classes, options.select.partition("_")[2])
    row.linear_acc, row.linear_balanced_acc, row.c = head.acc, head.balanced_acc, head.c
    if not head.converged:
        say("note", f"{backbone.name}: the linear probe of C {head.c:g} did not converge; its value is a lower bound")
    row.image_size = size_text(size_of(found.header.identity.image_size))
    row.feature_width = found.header.identity.feature_width
    row.parameters, row.ms_per_image = found.cost.parameters, found.cost.ms_per_image
    say("", f"kNN {_both(row.knn_acc, row.knn_balanced_acc)}; linear {_both(head.acc, head.balanced_acc)}")
    return head


def _tested(backbone: Backbone, data: Data, output: Path, head: Linear) -> tuple[float, float]:
    """Accuracy and balanced accuracy of a linear probe on the test split, whose features are extracted now."""
    from tools.probe.extraction import extract, read_split
    from tools.probe.measures import accuracies, exact_products

    found: Extracted = extract(backbone, data, ("test",), output, ("test",))
    features, label = read_split(found, "test")
    with exact_products():
        return accuracies(features @ head.weight.float().T + head.bias.float(), label)


def reason(error: Exception, name: str) -> str:
    """One line on why a backbone failed."""
    from callbacks import is_out_of_memory
    from cli.system_faults import in_words
    from foundation.bounded.messages import one_line

    if (text := in_words(error, None, False)) is not None:
        return text
    text = one_line(" ".join(str(error).split())) or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory ({text[:120]}); give a smaller --data.batch_size or --data.image_size"
    known = isinstance(error, (ValueError, OSError)) or type(error).__name__ in (
        "UsageError",
        "MisconfigurationException",
    )
    text = text.replace("--model.weights FILE --model.pretrained false", f"--weights {name}=FILE")
    return text if known else f"{type(error).__name__}: {text}"


def _said(backbone: Backbone) -> str:
    if backbone.weights == "pretrained":
        return "weights of timm"
    return "random weights: only for comparison" if backbone.weights == "random" else f"weights {backbone.weights}"


def _both(acc: float, balanced: float | None) -> str:
    return f"{100 * acc:.2f} % (balanced {100 * (balanced or 0.0):.2f} %)"


if __name__ == "__main__":
    start(main)
