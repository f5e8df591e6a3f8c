"""Images a second of our pipeline for folders of image files, beside torchvision's reference pipeline with as many workers.

    python -m benchmarks.folder_pipeline [--root DIR] [--sizes 128 224] [--images 1024] [--workers 2] [--repeats 5] [--json FILE]

    ours         worker: JPEG --reduced decoding--> squeezed to 1.15 x size, uint8     this process: whole batches are cropped,
                 resized, flipped, normalised
    torchvision  worker: JPEG -> RandomResizedCrop -> RandomHorizontalFlip -> PILToTensor -> ToDtype(float) -> Normalize -> collated

Both read the same files, every one once a repeat (but for a last batch that is not full), in batches of one size, with the same
number of workers, queue, range of crops, mean and std, on the CPU, while nothing trains. The workers live through all repeats; an
epoch before the first is not counted, so that the files are in the page cache. The pictures are JPEGs made by benchmarks/photos.py
in a temporary folder and, with --root, those of a folder of yours, laid out as for `ImageFolderDataModule`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from benchmarks.loader import images_per_s
from benchmarks.photos import HEIGHT, WIDTH, write_photos
from datamodules import ImageFolderDataModule
from foundation import measuring
from foundation.measuring import Spread

PREFETCH = 4


class Setting(NamedTuple):
    """What both sides have in common."""

    root: Path
    size: int
    """Height and width of a training image in pixels."""
    batch_size: int
    workers: int
    scale: float
    """Smallest share of a picture's area that a crop takes."""


def our_data(setting: Setting) -> ImageFolderDataModule:
    """Our datamodule, ready for training; a tenth is held out where there is no val/."""
    data = ImageFolderDataModule(
        root=str(setting.root),
        image_size=setting.size,
        batch_size=setting.batch_size,
        crop_scale=setting.scale,
        workers=setting.workers,
        prefetch=PREFETCH,
        test_fraction=0.0,
    )
    data.setup("fit")
    return data


def peer_transform(data: ImageFolderDataModule, scale: float) -> v2.Compose:
    """The training transform of torchvision's reference scripts (references/classification/presets.py, backend PIL)."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(data.image_size, scale=(scale, 1.0), ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )


def peer_loader(data: ImageFolderDataModule, setting: Setting) -> DataLoader[Any]:
    """A DataLoader of torchvision's ImageFolder, with the files that ours trains on."""
    folder, names = data.folder("train"), data.files("train")
    used = {str(folder / names[index]) for index in data.splits["train"]["index"].tolist()}
    samples = datasets.ImageFolder(str(folder), peer_transform(data, setting.scale))
    samples.samples = [sample for sample in samples.samples if sample[0] in used]
    if len(samples) != len(used):
        raise RuntimeError(f"{folder}: torchvision lists {len(samples)} of the {len(used)} images that ours trains on")
    return DataLoader(
        samples,
        setting.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=setting.workers,
        prefetch_factor=PREFETCH if setting.workers else None,
        persistent_workers=setting.workers > 0,
    )


def peer_epochs(data: ImageFolderDataModule, setting: Setting) -> Callable[[], int]:
    """An epoch of torchvision's pipeline; each call serves one and returns the number of images."""
    loader = peer_loader(data, setting)
    return lambda: sum(len(image) for image, _ in loader)


def our_epochs(data: ImageFolderDataModule) -> Callable[[], int]:
    """An epoch of ours, with augmentation; each call serves one and returns the number of images."""
    loader, epochs = data.train_dataloader(), count()

    def epoch() -> int:
        number = next(epochs)
        return sum(len(data.augment(batch, number)["image"]) for batch in loader)

    return epoch


class Result(NamedTuple):
    """Images a second of both sides over the repeats, and ours by theirs in each repeat."""

    torchvision: Spread
    ours: Spread
    ratio: Spread


def run(setting: Setting, repeats: int) -> tuple[int, Result]:
    """Measure both sides in turn.

    Args:
        setting: What both sides have in common.
        repeats: Epochs of each side that are measured.

    Returns:
        Images of an epoch, and the figures.
    """
    data = our_data(setting)
    num_images = data.num_train_batches() * setting.batch_size
    peer, ours = peer_epochs(data, setting), our_epochs(data)
    sides = {"peer": partial(images_per_s, peer, num_images), "ours": partial(images_per_s, ours, num_images)}
    measuring.interleave(sides, 1)
    speed = measuring.interleave(sides, repeats)
    ratios = [mine / theirs for mine, theirs in zip(speed["ours"], speed["peer"], strict=True)]
    return num_images, Result(Spread.of(speed["peer"]), Spread.of(speed["ours"]), Spread.of(ratios))


def main(args: list[str] | None = None) -> None:
    """Measure both pipelines and print them; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--root", type=Path, metavar="DIR", help="also measure on the images of this folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 224], help="sides of a training image, pixels")
    parser.add_argument("--images", type=int, default=1024, help="photographs to make up; 0 for none")
    parser.add_argument("--batch_size", type=int, default=64, help="images of a batch")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of either side")
    parser.add_argument("--scale", type=float, default=0.35, help="smallest share of the area that a crop takes")
    parser.set_defaults(threads=1)  # the workers take the other cores; torch's threads would wait for each other
    options, before = measuring.begin(parser, args)
    if options.images and options.images * 0.85 < options.batch_size:
        parser.error(
            f"--images: enough for a batch of {options.batch_size} with a tenth held out, or 0, got {options.images}"
        )
    if not options.images and options.root is None:
        parser.error("--images 0 needs --root DIR: there is nothing to measure on")
    rows, content, said = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {"made up": Path(temporary)} if options.images else {}
        if folders:
            sizes = write_photos(Path(temporary), options.images)
            spread = Spread.of([size / 1000 for size in sizes])
            said.append(f"made up: {len(sizes):,} JPEGs of {WIDTH} x {HEIGHT} pixels, {spread.text(0)} kB each")
        folders |= {str(options.root): options.root} if options.root else {}
        for name, root in folders.items():
            for size in options.sizes:
                setting = Setting(root, size, options.batch_size, options.workers, options.scale)
                num_images, metrics = run(setting, options.repeats)
                rows.append([name, str(size), f"{num_images:,}", metrics.torchvision.text(0), metrics.ours.text(0)])
                rows[-1].append(metrics.ratio.text(2))
                spreads = {key: value._asdict() for key, value in metrics._asdict().items()}
                content.append({"pictures": name, "size": size, "images": num_images, **spreads})
    header = ("pictures", "px", "images", "torchvision, images/s", "ours, images/s", "ratio")
    print(measuring.table(header, rows))
    print(
        f"\nmedian (least .. most) of {options.repeats} repeats; the ratio is ours by theirs in each repeat; "
        f"{options.workers} workers on either side, batches of {options.batch_size}, crops of {options.scale:g} to 1 of the area"
    )
    for line in said:
        print(line)
    settings = {name: getattr(options, name) for name in ("repeats", "workers", "batch_size", "scale")}
    measuring.report(before, {"benchmark": "folder_pipeline", **settings, "pipelines": content}, options.json)


if __name__ == "__main__":
    main()
