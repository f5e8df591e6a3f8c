"""The command that scores how far the images of a folder are from what a run knows, by the energy of its logits.

    python -m tools.outliers RUN_DIR --data.images FOLDER [--split test] [--keep 0.95] [--temperature 1]

    OUTPUT/outliers.csv    a row for each image of the split and of the folder: score and decision
    OUTPUT/outliers.png    histogram of both, and the threshold
    OUTPUT/outliers.json   AUROC, FPR at 95 % TPR, threshold, counts, settings

The threshold is the highest that a share of the validation images reaches. See docs/outliers.md.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tools.command_line import OK, Parser, run_command, say, start

if TYPE_CHECKING:
    from datamodules.images.split_files import Split
    from tools.outliers.scores import Scores
    from tools.run_logits import RunLogits

OF_AN_EVALUATION = re.compile(r"--(data|trainer|model)\.")
TPR = 0.95
DECISIONS = ("outlier", "known")
EXAMPLES = """\
examples:
  python -m tools.outliers RUN_DIR --data.images PHOTOS
  python -m tools.outliers RUN_DIR --data.images PHOTOS --split val --keep 0.99 --output outliers
"""


def parser() -> argparse.ArgumentParser:
    """Create the parser of the tool's own flags; settings of data, trainer and model are passed on to ``main.py``."""
    made = Parser(
        "outliers",
        "Score how far the images of a folder are from what a run knows, by the energy of its logits.",
        usage="RUN_DIR --data.images FOLDER [--split test|val] [--keep SHARE] [--temperature T] [--output DIR]",
        epilog=EXAMPLES,
    )
    add = made.add_argument
    add("run", metavar="RUN_DIR", type=Path, help="folder of a finished run of a classifier")
    add("--data.images", dest="images", required=True, metavar="FOLDER", help="images that the run does not know")
    add("--ckpt", default="best", help="best (default), last, or the path of a checkpoint")
    add("--split", choices=("test", "val"), default="test", help="known images of the run (default: test)")
    add(
        "--keep",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="of the validation images that are kept (default: 0.95)",
    )
    add("--temperature", type=float, default=1.0, metavar="T", help="of the score (default: 1)")
    add("--output", type=Path, metavar="DIR", help="folder of the results (default: RUN_DIR/outliers/<images>)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> int:
        options, flags = parser().parse_known_args(sys.argv[1:] if argv is None else argv)
        return outliers(options, flags)

    return run_command(command, parser=parser)


def check(options: argparse.Namespace, flags: Sequence[str]) -> None:
    """Check the flags before torch is imported.

    Raises:
        ValueError: A value is out of its range, a flag is not known, or the run folder does not exist.
    """
    if not 0 < options.keep <= 1:
        raise ValueError(f"--keep: a share of the validation images, above 0 and up to 1, got {options.keep:g}")
    if not (math.isfinite(options.temperature) and options.temperature > 0):
        raise ValueError(f"--temperature: above 0, got {options.temperature:g}")
    if wrong := [flag for flag in flags if flag.startswith("--") and not OF_AN_EVALUATION.match(flag)]:
        raise ValueError(f"{wrong[0]}: is neither a flag of this command nor a setting of the data; see --help")
    if not options.run.is_dir():
        from foundation.places import close_to

        raise ValueError(f"{options.run}: no such run folder{close_to(options.run, folder=True)}")


def outliers(options: argparse.Namespace, flags: Sequence[str]) -> int:
    """Score the images, print the figures, and write the files.

    Args:
        options: Parsed flags, see ``--help``.
        flags: Further settings of data, trainer and model.

    Returns:
        0.

    Raises:
        ValueError: A setting is wrong, or the network was trained on the images of a split.
        UsageError: The run is no classifier of one label a sample, or its data are no images.
    """
    check(options, flags)
    import numpy as np

    from cli.app import configure_logging
    from datamodules.images.unlabelled import GivenImages
    from foundation.atomic_files import write_json
    from foundation.plotting import render, write_png
    from tools.outliers.logits import image_logits
    from tools.outliers.picture import histogram
    from tools.outliers.scores import auroc, energy_scores, false_positive_rate, same_logits, threshold_keeping
    from tools.run_logits import run_logits

    configure_logging()
    # first: a wrong folder, or data that are no images, are refused at once
    logits, files = image_logits(options.run, options.images, options.ckpt, flags)
    splits = {
        split: run_logits("tools.outliers", options.run, split, options.ckpt, flags)
        for split in dict.fromkeys(("val", options.split))
    }
    for split, found in splits.items():
        if seen := found.data.seen.get(split, 0):
            raise ValueError(
                f"{options.run}: {seen:,} of the {len(found.label):,} {split} samples were trained on; take the run's own data"
            )
    scores = {split: energy_scores(found.logits, options.temperature) for split, found in splits.items()}
    known, others = scores[options.split], energy_scores(logits, options.temperature)
    threshold = threshold_keeping(scores["val"], options.keep)
    area, rate = auroc(known, others), false_positive_rate(known, others, TPR)
    kept = [float((values >= threshold).mean()) for values in (known, others)]
    given = GivenImages.of(options.images)
    assert given is not None
    output: Path = options.output or options.run / "outliers" / given.name
    output.mkdir(parents=True, exist_ok=True)
    rows = [
        *_rows(options.split, _files_of(splits[options.split], options.split), known, threshold),
        *_rows("images", files, others, threshold),
    ]
    _write(output / "outliers.csv", rows)
    title = (
        f"AUROC {area:.4f}; {100 * rate:.1f} % of the other images pass where {100 * TPR:.0f} % of the known ones do"
    )
    write_png(
        output / "outliers.png",
        render(histogram(known, others, threshold, (f"{options.split} split", given.name), title)),
    )
    write_json(
        output / "outliers.json",
        {
            "images": options.images,
            "split": options.split,
            "checkpoint": str(splits["val"].checkpoint),
            "temperature": options.temperature,
            "keep": options.keep,
            "threshold": threshold,
            "auroc": area,
            "fpr_at_95_tpr": rate,
            "known": len(known),
            "known_kept": kept[0],
            "others": len(others),
            "others_kept": kept[1],
            "validation": len(scores["val"]),
        },
    )
    say("known", f"{len(known):,} images of the {options.split} split, median score {np.median(known):.4g}")
    say("others", f"{len(others):,} images of {options.images}, median score {np.median(others):.4g}")
    if same := same_logits(logits, splits[options.split].logits):
        say("warning", f"{same:,} of the other images have the logits of a known one: they are the same pictures")
    say("AUROC", f"{area:.4f}; FPR at 95 % TPR {100 * rate:.2f} %")
    say(
        "threshold",
        f"{threshold:.6g}, which {100 * options.keep:g} % of {len(scores['val']):,} validation images reach",
    )
    say("kept", f"{100 * kept[0]:.2f} % of the known and {100 * kept[1]:.2f} % of the other images reach it")
    say("written", f"{output}: outliers.csv, outliers.png, outliers.json")
    return OK


def _files_of(found: RunLogits, split: Split) -> list[str]:
    """File of each sample of a split, or its position in the data if the samples are no files."""
    list_files = getattr(found.data, "files", None)
    names = list_files(split) if list_files is not None else None
    return [str(place) if names is None else names[place] for place in found.index.tolist()]


def _rows(source: str, files: Sequence[str], scores: Scores, threshold: float) -> list[tuple[str, str, str, str]]:
    return [
        (source, file, f"{score:.8g}", DECISIONS[bool(score >= threshold)])
        for file, score in zip(files, scores.tolist(), strict=True)
    ]


def _write(path: Path, rows: Sequence[tuple[str, str, str, str]]) -> None:
    from foundation.atomic_files import replace_file

    with (
        replace_file(path) as temporary,
        # a file name may contain bytes that are not valid UTF-8
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["source", "file", "score", "decision"])
        writer.writerows(rows)


if __name__ == "__main__":
    start(main)
