"""Random resized crop and resize: each image compared with torchvision and PIL, and the boxes with torchvision's.

`_resample_products` is the accelerator code; here it runs on the CPU, where `random_resized_crop` uses another code path.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from transforms import SampleRandom, crop_boxes, random_resized_crop, resize, resized_box
from transforms.resized_crop import _integer_parts, _resample_each, _resample_products, _weights

# Height, width and size: shrunk, shrunk a lot, enlarged, to one pixel, unchanged size.
GEOMETRIES = [(58, 58, 48), (150, 90, 16), (24, 36, 64), (9, 11, 1), (40, 40, 30)]
FORMATS = [torch.contiguous_format, torch.channels_last]


def some_images(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return images.to(dtype) / 255 if dtype.is_floating_point else images.to(dtype)


def some_random(batch_size: int, epoch: int = 0) -> SampleRandom:
    return SampleRandom(0, epoch, torch.arange(100, 100 + batch_size))


def crop_one_by_one(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    pairs = zip(images, boxes.tolist(), strict=True)
    return torch.stack([F.resized_crop(image, *box, [size, size], antialias=True) for image, box in pairs])


def resize_by_pillow(image: Tensor, box: list[int], size: int) -> Tensor:
    top, left, height, width = box
    picture = Image.fromarray(image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy())
    resized = picture.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def drawn_by_torchvision(count: int, height: int, width: int, transform: v2.RandomResizedCrop) -> Tensor:
    image = torch.empty(3, height, width, device="meta")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        boxes = [transform.make_params([image]) for _ in range(count)]
    return torch.tensor([[box[name] for name in ("top", "left", "height", "width")] for box in boxes])


def quantities(boxes: Tensor, height: int, width: int) -> list[Tensor]:
    """Return area, ratio, both positions as shares of the free space, and both edge lengths."""
    top, left, tall, wide = boxes.double().unbind(1)
    return [tall * wide, wide / tall, top / (height - tall + 1), left / (width - wide + 1), tall, wide]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("height", "width", "size"), GEOMETRIES)
def test_crop_is_torchvisions_of_the_drawn_box(
    memory_format: torch.memory_format, dtype: torch.dtype, height: int, width: int, size: int
) -> None:
    images = some_images(12, 3, height, width, dtype=dtype).contiguous(memory_format=memory_format)
    before, state = images.clone(), torch.get_rng_state()
    crops = random_resized_crop(images, size, some_random(12))
    assert crops.dtype == dtype
    assert crops.shape == (12, 3, size, size)
    assert crops.is_contiguous(memory_format=memory_format)
    expected = crop_one_by_one(images, crop_boxes(height, width, some_random(12)), size)
    torch.testing.assert_close(crops, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 0)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [64, 120])  # below and above the size from which threads share a batch
def test_bytes_of_a_canvas_are_torchvisions_to_the_bit_with_any_number_of_threads(size: int, threads: int) -> None:
    images = some_images(9, 3, 140, 140).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    crops = random_resized_crop(images, size, some_random(9))
    torch.set_num_threads(before)
    assert torch.equal(crops, crop_one_by_one(images, crop_boxes(140, 140, some_random(9)), size))
    assert crops.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("box", [(0, 0, 31, 43), (3, 7, 20, 17), (5, 5, 1, 1)])
def test_a_box_of_one_image_is_torchvisions(dtype: torch.dtype, channels: int, box: tuple[int, int, int, int]) -> None:
    planes = some_images(channels, 31, 43, dtype=dtype)
    pixels = planes.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as a decoder writes them
    for size in (17, 31, 50):
        expected = F.resized_crop(planes, *box, [size, size], antialias=True)
        for image in (planes, pixels):
            found = resized_box(image, box, size)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 / 255 if dtype.is_floating_point else 0)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("height", "width", "size"), [*GEOMETRIES, (258, 258, 224)])
def test_products_are_torchvisions_resampling_to_the_bit_for_uint8(
    memory_format: torch.memory_format, height: int, width: int, size: int
) -> None:
    images = some_images(8, 3, height, width).contiguous(memory_format=memory_format)
    boxes = crop_boxes(height, width, some_random(8))
    crops = _resample_products(images, boxes, size)
    difference = (crops.int() - crop_one_by_one(images, boxes, size).int()).abs()
    assert crops.dtype == torch.uint8
    assert crops.is_contiguous(memory_format=memory_format)
    assert int(difference.max()) <= 1  # the guaranteed tolerance if torchvision has no kernel for uint8
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert float((difference > 0).double().mean()) < 1e-4


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-4), (torch.float64, 1e-10), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
)
@pytest.mark.parametrize(("height", "width", "size"), GEOMETRIES)
def test_products_are_torchvisions_resampling_for_floats(
    memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float, height: int, width: int, size: int
) -> None:
    images = some_images(8, 3, height, width, dtype=dtype).contiguous(memory_format=memory_format)
    boxes = crop_boxes(height, width, some_random(8))
    crops = _resample_products(images, boxes, size)
    assert crops.dtype == dtype
    assert crops.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(crops, crop_one_by_one(images, boxes, size), rtol=0, atol=tolerance)


@pytest.mark.parametrize("resample", [_resample_each, _resample_products])
@pytest.mark.parametrize(("height", "width", "size"), GEOMETRIES)
def test_resampling_is_pillows_within_one_level(
    resample: Callable[[Tensor, Tensor, int], Tensor], height: int, width: int, size: int
) -> None:
    images = some_images(8, 3, height, width)
    boxes = crop_boxes(height, width, some_random(8))
    pairs = zip(images, boxes.tolist(), strict=True)
    expected = torch.stack([resize_by_pillow(image, box, size) for image, box in pairs])
    assert int((resample(images, boxes, size).int() - expected.int()).abs().max()) <= 1


def test_products_worked_out_by_hand() -> None:
    """Four pixels to two: weights 3, 3, 1 of 7 at the border of the box; pixels outside have no effect."""
    images = torch.tensor([9.0, 7.0, 0.0, 14.0, 21.0, 9.0], dtype=torch.float64).expand(1, 1, 1, 6)
    crops = _resample_products(images, torch.tensor([[0, 1, 1, 4]]), 2)
    row = torch.tensor([(3 * 7 + 3 * 0 + 14) / 7, (0 + 3 * 14 + 3 * 21) / 7], dtype=torch.float64)
    torch.testing.assert_close(crops, row.expand(1, 1, 2, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("canvas", "size"), [(258, 224), (147, 128), (64, 200), (500, 20)])
def test_parts_of_the_weights_have_eight_bits_and_sum_to_the_weights(canvas: int, size: int) -> None:
    _, left, _, wide = crop_boxes(canvas, canvas, some_random(16)).unbind(1)
    weights = _weights(left, wide, canvas, size)
    high, low = _integer_parts(weights)
    for part in (high, low):
        assert torch.equal(part.bfloat16().float(), part)
    exact = weights.double() / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(high.double() + low.double(), exact, rtol=0, atol=2.0**-15)


@pytest.mark.every(3)
@pytest.mark.parametrize(("height", "width"), [(97, 150), (64, 64), (40, 120)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    """Kolmogorov-Smirnov two-sample tests for area, ratio and both positions; the last case, 40 x 120, needs many retries."""
    count = 3000
    boxes = crop_boxes(height, width, some_random(count))
    expected = drawn_by_torchvision(count, height, width, v2.RandomResizedCrop(8))
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()
    for ours, theirs in zip(quantities(boxes, height, width), quantities(expected, height, width), strict=True):
        assert stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-3


def test_all_places_are_equally_likely() -> None:
    boxes = crop_boxes(20, 20, some_random(20_000), scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert (boxes[:, 2:] == 10).all()
    for place in boxes[:, :2].unbind(1):
        assert stats.chisquare(place.bincount(minlength=11).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(20, 200), (200, 20), (50, 50), (30, 50), (5, 20)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (2.0, 3.0), (0.12, 0.2)])
def test_boxes_that_never_fit_are_torchvisions_centred_ones(
    height: int, width: int, ratio: tuple[float, float]
) -> None:
    """A box of the full area fits only if the image's own ratio is in the range, and then it is the image."""
    boxes = crop_boxes(height, width, some_random(4), scale=(1.0, 1.0), ratio=ratio)
    expected = drawn_by_torchvision(4, height, width, v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=ratio))
    assert torch.equal(boxes, expected)


