"""Random erasing: each image and the distribution of the boxes compared with torchvision."""

from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transforms import SampleRandom, random_erasing
from transforms.random_erasing import erasing_boxes


def some_images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def some_random(batch_size: int, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, epoch, torch.arange(100, 100 + batch_size))


def drawn_by_torchvision(count: int, height: int, width: int) -> Tensor:
    transform = v2.RandomErasing(scale=(0.02, 1 / 3), ratio=(0.3, 3.3))
    image = torch.empty(3, height, width, device="meta")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        boxes = [transform.make_params([image]) for _ in range(count)]
    nothing = [height // 2, width // 2, 0, 0]  # if torchvision erases nothing, our box is empty
    return torch.tensor([nothing if box["v"] is None else [box[name] for name in "ijhw"] for box in boxes])


def quantities(boxes: Tensor, height: int, width: int) -> list[Tensor]:
    """Return area, ratio, and both positions as shares of the free space."""
    top, left, tall, wide = boxes.double().unbind(1)
    return [tall * wide, tall / wide.clamp(min=1), top / (height - tall + 1), left / (width - wide + 1)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(21, 3, 24, 24), (17, 1, 16, 40), (9, 3, 33, 12)])
@pytest.mark.parametrize(("p", "value"), [(1.0, 0.0), (0.4, -2.5)])
def test_erased_are_the_drawn_boxes_of_the_drawn_images(
    memory_format: torch.memory_format, dtype: torch.dtype, shape: tuple[int, ...], p: float, value: float
) -> None:
    images = some_images(*shape, dtype=dtype).contiguous(memory_format=memory_format)
    random = some_random(shape[0])
    before, state = images.clone(), torch.get_rng_state()
    erased = random_erasing(images, random, p, value=value)
    chosen = random.bernoulli("random_erasing/erase", p).tolist()
    boxes = erasing_boxes(shape[2], shape[3], random).tolist()
    pixel = torch.full((shape[1], 1, 1), value, dtype=dtype)
    expected = [
        F.erase(image, *box, pixel) if erase else image for image, erase, box in zip(images, chosen, boxes, strict=True)
    ]
    assert any(chosen)
    assert all(chosen) == (p == 1)
    assert torch.equal(erased, torch.stack(expected))
    assert erased.dtype == dtype
    assert erased.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.every(3)
@pytest.mark.parametrize(("height", "width"), [(97, 150), (64, 64), (20, 160)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Kolmogorov-Smirnov two-sample tests; on 20 x 160 many boxes do not fit, and for some images none of ten tries."""
    count = 3000
    boxes, expected = erasing_boxes(height, width, some_random(count)), drawn_by_torchvision(count, height, width)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] < torch.tensor([height, width])).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()
    for ours, theirs in zip(quantities(boxes, height, width), quantities(expected, height, width), strict=True):
        assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-3


def test_ratio_is_height_to_width() -> None:
    boxes = erasing_boxes(100, 100, some_random(50), scale=(0.1, 0.1), ratio=(3.0, 3.0)).double()
    assert ((boxes[:, 2] - 300**0.5 * 10**0.5).abs() <= 0.5).all()
    assert ((boxes[:, 3] - (1000 / 3) ** 0.5).abs() <= 0.5).all()


def test_images_whose_box_never_fits_stay_as_they_are() -> None:
    images = some_images(6, 3, 10, 10)
    assert torch.equal(random_erasing(images, some_random(6), 1.0, scale=(1.0, 1.0)), images)


def test_an_image_comes_out_the_same_in_any_batch() -> None:
    images, index = some_images(12, 3, 20, 30), torch.arange(12) * 7
    erased = random_erasing(images, SampleRandom(0, 0, index), 0.7)
    for chosen in (torch.tensor([4]), torch.tensor([8, 2, 5])):
        some = random_erasing(images[chosen], SampleRandom(0, 0, index[chosen]), 0.7)
        assert torch.equal(some, erased[chosen])


def test_probability_is_the_share_of_erased_images_and_0_is_the_batch_itself() -> None:
    images = torch.ones(10_000, 1, 8, 8)
    erased = (random_erasing(images, some_random(10_000), 0.25, scale=(0.1, 0.2)) == 0).flatten(1).any(1)
    assert abs(float(erased.double().mean()) - 0.25) < 4.5 * (0.25 * 0.75) ** 0.5 / 100
    assert random_erasing(images, some_random(10_000), 0) is images


def test_erasing_changes_with_the_epoch() -> None:
    images = some_images(8, 3, 20, 20)
    first, second = (random_erasing(images, some_random(8, epoch), 1.0) for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_an_accelerators_host_never_waits() -> None:
    """Meta tensors have no values: code that reads one (and would synchronise) raises."""
    images = torch.empty(4, 3, 20, 30, device="meta").contiguous(memory_format=torch.channels_last)
    erased = random_erasing(images, SampleRandom(0, 0, torch.arange(4, device="meta")), 0.5)
    assert erased.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, r: random_erasing(x, r, 1.1), "p must be a probability between 0 and 1, got 1.1"),
        (
            lambda x, r: random_erasing(x, r, 0.0, (0.0, 0.3)),
            r"scale must be two shares .* above 0 .* got \(0.0, 0.3\)",
        ),
        (lambda x, r: random_erasing(x, r, 0.5, (0.3, 0.2)), r"scale must .* the smaller first, got \(0.3, 0.2\)"),
        (lambda x, r: random_erasing(x, r, 0.5, (0.3, 1.2)), r"scale must .* up to 1, .* got \(0.3, 1.2\)"),
        (lambda x, r: random_erasing(x, r, 0.5, ratio=(-1.0, 2.0)), r"ratio must be two positive .* got \(-1.0, 2.0\)"),
        (
            lambda x, r: random_erasing(x, r, 0.5, ratio=(2.0, 1.0)),
            r"ratio must .* the smaller first, got \(2.0, 1.0\)",
        ),
        (lambda x, r: random_erasing(x[0], r, 0.5), r"images must be \(B, C, H, W\), got shape \(3, 8, 8\)"),
        (lambda x, r: random_erasing(x.byte(), r, 0.5), "images must be float32 or .*, got uint8"),
        (lambda x, r: random_erasing(x[:3], r, 0.5), "random has 4 samples, but there are 3 images"),
        (lambda x, r: random_erasing(x.to("meta"), r, 0.5), "random is on cpu, but the images are on meta"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Tensor, SampleRandom], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(some_images(4, 3, 8, 8), some_random(4))
