"""Data sets of a prompted segmentation: folders of images and masks, what is asked of them, and which images stay together.

FOLDER/images/a.jpg   FOLDER/masks/a.png     a mask has the name of its image without the ending, and the size of its image

A mask is white (over 127) where the object is, and black elsewhere; one that is black alone says that the object is absent.
Polygons in place of masks are read by datamodules/segmentation/coco.py. Here only headers are read: names, sizes, groups, files
of the same bytes, and on request hashes of what pictures look like.
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

from datamodules.images.class_folders import EXTENSIONS, duplicate_groups, listed, read_groups
from datamodules.images.decoding import FORMATS
from datamodules.images.near_duplicates import alike
from datamodules.segmentation.polygons import Shape
from datamodules.splitting.grouped import join_groups

log = logging.getLogger(__name__)

THREADS = 8  # opening files waits for the disk
TURNED = (5, 6, 7, 8)  # values of EXIF's orientation by which width and height change places
ORIENTATION = 0x0112


@dataclass
class PromptSet:
    """A data set and what is asked of it.

    Args:
        folder: Folder with `images` and `masks`, from `root`; with `annotations`, with `images`, or with the images themselves.
        prompts: Texts that name the object, synonyms of each other; the first one is asked in evaluation, and names it in figures.
            Sets whose first prompt is the same are of the same object.
        groups: CSV, from `root`, that says which images belong together: a group is on one side of the split only.
        group_column: Its column with the group.
        file_column: Its column with the name of the image; null: `file`, or else the first one.
        annotations: File of polygons in COCO's format, from `root`, in place of masks; null: masks.
        categories: Names of its categories that are the object; null: all.
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
        image: Its file.
        mask: The file of its mask, or of its polygons.
        prompt: Number of the prompt whose object the mask shows.
        size: Height and width in pixels, as the image is seen: turned as its EXIF orientation says.
        shapes: Its polygons; None where the mask is an image file.
    """

    image: Path
    mask: Path
    prompt: int
    size: tuple[int, int]
    shapes: tuple[Shape, ...] | None = None


def check_sets(sets: Sequence[PromptSet]) -> None:
    """Refuse sets that ask nothing.

    Raises:
        ValueError: There is no set, one has no prompts, a folder comes twice with the same masks, or categories have no file.
    """
    if not sets:
        raise ValueError("sets: at least one data set is needed, a folder with its prompts, got none")
    for one in sets:
        if not are_prompts(one.prompts):
            raise ValueError(
                f"sets: {one.folder}: prompts are different texts with a letter or a digit, at least one, got {one.prompts}"
            )
        if one.categories is not None and (one.annotations is None or not one.categories):
            raise ValueError(
                f"sets: {one.folder}: categories: names of categories in the file `annotations`, got {one.categories}"
            )
    sources = [(one.folder, one.annotations, str(one.categories)) for one in sets]
    if twice := sorted({source[0] for source in sources if sources.count(source) > 1}):
        raise ValueError(
            f"sets: each folder once, got {twice[0]} more than once; other categories of it are another set"
        )


def are_prompts(texts: Sequence[str]) -> bool:
    """Whether there are texts, all different, each with a letter or a digit."""
    return len({*texts}) == len(texts) > 0 and all(any(map(str.isalnum, text)) for text in texts)


def synonyms_of(sets: Iterable[PromptSet]) -> list[list[str]]:
    """The prompts by object, the first of each being its name; of sets of one object together.

    >>> synonyms_of([PromptSet("a", ["crack", "fissure"]), PromptSet("b", ["joint"]), PromptSet("c", ["crack", "wall crack"])])
    [['crack', 'fissure', 'wall crack'], ['joint']]
    """
    found: dict[str, list[str]] = {}
    for one in sets:
        known = found.setdefault(one.prompts[0], [])
        known += [prompt for prompt in one.prompts if prompt not in known]
    return list(found.values())


def read_set(root: Path, one: PromptSet, prompt: int) -> list[Pair]:
    """List a data set's images and their masks, in the order of their names, and check that they fit.

    Raises:
        MisconfigurationException: There is no image or no mask, an image has no mask, sizes differ, or a file is no image.
    """
    folder = root / one.folder
    images = _image_files(folder / "images", one)
    masks = {path.stem: path for path in _image_files(folder / "masks", one) if path.suffix.lower() == ".png"}
    if not masks:
        raise MisconfigurationException(
            f"{folder / 'masks'}: prompt {one.prompts[0]!r} has no masks; expected a PNG for each image, of the same name"
        )
    stems = [path.stem for path in images]
    if twice := sorted(stem for stem, count in Counter(stems).items() if count > 1):
        raise MisconfigurationException(
            f"{folder / 'images'}: {listed(twice)}: two images of one name, to which of them does the mask belong?"
        )
    if bare := [path.name for path in images if path.stem not in masks]:
        raise MisconfigurationException(
            f"{folder}: {len(bare):,} of the {len(images):,} images have no mask: {listed(bare)}; "
            "an image without the object needs a mask that is black, others are to be removed"
        )
    if unused := sorted(masks.keys() - {*stems}):
        log.warning(f"{folder}: {len(unused):,} masks have no image: {listed(unused)}; not used")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, images))
        mask_sizes = list(pool.map(size_of, [masks[stem] for stem in stems]))
    _check_sizes(folder, images, sizes, mask_sizes)
    return [Pair(path, masks[path.stem], prompt, size) for path, size in zip(images, sizes, strict=True) if size]


def _image_files(folder: Path, one: PromptSet) -> list[Path]:
    """The images directly in a folder, sorted."""
    if not folder.is_dir():
        raise MisconfigurationException(
            f"{folder}: no such folder; prompt {one.prompts[0]!r} needs {one.folder}/images and {one.folder}/masks"
        )
    files = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]
    if not files and folder.name == "images":
        raise MisconfigurationException(f"{folder}: there is no image in it ({', '.join(EXTENSIONS)})")
    return sorted(files)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width of an image as it is seen, from its header; None where it is no image."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
            # of a PNG without it, Pillow would decode the pixels to look behind them
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
            f"{folder}: {len(differing):,} masks are of another size than their image: {listed(differing)}; "
            "a mask has the pixels of its image"
        )


def group_names(root: Path, sets: Sequence[PromptSet], pairs: Sequence[Sequence[Pair]], near: int | None) -> list[str]:
    """The group of each image, of all sets one after the other; its own where there is no table.

    Images of the same bytes are in one group, also across sets, and so are those that look alike where `near` is given.

    Args:
        root: What the tables' names are relative to.
        sets: The data sets.
        pairs: Images of each.
        near: Largest distance of hashes that counts as looking alike, in bits of 64; None: no hashes.

    Raises:
        MisconfigurationException: A table does not fit the images.
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
        groups += [f"{one.groups}: {name}" for name in found]  # one table of two sets: a group of both is one
    places: dict[Path, list[int]] = {}  # an image may be in several sets, of other categories each
    for place, path in enumerate(pair.image for listing in pairs for pair in listing):
        places.setdefault(path, []).append(place)
    paths = list(places)
    same = duplicate_groups(paths)
    if same:
        log.info(
            f"duplicates {sum(map(len, same)):,} images of the same bytes as another stay on one side of the split"
        )
    if near is not None and (found_alike := alike(paths, near)):
        log.info(
            f"duplicates {len({i for pair in found_alike for i in pair}):,} images look like another "
            f"(hashes at most {near} of 64 bits apart) and stay on one side of the split"
        )
        same += [[paths[i] for i in pair] for pair in found_alike]
    together = [[place for path in group for place in places[path]] for group in same]
    return join_groups(groups, [*together, *places.values()])


def _name_in_set(folder: Path, image: Path) -> str:
    within = folder / "images" if image.is_relative_to(folder / "images") else folder
    return image.relative_to(within).as_posix()
