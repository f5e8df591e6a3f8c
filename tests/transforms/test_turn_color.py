"""Quarter turns and colour changes: each image against torch's rot90 and torchvision's colour functions at the drawn values."""

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from transforms import SampleRandom, color_jitter, random_turn


def some_images(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def some_random(batch_size: int, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, epoch, torch.arange(100, 100 + batch_size))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_turns_are_those_of_rot90(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    images = some_images(40, 3, 6, 6).to(dtype).contiguous(memory_format=memory_format)
    before, random = images.clone(), some_random(40)
    quarters = random.integers("random_turn/quarters", 4).tolist()
    assert {*quarters} == {0, 1, 2, 3}
    turned = random_turn(images, random)
    expected = torch.stack([torch.rot90(image, count, (1, 2)) for image, count in zip(images, quarters, strict=True)])
    assert torch.equal(turned, expected)
    assert turned.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    # an image alone is turned like the image in its batch
    assert torch.equal(random_turn(images[7:8], SampleRandom(0, 0, torch.tensor([107]))), turned[7:8])


def test_turns_are_equally_likely() -> None:
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    corner = random_turn(image, some_random(4000))[:, 0, 0, 0].bincount(minlength=4)
    assert stats.chisquare(corner.numpy()).pvalue > 0.001


def test_only_square_images_are_turned() -> None:
    with pytest.raises(ValueError, match="turn: quarter turns need square images, got 4 x 6 pixels"):
        random_turn(torch.zeros(1, 3, 4, 6), some_random(1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_colours_are_those_of_torchvision_in_the_same_order(memory_format: torch.memory_format) -> None:
    # values so far from 0 and 1 that nothing is clipped on the way
    images = (some_images(20, 3, 9, 7, low=90, high=150).float() / 255).contiguous(memory_format=memory_format)
    random, strength = some_random(20), 0.4

    def factors(name: str, width: float) -> list[float]:
        return (1 + width * (2 * random.uniform(f"color_jitter/{name}") - 1)).tolist()

    names = ("saturation", "contrast", "brightness")
    tints = [factors(f"tint_{channel}", 0.1) for channel in ("red", "green", "blue")]
    rows = zip(images, *(factors(name, strength) for name in names), *tints, strict=True)
    expected = []
    for image, saturation, contrast, brightness, *tint in rows:
        changed = F.adjust_contrast(F.adjust_saturation(image, saturation), contrast)
        expected.append(F.adjust_brightness(changed, brightness) * torch.tensor(tint).view(3, 1, 1))
    result = color_jitter(images, random, strength)
    torch.testing.assert_close(result, torch.stack(expected).clamp(0, 1), atol=2e-5, rtol=0)
    assert result.is_contiguous(memory_format=memory_format)
    alone = color_jitter(images[7:8], SampleRandom(0, 0, torch.tensor([107])), strength)
    assert torch.equal(alone, result[7:8])
    # bytes are the rounded values
    as_bytes = color_jitter((images * 255).round().to(torch.uint8), random, strength)
    assert as_bytes.dtype == torch.uint8
    assert (as_bytes.float() / 255 - result).abs().max() <= 1.01 / 255


def test_colours_are_clipped_and_strength_0_changes_nothing() -> None:
    images, random = some_images(30, 3, 8, 8), some_random(30)
    assert color_jitter(images, random, 0) is images
    changed = color_jitter(images, random, 1.0)
    assert (int(changed.min()), int(changed.max())) == (0, 255)
    assert not torch.equal(changed, images)
    # factors lie on both sides of 1: some images become brighter, some darker
    brighter = changed.float().mean(dim=(1, 2, 3)) > images.float().mean(dim=(1, 2, 3))
    assert 5 < int(brighter.sum()) < 25


@pytest.mark.parametrize(
    ("images", "strength", "message"),
    [
        (torch.zeros(1, 3, 4, 4), 1.5, "color_jitter must be a strength between 0 and 1, got 1.5"),
        (torch.zeros(1, 1, 4, 4), 0.5, "color_jitter needs images of 3 channels, red, green and blue, got 1"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), 0.5, "images must be uint8 or float32, got int64"),
    ],
)
def test_wrong_settings(images: Tensor, strength: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        color_jitter(images, some_random(1), strength)
