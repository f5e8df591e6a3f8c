"""The command that writes WebDataset shards from class folders or a table of labels; the same input gives the same bytes.

    python -m tools.write_shards --data.root FOLDER --output DIR [--shard_mb 64] [--seed 0] [--labels CSV]

    FOLDER/cat/1.jpg  ->  DIR/shard-00000.tar: 00000000.jpg 00000000.cls ...   DIR/classes.txt   DIR/files.csv
    FOLDER/train/cat/1.jpg  ->  DIR/train/shard-00000.tar ...

Samples are written in a seeded random order, so that a shard holds all classes. `plan.json` is written first; a shard has its name
only when it is whole. A command that was killed is started again, and writes what is missing.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import shlex
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.bounded.text import read_json
from foundation.project import as_typed
from tools.command_line import Parser, run_command, say, start, watched

if TYPE_CHECKING:  # imported inside the functions: the package imports torch, which would delay --help
    from tools.write_shards.sources import Image, Source

PLAN, CLASSES, FILES = "plan.json", "classes.txt", "files.csv"
BLOCK = tarfile.BLOCKSIZE
FEWEST = 20  # shards of a split from which whole shards are held out for another
EXAMPLES = """\
examples:
  python -m tools.write_shards --data.root FOLDER --output shards
  python main.py fit --config configs/image_standard.yaml --config configs/with/shards.yaml --data.shards shards
"""


def parser() -> argparse.ArgumentParser:
    """Create the argument parser."""
    parser = Parser(
        "write_shards",
        description="Write WebDataset shards of (image, label) from class folders or a table of labels.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add(
        "--data.root",
        dest="root",
        metavar="FOLDER",
        type=Path,
        required=True,
        help="folder with one folder of images per class, or with train/ and optionally val/ and test/ of such folders",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder to write; empty, or one this command had begun",
    )
    add(
        "--labels",
        "--data.labels",
        dest="labels",
        metavar="CSV",
        type=Path,
        help="table of files, labels and optionally splits in place of class folders, as --data.labels of a fit",
    )
    for name in ("file_column", "split_column"):
        add(f"--data.{name}", dest=name, metavar="NAME", help="as of a fit")
    add("--data.label_column", dest="label_column", metavar="NAME", nargs="+", help="as of a fit; several: one a class")
    add("--data.label_separator", dest="label_separator", metavar="TEXT", help="as of a fit")
    add(
        "--shard_mb",
        type=float,
        default=64.0,
        help="largest size of a shard in units of 1e6 bytes; smaller without val/ or test/, to hold some out (default: 64)",
    )
    add("--seed", type=int, default=0, help="seed of the order of the samples (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    again = "stopped; the same command writes what is missing"
    return run_command(lambda: write_shards(parser().parse_args(argv)), again)


def write_shards(options: argparse.Namespace) -> None:
    """Plan the shards, write those that are missing, and print how to train on them.

    Args:
        options: Flags as parsed by ``parser``.

    Raises:
        ValueError: A flag or the input is wrong, or the folder holds something else.
        OSError: A file cannot be read or written.
    """
    from datamodules.images.label_table import Columns
    from foundation.atomic_files import write_json, write_text
    from foundation.folder_lock import FolderInUseError, FolderLock
    from tools.write_shards.sources import read_source

    if not options.shard_mb > 0:
        raise ValueError(f"--shard_mb: {options.shard_mb:g} must be above 0")
    out: Path = options.output
    if out.resolve().is_relative_to(options.root.resolve()):
        raise ValueError(f"--output {out}: lies in {options.root}; give a folder outside of the images")
    label = options.label_column
    label = label[0] if label is not None and len(label) == 1 else label
    columns = Columns(options.file_column, label, options.split_column, options.label_separator)
    source = read_source(options.root, options.labels, columns)
    if empty := [part or str(options.root) for part, images in source.parts.items() if not images]:
        raise ValueError(f"{empty[0]}: has no image")
    shards = {
        part: plan(images, shard_bytes(part, source, options.shard_mb * 1e6), options.seed)
        for part, images in source.parts.items()
    }
    record = plan_record(source, options.shard_mb, options.seed)
    count = sum(map(len, shards.values()))
    images = sum(map(len, source.parts.values()))
    say("source", f"{images:,} images of {len(source.class_names)} classes, in {count:,} shards")
    _check_folder(out, record)
    try:
        lock = FolderLock(out, lambda line: say("lock", line))
    except FolderInUseError as error:
        raise ValueError(f"--output {' '.join(str(error).split())}") from None
    try:
        write_json(out / PLAN, record)
        write_text(out / CLASSES, "".join(f"{name}\n" for name in source.class_names))
        missing = [one for one in named(out, shards) if not one[0].is_file()]
        for path, numbered in watched("written", missing, "shards"):
            path.parent.mkdir(exist_ok=True)
            write_shard(path, numbered, source.root)
        for part in shards:
            _write_table(out / part, dict(named(out, {part: shards[part]})), source.class_names)
    finally:
        lock.release()
    say(
        "written",
        f"{out}: {len(missing):,} shards" + (f"; {count - len(missing):,} were there" * (len(missing) < count)),
    )
    flags = " ".join(f"--data.{_setting(part)} {shlex.quote(str(out / part))}" for part in shards)
    say(
        "next",
        as_typed(
            f"main.py fit --config configs/image_standard.yaml --config configs/with/shards.yaml {flags} --data.classes "
        )
        + shlex.quote(str(out / CLASSES))
        + "   (for a GPU; on a CPU: docs/sharded_sets.md)",
    )


def _setting(part: str) -> str:
    return "shards" if part in ("", "train") else f"{part}_shards"


def shard_bytes(part: str, source: Source, wanted: float) -> float:
    """Size of the shards of a split: smaller than wanted if shards must be held out from it and it would give too few.

    Args:
        part: Name of the split.
        source: The images.
        wanted: Size that is asked for.
    """
    if part == "val" or part == "test" or {"val", "test"} <= source.parts.keys():
        return wanted
    return min(wanted, sum(map(_bytes_of, source.parts[part])) / FEWEST)


def _bytes_of(image: Image) -> int:
    """Bytes that an image and its label take in a tar."""
    return sum(BLOCK + -(-length // BLOCK) * BLOCK for length in (image.size, 1))


def plan(images: Sequence[Image], shard_bytes: float, seed: int) -> list[list[tuple[int, Image]]]:
    """Divide images into shards, in a seeded random order.

    Args:
        images: The images.
        shard_bytes: Size at which a shard is closed; a larger image has a shard of its own.
        seed: Seed of the order.

    Returns:
        For each shard its samples: their number, from 0 over all shards, and the image.
    """
    import torch

    from datamodules.in_memory import seeded_generator

    order = torch.randperm(len(images), generator=seeded_generator("written shards", seed)).tolist()
    shards: list[list[tuple[int, Image]]] = []
    filled = shard_bytes
    for number, place in enumerate(order):
        size = _bytes_of(images[place])
        if filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((number, images[place]))
        filled += size
    return shards


def plan_record(source: Source, shard_mb: float, seed: int) -> dict[str, object]:
    """What decides every byte of the shards, for `plan.json`."""
    content = json.dumps([source.class_names, source.parts])
    return {"images": hashlib.sha256(content.encode()).hexdigest(), "shard_mb": shard_mb, "seed": seed, "format": 1}


def _check_folder(out: Path, record: dict[str, object]) -> None:
    """Check that a folder is empty, or holds shards of the same plan.

    Raises:
        ValueError: It holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--output {out}: is a file; give a folder")
    there = sorted(path.name for path in out.iterdir() if path.name != ".lock") if out.exists() else []
    if not there:
        return
    if PLAN not in there:
        raise ValueError(f"--output {out}: holds other files ({there[0]}); give an empty folder")
    try:
        before = dict(read_json(out / PLAN))
    except (ValueError, TypeError):
        before = {}
    if differs := [name for name in record if before.get(name) != record[name]]:
        what = (
            "the images or their classes have changed"
            if differs[0] == "images"
            else f"--{differs[0]} was {before.get(differs[0])}"
        )
        raise ValueError(f"--output {out}: holds shards of another plan ({what}); give an empty folder")


