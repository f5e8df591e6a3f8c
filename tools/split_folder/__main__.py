"""Split a folder of images with one folder per class into train, val and test, by links, copies or an index file.

    python -m tools.split_folder SOURCE TARGET [--shares 0.8 0.1 0.1] [--seed 0] [--mode link|symlink|copy|index]
                                 [--groups CSV --group_column NAME] [--duplicates keep_together|drop]

    SOURCE/cat/trip/2.png  ->  TARGET/train/cat/trip/2.png   and a row in TARGET/split.csv

Everything is written into a folder beside TARGET that is renamed to TARGET at the end: a run that is stopped, by whatever, leaves
nothing at TARGET. SOURCE is only read. How samples are drawn: datamodules/splitting/grouped.py.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tools.command_line import Parser, run_command, say, start, watched

if TYPE_CHECKING:  # imported where it is used: the package brings torch, and --help should not wait for that
    from datamodules.images.class_folders import ImageFolder
    from datamodules.splitting.grouped import GroupedSplit

T = TypeVar("T")
SPLITS = ("train", "val", "test")
INDEX = "split.csv"
DONE = {"link": "hard links", "symlink": "symbolic links", "copy": "copies", "index": "rows"}
EXAMPLES = """\
what is guaranteed:
  SOURCE is not changed, and nothing is ever overwritten: TARGET must not exist or be empty. Each class keeps its shares to within
  one image where neither groups nor duplicates bind; how far it is off is printed. No group and no two files of the same bytes
  are in two splits. The same SOURCE, shares, groups and seed give the same split.

examples:
  python -m tools.split_folder photos photos_split
  python -m tools.split_folder photos photos_split --mode index --seed 1
  python -m tools.split_folder road road_split --shares 0.7 0.15 0.15 --groups road/groups.csv --group_column road
"""


class Sample(NamedTuple):
    """An image that is kept: its name relative to SOURCE, its class and the name of its split."""

    file: str
    label: str
    split: str


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        "split_folder",
        description="Split a folder of images with one folder per class into train, val and test.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="folder with one folder of images per class, at any depth below it")
    add("target", metavar="TARGET", type=Path, help="folder to make; must not exist or be empty, nor lie in SOURCE")
    add(
        "--shares",
        nargs=3,
        type=float,
        default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VAL", "TEST"),
        help="share of each split, in sum 1; 0 makes no such split (default: 0.8 0.1 0.1)",
    )
    add("--seed", type=int, default=0, help="another seed draws another split (default: 0)")
    add(
        "--mode",
        choices=list(DONE),
        default="link",
        help="link: hard links, which take no space, on SOURCE's file system; editing one in place edits the image in SOURCE. "
        "symlink: links that break when SOURCE is moved. copy: independent files. "
        f"index: only TARGET/{INDEX} with the columns file, class, split (default: link)",
    )
    add("--groups", type=Path, metavar="CSV", help="table that says which images belong together, such as one person's")
    add("--group_column", metavar="NAME", help="its column with the group")
    add(
        "--file_column",
        metavar="NAME",
        help="its column with the image, as a path from SOURCE or a name that is unique, with or without extension "
        "(default: file, or else the first column)",
    )
    add(
        "--duplicates",
        choices=["keep_together", "drop"],
        default="keep_together",
        help="files of the same bytes: all into one split, or only the first by name (default: keep_together)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; ``argv`` as on the command line, None takes the process's own. Returns the exit code."""
    return run_command(lambda: split_folder(parser().parse_args(argv)), "stopped; TARGET was not written")


def split_folder(options: argparse.Namespace) -> None:
    """Read SOURCE, draw the split, write TARGET and print what was done.

    Args:
        options: As parsed by ``parser``.

    Raises:
        ValueError: The input is wrong.
        OSError: A file cannot be read or written.
    """
    if (options.groups is None) != (options.group_column is None):
        raise ValueError("--groups and --group_column belong together: a CSV, and its column with the group")
    source, target = options.source, Path(os.path.realpath(options.target))
    _check_target(source, target)
    from datamodules.images.class_folders import scan
    from datamodules.splitting.grouped import exact_shares, grouped_split

    exact_shares(options.shares)  # before files are read, which may take minutes
    folder = scan(source)
    reasons = ", ".join(f"{len(paths):,} {reason}" for reason, paths in sorted(folder.left_out.items()))
    say(
        "source",
        f"{len(folder.images):,} images of {len(folder.class_names)} classes; left out: {reasons or 'nothing'}",
    )
    files = [path.relative_to(source).as_posix() for path, _ in folder.images]
    labels = [label for _, label in folder.images]
    groups, dropped = _groups(options, folder, files)
    kept = [index for index in range(len(files)) if index not in dropped]
    split = grouped_split([labels[i] for i in kept], [groups[i] for i in kept], options.shares, options.seed)
    samples = [Sample(files[i], labels[i], SPLITS[s]) for i, s in zip(kept, split.assignment, strict=True)]
    for line in table(split):
        print(line)
    used = [name for name, share in zip(SPLITS, options.shares, strict=True) if share]
    _write(samples, [(name, label) for name in used for label in folder.class_names], source, target, options.mode)
    say(
        "written", f"{options.target}: {len(samples):,} {DONE[options.mode]}" + f", {INDEX}" * (options.mode != "index")
    )


