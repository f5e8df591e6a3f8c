"""Inspects images with one class each, in memory or as files: sizes, exact mean and std, duplicates, damaged files."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from datamodules import DataModule, ImageFolderDataModule
from foundation.sizes import pixels_of_size, plain_size, times
from tools.inspect_data import measures
from tools.inspect_data.findings import Findings, named, printable, size_lines, size_ranges, value_lines
from tools.inspect_data.measures import Sample, mean_and_std
from tools.inspect_data.pictures import draw_overview, draw_samples
from tools.inspect_data.samples import training_tiles


def inspect_images(
    data: DataModule, samples: Sequence[Sample], table: dict[str, list[int]], shown: tuple[int, int]
) -> Findings:
    """Inspect a classifier's images.

    Args:
        data: Datamodule after ``setup``.
        samples: All samples of the splits.
        table: Number of samples of each class, for each split.
        shown: Number of samples in the picture, and of epochs in which they are augmented.
    """
    sizes, pixels = measures.sizes(data, samples), measures.pixels(data, samples)
    same = measures.duplicates(data, samples)
    headers, left_out = measures.unreadable_headers(data, samples)
    tiles = training_tiles(data, *shown)
    mean, std = mean_and_std(pixels.histogram)
    report: dict[str, Any] = {
        "sizes": size_ranges(sizes),
        "trained_at": plain_size(data.train_size),
        "mean": {"measured": [round(value, 4) for value in mean], "configured": list(data.mean)},
        "std": {"measured": [round(value, 4) for value in std], "configured": list(data.std)},
    }
    return Findings(
        "image",
        report,
        size_lines(report["sizes"], data.train_size),
        same,
        lambda title: draw_overview(data.class_names, table, sizes, pixels.histogram, data.train_size, title),
        lambda title: draw_samples(tiles, f"{title} · training images: file and augmented"),
        [*(printable(path) for path in headers), *named(pixels.damaged)],
        left_out=left_out,
        last=[*value_lines(report), *_cache_line(data, table), *_settings(data, report)],
    )


def _cache_line(data: DataModule, table: dict[str, list[int]]) -> list[str]:
    """What a canvas cache of image files would take on the disk."""
    if not isinstance(data, ImageFolderDataModule) or "train" not in table:
        return []
    sizes = {"train": times(data.train_size, data.canvas), "val": data.image_size}
    width = 4 if data.file_kinds("train")["of more than 8 bits"] else 1  # float32 or uint8
    pixels = sum(sum(table[split]) * pixels_of_size(size) for split, size in sizes.items() if split in table)
    total = pixels * data.in_channels * width
    shown = f"{total / 1e9:,.1f} GB" if total >= 1e9 else f"{total / 1e6:,.1f} MB"
    return [f"canvases   --data.canvas_cache DIR would take {shown} on the disk, and decode every file only once"]


def _settings(data: DataModule, report: dict[str, Any]) -> list[str]:
    """The measured mean and std as YAML to paste, if they are settings of the datamodule."""
    if not {"mean", "std"} <= inspect.signature(type(data)).parameters.keys():
        return []
    lines = ["           to train with the measured values, add to the configuration", "data:", "  init_args:"]
    return [*lines, *(f"    {name}: {report[name]['measured']}" for name in ("mean", "std"))]
