"""Benchmark: images per second of our in-memory loader with batch augmentation against torchvision's per-sample pipeline.

    python -m benchmarks.loader [--repeats 5] [--images 50000] [--workers 2] [--threads N] [--json FILE]

    ours         uint8 tensors --index--> batch --[RandAugment], crop, flip, normalise--> float batch       in this process
    torchvision  uint8 array -> PIL -> [RandAugment], RandomCrop, RandomHorizontalFlip, ToTensor, Normalize      in workers

Both serve every image once per repeat, in a new random order, in batches of 128 on the CPU, without training. The images are
random, which takes both sides the same time as real images. The workers stay alive over all repeats, and a first epoch is not
counted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision import transforms as per_sample

from benchmarks.tasks import RandomImages
from datamodules import InMemoryLoader
from foundation import measuring
from foundation.measuring import Spread

BATCH_SIZE, PADDING = 128, 4
SLOWER = 5  # RandAugment is measured on 1/5 of the images
Policy = Literal["none", "randaugment"]


class InMemoryCIFAR10(datasets.CIFAR10):  # type: ignore[misc]  # torchvision has no types
    """torchvision's CIFAR10 with given images instead of files; samples are processed by torchvision's code.

    Args:
        image: (N, 3, 32, 32) uint8.
        label: (N,) int64.
        transform: Applied to each PIL image.
    """

    def __init__(self, image: Tensor, label: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.data, self.targets = image.permute(0, 2, 3, 1).contiguous().numpy(), label.tolist()
        self.transform, self.target_transform = transform, None


def peer_transform(mean: tuple[float, ...], std: tuple[float, ...], policy: Policy) -> per_sample.Compose:
    """The usual CIFAR transforms, from torchvision's first generation (v1), because v2 is slower on single PIL images."""
    return per_sample.Compose(
        [
            *([per_sample.RandAugment()] if policy == "randaugment" else []),
            per_sample.RandomCrop(32, padding=PADDING),
            per_sample.RandomHorizontalFlip(),
            per_sample.ToTensor(),
            per_sample.Normalize(mean, std),
        ]
    )


def peer_epochs(num_images: int, policy: Policy, workers: int) -> Callable[[], int]:
    """Returns a function that runs one epoch of torchvision's pipeline and returns the number of images."""
    module = RandomImages(num_images)
    data = module.read_part("train")
    samples = InMemoryCIFAR10(data["image"], data["label"], peer_transform(module.mean, module.std, policy))
    loader: DataLoader[Any] = DataLoader(
        samples, BATCH_SIZE, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: sum(len(image) for image, _ in loader)


def our_epochs(num_images: int, policy: Policy) -> Callable[[], int]:
    """Returns a function that runs one epoch of our loader and augmentation and returns the number of images."""
    module = RandomImages(num_images, crop_padding=PADDING, flip=True, policy=policy)
    epochs = count()
    epoch = 0

    def position() -> tuple[int, int]:
        nonlocal epoch
        epoch = next(epochs)
        return epoch, 0

    loader = InMemoryLoader(module.read_part("train"), BATCH_SIZE, keep="all", shuffle=True, position=position)
    return lambda: sum(len(module.augment(batch, epoch)["image"]) for batch in loader)


def images_per_s(epochs: Callable[[], int], num_images: int) -> float:
    """Runs one epoch and returns its images per second."""
    begin = perf_counter()
    served = epochs()
    seconds = perf_counter() - begin
    if served != num_images:
        raise RuntimeError(f"an epoch served {served} images of {num_images}")
    return num_images / seconds


class Result(NamedTuple):
    """Images per second of both sides over the repeats, and the ratio ours / theirs in each repeat."""

    torchvision: Spread
    ours: Spread
    ratio: Spread


def run(policy: Policy, num_images: int, workers: int, repeats: int) -> Result:
    """Measures both sides in alternation.

    Args:
        policy: Automatic augmentation before crop and flip.
        num_images: Number of images in an epoch.
        workers: Worker processes of torchvision's side; 0 uses this process.
        repeats: Number of measured epochs of each side.
    """
    peer, ours = peer_epochs(num_images, policy, workers), our_epochs(num_images, policy)
    sides = {"peer": partial(images_per_s, peer, num_images), "ours": partial(images_per_s, ours, num_images)}
    measuring.interleave(sides, 1)
    speed = measuring.interleave(sides, repeats)
    ratios = [mine / theirs for mine, theirs in zip(speed["ours"], speed["peer"], strict=True)]
    return Result(Spread.of(speed["peer"]), Spread.of(speed["ours"]), Spread.of(ratios))


PIPELINES: dict[Policy, str] = {
    "none": "crop, flip, normalise",
    "randaugment": "RandAugment, crop, flip, normalise",
}


def main(args: list[str] | None = None) -> None:
    """Measures both pipelines and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=50_000, help=f"images in an epoch; RandAugment: 1/{SLOWER} of it")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of torchvision's side")
    options, before = measuring.begin(parser, args)
    if options.images < SLOWER or options.workers < 0:
        parser.error(f"--images: {SLOWER} or more, --workers: 0 or more, got {options.images} and {options.workers}")
    rows, content = [], []
    for policy, pipeline in PIPELINES.items():
        num_images = options.images if policy == "none" else options.images // SLOWER
        metrics = run(policy, num_images, options.workers, options.repeats)
        rows.append([pipeline, f"{num_images:,}", metrics.torchvision.text(0), metrics.ours.text(0)])
        rows[-1].append(metrics.ratio.text(1))
        spreads = {name: spread._asdict() for name, spread in metrics._asdict().items()}
        content.append({"policy": policy, "pipeline": pipeline, "images": num_images, **spreads})
    peer = f"torchvision, {options.workers} workers, images/s"
    print(measuring.table(("pipeline", "images", peer, "ours, images/s", "ratio"), rows))
    print(f"\nmedian (least .. most) of {options.repeats} repeats; the ratio is ours / theirs in each repeat")
    settings = {"repeats": options.repeats, "workers": options.workers, "batch_size": BATCH_SIZE}
    measuring.report(before, {"benchmark": "loader", **settings, "pipelines": content}, options.json)


if __name__ == "__main__":
    main()
