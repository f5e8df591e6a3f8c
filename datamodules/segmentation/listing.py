"""Lists the images of a data set with their masks, whatever form these have: mask files, COCO, YOLO or labelme."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.segmentation.coco import read_coco
from datamodules.segmentation.labelme import read_labelme
from datamodules.segmentation.mask_files import read_set
from datamodules.segmentation.prompt_sets import Pair, PromptSet
from datamodules.segmentation.yolo import read_yolo


def read_pairs(root: Path, one: PromptSet, prompt: int, said: set[str] | None = None) -> list[Pair]:
    """List a data set's images with their masks, sorted by name, and check that they match.

    Args:
        root: Folder that the names of the set are relative to.
        one: The set.
        prompt: Number of its object.
        said: See `read_coco`; one for all sets of a run, so that the parts of a shipped split say nothing twice.

    Raises:
        MisconfigurationException: Files are missing or do not match, or `annotations` is of no known form.
    """
    if one.annotations is None:
        return read_set(root, one, prompt)
    place = root / one.annotations
    if place.suffix.lower() in (".yaml", ".yml"):
        return read_yolo(root, one, prompt)
    if place.is_dir():
        kinds = {path.suffix.lower() for path in place.rglob("*") if path.is_file()}
        if ".json" in kinds:
            return read_labelme(root, one, prompt)
        if ".txt" in kinds:
            return read_yolo(root, one, prompt)
        raise MisconfigurationException(f"{place}: has neither labelme's .json files nor YOLO's .txt files")
    if place.suffix.lower() in (".xml", ".csv", ".ndjson", ".zip"):
        raise MisconfigurationException(
            f"{place}: {place.suffix} files are not read; export again as COCO, YOLO segmentation or masks "
            "(or convert: datum convert -if FORMAT -f coco -i IN -o OUT)"
        )
    return read_coco(root, one, prompt, said)
