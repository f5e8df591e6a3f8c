"""RandAugment and AutoAugment of a batch, with torchvision's operations and magnitudes, drawn independently per image.

RandAugment (Cubuk et al. 2020, arXiv:1909.13719): applies one of 14 equally likely operations at a fixed magnitude, `num_ops`
times. AutoAugment (Cubuk et al. 2019, arXiv:1805.09501): applies one of 25 sub-policies, each with two operations that have their
own probability and magnitude.

At each step the images are sorted by operation. Each operation then runs once for all of its images, as one call of
`torchvision.transforms.v2.functional`. As in torchvision, geometric operations use the nearest pixel and fill with black. Each
policy synchronises with the device once per batch, to read the number of images of each operation.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy
from torchvision.transforms.v2 import functional as F

from transforms.checks import check_images, check_random
from transforms.memory_format import select_images
from transforms.sample_random import SampleRandom

Policy = Literal["cifar10", "imagenet", "svhn"]
Operation = tuple[str, float]  # name and magnitude

# Operations whose magnitude gets a random sign, both signs equally likely.
_SIGNED = (
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
)
_RAND_AUGMENT = (*_SIGNED, "Identity", "Posterize", "Solarize", "AutoContrast", "Equalize")
_AUTO_AUGMENT_BINS = 10


def rand_augment(
    images: Tensor, random: SampleRandom, num_ops: int = 2, magnitude: int = 9, num_bins: int = 31
) -> Tensor:
    """Applies RandAugment; the operations are drawn per image.

    Args:
        images: (B, C, H, W) uint8 with 1 or 3 channels.
        random: Draws `rand_augment/*`.
        num_ops: Number of operations applied to each image, 0 or more.
        magnitude: Strength of all operations, a bin from 0 to `num_bins - 1`.
        num_bins: Number of bins that the range of each operation is divided into, 2 or more.

    Returns:
        (B, C, H, W) uint8.

    Raises:
        ValueError: A setting is out of its range, or the images are not uint8 of 1 or 3 channels.
    """
    _check_images(images, random)
    if num_ops < 0:
        raise ValueError(f"num_ops must be 0 or more, got {num_ops}")
    if num_bins < 2:
        raise ValueError(f"num_bins must be 2 or more, got {num_bins}")
    if not 0 <= magnitude < num_bins:
        raise ValueError(f"magnitude must be a bin from 0 to {num_bins - 1}, got {magnitude}")
    if num_ops == 0:
        return images
    height, width = images.shape[2:]
    operations = [(name, magnitude_of(name, magnitude, num_bins, height, width)) for name in _RAND_AUGMENT]
    operations += [(name, -value) for name, value in operations[: len(_SIGNED)]]
    choices = []
    for step in range(num_ops):
        operation = random.integers(f"rand_augment/{step}/operation", len(_RAND_AUGMENT))
        negative = random.bernoulli(f"rand_augment/{step}/negative", 0.5) & (operation < len(_SIGNED))
        choices.append(operation + len(_RAND_AUGMENT) * negative)
    return _apply_chosen(images, torch.stack(choices), operations)


def auto_augment(images: Tensor, random: SampleRandom, policy: Policy = "cifar10") -> Tensor:
    """Applies AutoAugment; the sub-policy is drawn per image.

    Args:
        images: (B, C, H, W) uint8 with 1 or 3 channels.
        random: Draws `auto_augment/*`.
        policy: The data set that the policy was optimised for.

    Returns:
        (B, C, H, W) uint8.

    Raises:
        ValueError: Unknown policy, or the images are not uint8 with 1 or 3 channels.
    """
    _check_images(images, random)
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, got {policy!r}")
    bins, positive, negative, probability = _auto_augment_tables(policy, images.device)
    height, width = images.shape[2:]
    operations = [
        (name, sign * magnitude_of(name, place, _AUTO_AUGMENT_BINS, height, width)) for name, place, sign in bins
    ]
    sub_policy = random.integers("auto_augment/sub_policy", len(probability))
    choices = []
    for step in range(probability.shape[1]):
        sign = random.bernoulli(f"auto_augment/{step}/negative", 0.5)
        operation = torch.where(sign, negative[sub_policy, step], positive[sub_policy, step])
        applied = random.uniform(f"auto_augment/{step}/applied") < probability[sub_policy, step]
        choices.append(operation * applied)  # operation 0 is the identity
    return _apply_chosen(images, torch.stack(choices), operations)


@lru_cache(maxsize=4096)
def magnitude_of(name: str, place: int, num_bins: int, height: int, width: int) -> float:
    """Returns the magnitude of an operation at one bin of its range, rounded as in torchvision.

    Args:
        name: Name of the operation, as in torchvision.
        place: Number of the bin, 0 to `num_bins - 1`, from weak to strong.
        num_bins: Number of bins, 2 or more.
        height: Height of the images; the range of `TranslateY` is a share of it.
        width: Width of the images; the range of `TranslateX` is a share of it.

    Returns:
        Slope (shears), pixels (translations), degrees (`Rotate`), the difference of the factor to 1 (`Brightness`, `Color`,
        `Contrast`, `Sharpness`), number of bits kept (`Posterize`), threshold (`Solarize`), or 0 for operations without a
        magnitude.
    """
    match name:
        case "Posterize":
            return float(8 - round(place / ((num_bins - 1) / 4)))
        case "Solarize":
            return float(torch.linspace(255.0, 0.0, num_bins)[place])
        case "ShearX" | "ShearY":
            largest = 0.3
        case "TranslateX":
            largest = 150.0 / 331.0 * width
        case "TranslateY":
            largest = 150.0 / 331.0 * height
        case "Rotate":
            largest = 30.0
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            largest = 0.9
        case _:
            return 0.0
    return float(torch.linspace(0.0, largest, num_bins)[place])


def apply_operation(images: Tensor, name: str, magnitude: float) -> Tensor:
    """Applies one operation to all images.

    Args:
        images: (N, C, H, W) uint8 with 1 or 3 channels.
        name: Name of the operation, as in torchvision.
        magnitude: Magnitude as returned by `magnitude_of`, with a sign for signed operations.

    Returns:
        (N, C, H, W) uint8; can be the input tensor itself.

    Raises:
        ValueError: Unknown name.
    """
    result: Tensor  # torchvision is not typed
    match name:
        case "Identity":
            result = images
        case "ShearX" | "ShearY" | "TranslateX" | "TranslateY":
            result = _affine(images, name, magnitude)
        case "Rotate":
            result = F.rotate(images, magnitude)
        case "Brightness":
            result = F.adjust_brightness(images, 1 + magnitude)
        case "Color":
            result = F.adjust_saturation(images, 1 + magnitude)
        case "Contrast":
            result = F.adjust_contrast(images, 1 + magnitude)
        case "Sharpness":
            result = F.adjust_sharpness(images, 1 + magnitude)
        case "Posterize":
            result = F.posterize(images, int(magnitude))
        case "Solarize":
            result = F.solarize(images, magnitude)
        case "AutoContrast":
            result = F.autocontrast(images)
        case "Equalize":
            result = F.equalize(images)
        case "Invert":
            result = F.invert(images)
        case _:
            raise ValueError(f"unknown operation {name!r}")
    return result


def _affine(images: Tensor, name: str, magnitude: float) -> Tensor:
    """Shear about the upper left corner by a slope, or translate by whole pixels."""
    pixels, degrees = int(magnitude), math.degrees(math.atan(magnitude))
    translate, shear, center = [0, 0], [0.0, 0.0], None
    match name:
        case "ShearX":
            shear, center = [degrees, 0.0], [0.0, 0.0]
        case "ShearY":
            shear, center = [0.0, degrees], [0.0, 0.0]
        case "TranslateX":
            translate = [pixels, 0]
        case _:
            translate = [0, pixels]
    result: Tensor = F.affine(images, angle=0.0, translate=translate, scale=1.0, shear=shear, center=center)
    return result


def _apply_chosen(images: Tensor, choices: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Apply to each image the operations chosen for it.

    Args:
        images: (B, C, H, W) uint8.
        choices: (S, B) int64 positions in `operations`, one for each step.
        operations: All operations with their magnitudes.
    """
    ordered, orders = choices.sort(dim=1, stable=True)  # (S, B)
    first = torch.arange(len(operations) + 1, device=choices.device).expand(len(choices), -1).contiguous()
    bounds = torch.searchsorted(ordered, first).tolist()  # the only synchronisation with the device
    for order, bound in zip(orders, bounds, strict=True):
        grouped = select_images(images, order)
        parts = [
            apply_operation(grouped[begin:end], *operation)
            for operation, begin, end in zip(operations, bound[:-1], bound[1:], strict=True)
            if begin < end
        ]
        images = select_images(torch.cat(parts), order.argsort())
    return images