@pytest.mark.parametrize("resample", [_resample_each, _resample_products])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_image_comes_out_the_same_in_any_batch(
    resample: Callable[[Tensor, Tensor, int], Tensor], dtype: torch.dtype
) -> None:
    images, index = some_images(9, 3, 50, 60, dtype=dtype), torch.arange(9) * 7
    boxes = crop_boxes(50, 60, SampleRandom(0, 0, index))
    assert len(boxes.unique(dim=0)) == 9
    crops = resample(images, boxes, 32)
    for chosen in (torch.tensor([4]), torch.tensor([8, 2, 5])):
        some = crop_boxes(50, 60, SampleRandom(0, 0, index[chosen]))
        assert torch.equal(some, boxes[chosen])
        assert torch.equal(resample(images[chosen], some, 32), crops[chosen])


def test_boxes_change_with_the_epoch() -> None:
    assert not torch.equal(crop_boxes(50, 60, some_random(9)), crop_boxes(50, 60, some_random(9, epoch=1)))


def test_an_empty_batch_stays_empty() -> None:
    assert random_resized_crop(some_images(0, 3, 20, 20), 8, some_random(0)).shape == (0, 3, 8, 8)


def test_an_accelerators_host_never_waits() -> None:
    """Meta tensors have no values: code that reads one (and would synchronise) raises."""
    images = torch.empty(4, 3, 20, 30, dtype=torch.uint8, device="meta").contiguous(memory_format=torch.channels_last)
    crops = random_resized_crop(images, 16, SampleRandom(0, 0, torch.arange(4, device="meta")))
    assert crops.shape == (4, 3, 16, 16)
    assert crops.is_contiguous(memory_format=torch.channels_last)
    assert resize(images, 16).shape == (4, 3, 16, 16)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("height", "width", "size"), [(58, 58, 48), (150, 90, 16), (24, 36, 64), (32, 32, 32)])
