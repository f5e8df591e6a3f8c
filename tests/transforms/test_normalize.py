"""Normalisation: values compared with torchvision."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from transforms import normalize

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def some_images(channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (4, channels, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_result_is_torchvisions(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    images = F.to_dtype(some_images(), dtype, scale=True).contiguous(memory_format=memory_format)
    before = images.clone()
    expected = F.normalize(F.to_dtype(some_images(), torch.float64, scale=True), MEAN, STD)
    result = normalize(images, MEAN, STD)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", [(3, 3, 7, 5), (2, 2, 1, 9), (1, 3, 224, 224), (0, 3, 4, 4)])
def test_both_memory_formats_give_the_same_bits(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = MEAN[: shape[1]], STD[: shape[1]]
    last = normalize(images.contiguous(memory_format=torch.channels_last), mean, std)
    assert torch.equal(last, normalize(images, mean, std))
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_normalised_in_single_precision(dtype: torch.dtype) -> None:
    images = (some_images() / 255).to(dtype)
    assert torch.equal(normalize(images, MEAN, STD), normalize(images.float(), MEAN, STD))


def test_hand_computed_values() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)  # 0, 0.2 and 1
    torch.testing.assert_close(normalize(images, [0.2], [0.4]).flatten(), torch.tensor([-0.5, 0.0, 2.0]))


def test_mean_and_deviation_of_the_data_become_0_and_1() -> None:
    images = some_images() / 255
    result = normalize(images, images.mean((0, 2, 3)).tolist(), images.std((0, 2, 3)).tolist())
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-6)


def test_constants_made_in_inference_mode_serve_autograd() -> None:
    std = [0.123]  # values used in no other test, so that the cached constants are created here
    with torch.inference_mode():
        normalize(some_images(1) / 255, [0.5], std)
    images = (some_images(1) / 255).requires_grad_()
    normalize(images, [0.5], std).sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, torch.full_like(images, 1 / 0.123))


@pytest.mark.parametrize(
    ("images", "mean", "std", "message"),
    [
        (some_images(), [0.5], [0.5], "one value for each of the 3 channels, got 1 and 1"),
        (some_images(), MEAN, [0.5] * 4, "one value for each of the 3 channels, got 3 and 4"),
        (some_images(), MEAN, [0.5, 0.0, 0.5], r"std must be positive, got \[0.5, 0.0, 0.5\]"),
        (some_images().long(), MEAN, STD, "images must be uint8 or float32 or .*, got int64"),
        (some_images()[0], MEAN, STD, r"images must be \(B, C, H, W\), got shape \(3, 6, 5\)"),
    ],
)
def test_wrong_arguments_are_refused(images: Tensor, mean: list[float], std: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize(images, mean, std)
