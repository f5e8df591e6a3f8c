"""Inspects images with masks: sizes, mean and std, share of the object, empty, refused and damaged masks, duplicates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.pictures.image_pixels import TRUE_MASK, image_pixels, overlay
from datamodules import PromptedSegmentationDataModule
from datamodules.images.class_folders import duplicate_groups
from datamodules.segmentation.checking import held_together
from datamodules.segmentation.loader import SegmentationFiles
from datamodules.segmentation.masks import MaskContents, read_all
from foundation.sizes import plain_size
from tools.command_line import watched
from tools.inspect_data import measures
from tools.inspect_data.findings import Findings, named, printable, size_lines, size_ranges, value_lines
from tools.inspect_data.measures import Sample, mean_and_std
from tools.inspect_data.pictures import draw_overview, draw_samples
from tools.inspect_data.samples import Tile, chosen_samples


def inspect_masks(
    data: PromptedSegmentationDataModule, samples: Sequence[Sample], table: dict[str, list[int]], shown: tuple[int, int]
) -> Findings:
    """Inspect images and masks; masks that take too long are a sample, as before the first step of a run.

    Args:
        data: Datamodule after ``setup``.
        samples: All samples of the splits.
        table: Number of images of each prompt, for each split.
        shown: Number of images in the picture, and of epochs in which they are augmented.
    """
    sizes = torch.tensor([list(reversed(data.pairs[sample.place].size)) for sample in samples])
    canvas = data.canvas if data.canvas is not None else data.longer_side
    files = SegmentationFiles(data.pairs, canvas, data.levels)
    histogram, damaged = _pixels(files, samples)
    held = {split: read_all([data.pairs[place] for place in data.splits[split]["index"].tolist()]) for split in table}
    tiles = _tiles(data, files, *shown)
    mean, std = mean_and_std(histogram)
    report: dict[str, Any] = {
        "sizes": size_ranges(sizes),
        "trained_at": plain_size(data.train_size),
        "mean": {"measured": [round(value, 4) for value in mean], "configured": list(data.mean)},
        "std": {"measured": [round(value, 4) for value in std], "configured": list(data.std)},
        "masks": {split: _contents(data, found) for split, found in held.items()},
    }
    wrong = {path: why for found in held.values() for path, why in found.wrong.items()}
    broken = [path for found in held.values() for path in found.damaged]
    return Findings(
        "image",
        report,
        [*size_lines(report["sizes"], data.train_size), *_lines(data, report)],
        _same_files(samples),
        lambda title: draw_overview(data.class_names, table, sizes, histogram, data.train_size, title),
        lambda title: draw_samples(tiles, f"{title} · training images and masks: file and augmented"),
        [*named(damaged), *map(printable, broken)],
        _refused(data.root, wrong),
        several_classes=True,
        last=value_lines(report),
    )


def _pixels(files: SegmentationFiles, samples: Sequence[Sample]) -> tuple[Tensor, list[Sample]]:
    """Histogram (3, 256) of the training images, squeezed to the canvas, and samples of all splits that cannot be decoded."""
    histogram, damaged = torch.zeros(3, 256, dtype=torch.int64), []
    parts = [samples[start : start + measures.BATCH] for start in range(0, len(samples), measures.BATCH)]
    for part in watched("decoded", parts, f"batches of {measures.BATCH} files"):
        batch = files.__getitems__([sample.place for sample in part])
        damaged += [sample for sample in part if sample.place in {*batch["unreadable"]}]
        split = {sample.place: sample.split for sample in part}
        train = torch.tensor([split[place] == "train" for place in batch["index"].tolist()], dtype=torch.bool)
        if train.any():
            image = batch["image"][train]
            histogram += measures.histogram_of(
                image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
            )
    return histogram, damaged


def _contents(data: PromptedSegmentationDataModule, found: MaskContents) -> dict[str, Any]:
    shares = {
        data.class_names[prompt]: {
            "images": found.images[prompt],
            "showing": found.showing[prompt],
            "positive": round(found.positive[prompt], 5),
        }
        for prompt in sorted(found.positive)
    }
    odd = {printable(path): reason for path, reason in found.stray.items()}
    return {"read": found.read, "of": found.count, "prompts": shares, "neither_black_nor_white": odd}


def _refused(root: Path, wrong: Mapping[Path, str]) -> dict[str, list[str]]:
    """Refused masks by reason; reasons that differ only in numbers are one, with the values that the masks hold together."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(wrong):
        kinds.setdefault(re.sub(r"\d+(, \d+)*( and \d+)?", "N", wrong[path]), []).append(path)
    return {
        wrong[paths[0]] + held_together(paths): [
            printable(path.relative_to(root) if path.is_relative_to(root) else path) for path in paths
        ]
        for paths in kinds.values()
    }


