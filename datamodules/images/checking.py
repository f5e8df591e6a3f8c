"""Checks the image files of a run before its first step, and logs what was checked and which grey levels were found.

Also compares the data with that of a feature cache, for the final run of a sweep (`check_expected`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.decoding import FULL, Levels
from datamodules.images.labelled import LabelledFiles
from datamodules.images.whole_files import Decoded, Look, decode_some
from foundation.places import name_below

log = logging.getLogger(__name__)

TABLES = {"labels": "table of labels", "groups": "table of groups"}
"""Settings of `ImageFolderDataModule` with a table, and what it is."""


def levels_of(looks: Sequence[Look], given: Levels | None) -> Levels | None:
    """Return the grey values that become 0 and 1 if any file has more than 8 bits; else None, and all are read as 8 bits."""
    return (given or FULL) if any(one.deep for one in looks) else None


def kinds_of(looks: Sequence[Look]) -> dict[str, float]:
    """Return the shares of grey files and of files with more than 8 bits."""
    count = max(1, len(looks))
    return {
        "grey": sum(one.grey for one in looks) / count,
        "of more than 8 bits": sum(one.deep for one in looks) / count,
    }


def check_decoding(
    files: Sequence[tuple[LabelledFiles, int]], levels: Levels | None, policy: str, channels: int, root: Path
) -> Decoded:
    """Decode the doubtful files and a sample of the others, and log what was checked.

    Args:
        files: The N files, each a listing and the file's place in it.
        levels: Grey values that become black and white, as set; None: not set.
        policy: The augmentation policy, or `none`.
        channels: Channels that the network sees.
        root: Folder for the names in the log.

    Returns:
        What was found; places are those in `files`.
    """
    looks = [listing.looks[place] for listing, place in files]
    paths = [listing.folder / listing.names[place] for listing, place in files]
    deep = sum(one.deep for one in looks)
    found = decode_some(paths, [place for place, one in enumerate(looks) if not one.whole], channels=channels)
    log.info(f"checked    {what_was_checked(len(files), found)}")
    say_grey(root, paths, looks, channels)
    if deep and found.lowest <= found.highest:
        black, white = levels or FULL
        rounded = "" if policy == "none" else f"; {policy} works on 8 bits, so training images are rounded to them"
        log.info(
            f"grey       {deep:,} images have more than 8 bits: values of {found.lowest:.6g} to {found.highest:.6g} were found, "
            f"{black:g} to {white:g} become black to white (--data.levels){rounded}"
        )
    return found


def say_grey(root: Path, paths: Sequence[Path], looks: Sequence[Look], channels: int) -> None:
    """Log once that some images are grey where most have colours, or the other way round: of another camera, or a mistake.

    Args:
        root: Folder for the names.
        paths: The files.
        looks: What header and end of each file show.
        channels: Channels that the network sees.
    """
    grey = [one.grey for one in looks]
    few = sum(grey) <= len(grey) / 2
    odd = [name_below(root, path) for path, one in zip(paths, grey, strict=True) if one == few]
    if channels == 3 and odd and len(odd) < len(grey):
        kind, others = ("as grey", "in colour") if few else ("in colour", "as grey")
        verb = "is" if len(odd) == 1 else "are"
        log.info(
            f"colours    {len(odd):,} of the {len(grey):,} images {verb} stored {kind}, the others {others}: {listed(odd)}"
        )


def what_was_checked(count: int, found: Decoded) -> str:
    """Describe what was checked of `count` files whose headers and ends were all read."""
    if found.count == count:
        return f"{count:,} of {count:,} images decoded in {found.seconds:.1f} s"
    return (
        f"header and end of {count:,} of {count:,} images; {found.count:,} decoded in {found.seconds:.1f} s, "
        "the others are decoded when they are read"
    )


def expected_of(class_names: Sequence[str], split: Mapping[str, object]) -> dict[str, str | None]:
    """Describe classes and tables as in the setting `expected`, in texts that no YAML reader takes for numbers.

    Args:
        class_names: Names of the classes.
        split: `split_settings` of the data, or of a cache's header; only those of an image folder tell of tables.
    """
    hashes = {name: split.get(name) for name in TABLES} if "groups" in split else {}
    tables = {name: None if value is None else f"sha256:{value}" for name, value in hashes.items()}
    return {"class_names": json.dumps([*class_names], ensure_ascii=False), **tables}


def check_expected(expected: Mapping[str, str | None], found: Mapping[str, str | None]) -> None:
    """Refuse data with other tables or other classes than the feature cache whose sweep it is the final run of.

    Args:
        expected: `expected_of` the cache.
        found: `expected_of` the data.

    Raises:
        MisconfigurationException: They differ; the message is one line.
    """
    for name in [name for name in (*TABLES, "class_names") if name in expected]:
        wanted, there = expected[name], found[name]
        if wanted == there:
            continue
        if name == "class_names":
            own, known = (listed(json.loads(text or "[]")) for text in (there, wanted))
            what = f"the classes are {own}, but the cache has {known}, in this order"
        elif there is None:
            what = f"--data.{name} is not given, but the cache was made with a {TABLES[name]}"
        elif wanted is None:
            what = f"--data.{name} is given, but the cache was made without a {TABLES[name]}"
        else:
            what = f"the {TABLES[name]} (--data.{name}) has another content than the one that the cache was made with"
        raise MisconfigurationException(
            f"the data is not that of the feature cache of the sweep: {what}; give the --data flags of the extraction, "
            "or --data.expected null to train on other data"
        )