def test_resize_is_pillows(memory_format: torch.memory_format, height: int, width: int, size: int) -> None:
    images = some_images(5, 3, height, width).contiguous(memory_format=memory_format)
    before = images.clone()
    resized = resize(images, size)
    expected = torch.stack([resize_by_pillow(image, [0, 0, height, width], size) for image in images])
    assert resized.is_contiguous(memory_format=memory_format)
    assert int((resized.int() - expected.int()).abs().max()) <= 1
    torch.testing.assert_close(resize(images.float(), size), resized.float(), rtol=0, atol=1.01)  # uint8 rounds twice
    assert torch.equal(images, before)


@pytest.mark.parametrize(("height", "width"), [(900, 1200), (1200, 600), (300, 1200)])
def test_boxes_of_a_squeezed_picture_are_those_of_the_picture(height: int, width: int) -> None:
    """With the same random numbers, both boxes are the same shares of the edges, up to rounding to pixels."""
    aspect = torch.full((4000,), width / height)
    squeezed = crop_boxes(1200, 1200, some_random(4000), aspect=aspect) / 1200
    upright = crop_boxes(height, width, some_random(4000)) / torch.tensor([height, width, height, width])
    near = (squeezed - upright).abs().amax(1) < 2 / min(height, width)
    assert near.float().mean() > 0.995  # a box that barely fits in one may barely not fit in the other
    assert not near.all() or (height, width) != (300, 1200)


def test_a_picture_too_wide_for_any_box_is_cut_to_the_widest() -> None:
    """8 : 1, all of the area: no try fits, so the box is the full height, and 4/3 of it wide, in the middle."""
    boxes = crop_boxes(240, 240, some_random(5), scale=(1.0, 1.0), aspect=torch.full((5,), 8.0))
    assert boxes.tolist() == [[0, 100, 240, 40]] * 5


def test_a_squeezed_picture_is_cut_at_its_box() -> None:
    images, aspect = some_images(6, 3, 40, 40), torch.tensor([0.5, 0.8, 1.0, 1.25, 2.0, 4.0])
    expected = crop_one_by_one(images, crop_boxes(40, 40, some_random(6), aspect=aspect), 32)
    assert torch.equal(random_resized_crop(images, 32, some_random(6), aspect=aspect), expected)
    even = torch.ones(6)
    plain = random_resized_crop(images, 32, some_random(6))
    assert torch.equal(random_resized_crop(images, 32, some_random(6), aspect=even), plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, r: random_resized_crop(x, 0, r), "size must be 1 pixel or more, got 0"),
        (
            lambda x, r: random_resized_crop(x, 4, r, (0.0, 1.0)),
            r"scale must be two shares .* above 0 .* got \(0.0, 1.0\)",
        ),
        (lambda x, r: random_resized_crop(x, 4, r, (0.5, 0.4)), r"scale must .* the smaller first, got \(0.5, 0.4\)"),
        (lambda x, r: random_resized_crop(x, 4, r, (0.5, 1.1)), r"scale must .* up to 1, .* got \(0.5, 1.1\)"),
        (
            lambda x, r: random_resized_crop(x, 4, r, ratio=(0.0, 1.0)),
            r"ratio must be two positive .* got \(0.0, 1.0\)",
        ),
        (
            lambda x, r: random_resized_crop(x, 4, r, ratio=(2.0, 1.0)),
            r"ratio must .* the smaller first, got \(2.0, 1.0\)",
        ),
        (lambda x, r: random_resized_crop(x[0], 4, r), r"images must be \(B, C, H, W\), got shape \(3, 8, 8\)"),
        (lambda x, r: random_resized_crop(x.int(), 4, r), "images must be uint8 or float32 or .*, got int32"),
        (lambda x, r: random_resized_crop(x[:3], 4, r), "random has 4 samples, but there are 3 images"),
        (lambda x, r: random_resized_crop(x.to("meta"), 4, r), "random is on cpu, but the images are on meta"),
        (lambda x, r: resize(x, 0), "size must be 1 pixel or more, got 0"),
        (lambda x, r: resize(x[0], 4), r"images must be \(B, C, H, W\), got shape \(3, 8, 8\)"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[Tensor, SampleRandom], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(some_images(4, 3, 8, 8), some_random(4))