def _lines(data: PromptedSegmentationDataModule, report: dict[str, Any]) -> list[str]:
    """Lines about the masks: for each prompt the share of its pixels, and the images that show it."""
    lines = []
    for name in data.class_names:
        parts = []
        for split, contents in report["masks"].items():
            if one := contents["prompts"].get(name):
                parts.append(
                    f"{split} {one['positive']:.2%} of the pixels, in {one['showing']:,} of {one['images']:,} images"
                )
        lines.append(f"mask       {name}: {'; '.join(parts) or 'no mask was read'}")
    sampled = {split: one for split, one in report["masks"].items() if one["read"] < one["of"]}
    lines += [f"           {split}: {one['read']:,} of {one['of']:,} masks were read" for split, one in sampled.items()]
    odd = {path: why for one in report["masks"].values() for path, why in one["neither_black_nor_white"].items()}
    first = "".join(f"; the first, {path}: {why}" for path, why in list(odd.items())[:1])
    return [
        *lines,
        *([f"warning: {len(odd):,} masks have values that are neither black nor white{first}"] if odd else []),
    ]


def _same_files(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Sets of two or more equal image files; an image that is in several sets is one file."""
    by_path: dict[Any, list[Sample]] = {}
    for sample in samples:
        by_path.setdefault(sample.path, []).append(sample)
    groups = duplicate_groups(list(by_path), lambda doubtful: watched("compared", doubtful, "files"))
    grouped = {path for group in groups for path in group}
    across = [[path] for path, same in by_path.items() if path not in grouped and len({s.split for s in same}) > 1]
    return [[sample for path in same for sample in by_path[path]] for same in [*groups, *across]]


def _tiles(data: PromptedSegmentationDataModule, files: SegmentationFiles, count: int, epochs: int) -> list[Tile]:
    """Training images with their masks in colour: from the file, and augmented as in each epoch."""
    places = data.splits["train"]["index"][chosen_samples(data, count)].tolist()
    batch = files.__getitems__(places)
    names = ("image", "mask", "label", "index", "drawn", "aspect")
    kept: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    rows = []
    for epoch in range(epochs):
        seen = data.augment(dict(kept), epoch)
        rows.append(_with_masks(image_pixels(seen["image"], data.mean, data.std), seen["mask"]))
    tiles = []
    for place, index in enumerate(batch["index"].tolist()):
        stored = SegmentationFiles(data.pairs, None, data.levels)[index]
        image = (
            stored["image"] if stored["image"].dtype == torch.uint8 else (stored["image"] * 255).round().to(torch.uint8)
        )
        original = _with_masks(image.permute(0, 2, 3, 1).numpy(), stored["mask"])[0]
        name = data.class_names[data.pairs[index].prompt]
        tiles.append(Tile(name, original, [row[place] for row in rows]))
    return tiles


def _with_masks(pixels: Any, masks: Tensor) -> list[Any]:
    return [overlay(image, mask[0].bool().numpy(), TRUE_MASK) for image, mask in zip(pixels, masks, strict=True)]