def named(
    out: Path, shards: dict[str, list[list[tuple[int, Image]]]]
) -> Iterator[tuple[Path, list[tuple[int, Image]]]]:
    """Yield the path of each shard with its samples."""
    for part, every in shards.items():
        for number, numbered in enumerate(every):
            yield out / part / f"shard-{number:05}.tar", numbered


def write_shard(path: Path, numbered: Sequence[tuple[int, Image]], root: Path) -> None:
    """Write one shard; it has its name only when it is whole.

    Raises:
        ValueError: A file has changed since the plan was made.
        OSError: A file cannot be read or written.
    """
    from foundation.atomic_files import replace_file

    with replace_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, image in numbered:
            content = (root / image.file).read_bytes()
            if len(content) != image.size:
                raise ValueError(f"{root / image.file}: has changed while the shards were written; start again")
            ending = Path(image.file).suffix.lower()
            for name, data in ((f"{number:08}{ending}", content), (f"{number:08}.cls", str(image.label).encode())):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))


def _write_table(folder: Path, shards: dict[Path, list[tuple[int, Image]]], class_names: Sequence[str]) -> None:
    """Write which file became which sample."""
    from foundation.atomic_files import write_text

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["shard", "key", "file", "class"])
    for path, numbered in shards.items():
        writer.writerows([path.name, f"{n:08}", image.file, class_names[image.label]] for n, image in numbered)
    write_text(folder / FILES, text.getvalue())


if __name__ == "__main__":
    start(main)
