"""The command that splits a folder of images, one folder per class, into train, val and test: by links, copies or an index file.

    python -m tools.split_folder SOURCE TARGET [--shares 0.8 0.1 0.1] [--seed 0] [--mode link|symlink|copy|index]
                                 [--groups CSV --group_column NAME] [--duplicates keep_together|drop]

    SOURCE/cat/trip/2.png  ->  TARGET/train/cat/trip/2.png   and a row in TARGET/split.csv

Everything is written into a temporary folder next to TARGET, which is renamed to TARGET at the end: a run that is interrupted or
killed leaves nothing at TARGET. SOURCE is only read. datamodules/splitting/grouped.py draws the samples.
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

from foundation.suggestions import first_names
from tools.command_line import Parser, run_command, say, start, watched

if TYPE_CHECKING:  # imported inside the functions: the package imports torch, which would delay --help
    from datamodules.images.class_folders import ImageFolder
    from datamodules.splitting.grouped import GroupedSplit

T = TypeVar("T")
SPLITS = ("train", "val", "test")
INDEX = "split.csv"
DONE = {"link": "hard links", "symlink": "symbolic links", "copy": "copies", "index": "rows"}
EXAMPLES = """\
guarantees:
  SOURCE is not changed, and nothing is ever overwritten: TARGET must be empty or must not exist. Without groups and duplicates,
  each class keeps its shares to within one image; the largest deviation is printed. A group is never divided between splits,
  nor are files with the same bytes. The same SOURCE, shares, groups and seed give the same split.

examples:
  python -m tools.split_folder photos photos_split
  python -m tools.split_folder photos photos_split --mode index --seed 1
  python -m tools.split_folder road road_split --shares 0.7 0.15 0.15 --groups road/groups.csv --group_column road
"""


class Sample(NamedTuple):
    """An image of the split: its path relative to SOURCE, its class, and the name of its split."""

    file: str
    label: str
    split: str


def parser() -> argparse.ArgumentParser:
    """Create the argument parser."""
    parser = Parser(
        "split_folder",
        description="Split a folder of images with one folder per class into train, val and test.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="folder with one folder of images per class, at any depth below it")
    add(
        "target",
        metavar="TARGET",
        type=Path,
        help="folder to create; must be empty or not exist, and must not lie in SOURCE",
    )
    add(
        "--shares",
        nargs=3,
        type=float,
        default=[0.8, 0.1, 0.1],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of the splits, which sum to 1; a share of 0 creates no split (default: 0.8 0.1 0.1)",
    )
    add("--seed", type=int, default=0, help="seed of the random draw (default: 0)")
    add(
        "--mode",
        choices=list(DONE),
        default="link",
        help="link: hard links, which take no space; TARGET must be on SOURCE's file system, and editing a link in place "
        "edits the image in SOURCE. "
        "symlink: symbolic links, which break when SOURCE is moved. copy: independent files. "
        f"index: only TARGET/{INDEX} with the columns file, class, split (default: link)",
    )
    add(
        "--groups",
        type=Path,
        metavar="CSV",
        help="table of images that belong together, such as all images of one person",
    )
    add("--group_column", metavar="NAME", help="column of the table with the group")
    add(
        "--file_column",
        metavar="NAME",
        help="column of the table with the image: path relative to SOURCE or unique file name, with or without extension "
        "(default: the column file if there is one, else the first column)",
    )
    add(
        "--duplicates",
        choices=["keep_together", "drop"],
        default="keep_together",
        help="files with the same bytes: put all into one split, or keep only the first by name (default: keep_together)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    return run_command(lambda: split_folder(parser().parse_args(argv)), "stopped; TARGET was not written")


def split_folder(options: argparse.Namespace) -> None:
    """Read SOURCE, draw the split, write TARGET and print a summary.

    Args:
        options: Flags as parsed by ``parser``.

    Raises:
        ValueError: A flag or the content of SOURCE is invalid.
        OSError: A file cannot be read or written.
    """
    if (options.groups is None) != (options.group_column is None):
        raise ValueError("--groups and --group_column: give both, a CSV and its column with the group")
    source, target = options.source, Path(os.path.realpath(options.target))
    _check_target(source, target)
    from datamodules.images.class_folders import scan_classes
    from datamodules.splitting.grouped import exact_shares, grouped_split

    exact_shares(options.shares)  # check the shares before reading the files, which may take minutes
    folder = scan_classes(source, "this tool splits")
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
        raise ValueError(f"TARGET {target} lies in SOURCE {real}: give a folder outside SOURCE")
    if target.exists():
        if not target.is_dir():
            raise ValueError(f"TARGET {target} is a file: give a folder that is empty or does not exist")
        if any(target.iterdir()):
            raise ValueError(
                f"TARGET {target} is not empty and nothing is overwritten: give another folder, or empty this one first"
            )


def _groups(options: argparse.Namespace, folder: ImageFolder, files: list[str]) -> tuple[list[str], set[int]]:
    """Determine the group of each image, with groups joined that share a file, and the indices of the images to drop."""
    from datamodules.images.class_folders import duplicate_groups, group_table, listed, read_groups
    from datamodules.splitting.grouped import join_groups

    groups = list(files)
    if options.groups:
        table = group_table(options.groups, options.source)
        groups = read_groups(table, options.group_column, files, options.file_column)
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
    """Write everything into a temporary folder and rename it to TARGET; os.rename fails if TARGET is not empty by then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        partial = temporary / target.name
        partial.mkdir()
        with (partial / INDEX).open("x", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerows([("file", "class", "split"), *samples])
        if mode != "index":
            for split, label in folders:  # also empty ones: readers number the classes by their folders
                (partial / split / label).mkdir(parents=True)
            for sample in watched("written", samples, "files"):
                place = partial / sample.split / sample.file
                place.parent.mkdir(parents=True, exist_ok=True)
                _put(source / sample.file, place, mode)
        os.rename(partial, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(image: Path, place: Path, mode: str) -> None:
    """Link or copy one image; raises FileExistsError or ValueError if ``place`` already exists."""
    real = os.path.realpath(image)  # if the image is a symbolic link, the file it points to
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
    """Lines of a table with the images of each class in each split, followed by the largest deviation and a warning if needed."""
    rows = [*split.counts.items(), ("all", [sum(column) for column in zip(*split.counts.values(), strict=True)])]
    width = max(len(printable(name)) for name, _ in (*rows, ("class", [])))
    lines = ["", f"{'class':{width}}  {'images':>9}" + "".join(f"  {name:>16}" for name in SPLITS)]
    for name, counts in rows:
        cells = "".join(f"  {count:>9,} {count / sum(counts):>6.1%}" for count in counts)
        lines.append(f"{printable(name):{width}}  {sum(counts):>9,}{cells}")
    off, label, s = split.largest_deviation()
    lines += ["", f"largest deviation from the shares: {off:.1f} images ({printable(label)} in {SPLITS[s]})"]
    if absent := split.absent():
        named = first_names([f"{printable(label)} in {SPLITS[s]}" for label, s in absent])
        lines.append(f"warning: classes without an image: {named}; they have too few images or groups")
    return lines


def printable(name: str) -> str:
    """Name as text, with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    start(main)
