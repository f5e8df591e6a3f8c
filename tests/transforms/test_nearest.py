"""Nearest-neighbour crop and resize: compared with torchvision's exact nearest neighbour, box by box."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from transforms import SampleRandom, crop_boxes, nearest_resized


@pytest.mark.parametrize(("height", "width", "size"), [(12, 12, 5), (7, 9, 20), (16, 10, 16), (5, 8, 1)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.bool])
def test_boxes_are_torchvisions(height: int, width: int, size: int, dtype: torch.dtype) -> None:
    masks = torch.randint(0, 5, (10, 1, height, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    boxes = crop_boxes(height, width, SampleRandom(0, 0, torch.arange(10)))
    exact = InterpolationMode.NEAREST_EXACT
    pairs = list(zip(masks.float(), boxes.tolist(), strict=True))
    expected = torch.stack([F.resize(F.crop(mask, *box), [size, size], interpolation=exact) for mask, box in pairs])
    resized = nearest_resized(masks, size, boxes)
    assert resized.dtype == dtype
    assert torch.equal(resized.float(), expected)
    whole = F.resize(masks.float(), [size, size], interpolation=exact)
    assert torch.equal(nearest_resized(masks, size).float(), whole)


def test_no_new_values_appear() -> None:
    masks = torch.tensor([0, 255], dtype=torch.uint8)[torch.randint(0, 2, (4, 1, 9, 9))]
    assert set(nearest_resized(masks, 30).unique().tolist()) <= {0, 255}


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="size must be 1 pixel or more, got 0"):
        nearest_resized(torch.zeros(1, 1, 2, 2), 0)
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\)"):
        nearest_resized(torch.zeros(1, 2, 2), 3)
