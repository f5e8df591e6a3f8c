"""Random crop and flip: each image compared with torchvision at the drawn position, for all dtypes and memory formats."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from transforms import SampleRandom, geometric, random_crop, random_flip


def some_images(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return images.to(dtype) / 255 if dtype.is_floating_point else images.to(dtype)


def some_random(batch_size: int, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, epoch, torch.arange(100, 100 + batch_size))


def crop_one_by_one(images: Tensor, padding: int, random: SampleRandom, fill: float) -> Tensor:
    height, width = images.shape[2:]
    tops = random.integers("random_crop/top", 2 * padding + 1).tolist()
    lefts = random.integers("random_crop/left", 2 * padding + 1).tolist()
    padded = [F.pad(image, [padding] * 4, fill=fill) for image in images]
    crops = [F.crop(image, *at, height, width) for image, *at in zip(padded, tops, lefts, strict=True)]
    return torch.stack(crops)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(33, 3, 32, 32), (9, 1, 8, 8), (1, 3, 5, 12), (6, 4, 7, 1)])
@pytest.mark.parametrize(("padding", "fill"), [(4, 0), (1, 1), (11, 0)])
def test_crop_is_torchvisions_crop_of_the_padded_image(
    memory_format: torch.memory_format, dtype: torch.dtype, shape: tuple[int, ...], padding: int, fill: float
) -> None:
    images = some_images(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    random = some_random(len(images))
    before = images.clone()
    crops = random_crop(images, padding, random, fill)
    assert crops.dtype == dtype
    assert crops.is_contiguous(memory_format=memory_format)
    assert torch.equal(crops, crop_one_by_one(images, padding, random, fill))
    assert torch.equal(images, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("padding", "size"), [(0, 5), (2, 8), (3, 1)])
def test_a_smaller_window_is_torchvisions_crop(memory_format: torch.memory_format, padding: int, size: int) -> None:
    images, random = some_images(400, 3, 8, 10).contiguous(memory_format=memory_format), some_random(400)
    tops = random.integers("random_crop/top", 2 * padding + 8 - size + 1)
    lefts = random.integers("random_crop/left", 2 * padding + 10 - size + 1)
    places = zip(images, tops.tolist(), lefts.tolist(), strict=True)
    expected = [F.crop(F.pad(image, [padding] * 4), top, left, size, size) for image, top, left in places]
    crops = random_crop(images, padding, random, size=size)
    assert torch.equal(crops, torch.stack(expected))
    assert crops.is_contiguous(memory_format=memory_format) or size == 1
    assert (int(tops.max()), int(lefts.max())) == (2 * padding + 8 - size, 2 * padding + 10 - size)  # to the edges


def test_crop_takes_views_that_are_not_contiguous() -> None:
    images = some_images(8, 3, 20, 40)[::2, :, ::2, 3:23]
    random = some_random(4)
    assert torch.equal(random_crop(images, 3, random), crop_one_by_one(images, 3, random, 0))


def test_crop_reaches_every_place_equally_often() -> None:
    """The one marked pixel of each image shows the position of its crop."""
    batch_size, padding = 25_000, 2
    images = torch.zeros(batch_size, 1, 5, 5)
    images[:, :, 2, 2] = 1
    crops = random_crop(images, padding, some_random(batch_size))
    counts = crops.sum(0).flatten()  # each of the 5 x 5 places moves the pixel to another one of 5 x 5
    assert int(counts.sum()) == batch_size
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_crop_without_padding_is_the_batch_itself() -> None:
    images = some_images(2, 3, 4, 4)
    assert random_crop(images, 0, some_random(2)) is images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("shape", [(33, 3, 32, 32), (7, 1, 4, 6)])
def test_flip_is_torchvisions_flip_of_the_drawn_images(
    memory_format: torch.memory_format, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    images = some_images(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    random = some_random(len(images))
    before = images.clone()
    flipped = random_flip(images, random, p=0.4)
    chosen = random.bernoulli("random_flip/flip", 0.4).tolist()
    expected = [F.horizontal_flip(image) if flip else image for image, flip in zip(images, chosen, strict=True)]
    assert 0 < sum(chosen) < len(images)
    assert torch.equal(flipped, torch.stack(expected))
    assert flipped.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_large_images_are_flipped_one_by_one_with_the_same_result(
    memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = some_images(9, 3, 150, 151).contiguous(memory_format=memory_format)
    assert images.nbytes >= geometric.LARGE * len(images)
    before = images.clone()
    alone = random_flip(images, some_random(9))
    assert torch.equal(images, before)
    assert random_flip(before, some_random(9), overwrite=True) is before
    assert torch.equal(before, alone)
    monkeypatch.setattr(geometric, "LARGE", 1 << 40)
    together = random_flip(images, some_random(9))
    assert torch.equal(alone, together)
    assert alone.stride() == together.stride()
    assert 0 < sum(bool((one == two).all()) for one, two in zip(alone, images, strict=True)) < 9


def test_flip_with_probability_0_and_1_is_certain_and_a_half_is_a_half() -> None:
    images = torch.arange(2.0).expand(10_000, 1, 1, 2)
    random = some_random(10_000)
    assert torch.equal(random_flip(images, random, 0), images)
    assert torch.equal(random_flip(images, random, 1), images.flip(-1))
    assert abs(float(random_flip(images, random)[..., 0].mean()) - 0.5) < 4.5 * 0.5 / 100


def test_crop_and_flip_change_with_the_epoch_and_are_independent() -> None:
    images = some_images(64, 3, 8, 8)
    assert not torch.equal(random_crop(images, 4, some_random(64)), random_crop(images, 4, some_random(64, epoch=1)))
    assert not torch.equal(random_flip(images, some_random(64)), random_flip(images, some_random(64, epoch=1)))
    random = some_random(20_000)
    draws = [
        random.integers("random_crop/top", 9).double(),
        random.integers("random_crop/left", 9).double(),
        random.bernoulli("random_flip/flip", 0.5).double(),
    ]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(3)
    assert correlation.abs().max() < 4.5 / 20_000**0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x, r: random_crop(x, 1, r, size=0),
            "size must be between 1 pixel and the size of the images, .*, got 0",
        ),
        (
            lambda x, r: random_crop(x, 1, r, size=99),
            "size must be between 1 pixel and the size of the images, .*, got 99",
        ),
        (lambda x, r: random_crop(x, -1, r), "padding must be 0 pixels or more, got -1"),
        (lambda x, r: random_crop(x[0], 4, r), r"images must be \(B, C, H, W\), got shape \(3, 8, 8\)"),
        (lambda x, r: random_crop(x[:3], 4, r), "random has 4 samples, but there are 3 images"),
        (lambda x, r: random_crop(x.to("meta"), 4, r), "random is on cpu, but the images are on meta"),
        (lambda x, r: random_flip(x, r, 1.1), "p must be a probability between 0 and 1, got 1.1"),
        (lambda x, r: random_flip(x[0], r), r"images must be \(B, C, H, W\)"),
        (lambda x, r: random_flip(x[:1], r), "random has 4 samples, but there are 1 images"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Tensor, SampleRandom], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(some_images(4, 3, 8, 8), some_random(4))
