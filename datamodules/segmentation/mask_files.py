"""Lists image and mask files of a data set, and checks that they match. Only names and headers are read.

FOLDER/images/a.jpg   FOLDER/masks/a.png           the usual names; a PNG is preferred to other formats of the same name
FOLDER/a.jpg          FOLDER/a_mask.png            with `masks: "*_mask.png"`: a pattern in which * is the image's name
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.images.formats import EXTENSIONS, is_image
from datamodules.images.mask_folders import text_around
from datamodules.images.unreadable import NO_IMAGE, report_unreadable
from datamodules.segmentation.next_steps import hint_of_images, hint_of_set
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import (
    NO_MASKS,
    THREADS,
    Pair,
    PromptSet,
    check_formats,
    object_values,
    size_of,
)
from foundation.places import close_to


def read_set(root: Path, one: PromptSet, prompt: int, notes: Notes | None = None) -> list[Pair]:
    """List a data set's images and masks, sorted by name, and check that they match.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        notes: Collects the messages; None: they are logged at once.

    Raises:
        MisconfigurationException: There is no image or no mask, an image has no mask, sizes differ, or a file is not an image.
    """
    notes, folder = Notes() if notes is None else notes, root / one.folder
    if one.masks == NO_MASKS:
        return _without_masks(folder, one, prompt, notes)
    if one.masks is None and not (folder / "masks").is_dir() and (hint := hint_of_set(root, one)):
        raise MisconfigurationException(f"{folder}: prompt {one.prompts[0]!r} has no folder of masks in it; {hint}")
    if not _has_images(folder, one) and (hint := hint_of_images(root, one)):
        raise MisconfigurationException(f"{folder}: prompt {one.prompts[0]!r} has no images where they belong; {hint}")
    place, before, after = _pattern(one.masks)
    masks = _masks(folder / place, one, before, after)
    known = {*masks.values()}
    images = [path for path in _images(folder, one, notes) if path not in known]
    if not images:
        raise MisconfigurationException(
            f"{folder}: masks {one.masks!r} fits all of its images; nothing is left to segment"
        )
    if not masks:
        raise MisconfigurationException(
            f"{_plain(folder / place)}: prompt {one.prompts[0]!r} has no masks; expected "
            + (
                "a PNG with the same name for each image"
                if one.masks is None
                else f"files {before}NAME{after or '.png'}{_there(folder / place, images, one, place)}"
            )
        )
    stems = [path.stem for path in images]
    if twice := sorted(stem for stem, count in Counter(stems).items() if count > 1):
        raise MisconfigurationException(
            f"{images[0].parent}: {listed(twice)}: two images have this name, so it is unclear which one the mask belongs to"
        )
    if bare := [path.name for path in images if path.stem not in masks]:
        raise MisconfigurationException(
            f"{folder}: {len(bare):,} of the {len(images):,} images have no mask: {listed(bare)}; "
            + (
                _advice(stems, sorted(masks.values()), place)
                or "add an all-black mask to images without the object, and remove the others"
            )
        )
    if unused := sorted(masks.keys() - {*stems}):
        notes.warn(folder, f"{len(unused):,} masks have no image: {listed(unused)}; not used")
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, images))
        mask_sizes = list(pool.map(size_of, [masks[stem] for stem in stems]))
    _check_sizes(folder, images, sizes, mask_sizes)
    values = None if one.values is None else object_values(one.values)
    return [
        Pair(path, masks[path.stem], prompt, size, values=values)
        for path, size in zip(images, sizes, strict=True)
        if size
    ]


def _without_masks(folder: Path, one: PromptSet, prompt: int, notes: Notes) -> list[Pair]:
    images = _images(folder, one, notes)
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(size_of, images))
    _check_sizes(folder, images, sizes, sizes)
    notes.inform("masks", folder, f"{len(images):,} images without {one.prompts[0]!r}, as set (masks: {NO_MASKS})")
    return [Pair(path, Path(), prompt, size, ()) for path, size in zip(images, sizes, strict=True) if size]


def _pattern(masks: str | None) -> tuple[str, str, str]:
    """Folder of the masks, and what stands in a file name before and after the image's name."""
    if masks is None or "*" not in masks:
        return masks or "masks", "", ""
    path = Path(masks)
    before, _, after = path.name.partition("*")
    return path.parent.as_posix(), before, after


