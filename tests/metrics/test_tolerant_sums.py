"""Mask F1 and boundary F1 with a tolerance: compared with distances by scipy and with cases computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from metrics.segmentation_boundary import TolerantSums, boundary, dilate


def blobs(count: int, seed: int) -> Tensor:
    """Masks (N, 1, 20, 17) of a few pixels; the first is empty."""
    random = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, 1, 20, 17, generator=random) > 0.93
    mask[0] = False
    return mask


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_dilation_is_euclidean(radius: int) -> None:
    masks = blobs(5, 0)
    for mask, wide in zip(masks.numpy(), dilate(masks, radius).numpy(), strict=True):
        near = ndimage.distance_transform_edt(~mask[0]) <= radius if mask.any() else np.zeros_like(mask[0])
        assert (wide[0] == near).all()


def test_boundary_by_hand() -> None:
    mask = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    mask[..., 1:, 1:4] = True  # touches the lower image border, which does not count as boundary
    expected = mask.clone()
    expected[..., 2:, 2] = False
    assert torch.equal(boundary(mask), expected)


def metrics(predicted: np.ndarray[Any, Any], true: np.ndarray[Any, Any], radius: int) -> tuple[float, float, float]:
    """Precision, recall and F1 computed from distances, pooled over the images."""
    near: list[np.ndarray[Any, Any]] = []
    for one, other in ((predicted, true), (true, predicted)):
        hits = []
        for mask, reference in zip(one, other, strict=True):
            distance = (
                ndimage.distance_transform_edt(~reference[0]) if reference.any() else np.full(mask[0].shape, np.inf)
            )
            hits.append(distance[mask[0]] <= radius)
        near.append(np.concatenate(hits))
    empty = float(not predicted.any() and not true.any())
    precision, recall = (float(hits.mean()) if len(hits) else empty for hits in near)
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("radius", [0, 1, 3])
@pytest.mark.parametrize("of", ["mask", "boundary"])
def test_equals_distances(radius: int, of: Any) -> None:
    predicted, true, prompt = blobs(8, 1), blobs(8, 2), torch.arange(8) % 2
    true[2], predicted[3] = False, False
    if of == "boundary":
        predicted, true = dilate(predicted, 2), dilate(true, 2)
    sums = TolerantSums(3, radius, of)
    for part in torch.arange(8).split(3):
        sums.update(predicted[part], true[part], prompt[part])
    rows, overall = sums.compute()
    mine, others = (boundary(mask) if of == "boundary" else mask for mask in (predicted, true))
    for number in range(2):
        own = prompt == number
        one, other = mine[own].numpy(), others[own].numpy()
        each = [metrics(one[i : i + 1], other[i : i + 1], radius)[2] for i in range(4)]
        assert rows[number] == pytest.approx((4, *metrics(one, other, radius), np.mean(each)), abs=1e-6)
    assert overall[:4] == pytest.approx((8, *metrics(mine.numpy(), others.numpy(), radius)), abs=1e-6)
    assert rows[2].images == 0
    assert math.isnan(rows[2].f1)


def test_a_shifted_line_by_hand() -> None:
    true, predicted = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    true[0, 0, :, 2] = 1
    predicted[0, 0, :, 4] = 1  # two pixels away
    for radius, f1 in ((1, 0.0), (2, 1.0)):
        sums = TolerantSums(1, radius)
        sums.update(predicted, true, torch.tensor([0, 0]))
        (row,), _ = sums.compute()
        # truth and prediction of the second image are empty, which counts as correct
        assert tuple(row) == pytest.approx((2, f1, f1, f1, (f1 + 1) / 2))


def test_parts_and_processes_give_the_same_to_the_bit() -> None:
    predicted, true, prompt = blobs(9, 3), blobs(9, 4), torch.arange(9) % 2
    whole = TolerantSums(2)
    whole.update(predicted, true, prompt)
    parts = []
    for rank in range(2):
        parts.append(TolerantSums(2))
        parts[-1].update(predicted[rank::2], true[rank::2], prompt[rank::2])
    for name in ("counts", "images"):
        reduce: Any = whole._reductions[name]
        assert torch.equal(reduce(torch.stack([getattr(part, name) for part in parts])), getattr(whole, name))


def test_pixels_that_do_not_count() -> None:
    predicted, true, prompt = blobs(4, 5), blobs(4, 6), torch.zeros(4, dtype=torch.int64)
    valid = torch.zeros_like(true)
    valid[..., :10, :9] = True
    masked, cut = TolerantSums(1), TolerantSums(1)
    masked.update(predicted, true, prompt, valid)
    cut.update(predicted[..., :10, :9], true[..., :10, :9], prompt)
    assert masked.compute() == cut.compute()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompts": 0}, "num_prompts: 0 given, at least 1 needed"),
        ({"radius": -1}, "radius: pixels, 0 or more, got -1"),
        ({"of": "edge"}, "of: mask or boundary, got edge"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TolerantSums(**{"num_prompts": 1, **arguments})
