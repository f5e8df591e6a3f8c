"""Lists the images of a data set with their masks, whatever form these have: mask files, COCO, YOLO or labelme."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed
from datamodules.segmentation.coco import read_coco
from datamodules.segmentation.labelme import read_labelme
from datamodules.segmentation.mask_files import read_set
from datamodules.segmentation.next_steps import annotations_of
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import Pair, PromptSet
from datamodules.segmentation.yolo import read_yolo
from foundation.places import absence, close_to
from foundation.suggestions import first_names

FORMS = (".json", ".yaml", ".yml")
EXPORT = "export again as COCO, YOLO segmentation or masks (or convert: datum convert -if FORMAT -f coco -i IN -o OUT)"


def read_pairs(root: Path, one: PromptSet, prompt: int, notes: Notes | None = None) -> list[Pair]:
    """List a data set's images with their masks, sorted by name, and check that they match.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        notes: Collects the messages, of all sets of a run; None: they are logged at once.

    Raises:
        MisconfigurationException: Files are missing or do not match, or `annotations` is of no known form.
    """
    notes = Notes() if notes is None else notes
    if one.annotations is None:
        return read_set(root, one, prompt, notes)
    place = root / one.annotations
    if place.suffix.lower() in (".xml", ".csv", ".ndjson", ".zip"):
        raise MisconfigurationException(f"{place}: {place.suffix} files are not read; {EXPORT}")
    if not place.exists():
        raise MisconfigurationException(f"sets: {one.folder}: annotations: {_absent(root, one, place)}")
    if place.suffix.lower() in (".yaml", ".yml"):
        return read_yolo(root, one, prompt, notes)
    if place.is_dir():
        kinds = {path.suffix.lower() for path in place.rglob("*") if path.is_file()}
        if ".json" in kinds:
            return read_labelme(root, one, prompt, notes)
        if ".txt" in kinds:
            return read_yolo(root, one, prompt, notes)
        if ".xml" in kinds:
            raise MisconfigurationException(f"{place}: its .xml files are not read; {EXPORT}")
        raise MisconfigurationException(f"{place}: has neither labelme's .json files nor YOLO's .txt files")
    if place.suffix.lower() == ".txt":
        raise MisconfigurationException(f"{place}: give the folder of YOLO's .txt files, not one of them")
    return read_coco(root, one, prompt, notes)


def _absent(root: Path, one: PromptSet, place: Path) -> str:
    """What to say of annotations that are not there."""
    kind, hint = place.suffix.lower(), ""
    there = annotations_of(root, one) if kind == ".json" else []
    if found := next((path for path in there if path.name == place.name or len(there) == 1), None):
        return f"{place} does not exist; give annotations: {found.relative_to(root).as_posix()}, relative to {root}"
    wanted = {
        ".json": "annotations in COCO's format",
        ".yaml": "YOLO's data.yaml, or the folder of its .txt files",
        ".yml": "YOLO's data.yaml, or the folder of its .txt files",
    }.get(kind, "annotations, see docs/segmentation.md")
    inner = sorted(path.relative_to(place.parent).as_posix() for path in place.parent.glob(f"*/{place.name}"))
    if inner and kind == ".json":
        hint = f" (there are {listed(inner)}: to keep this split, split: shipped)"
    why = absence(place, file=bool(kind))
    if not close_to(place) and place.parent.is_dir():  # its images are no candidates
        paths = place.parent.iterdir()
        names = sorted(path.name for path in paths if path.suffix.lower() in FORMS or (not kind and path.is_dir()))
        why = f"does not exist; {place.parent} has {first_names(names) if names else 'no ' + ' or '.join(FORMS)}"
    return f"{place} {why}; expected {wanted}{hint}"


def check_once(root: Path, listings: Sequence[Sequence[Pair]], names: Sequence[str]) -> None:
    """Refuse an image that is listed twice for the same object: each of its masks would call the other's pixels background.

    Args:
        root: Folder for the names in a message.
        listings: Images of each set.
        names: Name of each prompt.

    Raises:
        MisconfigurationException: There is such an image.
    """
    count = Counter((Path(os.path.abspath(pair.image)), pair.prompt) for listing in listings for pair in listing)
    if twice := [(path, prompt) for (path, prompt), times in count.items() if times > 1]:
        prompt = twice[0][1]
        shown = listed([_named(Path(os.path.abspath(root)), path) for path, other in twice if other == prompt])
        raise MisconfigurationException(
            f"{root}: {len(twice):,} images are listed more than once for {names[prompt]!r}: {shown}; an object needs one mask of "
            "an image: name all categories or values that are the object in one set"
        )


def _named(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