def _masks(folder: Path, one: PromptSet, before: str, after: str) -> dict[str, Path]:
    """Name of the image -> mask file."""
    files = _image_files(folder, one)
    if not before and not after:
        # a PNG comes last and replaces another file of its name
        return {path.stem: path for path in sorted(files, key=lambda path: (path.suffix.lower() == ".png", path))}
    with_ending = bool(Path(f"NAME{after}").suffix)
    names = {path: path.name if with_ending else path.stem for path in files}
    return {
        name[len(before) : len(name) - len(after)]: path
        for path, name in names.items()
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    }


def _advice(stems: Sequence[str], masks: Sequence[Path], place: str) -> str | None:
    around = text_around(stems, [path.stem for path in masks])
    if around is None:
        return None
    before, after = around
    return f'the masks are named {before}NAME{after}: set masks: "{place}/{before}*{after}{masks[0].suffix}"'


def _there(folder: Path, images: Sequence[Path], one: PromptSet, place: str) -> str:
    """What lies where a pattern finds no mask, and the pattern that fits if there is one."""
    files = [path for path in _image_files(folder, one) if path not in images]
    advice = _advice([path.stem for path in images], files, place)
    if advice is None:
        return f", there are {listed([path.name for path in files])}" if files else ""
    return f", for {images[0].name} there is {files[0].name}; {advice}"


def _plain(path: Path) -> Path:
    """A path for a message, without `..`."""
    return Path(os.path.normpath(path))


def _images(folder: Path, one: PromptSet, notes: Notes) -> list[Path]:
    """Images in FOLDER/images, or in the folder itself if there is no such folder and masks are named by a pattern or absent."""
    if one.masks is not None and not (folder / "images").is_dir():
        return _image_files(folder, one)
    files = _image_files(folder / "images", one)
    if files and (inner := _in_subfolders(folder / "images")):
        notes.warn(folder / "images", f"{inner}; not used: give each folder a set of its own")
    return files


def _has_images(folder: Path, one: PromptSet) -> bool:
    """Whether there is an image in the folder that `_images` reads."""
    within = folder if one.masks is not None and not (folder / "images").is_dir() else folder / "images"
    return within.is_dir() and any(is_image(path) for path in within.iterdir())


def _image_files(folder: Path, one: PromptSet) -> list[Path]:
    """List the image files directly in a folder, sorted."""
    if not folder.is_dir():
        needs = f"{one.folder}/images and {one.folder}/masks"
        if one.masks is not None and folder.name == Path(_pattern(one.masks)[0]).name:
            needs = f"the folder that `masks: {one.masks}` of the set {one.folder} names"
            if (folder.parent.parent / folder.name).is_dir() and folder.parent.name != "..":
                needs += f"; give masks: ../{one.masks}"
        raise MisconfigurationException(
            f"{_plain(folder)}: no such folder{close_to(_plain(folder))}; prompt {one.prompts[0]!r} needs {needs}"
        )
    files = [path for path in folder.iterdir() if is_image(path) and not path.name.startswith(".")]
    if not files and (folder.name == "images" or one.masks is not None):
        inner = _in_subfolders(folder) or ", ".join(EXTENSIONS)
        raise MisconfigurationException(f"{_plain(folder)}: there is no image in it ({inner})")
    check_formats(files)
    return sorted(files)


def _in_subfolders(folder: Path) -> str:
    """How many images are in folders of this folder; empty if none is."""
    if not folder.is_dir():
        return ""
    inner = [path.relative_to(folder).parts[0] for path in sorted(folder.glob("*/**/*")) if is_image(path)]
    names = [name for name in inner if name != "masks"]
    return f"{len(names):,} images are in its folders {listed(list(dict.fromkeys(names)))}" if names else ""


def _check_sizes(
    folder: Path,
    images: Sequence[Path],
    sizes: Sequence[tuple[int, int] | None],
    mask_sizes: Sequence[tuple[int, int] | None],
) -> None:
    broken = [path.name for path, size in zip(images, sizes, strict=True) if size is None]
    broken += [f"mask of {path.name}" for path, size in zip(images, mask_sizes, strict=True) if size is None]
    if broken:
        report_unreadable(folder, dict.fromkeys(broken, NO_IMAGE), 2 * len(images), "repair or remove them")
    differing = [
        f"{path.name} is {size[1]}x{size[0]}, its mask {other[1]}x{other[0]}"
        for path, size, other in zip(images, sizes, mask_sizes, strict=True)
        if size and other and size != other
    ]
    if differing:
        raise MisconfigurationException(
            f"{folder}: {len(differing):,} masks have another size than their image: {listed(differing)}; "
            "a mask must have the size of its image, after the EXIF rotation"
        )