def _check_target(source: Path, target: Path) -> None:
    real = Path(os.path.realpath(source))
    if target == real or real in target.parents:
        raise ValueError(f"TARGET {target} lies in SOURCE {real}: give a folder outside of it")
    if target.exists():
        if not target.is_dir():
            raise ValueError(f"TARGET {target} is a file: give a folder that does not exist or is empty")
        if any(target.iterdir()):
            raise ValueError(
                f"TARGET {target} is not empty and nothing is overwritten: give another, or empty it first"
            )


def _groups(options: argparse.Namespace, folder: ImageFolder, files: list[str]) -> tuple[list[str], set[int]]:
    """The group of each image, joined where bytes are the same, and the images to drop."""
    from datamodules.images.class_folders import duplicate_groups, listed, read_groups
    from datamodules.splitting.grouped import join_groups

    groups = list(files)
    if options.groups:
        groups = read_groups(options.groups, options.group_column, files, options.file_column)
        sizes = Counter(groups)
        largest, size = max(sizes.items(), key=lambda item: item[1])
        of = f"{options.group_column} in {options.groups}"
        say("groups", f"{len(sizes):,} of {of}; the largest is {printable(largest)} with {size:,} images")
    place = {path: index for index, (path, _) in enumerate(folder.images)}
    paths = [path for path, _ in folder.images]
    same = [
        [place[path] for path in paths]
        for paths in duplicate_groups(paths, lambda doubtful: watched("read", doubtful, "files"))
    ]
    if torn := [one for one in same if len({folder.images[index][1] for index in one}) > 1]:
        sets = listed([" = ".join(files[index] for index in one) for one in torn])
        times = "once" if len(torn) == 1 else f"{len(torn):,} times"
        raise ValueError(
            f"{options.source}: the same bytes under different classes, {times}: {sets}; remove the wrong ones"
        )
    dropped = {index for one in same for index in one[1:]} if options.duplicates == "drop" else set()
    number = sum(len(one) for one in same)
    what = f"the first of a set is kept, {len(dropped):,} dropped" if dropped else "a set stays in one split"
    say(
        "duplicates",
        f"{number:,} files of the same bytes as another, in {len(same):,} set{'s' * (len(same) > 1)}; {what}"
        if same
        else "none",
    )
    return join_groups(groups, same), dropped


def _write(samples: list[Sample], folders: list[tuple[str, str]], source: Path, target: Path, mode: str) -> None:
    """Write everything beside TARGET and rename it; os.rename refuses a TARGET that is no longer empty."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        partial = beside / target.name
        partial.mkdir()
        with (partial / INDEX).open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerows([("file", "class", "split"), *samples])
        if mode != "index":
            for split, label in folders:  # also those without an image, as classes are numbered by their folders
                (partial / split / label).mkdir(parents=True)
            for sample in watched("written", samples, "files"):
                place = partial / sample.split / sample.file
                place.parent.mkdir(parents=True, exist_ok=True)
                _put(source / sample.file, place, mode)
        os.rename(partial, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(image: Path, place: Path, mode: str) -> None:
    """One image by link or copy; FileExistsError where there is one already."""
    real = os.path.realpath(image)  # of an image that is a link itself, what it leads to
    if mode == "copy":
        with open(real, "rb") as read, place.open("xb") as written:
            shutil.copyfileobj(read, written)
        shutil.copystat(real, place)
    elif mode == "symlink":
        place.symlink_to(real)
    else:
        try:
            os.link(real, place)
        except OSError as error:
            raise ValueError(
                f"{image}: no hard link can be made in TARGET ({error.strerror}); use --mode symlink or --mode copy"
            ) from error


def table(split: GroupedSplit) -> list[str]:
    """The split as lines of text: images and percentages of each class in each split, and what is worth knowing of it."""
    rows = [*split.counts.items(), ("all", [sum(column) for column in zip(*split.counts.values(), strict=True)])]
    width = max(len(printable(name)) for name, _ in (*rows, ("class", [])))
    lines = ["", f"{'class':{width}}  {'images':>9}" + "".join(f"  {name:>16}" for name in SPLITS)]
    for name, counts in rows:
        cells = "".join(f"  {count:>9,} {count / sum(counts):>6.1%}" for count in counts)
        lines.append(f"{printable(name):{width}}  {sum(counts):>9,}{cells}")
    off, label, s = split.largest_deviation()
    lines += ["", f"largest deviation from the shares: {off:.1f} images ({printable(label)} in {SPLITS[s]})"]
    if absent := split.absent():
        named = ", ".join(f"{printable(label)} in {SPLITS[s]}" for label, s in absent[:5])
        more = f" and {len(absent) - 5:,} more" if len(absent) > 5 else ""
        lines.append(f"warning: classes without an image: {named}{more}; they have too few images or groups")
    return lines


def printable(name: str) -> str:
    """A name whose bytes are no UTF-8 with those bytes escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    start(main)
