"""Computes the statistics of inspect_data: class counts, image sizes, pixel mean and std, duplicates, unreadable files.

Input is any datamodule: its ``splits`` with labels and indices, and either uint8 images in memory or files (``folder(split)`` and
``files(split)``). Pixels are counted into a histogram, so that mean and standard deviation are exact.
"""

from __future__ import annotations

import gc
import hashlib
import signal
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import DataModule, PromptedSegmentationDataModule
from datamodules.images.checking import levels_of
from datamodules.images.class_folders import all_images, duplicate_groups, scan
from datamodules.images.decoding import Levels
from datamodules.images.formats import readable_formats
from datamodules.images.loader import ImageFiles, cores_for_workers
from datamodules.images.near_duplicates import alike
from datamodules.images.stacks import is_stacked, open_stack
from datamodules.images.whole_files import look_at
from foundation.sizes import sides
from tools.command_line import watched

T = TypeVar("T")
BATCH = 64  # images decoded or counted at a time
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values for images rotated by 90 degrees
NEAR = 2  # differing bits of the hashes of two images that look alike
MOST = 4_000  # images that are hashed to find those that look alike; about a millisecond each
THREADS = 8  # for reading headers, which mostly waits for the disk


class Sample(NamedTuple):
    """A sample of a data set: split, classes (several, or none, with a table of labels), index in it, file (None in memory)."""

    split: str
    labels: tuple[int, ...]
    place: int
    path: Path | None


class Pixels(NamedTuple):
    """Pixel values of the training images, and files that could not be decoded.

    Attributes:
        histogram: Count of each pixel value in each channel of the training images, (C, 256) int64.
        damaged: Samples of all splits whose file cannot be decoded.
    """

    histogram: Tensor
    damaged: list[Sample]


def samples_of(data: DataModule) -> list[Sample]:
    """List the samples of all splits that were set up, in the order train, val, test."""
    found: list[Sample] = []
    for split in [split for split in ("train", "val", "test") if split in data.splits]:
        labels, indices = classes_of(data.splits[split]["label"]), data.splits[split]["index"].tolist()
        paths = _paths(data, split)
        found += [
            Sample(split, own, index, paths[index] if paths else None)
            for own, index in zip(labels, indices, strict=True)
        ]
    return found


def classes_of(labels: Tensor) -> list[tuple[int, ...]]:
    """The classes of each sample, from labels (N,), or (N, K) of 0 and 1."""
    if labels.ndim == 1:
        return [(number,) for number in labels.tolist()]
    return [tuple(number for number, own in enumerate(row) if own) for row in labels.tolist()]


def names_of(data: DataModule, classes: Sequence[int]) -> str:
    """The names of the classes of a sample, in one text."""
    return ", ".join(data.class_names[number] for number in classes) or "no label"


def _paths(data: DataModule, split: str) -> list[Path] | None:
    """File of each index; None for data in memory."""
    if isinstance(data, PromptedSegmentationDataModule):
        return [pair.image for pair in data.pairs]
    if not has_files(data):
        return None
    folder = data.folder(split)  # type: ignore[attr-defined]
    return [folder / name for name in data.files(split)]  # type: ignore[attr-defined]


def has_files(data: DataModule) -> bool:
    """Whether the samples are files rather than tensors in memory."""
    return hasattr(data, "files") and hasattr(data, "folder")


def counts(data: DataModule, samples: Sequence[Sample]) -> dict[str, list[int]]:
    """Count the samples of each class in each split."""
    table = {split: [0] * data.num_classes for split in dict.fromkeys(sample.split for sample in samples)}
    for sample in samples:
        for number in sample.labels:
            table[sample.split][number] += 1
    return table


