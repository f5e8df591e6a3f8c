"""`PromptSet`, a data set for prompted segmentation: lists its image and mask files, checks them, and groups images for the split.

FOLDER/images/a.jpg   FOLDER/masks/a.png     a mask has its image's name without the extension, and its image's size

A mask is white (above 127) on the object and black elsewhere. An all-black mask means that the object is absent. Polygons in place
of masks are read by datamodules/segmentation/coco.py. This module reads only headers (names and sizes), group tables, the bytes of
possible duplicates and, on request, perceptual hashes of the images.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules.images.class_folders import duplicate_groups, listed, read_groups
from datamodules.images.formats import EXTENSIONS, is_image, missing_package, readable_formats
from datamodules.images.near_duplicates import alike
from datamodules.segmentation.polygons import Shape
from datamodules.splitting.grouped import join_groups

log = logging.getLogger(__name__)

THREADS = 8  # opening a file waits for the disk
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height
ORIENTATION = 0x0112


@dataclass
class PromptSet:
    """A data set and the prompts of its object.

    Args:
        folder: Folder with `images` and `masks`, relative to `root`; with `annotations`: folder with `images`, or with the image
            files themselves.
        prompts: Texts that name the object, synonyms of each other; the first one is used in evaluation and as the object's name in
            metrics and plots. Sets with the same first prompt show the same object.
        groups: CSV file, relative to `root`, that assigns images to groups; a group is never divided between splits.
        group_column: Column of the CSV with the group.
        file_column: Column of the CSV with the image's name; null: `file`, or else the first one.
        annotations: Annotation file in COCO format with polygons in place of masks, relative to `root`; null: mask files.
        categories: Names of the COCO categories that count as the object; null: all.
    """

    folder: str
    prompts: list[str]
    groups: str | None = None
    group_column: str = "group"
    file_column: str | None = None
    annotations: str | None = None
    categories: list[str] | None = None


class Pair(NamedTuple):
    """An image with its mask.

    Attributes:
        image: Image file.
        mask: Mask file, or annotation file with the polygons.
        prompt: Number of the object that the mask shows.
        size: Height and width in pixels after applying the EXIF orientation.
        shapes: Polygons and run lengths; None if the mask is an image file.
    """

    image: Path
    mask: Path
    prompt: int
    size: tuple[int, int]
    shapes: tuple[Shape, ...] | None = None


def check_sets(sets: Sequence[PromptSet]) -> None:
    """Check the settings of the data sets.

    Raises:
        ValueError: There is no set, a set has no valid prompts, a folder is listed twice with the same masks, or categories are
            given without an annotation file.
    """
    if not sets:
        raise ValueError("sets: give at least one data set, a folder with its prompts, got none")
    for one in sets:
        if not are_prompts(one.prompts):
            raise ValueError(
                f"sets: {one.folder}: prompts must be different texts with a letter or a digit, at least one, got {one.prompts}"
            )
        if one.categories is not None and (one.annotations is None or not one.categories):
            raise ValueError(
                f"sets: {one.folder}: categories must name categories of the file `annotations`, got {one.categories}"
            )
    sources = [(one.folder, one.annotations, str(one.categories)) for one in sets]
    if twice := sorted({source[0] for source in sources if sources.count(source) > 1}):
        raise ValueError(
            f"sets: list each folder once, got {twice[0]} more than once; list it again only with other categories"
        )


def are_prompts(texts: Sequence[str]) -> bool:
    """Whether there is at least one text, all are different, and each has a letter or a digit."""
    return len({*texts}) == len(texts) > 0 and all(any(map(str.isalnum, text)) for text in texts)


def synonyms_of(sets: Iterable[PromptSet]) -> list[list[str]]:
    """Collect the prompts of each object, its name first; sets with the same first prompt are merged.

    >>> synonyms_of([PromptSet("a", ["crack", "fissure"]), PromptSet("b", ["joint"]), PromptSet("c", ["crack", "wall crack"])])
    [['crack', 'fissure', 'wall crack'], ['joint']]
    """
    found: dict[str, list[str]] = {}
    for one in sets:
        known = found.setdefault(one.prompts[0], [])
        known += [prompt for prompt in one.prompts if prompt not in known]
    return list(found.values())


def read_set(root: Path, one: PromptSet, prompt: int) -> list[Pair]:
    """List a data set's images and masks, sorted by name, and check that they match.

    Raises:
        MisconfigurationException: There is no image or no mask, an image has no mask, sizes differ, or a file is not an image.
    """
    folder = root / one.folder
    images = _image_files(folder / "images", one)
    masks = {path.stem: path for path in _image_files(folder / "masks", one) if path.suffix.lower() == ".png"}
    if not masks:
        raise MisconfigurationException(
            f"{folder / 'masks'}: prompt {one.prompts[0]!r} has no masks; expected a PNG with the same name for each image"
        )
    stems = [path.stem for path in images]
    if twice := sorted(stem for stem, count in Counter(stems).items() if count > 1):
        raise MisconfigurationException(
            f"{folder / 'images'}: {listed(twice)}: two images have this name, so it is unclear which one the mask belongs to"
        )
    if bare := [path.name for path in images if path.stem not in masks]:
        raise MisconfigurationException(
            f"{folder}: {len(bare):,} of the {len(images):,} images have no mask: {listed(bare)}; "
            "add an all-black mask to images without the object, and remove the others"
        )
    if unused := sorted(masks.keys() - {*stems}):
        log.warning(f"{folder}: {len(unused):,} masks have no image: {listed(unused)}; not used")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, images))
        mask_sizes = list(pool.map(size_of, [masks[stem] for stem in stems]))
    _check_sizes(folder, images, sizes, mask_sizes)
    return [Pair(path, masks[path.stem], prompt, size) for path, size in zip(images, sizes, strict=True) if size]


def _image_files(folder: Path, one: PromptSet) -> list[Path]:
    """List the image files directly in a folder, sorted."""
    if not folder.is_dir():
        raise MisconfigurationException(
            f"{folder}: no such folder; prompt {one.prompts[0]!r} needs {one.folder}/images and {one.folder}/masks"
        )
    files = [path for path in folder.iterdir() if is_image(path) and not path.name.startswith(".")]
    if not files and folder.name == "images":
        raise MisconfigurationException(f"{folder}: there is no image in it ({', '.join(EXTENSIONS)})")
    check_formats(files)
    return sorted(files)


def check_formats(files: Iterable[Path]) -> None:
    """Refuse image files whose format needs a package that is not installed.

    Raises:
        MisconfigurationException: There is such a file; the message says what to install.
    """
    for path in files:
        if needs := missing_package(path):
            raise MisconfigurationException(f"{path}: {needs}; or convert or remove such files")


def size_of(path: Path) -> tuple[int, int] | None:
    """Read height and width of an image from its header, after the EXIF orientation; None if the file is not an image."""
    try:
        with Image.open(path, formats=readable_formats()) as file:
            width, height = file.size
            # for a PNG without EXIF, Pillow would decode the pixels to look for it after them
            known = file.format != "PNG" or "exif" in file.info
            turned = known and file.getexif().get(ORIENTATION) in TURNED
    except MemoryError:
        raise
    except Exception:  # a damaged file can make a decoder raise anything
        return None
    return (width, height) if turned else (height, width)


def _check_sizes(
    folder: Path,
    images: Sequence[Path],
    sizes: Sequence[tuple[int, int] | None],
    mask_sizes: Sequence[tuple[int, int] | None],
) -> None:
    broken = [path.name for path, size in zip(images, sizes, strict=True) if size is None]
    broken += [f"mask of {path.name}" for path, size in zip(images, mask_sizes, strict=True) if size is None]
    if broken:
        raise MisconfigurationException(
            f"{folder}: {len(broken):,} files cannot be read as images: {listed(broken)}; repair or remove them"
        )
    differing = [
        f"{path.name} is {size[1]}x{size[0]}, its mask {other[1]}x{other[0]}"
        for path, size, other in zip(images, sizes, mask_sizes, strict=True)
        if size and other and size != other
    ]
    if differing:
        raise MisconfigurationException(
            f"{folder}: {len(differing):,} masks have another size than their image: {listed(differing)}; "
            "a mask must have the size of its image"
        )


def group_names(root: Path, sets: Sequence[PromptSet], pairs: Sequence[Sequence[Pair]], near: int | None) -> list[str]:
    """Return the group of each image, for all sets concatenated; without a table each image is its own group.

    Byte-identical images are in one group, also across sets. If `near` is given, so are images that look alike.

    Args:
        root: Folder that the names of the group tables are relative to.
        sets: The data sets.
        pairs: Images of each set.
        near: Largest Hamming distance between the 64-bit hashes of images that look alike, in bits; None: no hashes.

    Raises:
        MisconfigurationException: A table does not match the images.
    """
    groups: list[str] = []
    for one, listing in zip(sets, pairs, strict=True):
        names = [_name_in_set(root / one.folder, pair.image) for pair in listing]
        if one.groups is None:
            groups += [f"{one.folder}/{name}" for name in names]
            continue
        try:
            found = read_groups(root / one.groups, one.group_column, names, one.file_column)
        except (ValueError, FileNotFoundError) as error:
            raise MisconfigurationException(f"sets: {one.folder}: groups: {error}") from error
        groups += [f"{one.groups}: {name}" for name in found]  # sets that share a table share its groups
    places: dict[Path, list[int]] = {}  # an image may be in several sets with different categories
    for place, path in enumerate(pair.image for listing in pairs for pair in listing):
        places.setdefault(path, []).append(place)
    paths = list(places)
    same = duplicate_groups(paths)
    if same:
        log.info(
            f"duplicates {sum(map(len, same)):,} images are byte-identical to another image; identical images stay in one split"
        )
    if near is not None and (found_alike := alike(paths, near)):
        log.info(
            f"duplicates {len({i for pair in found_alike for i in pair}):,} images look like another "
            f"(hashes differ in at most {near} of 64 bits); such images stay in one split"
        )
        same += [[paths[i] for i in pair] for pair in found_alike]
    together = [[place for path in group for place in places[path]] for group in same]
    return join_groups(groups, [*together, *places.values()])


def _name_in_set(folder: Path, image: Path) -> str:
    within = folder / "images" if image.is_relative_to(folder / "images") else folder
    return image.relative_to(within).as_posix()
