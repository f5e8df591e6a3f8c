"""RandAugment and AutoAugment: each operation, each magnitude and whole policies compared with torchvision, image by image."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode, RandAugment, v2
from torchvision.transforms.autoaugment import _apply_op

from transforms import SampleRandom, auto_augment, rand_augment
from transforms.policies import apply_operation, magnitude_of

UNKNOWN: Any = "cifar"
SIGNED = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"]
UNSIGNED = ["Identity", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"]


def some_images(batch_size: int, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Return smooth images of different contrast with some noise, one image with a single colour."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch_size, channels, 4, 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = images * torch.linspace(0, 255, batch_size).view(-1, 1, 1, 1)
    return (images + 20 * torch.rand(images.shape, generator=generator)).clamp(0, 255).byte()


def some_random(batch_size: int, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, epoch, torch.arange(batch_size))


def torchvisions(image: Tensor, name: str, magnitude: float) -> Tensor:
    """Apply an operation to one image by the code of torchvision.transforms.v2.RandAugment, which gives thresholds in 0 to 1."""
    magnitude = magnitude / 255 if name == "Solarize" else magnitude
    result: Tensor = v2.AutoAugment()._apply_image_or_video_transform(
        image, name, magnitude, v2.InterpolationMode.NEAREST, {}
    )
    return result


@pytest.mark.every(3)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SIGNED + UNSIGNED)
def test_each_operation_is_torchvisions(name: str, channels: int) -> None:
    images = some_images(7, channels, 16, 20)
    before = images.clone()
    for place in range(0, 31, 3):
        for sign in (1, -1) if name in SIGNED else (1,):
            magnitude = sign * magnitude_of(name, place, 31, 16, 20)
            expected = torch.stack([torchvisions(image, name, magnitude) for image in images])
            result = apply_operation(images, name, magnitude)
            assert torch.equal(result, expected)
            # Version 1 of torchvision's kernels rounds three of the operations differently.
            first = torch.stack(
                [_apply_op(image, name, magnitude, InterpolationMode.NEAREST, None) for image in images]
            )
            tolerance = 1 if name in ("Color", "Sharpness", "AutoContrast") else 0
            assert (result.int() - first.int()).abs().max() <= tolerance
    assert torch.equal(images, before)


@pytest.mark.parametrize("num_bins", [2, 10, 11, 31])
def test_each_magnitude_is_torchvisions(num_bins: int) -> None:
    """Equal to torchvision v1; v2 computes the same numbers in another order, which matters only for `Solarize`."""
    rand: dict[str, tuple[Tensor, bool]] = RandAugment()._augmentation_space(num_bins, (24, 40))
    auto: dict[str, tuple[Tensor, bool]] = AutoAugment()._augmentation_space(num_bins, (24, 40))
    assert sorted({**rand, **auto}) == sorted(SIGNED + UNSIGNED)
    for name, (magnitudes, signed) in [*rand.items(), *auto.items()]:
        assert signed == (name in SIGNED)
        for place in range(num_bins):
            expected = float(magnitudes[place]) if magnitudes.ndim else 0.0
            assert magnitude_of(name, place, num_bins, 24, 40) == expected


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings", [{}, {"num_ops": 1, "magnitude": 30}, {"num_ops": 4, "magnitude": 2, "num_bins": 5}]
)
def test_rand_augment_applies_the_drawn_operations_one_after_the_other(channels: int, settings: dict[str, int]) -> None:
    images, random = some_images(60, channels), some_random(60)
    before = images.clone()
    result = rand_augment(images, random, **settings)
    order = [*SIGNED, "Identity", "Posterize", "Solarize", "AutoContrast", "Equalize"]
    place, num_bins = settings.get("magnitude", 9), settings.get("num_bins", 31)
    for i, image in enumerate(images):
        expected = image
        for step in range(settings.get("num_ops", 2)):
            name = order[int(random.integers(f"rand_augment/{step}/operation", 14)[i])]
            magnitude = magnitude_of(name, place, num_bins, 16, 16)
            if name in SIGNED and random.bernoulli(f"rand_augment/{step}/negative", 0.5)[i]:
                magnitude = -magnitude
            expected = torchvisions(expected, name, magnitude)
        assert torch.equal(result[i], expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_auto_augment_applies_the_drawn_sub_policy(policy: Any) -> None:
    images, random = some_images(100), some_random(100)
    result = auto_augment(images, random, policy)
    sub_policies = AutoAugment(AutoAugmentPolicy(policy)).policies
    chosen = random.integers("auto_augment/sub_policy", 25).tolist()
    for i, image in enumerate(images):
        expected = image
        for step, (name, probability, place) in enumerate(sub_policies[chosen[i]]):
            if random.uniform(f"auto_augment/{step}/applied")[i] < probability:
                magnitude = magnitude_of(name, place or 0, 10, 16, 16)
                negative = name in SIGNED and bool(random.bernoulli(f"auto_augment/{step}/negative", 0.5)[i])
                expected = torchvisions(expected, name, -magnitude if negative else magnitude)
        assert torch.equal(result[i], expected)


def test_cifar10_policy_is_the_papers() -> None:
    """First, sixth and last sub-policy of table 7 of the paper (arXiv:1805.09501v3)."""
    policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    assert len(policies) == 25
    assert policies[0] == (("Invert", 0.1, None), ("Contrast", 0.2, 6))
    assert policies[5] == (("ShearY", 0.2, 7), ("Posterize", 0.3, 7))
    assert policies[24] == (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None))


@pytest.mark.parametrize("augment", [rand_augment, auto_augment])
def test_result_depends_only_on_the_sample(augment: Callable[[Tensor, SampleRandom], Tensor]) -> None:
    images, index = some_images(50), torch.arange(50) + 1000
    whole = augment(images, SampleRandom(0, 2, index))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(images[order], SampleRandom(0, 2, index[order])), whole[order])
    for size in (1, 7):
        pieces = zip(images.split(size), index.split(size), strict=True)
        assert torch.equal(torch.cat([augment(part, SampleRandom(0, 2, i)) for part, i in pieces]), whole)
    assert not torch.equal(augment(images, SampleRandom(0, 3, index)), whole)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(channels_last, SampleRandom(0, 2, index)), whole)


def test_operations_signs_and_sub_policies_are_equally_likely() -> None:
    random = some_random(30_000)
    draws = [
        random.integers("rand_augment/0/operation", 14),
        random.integers("rand_augment/0/operation", 14) * 14 + random.integers("rand_augment/1/operation", 14),
        random.integers("rand_augment/0/operation", 14) * 2 + random.bernoulli("rand_augment/0/negative", 0.5),
        random.integers("auto_augment/sub_policy", 25),
    ]
    for draw in draws:
        assert stats.chisquare(draw.bincount().numpy()).pvalue > 1e-4


def test_no_operation_is_the_batch_itself_and_no_generator_is_used() -> None:
    images, state = some_images(8), torch.get_rng_state()
    assert rand_augment(images, some_random(8), num_ops=0) is images
    rand_augment(images, some_random(8))
    auto_augment(images, some_random(8))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", SIGNED)
def test_weakest_magnitude_of_a_signed_operation_changes_nothing(name: str) -> None:
    images = some_images(5)
    assert torch.equal(apply_operation(images, name, magnitude_of(name, 0, 31, 16, 16)), images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, r: rand_augment(x, r, num_ops=-1), "num_ops must be 0 or more, got -1"),
        (lambda x, r: rand_augment(x, r, magnitude=31), "magnitude must be a bin from 0 to 30, got 31"),
        (lambda x, r: rand_augment(x, r, magnitude=-1), "magnitude must be a bin from 0 to 30, got -1"),
        (lambda x, r: rand_augment(x, r, magnitude=10, num_bins=10), "magnitude must be a bin from 0 to 9, got 10"),
        (lambda x, r: rand_augment(x, r, num_bins=1), "num_bins must be 2 or more, got 1"),
        (lambda x, r: rand_augment(x / 255, r), "images must be uint8, got float32"),
        (lambda x, r: rand_augment(x[:, :2], r), "images must have 1 or 3 channels, got 2"),
        (lambda x, r: rand_augment(x[:2], r), "random has 4 samples, but there are 2 images"),
        (
            lambda x, r: auto_augment(x, r, UNKNOWN),
            "policy must be one of cifar10, imagenet, svhn, got 'cifar'",
        ),
        (lambda x, r: auto_augment(x / 255, r), "images must be uint8, got float32"),
        (lambda x, r: auto_augment(x[0], r), r"images must be \(B, C, H, W\), got shape \(3, 16, 16\)"),
        (lambda x, r: apply_operation(x, "Rotat", 1.0), "unknown operation 'Rotat'"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Tensor, SampleRandom], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(some_images(4), some_random(4))