@lru_cache(maxsize=8)
def _auto_augment_tables(
    policy: Policy, device: torch.device
) -> tuple[list[tuple[str, int, int]], Tensor, Tensor, Tensor]:
    """Return torchvision's policy as tables for a batch.

    Returns:
        Operations as (name, bin, sign), the identity first; positions in that list, (25, 2) int64, of the operation with positive
        and with negative sign (equal for operations without a sign); probabilities, (25, 2) float32.
    """
    operations = [("Identity", 0, 1)]
    places: dict[int, list[list[int]]] = {1: [], -1: []}
    probabilities = []
    for sub_policy in AutoAugment(AutoAugmentPolicy(policy)).policies:
        for sign, rows in places.items():
            row = []
            for name, _, level in sub_policy:
                operation = (name, level or 0, sign if name in _SIGNED else 1)
                if operation not in operations:
                    operations.append(operation)
                row.append(operations.index(operation))
            rows.append(row)
        probabilities.append([probability for _, probability, _ in sub_policy])
    positive, negative = (torch.tensor(places[sign]).to(device) for sign in (1, -1))
    return operations, positive, negative, torch.tensor(probabilities, dtype=torch.float32).to(device)


def _check_images(images: Tensor, random: SampleRandom) -> None:
    check_images(images, (torch.uint8,))
    check_random(images, random)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")
