"""Checks the images and masks of a segmentation run before its first step, and logs what the masks of each prompt hold."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.checking import say_grey, what_was_checked
from datamodules.images.class_folders import listed
from datamodules.images.unreadable import report_unreadable
from datamodules.images.whole_files import Look, decode_some
from datamodules.segmentation.masks import CLASSES, MaskContents, MaskError, read_all, values_in, values_there
from datamodules.segmentation.prompt_sets import Pair, Value
from foundation.places import name_below

log = logging.getLogger(__name__)

NAMED = 3  # masks whose reasons a message gives
SEEN = 5  # masks whose values a message lists
LOOKED = 50  # refused masks whose values are listed together
FILLED = 0.9  # a mask with a larger share of the object may be inverted, if nearly all are so
ENOUGH = 3  # masks of a folder, from which that is said
FEW = 5  # so many masks are not all empty by chance


def check_images(root: Path, pairs: Sequence[Pair], looks: Sequence[Look]) -> None:
    """Decode the doubtful images and a sample of the others, and log what was checked.

    Args:
        root: Folder for the names in a message.
        pairs: The images; one that several sets have is checked once.
        looks: What header and end of each image file show.

    Raises:
        MisconfigurationException: Images cannot be read.
    """
    first = {pair.image: place for place, pair in reversed([*enumerate(pairs)])}
    pairs, looks = [pairs[place] for place in first.values()], [looks[place] for place in first.values()]
    wrong = {place: one.wrong for place, one in enumerate(looks) if one.wrong is not None}
    if not wrong:
        found = decode_some([pair.image for pair in pairs], [place for place, one in enumerate(looks) if not one.whole])
        wrong = dict(sorted(found.wrong.items()))
        log.info(f"checked    {what_was_checked(len(pairs), found)}")
        say_grey(root, [pair.image for pair in pairs], looks, 3)
    if wrong:
        named = {name_below(root, pairs[place].image): why for place, why in wrong.items()}
        report_unreadable(root, named, len(pairs), "repair or remove them")


def check_masks(root: Path, splits: Mapping[str, Sequence[Pair]], names: Sequence[str]) -> set[Path]:
    """Read the masks of these splits, refuse those that say something else than object or not, and log what they hold.

    Args:
        root: Folder for the names in a message.
        splits: Split -> its images with their masks.
        names: Name of each prompt.

    Returns:
        The masks that have been reported since some of their values are neither black nor white.

    Raises:
        MisconfigurationException: Masks are damaged or refused; or a prompt of training, or the whole validation split, has no
            positive pixel, or only positive ones; or no training image is there for a prompt.
    """
    found = {split: read_all(pairs) for split, pairs in splits.items()}
    wrong = {path: why for one in found.values() for path, why in one.wrong.items()}
    read = sum(one.read for one in found.values())
    if wrong:
        shown = "; ".join(f"{name_below(root, path)}: {wrong[path]}" for path in sorted(wrong)[:1])
        others = (
            f" (likewise {listed([name_below(root, path) for path in sorted(wrong)[1:]])})" if len(wrong) > 1 else ""
        )
        held = held_together(sorted(wrong))
        raise MisconfigurationException(f"{root}: {len(wrong):,} of {read:,} masks are refused: {shown}{others}{held}")
    if damaged := sorted(path for one in found.values() for path in one.damaged):
        raise MisconfigurationException(
            f"{root}: {len(damaged):,} of {read:,} masks cannot be read: {listed([name_below(root, p) for p in damaged])}; repair "
            "or remove them"
        )
    stray = {path: why for one in found.values() for path, why in one.stray.items()}
    for path in sorted(stray)[:NAMED]:
        log.warning(f"{path}: {stray[path]}")
    if len(stray) > NAMED:
        log.warning(f"and {len(stray) - NAMED:,} more masks have values that are neither black nor white")
    for split, one in found.items():
        _check_positive(split, one, splits[split], names)
    _check_sets(splits, found)
    _check_filled(found, names)
    _check_values([pair for pairs in splits.values() for pair in pairs], found)
    log.info(
        f"masks      {'; '.join(_shares(number, name, found) for number, name in enumerate(names))}{_sampled(found)}"
    )
    return set(stray)


def _check_positive(split: str, found: MaskContents, pairs: Sequence[Pair], names: Sequence[str]) -> None:
    whole = found.read == found.count
    there = {pair.prompt for pair in pairs}
    if split == "train" and (absent := [repr(name) for number, name in enumerate(names) if number not in there]):
        raise MisconfigurationException(
            f"no training image is there for {listed(absent)}; leave the prompt out, or add images"
        )
    for what, share in (("no positive pixel", 0.0), ("only positive pixels", 1.0)):
        same = [number for number in sorted(found.showing) if found.positive[number] == share]
        for number in same:
            of_prompt = [pair for pair in pairs if pair.prompt == number]
            files = listed(list(dict.fromkeys(pair.mask.name or pair.image.name for pair in of_prompt)))
            nothing = "nothing" if what.startswith("no ") else "everything"
            text = (
                f"{what} in the {found.images[number]:,} {split} masks of {names[number]!r} ({files}); a metric over them "
                f"is perfect if {nothing} is predicted"
            )
            held = f" (they hold {values})" if (values := _held(of_prompt)) else ""
            if whole and (split == "train" or (split == "val" and len(same) == len(found.showing))):
                raise MisconfigurationException(f"{text}{held}; check masks and categories, or leave the set out")
            log.warning(f"{text}{held}")


def _held(pairs: Sequence[Pair]) -> str:
    """The values that the first masks of several classes hold."""
    held: set[int] = set()
    for pair in pairs[:SEEN]:
        if pair.values is not None and isinstance(pair.values[0], int):
            held |= {*values_in(pair.mask)}
    return ", ".join(map(str, sorted(held)))


def _check_sets(splits: Mapping[str, Sequence[Pair]], found: Mapping[str, MaskContents]) -> None:
    """Warn of a folder whose masks are all empty though those of others for the same prompt are not: a set of negatives says so."""
    if any(one.read < one.count for one in found.values()):
        return
    empty = {path for one in found.values() for path in one.empty}
    of_folder: dict[tuple[Path, int], list[Path]] = {}
    for pair in (pair for pairs in splits.values() for pair in pairs if pair.shapes is None and pair.mask.name):
        of_folder.setdefault((pair.mask.parent, pair.prompt), []).append(pair.mask)
    for (folder, prompt), masks in of_folder.items():
        several = len({key for key in of_folder if key[1] == prompt}) > 1
        if several and len(masks) >= FEW and {*masks} <= empty:
            log.warning(
                f"{folder}: all {len(masks):,} masks are empty; if the set shows no object, say so with masks: none"
            )


def held_together(masks: Sequence[Path]) -> str:
    """What to say of the values of refused masks together, if they look like numbers of classes: one mask need not have all."""
    held: set[int] = set()
    for path in masks[:LOOKED]:
        try:
            held |= {*values_in(path)}
        except (MaskError, OSError):
            return ""
    if len(masks) == 1 or not 2 < len(held) <= CLASSES:
        return ""
    return (
        f"; together they hold {', '.join(map(str, sorted(held)))}: a set for each object names its value with `values`, or one "
        f"set gives the prompts of each: values: {{{max(held - {255})}: PROMPT}}"
    )


def _check_filled(found: Mapping[str, MaskContents], names: Sequence[str]) -> None:
    """Warn of a folder with nearly all masks full of the object: they may be inverted."""
    of_folder: dict[tuple[Path, int], list[float]] = {}
    for (path, prompt), share in ((key, share) for one in found.values() for key, share in one.shares.items()):
        of_folder.setdefault((path.parent, prompt), []).append(share)
    for (folder, prompt), shares in of_folder.items():
        filled = sum(share > FILLED for share in shares)
        if len(shares) >= ENOUGH and filled >= FILLED * len(shares):
            log.warning(
                f"{folder}: {filled:,} of {len(shares):,} masks have more than {FILLED:.0%} of their pixels on {names[prompt]!r}; "
                "are they inverted? the background must be black (or not among the `values`) and the object white"
            )


def _check_values(pairs: Sequence[Pair], found: Mapping[str, MaskContents]) -> None:
    """Warn of one of several `values` that no mask has."""
    read = {key for one in found.values() for key, share in one.shares.items() if share > 0}
    of_folder: dict[tuple[Path, tuple[Value, ...]], list[Path]] = {}
    for pair in pairs:
        if pair.values is not None and len(pair.values) > 1 and (pair.mask, pair.prompt) in read:
            of_folder.setdefault((pair.mask.parent, tuple(pair.values)), []).append(pair.mask)
    for (folder, values), masks in of_folder.items():
        absent = {*values}
        for path in masks:
            absent -= values_there(path, sorted(absent, key=str))
            if not absent:
                break
        if absent:
            shown = listed([str(value) for value in values if value in absent])
            log.warning(
                f"{folder}: of the values {[*values]}, {shown} is in none of the {len(masks):,} masks that show the object"
            )


def _shares(number: int, name: str, found: Mapping[str, MaskContents]) -> str:
    shown = [
        f"{one.positive[number]:.2%} of the {split} pixels in {one.showing[number]:,} of {one.images[number]:,} images"
        for split, one in found.items()
        if number in one.images
    ]
    return f"{name!r} {', '.join(shown) or 'in no image'}"


def _sampled(found: Mapping[str, MaskContents]) -> str:
    count, read = sum(one.count for one in found.values()), sum(one.read for one in found.values())
    seconds = sum(one.seconds for one in found.values())
    if read == count:
        return f" ({read:,} of {count:,} masks read in {seconds:.1f} s)"
    return f" (a sample of {read:,} of {count:,} masks read in {seconds:.1f} s; the rest is checked when it is read)"