def sizes(data: DataModule, samples: Sequence[Sample]) -> Tensor:
    """Width and height (N, 2) int64 of each sample after EXIF rotation; for files, only the headers are read."""
    if not has_files(data):
        return torch.tensor([[*reversed(sides(data.image_size))]]).expand(len(samples), 2)
    paths = [sample.path for sample in samples if sample.path is not None]
    with ThreadPoolExecutor(THREADS) as pool:
        headers = pool.map(partial(_size, data.in_channels), paths)
        found = [next(headers) for _ in watched("headers", paths, "files")]
    return torch.tensor(found, dtype=torch.int64).view(-1, 2)


def _size(channels: int, path: Path) -> tuple[int, int]:
    if is_stacked(path, channels):
        with warnings.catch_warnings(), ExitStack() as within:
            warnings.simplefilter("ignore")
            if (stack := open_stack(path, channels, within)) is not None:
                return stack.size[1], stack.size[0]
    with warnings.catch_warnings(), Image.open(path, formats=readable_formats()) as file:
        warnings.simplefilter("ignore")
        width, height = file.size
        return (height, width) if file.getexif().get(ORIENTATION) in TURNED else (width, height)


def pixels(data: DataModule, samples: Sequence[Sample]) -> Pixels:
    """Count the pixel values of the training images, and find the files of all splits that cannot be decoded.

    Files are decoded at the training size, as the network sees them; at full size, the standard deviation would be larger.
    """
    histogram = torch.zeros(data.in_channels, 256, dtype=torch.int64)
    if not has_files(data):
        for part in watched("pixels", data.splits["train"]["image"].cpu().split(BATCH), f"batches of {BATCH} images"):
            histogram += histogram_of(part)
        return Pixels(histogram, [])
    damaged: list[Sample] = []
    for split in dict.fromkeys(sample.split for sample in samples):
        chosen = [sample for sample in samples if sample.split == split]
        for images, missing in _decoded(data, chosen):
            damaged += [chosen[place] for place in missing]
            if split == "train":
                histogram += histogram_of(images)
    return Pixels(histogram, damaged)


def histogram_of(images: Tensor) -> Tensor:
    """Histogram (C, 256) of uint8 images (B, C, H, W)."""
    return torch.stack([channel.flatten().bincount(minlength=256) for channel in images.transpose(0, 1).int()])


def _decoded(data: DataModule, samples: Sequence[Sample]) -> Iterator[tuple[Tensor, list[int]]]:
    """Yield batches of images (B, C, S, S), and the indices in ``samples`` of files that cannot be decoded."""
    names = [str(sample.path) for sample in samples]
    levels = stack_levels(data, [sample.path for sample in samples if sample.path is not None])
    files = ImageFiles(Path(), names, None, data.train_size, data.in_channels, levels=levels)
    batches = torch.arange(len(samples)).split(BATCH)
    workers = data.workers if getattr(data, "workers", None) is not None else cores_for_workers()  # type: ignore[attr-defined]
    loader: DataLoader[Any] = DataLoader(
        files,
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers if len(batches) > 1 else 0,
        collate_fn=_identity,
        worker_init_fn=_begin_worker,
    )
    decoded = iter(loader)
    for _ in watched(f"decoded {samples[0].split}", batches, f"batches of {BATCH} files"):
        batch = next(decoded)
        yield as_bytes(batch["image"]), batch["unreadable"]


def stack_levels(data: DataModule, paths: Sequence[Path]) -> Levels | None:
    """The levels with which stacks and arrays are read; None for pictures, whose values are counted in 8 bits."""
    if not any(is_stacked(path, data.in_channels) for path in paths):
        return None
    return levels_of(look_at(paths, True, data.in_channels), getattr(data, "levels", None))


def as_bytes(images: Tensor) -> Tensor:
    """Images of 0 to 1 in 8 bits; uint8 unchanged."""
    return (255 * images).round().clamp(0, 255).to(torch.uint8) if images.is_floating_point() else images


def _identity(batch: Any) -> Any:
    return batch


