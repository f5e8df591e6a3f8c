"""Recognises a segmentation folder, images with their masks, where a folder of classes is expected.

FOLDER/wall/photos/a.jpg  FOLDER/wall/masks/a.png or a_mask.png     FOLDER/wall/a.jpg  FOLDER/wall/a_mask.png

Numbered files have the same names in all classes, and `with_mask` may be a class: masks must be called so and look like
masks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from PIL import Image

from datamodules.images.formats import is_image

SAME = 0.5  # share of a folder's images that must have a mask of the same name
CALLED = re.compile(
    r"mas[kqc]|segment|truth", re.IGNORECASE
)  # masks, Masken, masques, mascaras, segmentation, ground_truth
WORD = re.compile(r"^mas[kqc][a-z]*[ _.-]+|[ _.-]+mas[kqc][a-z]*$", re.IGNORECASE)  # of a file's name: mask_a, a_maske
COLOURS = 8  # the commonest colours of a mask; the others are of blurred edges
FLAT = 0.9  # share of a mask's pixels that have them
LOOKED_AT = 50  # names of masks that are compared with those of images
SIDE = 256  # pixels that are looked at along each side
ADVICE = "segmentation splits its sets itself, by data.val_fraction and data.groups (docs/segmentation.md)"


def stems_fit(images: Collection[str], masks: Collection[str]) -> bool:
    """Whether images of these stems have masks of those.

    Args:
        images: Names of the images without extension.
        masks: The same of the masks.
    """
    return bool(images) and len({*images} & {*masks}) >= SAME * len(images)


def text_around(images: Sequence[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """What is before and after an image's name in the name of its mask; None if they have the same names, or fit in no way.

    >>> text_around(["j1", "j2"], ["j1_maske", "j2_maske"])
    ('', '_maske')
    """
    if stems_fit(images, masks):
        return None
    longest = sorted(images, key=len, reverse=True)
    for mask in masks[:LOOKED_AT]:
        for image in longest:
            before, _, after = mask.partition(image)
            if image in mask and image != mask and stems_fit({f"{before}{other}{after}" for other in images}, masks):
                return before, after
    return None


def masks_among(folder: Path, images: Sequence[Path]) -> str:
    """Say which of the images in a folder of classes are masks of others; empty if none are.

    Args:
        folder: The folder of classes.
        images: Paths of all images in it.
    """
    if not any(map(CALLED.search, map(str, images))):
        return ""
    stems: dict[Path, dict[str, Path]] = defaultdict(dict)
    masks: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in images:
        place = path.parent.relative_to(folder)
        bare = WORD.sub("", path.stem)
        is_mask = bare != path.stem or CALLED.search("/".join(place.parts[-2:]))
        (masks if is_mask else stems)[place].setdefault(bare if is_mask else path.stem, path)
    for place, own in masks.items():
        for other in _near(place, stems):
            same = [stem for stem in stems[other] if stem in own]
            if stems_fit(stems[other], own) and _is_mask(own[same[0]], stems[other][same[0]]):
                what = "has masks next to their images" if place == other else f"has the masks of the images in {other}"
                return f"{place} {what}"
    return ""


def _near(masks: Path, folders: Collection[Path]) -> Iterator[Path]:
    """Folders that masks can belong to: the same one, those next to it, and images/day1 of masks/day1."""
    for other in folders:
        cousin = other.name == masks.name and other.parent.parent == masks.parent.parent
        if cousin or other in (masks, masks.parent) or other.parent == masks.parent:
            yield other


def looks_like_masks(masks: Path, images: Path) -> bool:
    """Whether the first picture of a folder looks like a mask and that of another does not; half of the images may lack one.

    Args:
        masks: Folder of what may be masks, whatever their names.
        images: Folder of the images.
    """
    found = [sorted(path for path in folder.iterdir() if is_image(path)) for folder in (masks, images)]
    if not found[0] or len(found[0]) < SAME * len(found[1]):
        return False
    try:
        with Image.open(found[0][0]) as first, Image.open(found[1][0]) as second:
            return _flat(first) and not _flat(second)
    except (OSError, ValueError, IndexError, Image.DecompressionBombError):
        return False


def _is_mask(mask: Path, image: Path) -> bool:
    """Whether a file has the size of its image and nearly all of its pixels have one of few colours, unlike the image."""
    try:
        with Image.open(mask) as first, Image.open(image) as second:
            return first.size == second.size and _flat(first) and not _flat(second)
    except (OSError, ValueError, Image.DecompressionBombError):
        return False


def _flat(picture: Image.Image) -> bool:
    size = (min(SIDE, picture.width), min(SIDE, picture.height))
    small = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    counts = sorted((count for count, _ in small.getcolors(SIDE * SIDE) or ()), reverse=True)
    return sum(counts[:COLOURS]) >= FLAT * sum(counts)
