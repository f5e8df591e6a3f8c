"""`PromptSet`, a data set for prompted segmentation, `Pair`, one of its images with its mask, and what image headers say.

FOLDER/images/a.jpg   FOLDER/masks/a.png     a mask has its image's name without the extension, and its image's size

Mask files are listed by datamodules/segmentation/mask_files.py, polygons and run lengths read by coco.py, yolo.py and labelme.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageColor

from datamodules.images.formats import missing_package, readable_formats
from datamodules.segmentation.polygons import Contour, Shape
from foundation.slug import slug

THREADS = 8  # opening a file waits for the disk
TURNED = (5, 6, 7, 8)  # values of the EXIF orientation that swap width and height
ORIENTATION = 0x0112
Value = int | tuple[int, ...]  # of a pixel of a mask: number or palette index, or red, green and blue
NO_MASKS = "none"  # value of `masks` for a set whose images show no object
FIRST = (
    "folder",
    "prompts",
    "groups",
    "group_column",
    "file_column",
    "annotations",
    "categories",
)  # of the first version


@dataclass
class PromptSet:
    """A data set and the prompts of its object.

    Args:
        folder: Folder with `images` and `masks`, relative to `root`; with `annotations`: folder with `images`, or with the image
            files themselves.
        prompts: Texts that name the object, synonyms of each other; the first one is used in evaluation and as the object's name in
            metrics and plots. Sets with the same first prompt show the same object. Left out if `values` names the prompts.
        groups: CSV file, relative to `root`, that assigns images to groups; a group is never divided between splits.
        group_column: Column of the CSV with the group.
        file_column: Column of the CSV with the image's name; null: `file`, or else the first one.
        annotations: Polygons in place of masks, relative to `root`: a .json file in COCO's format; the data.yaml of a YOLO set, or
            its folder of .txt files; or a folder of labelme's .json files. null: mask files.
        categories: Names of the annotated categories that count as the object; null: all.
        masks: Folder of the mask files, relative to `folder`, or a pattern in which * is the name of the image, as in
            masks/*_crack.png; null: masks. none: the images show no object, and no masks are needed.
        values: Pixel values or palette indices, or colours such as "#800000", that are the object in mask files of several classes;
            null: masks are black and white. A mapping, as in {1: crack, 2: [patch, repair]}, gives the prompts of each value: the
            masks then show several objects.
        boxes: fill: an annotation with a box and no mask counts as the filled box; null: it is refused.
        polygons: area: a polygon has the pixels whose centres are inside. contour: its corners are the centres of the outermost
            pixels, as cv2.findContours, supervision and datumaro write outlines of masks; the outline counts too. null: as the
            annotating tool draws them, contour for labelme, else area.
        split: shipped: keep the split of an export, the folders train, valid (or val) and test in `folder`; train, val or test: all
            images are in this split. null: they are divided at random.
    """

    folder: str
    prompts: list[str] = field(default_factory=list)
    groups: str | None = None
    group_column: str = "group"
    file_column: str | None = None
    annotations: str | None = None
    categories: list[str] | None = None
    # null by default: a run of an older version, whose configuration lacks these, can be resumed
    masks: str | None = None
    values: list[int | str] | dict[int | str, str | list[str]] | None = None
    boxes: Literal["fill"] | None = None
    polygons: Literal["area", "contour"] | None = None
    split: Literal["shipped", "train", "val", "test"] | None = None


class Pair(NamedTuple):
    """An image with its mask.

    Attributes:
        image: Image file.
        mask: Mask file, or annotation file with the polygons.
        prompt: Number of the object that the mask shows.
        size: Height and width in pixels after applying the EXIF orientation.
        shapes: Polygons, contours and run lengths; None if the mask is an image file.
        values: Values of the mask file that are the object; None if it is black and white.
    """

    image: Path
    mask: Path
    prompt: int
    size: tuple[int, int]
    shapes: tuple[Shape | Contour, ...] | None = None
    values: tuple[Value, ...] | None = None


def by_object(one: PromptSet) -> list[PromptSet]:
    """Divide a set whose `values` give the prompts of each value into a set for each object; any other set is returned as it is.

    Raises:
        ValueError: The set has `prompts`, too.

    >>> [(part.prompts, part.values) for part in by_object(PromptSet("a", values={1: "crack", 2: ["hole", "pit"], 3: "crack"}))]
    [(['crack'], [1, 3]), (['hole', 'pit'], [2])]
    """
    if not isinstance(one.values, dict):
        return [one]
    if one.prompts:
        raise ValueError(
            f"sets: {one.folder}: give prompts, or values with the prompts of each value, not both; got prompts {one.prompts} and "
            f"values {one.values}"
        )
    if not one.values:
        raise ValueError(
            f"sets: {one.folder}: values must give the prompts of at least one value, as in {{1: crack}}, got {{}}"
        )
    objects: dict[tuple[str, ...], list[int | str]] = {}
    for value, given in one.values.items():
        objects.setdefault((given,) if isinstance(given, str) else tuple(given), []).append(value)
    return [replace(one, prompts=[*prompts], values=values) for prompts, values in objects.items()]


def check_sets(sets: Sequence[PromptSet]) -> None:
    """Check the settings of the data sets.

    Raises:
        ValueError: There is no set, a set has no valid prompts, a folder is listed twice with the same masks, or a setting does not
            belong to the kind of masks that the set has.
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
        _check_kind(one)
    objects: dict[str, str] = {}
    for one in sets:
        for text in one.prompts:
            if (other := objects.setdefault(slug(text), one.prompts[0])) != one.prompts[0]:
                raise ValueError(
                    f"sets: {one.folder}: the prompt {text!r} belongs to two objects, {other!r} and {one.prompts[0]!r}; prompts of "
                    "two objects must differ in more than case and punctuation, and sets of one object have the same first prompt"
                )
    sources = [
        (str(Path(one.folder)), *map(str, (one.annotations, one.categories, one.masks, one.values, one.split)))
        for one in sets
    ]
    if twice := sorted({source[0] for source in sources if sources.count(source) > 1}):
        raise ValueError(
            f"sets: list each folder once, got {twice[0]} more than once; list it again only with other categories, masks or values"
        )


def _check_kind(one: PromptSet) -> None:
    """Check the settings that belong to mask files or to annotations only."""
    where = f"sets: {one.folder}"
    for name in ("boxes", "polygons"):
        if getattr(one, name) is not None and one.annotations is None:
            raise ValueError(f"{where}: {name} belongs to a set with `annotations`; this one has mask files")
    for name in ("masks", "values"):
        if getattr(one, name) is not None and one.annotations is not None:
            raise ValueError(f"{where}: {name} belongs to a set of mask files; this one has `annotations`")
    if one.values is not None and (not object_values(one.values) or one.masks == NO_MASKS):
        raise ValueError(
            f"{where}: values must be pixel values of the masks, from 0, or colours such as '#800000', at least one and not both, "
            f"got {one.values}"
        )
    if one.masks is not None and (one.masks.count("*") > 1 or Path(one.masks).is_absolute() or not one.masks):
        raise ValueError(
            f"{where}: masks must be a folder in {one.folder}, or a pattern with one * for the name of the image, as in "
            f"masks/*_crack.png, got {one.masks!r}"
        )


def object_values(given: Iterable[int | str]) -> tuple[Value, ...] | None:
    """Convert the setting `values`: numbers as they are, colours to red, green and blue of 0 to 255; None if it is invalid.

    >>> object_values([1, 2]), object_values(["#800000", "rgb(0, 128, 0)"]), object_values([1, "#800000"])
    ((1, 2), ((128, 0, 0), (0, 128, 0)), None)
    """
    given = list(given)
    if all(isinstance(value, int) and value >= 0 for value in given):
        return tuple(value for value in given if isinstance(value, int)) or None
    if not all(isinstance(value, str) for value in given):
        return None
    try:
        return tuple(ImageColor.getrgb(str(value))[:3] for value in given)
    except ValueError:
        return None


def settings_of(one: PromptSet) -> dict[str, Any]:
    """Return the settings of a set as plain values: those of the first version, and those of others that are not null."""
    return {name: value for name, value in asdict(one).items() if name in FIRST or value is not None}


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
