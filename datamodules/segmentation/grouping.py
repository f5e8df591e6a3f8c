"""Groups of images that must stay in one split: tables of groups, files of the same bytes, images that look alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import duplicate_groups, read_groups
from datamodules.images.near_duplicates import alike
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import Pair, PromptSet
from datamodules.splitting.grouped import join_groups


def group_names(
    root: Path,
    sets: Sequence[PromptSet],
    pairs: Sequence[Sequence[Pair]],
    near: int | None,
    notes: Notes | None = None,
) -> list[str]:
    """Return the group of each image, for all sets concatenated; without a table each image is its own group.

    Byte-identical images are in one group, also across sets. If `near` is given, so are images that look alike.

    Args:
        root: Folder that the names of the group tables are relative to.
        sets: The data sets.
        pairs: Images of each set.
        near: Largest Hamming distance between the 64-bit hashes of images that look alike, in bits; None: no hashes.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: A table does not match the images.
    """
    notes = Notes() if notes is None else notes
    groups: list[str] = []
    for one, listing in zip(sets, pairs, strict=True):
        names = [_name_in_set(root / one.folder, pair.image) for pair in listing]
        if one.groups is None:
            groups += [f"{one.folder}/{name}" for name in names]
            continue
        try:
            found = read_groups(root / one.groups, one.group_column, names, one.file_column)
        except (ValueError, FileNotFoundError) as error:
            hint = "; leave `groups` out if no images belong together" if isinstance(error, FileNotFoundError) else ""
            raise MisconfigurationException(f"sets: {one.folder}: groups: {error}{hint}") from error
        groups += [f"{one.groups}: {name}" for name in found]  # sets that share a table share its groups
    places: dict[Path, list[int]] = {}  # an image may be in several sets with different categories
    for place, path in enumerate(pair.image for listing in pairs for pair in listing):
        places.setdefault(path, []).append(place)
    paths = list(places)
    same = duplicate_groups(paths)
    if same:
        notes.inform(
            "duplicates",
            root,
            f"{sum(map(len, same)):,} images are byte-identical to another image; identical images stay in one split",
        )
    if near is not None and (found_alike := alike(paths, near)):
        notes.inform(
            "duplicates",
            root,
            f"{len({i for pair in found_alike for i in pair}):,} images look like another (hashes differ in at most {near} of 64 "
            "bits); such images stay in one split",
        )
        same += [[paths[i] for i in pair] for pair in found_alike]
    together = [[place for path in group for place in places[path]] for group in same]
    return join_groups(groups, [*together, *places.values()])


def _name_in_set(folder: Path, image: Path) -> str:
    within = folder / "images" if image.is_relative_to(folder / "images") else folder
    # images can lie next to an annotation file that is elsewhere
    return image.relative_to(within).as_posix() if image.is_relative_to(within) else image.as_posix()
