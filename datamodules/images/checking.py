"""Checks the image files of a run before its first step, and logs what was checked and which grey levels were found."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from datamodules.images.class_folders import listed
from datamodules.images.decoding import FULL, Levels
from datamodules.images.labelled import LabelledFiles
from datamodules.images.whole_files import Decoded, Look, decode_some

log = logging.getLogger(__name__)


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
    files: Sequence[tuple[LabelledFiles, int]], levels: Levels | None, policy: str, channels: int = 3
) -> Decoded:
    """Decode the doubtful files and a sample of the others, and log what was checked.

    Args:
        files: The N files, each a listing and the file's place in it.
        levels: Grey values that become black and white, as set; None: not set.
        policy: The augmentation policy, or `none`.
        channels: Channels that the network sees.

    Returns:
        What was found; places are those in `files`.
    """
    looks = [listing.looks[place] for listing, place in files]
    paths = [listing.folder / listing.names[place] for listing, place in files]
    deep = sum(one.deep for one in looks)
    found = decode_some(paths, [place for place, one in enumerate(looks) if not one.whole], channels=channels)
    log.info(f"checked    {what_was_checked(len(files), found)}")
    say_grey(paths, looks, channels)
    if deep and found.lowest <= found.highest:
        black, white = levels or FULL
        rounded = "" if policy == "none" else f"; {policy} works on 8 bits, so training images are rounded to them"
        log.info(
            f"grey       {deep:,} images have more than 8 bits: values of {found.lowest:.6g} to {found.highest:.6g} were found, "
            f"{black:g} to {white:g} become black to white (--data.levels){rounded}"
        )
    return found


def say_grey(paths: Sequence[Path], looks: Sequence[Look], channels: int) -> None:
    """Log once that some images are grey where most have colours, or the other way round: of another camera, or a mistake.

    Args:
        paths: The files.
        looks: What header and end of each file show.
        channels: Channels that the network sees.
    """
    grey = [one.grey for one in looks]
    few = sum(grey) <= len(grey) / 2
    odd = [path.name for path, one in zip(paths, grey, strict=True) if one == few]
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