def _begin_worker(worker: int) -> None:
    """Ignore Ctrl-C in a loader worker: the parent process handles it and ends the workers; collect no objects of the parent."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def mean_and_std(histogram: Tensor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation of each channel, for pixel values scaled to 0..1.

    Args:
        histogram: Counts of the values 0 to 255, (C, 256).
    """
    weights = histogram.double() / histogram.sum(dim=1, keepdim=True).clamp(min=1)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = weights @ values
    std = ((weights * (values - mean[:, None]) ** 2).sum(dim=1)).sqrt()
    return mean.tolist(), std.tolist()


def duplicates(data: DataModule, samples: Sequence[Sample]) -> list[list[Sample]]:
    """Find sets of two or more equal samples: files with the same bytes, or images in memory with the same pixels."""
    if has_files(data):
        by_path: dict[Path, list[Sample]] = defaultdict(list)
        for sample in samples:
            assert sample.path is not None
            by_path[sample.path].append(sample)
        groups = duplicate_groups(list(by_path), lambda doubtful: watched("compared", doubtful, "files"))
        return [[sample for path in same for sample in by_path[path]] for same in groups]
    by_pixels: dict[bytes, list[Sample]] = defaultdict(list)
    images = {split: data.splits[split]["image"].cpu().contiguous().numpy() for split in data.splits}
    places: dict[str, int] = defaultdict(int)
    for sample in watched("compared", samples, "images"):
        pixels = images[sample.split][places[sample.split]]
        places[sample.split] += 1
        by_pixels[hashlib.sha256(pixels.tobytes()).digest()].append(sample)
    return [same for same in by_pixels.values() if len(same) > 1]


class LookAlikes(NamedTuple):
    """Pairs of image files of different splits that look alike: the same photograph in another size, format or quality.

    Attributes:
        pairs: The pairs; copies of the same bytes are not among them.
        hashed: Number of images that were compared.
        total: Number of image files.
    """

    pairs: list[tuple[Sample, Sample]]
    hashed: int
    total: int


def look_alikes(samples: Sequence[Sample]) -> LookAlikes:
    """Find images of different splits that look alike, in up to 4,000 of the files; samples without a file are passed over."""
    of_path = {sample.path: sample for sample in samples if sample.path is not None}
    chosen = [*of_path][:: max(1, -(-len(of_path) // MOST))]
    near = [(of_path[chosen[one]], of_path[chosen[other]]) for one, other in alike(chosen, NEAR)]
    across = [(one, other) for one, other in near if one.split != other.split]
    content = {one.path: _content(one.path) for pair in across for one in pair}
    return LookAlikes(
        [(one, other) for one, other in across if content[one.path] != content[other.path]], len(chosen), len(of_path)
    )


def _content(path: Path | None) -> bytes:
    assert path is not None
    return hashlib.sha256(path.read_bytes()).digest()


def unreadable_headers(data: DataModule, samples: Sequence[Sample]) -> tuple[list[Path], dict[str, int]]:
    """Find files that the datamodule left out because they have no image header, and count those left out for other reasons."""
    missing: list[Path] = []
    left_out: dict[str, int] = defaultdict(int)
    if not has_files(data):
        return [], {}
    for folder in dict.fromkeys(data.folder(split) for split in dict.fromkeys(s.split for s in samples)):  # type: ignore[attr-defined]
        listed = {folder / name for split in data.splits if data.folder(split) == folder for name in data.files(split)}  # type: ignore[attr-defined]
        table = getattr(data, "table", None)
        if table is not None:
            tables = {path.resolve() for path in table.tables.values()}
            images, others = (
                table.files_in(folder),
                {
                    reason: [path for path in paths if path.resolve() not in tables]
                    for reason, paths in all_images(folder)[1].items()
                },
            )
        else:
            found = scan(folder)
            images, others = [path for path, _ in found.images], found.left_out
        missing += [path for path in images if path not in listed]
        for reason, paths in others.items():
            left_out[reason] += len(paths)
    return missing, {reason: count for reason, count in left_out.items() if count}
