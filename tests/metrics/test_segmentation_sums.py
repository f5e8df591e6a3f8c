"""Segmentation metrics: compared with plain numpy; empty masks, distributed updates and chosen thresholds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metrics.segmentation import (
    THRESHOLDS,
    MaskMetrics,
    SegmentationCounts,
    SegmentationSums,
    choose_thresholds,
    grid_place,
)

PROMPTS = 3  # the last prompt has no image


def draw(count: int = 14, height: int = 9, width: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, masks and prompts; some true masks are empty, some predictions are empty, and some pairs have both empty."""
    random = torch.Generator().manual_seed(0)
    mask = torch.rand(count, 1, height, width, generator=random) > torch.rand(count, 1, 1, 1, generator=random)
    logits = 1.5 * torch.randn(count, 1, height, width, generator=random) + 1.5 * mask
    mask[[1, 4, 6]] = False
    logits[[4, 5]] = -20.0
    logits[6, 0, 0, 0] = 20.0
    return logits, mask, torch.arange(count) % 2


def counts_of(logits: Tensor, mask: Tensor, prompt: Tensor, valid: Tensor | None = None) -> SegmentationCounts:
    sums = SegmentationSums(PROMPTS)
    sums.update(logits, mask, prompt, valid)
    counts = sums.compute()
    assert isinstance(counts, SegmentationCounts)
    return counts


def by_numpy(logits: Tensor, mask: Tensor, thresholds: Sequence[float]) -> MaskMetrics:
    """Metrics of some pairs, each with its own threshold, computed image by image."""
    rows, totals = [], np.zeros(4)
    for one, truth, threshold in zip(logits.numpy(), mask.numpy() != 0, thresholds, strict=True):
        predicted = 1 / (1 + np.exp(-one.astype(np.float64))) >= threshold
        counts = np.array(
            [
                (predicted & truth).sum(),
                (predicted & ~truth).sum(),
                (~predicted & truth).sum(),
                (~predicted & ~truth).sum(),
            ],
            dtype=float,
        )
        totals += counts
        area = predicted.mean() if not truth.any() else np.nan
        rows.append([*shares(*counts), area])
    means = np.array(rows)[:, :3].mean(axis=0)
    areas = [row[3] for row in rows if not math.isnan(row[3])]
    area = float(np.mean(areas)) if areas else float("nan")
    iou, dice, accuracy = map(float, means)
    return MaskMetrics(len(rows), len(areas), *shares(*totals), iou, dice, accuracy, area)


def shares(tp: float, fp: float, fn: float, tn: float) -> tuple[float, float, float]:
    union = tp + fp + fn
    return (tp / union if union else 1.0), (2 * tp / (tp + union) if union else 1.0), (tp + tn) / (union + tn)


def assert_equal(found: MaskMetrics, expected: MaskMetrics) -> None:
    assert found == pytest.approx(expected, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize("threshold", [0.01, 0.29, 0.5, 0.77, 0.99])
def test_equals_numpy(threshold: float) -> None:
    logits, mask, prompt = draw()
    counts = counts_of(logits, mask, prompt)
    assert_equal(counts.overall(threshold), by_numpy(logits, mask, [threshold] * len(logits)))
    for number in range(2):
        own = prompt == number
        expected = by_numpy(logits[own], mask[own], [threshold] * int(own.sum()))
        assert_equal(counts.of_prompt(number, threshold), expected)
    assert counts.of_prompt(2, threshold)[:2] == (0, 0)
    assert all(math.isnan(value) for value in counts.of_prompt(2, threshold)[2:])


def test_each_prompt_has_its_own_threshold() -> None:
    logits, mask, prompt = draw()
    counts, own = counts_of(logits, mask, prompt), [0.3, 0.8, 0.5]
    assert_equal(counts.overall(own), by_numpy(logits, mask, [own[number] for number in prompt]))
    first, second = counts.of_prompt(0, 0.3), counts.of_prompt(1, 0.8)
    mean = counts.mean_over_prompts(own)
    assert mean.iou == pytest.approx((first.iou + second.iou) / 2)
    assert mean.dice_image == pytest.approx((first.dice_image + second.dice_image) / 2)
    assert mean.images == 14


def test_empty_masks_by_hand() -> None:
    high, low = 9.0, -9.0
    logits = torch.tensor([[low, low], [low, high], [low, low], [high, low]]).view(4, 1, 1, 2)
    mask = torch.tensor([[0, 0], [0, 0], [0, 1], [1, 0]]).view(4, 1, 1, 2)
    counts = counts_of(logits, mask, torch.zeros(4, dtype=torch.int64))
    # images: both empty 1, only predicted 0, only true 0, equal 1; pooled TP 1, FP 1, FN 1, TN 5
    assert_equal(counts.of_prompt(0), MaskMetrics(4, 2, 1 / 3, 0.5, 6 / 8, 0.5, 0.5, 0.75, 0.25))
    nothing = counts_of(logits[:1], mask[:1], torch.zeros(1, dtype=torch.int64))
    assert_equal(nothing.of_prompt(0), MaskMetrics(1, 1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0))


def test_predicting_nothing() -> None:
    """Compared with values by hand, and with the metrics of logits that predict no pixel."""
    mask = torch.zeros(4, 1, 4, 4)
    mask[0, :, :2, :2] = 1
    mask[3, :, 0] = 1
    prompt = torch.tensor([0, 0, 1, 3])  # there is no image of prompt 2
    sums = SegmentationSums(4)
    sums.update(torch.full((4, 1, 4, 4), 9.0), mask, prompt)
    nothing = sums.compute().of_nothing()
    share = pytest.approx((28 / 32 + 1 + 12 / 16) / 3)
    assert nothing == {"iou": 1 / 3, "dice": 1 / 3, "pixel_acc": share, "iou_image": 0.5, "dice_image": 0.5}
    silent = SegmentationSums(4)
    silent.update(torch.full((4, 1, 4, 4), -9.0), mask, prompt)
    metrics = silent.compute().mean_over_prompts(0.5)
    assert nothing == pytest.approx({name: getattr(metrics, name) for name in nothing})


def test_a_probability_at_the_threshold_is_predicted_and_nan_is_not() -> None:
    logits = torch.tensor([0.0, float("nan"), float("inf"), -float("inf")]).view(1, 1, 1, 4)
    counts = counts_of(logits, torch.ones(1, 1, 1, 4), torch.zeros(1, dtype=torch.int64))
    assert counts.of_prompt(0, 0.5).iou == 0.5
    assert counts.of_prompt(0, 0.51).iou == 0.25
    assert counts.of_prompt(0, 0.01).iou == 0.5


@pytest.mark.parametrize("threshold", [0.07, 0.5, 0.93])
def test_the_rule_is_that_of_comparing_in_float32(threshold: float) -> None:
    """The mask writer compares sigmoid(logits) with a Python number, which must select the same pixels."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 1, 50, 50)
    near = torch.tensor(threshold).logit()
    logits[0, 0, 0] = near + torch.linspace(-1e-6, 1e-6, 50)
    counts = counts_of(logits, torch.ones_like(logits), torch.zeros(2, dtype=torch.int64))
    predicted = int((torch.sigmoid(logits) >= threshold).sum())
    assert counts.of_prompt(0, threshold).iou == predicted / logits.numel()


@pytest.mark.parametrize("parts", [[7, 7], [1] * 14, [13, 1]])
def test_parts_and_processes_give_the_same_to_the_bit(parts: list[int]) -> None:
    logits, mask, prompt = draw()
    whole = counts_of(logits, mask, prompt)
    sums, states = SegmentationSums(PROMPTS), []
    for place in torch.randperm(14, generator=torch.Generator().manual_seed(1)).split(parts):
        sums.update(logits[place], mask[place], prompt[place])
        other = SegmentationSums(PROMPTS)
        other.update(logits[place], mask[place], prompt[place])
        states.append(other)
    reduced = []
    for name in whole._fields:
        reduce: Any = sums._reductions[name]
        reduced.append(reduce(torch.stack([getattr(state, name) for state in states])).numpy())
    for one, other_one, expected in zip(sums.compute(), reduced, whole, strict=True):
        assert (one == expected).all()
        assert (other_one == expected).all()
    sums.reset()
    assert sums.images.sum() == 0


def test_images_of_several_sizes_and_pixels_that_do_not_count() -> None:
    logits, mask, prompt = draw()
    valid = torch.zeros_like(mask)
    valid[..., :5, :7] = True
    cut = counts_of(logits[..., :5, :7], mask[..., :5, :7], prompt)
    for one, expected in zip(counts_of(logits, mask, prompt, valid), cut, strict=True):
        assert (one == expected).all()
    sums = SegmentationSums(PROMPTS)
    sums.update(logits, mask, prompt)
    sums.update(logits[:1, :, :2, :3], mask[:1, :, :2, :3], prompt[:1])
    assert sums.compute().pixels.sum() == 14 * 99 + 6


def test_counts_on_after_a_reset_in_inference_mode() -> None:
    sums, batch = SegmentationSums(PROMPTS), draw()
    with torch.inference_mode():
        sums.reset()
        sums.update(*batch)
    sums.update(*batch)
    assert sums.compute().images.sum() == 28 + 2 * 3


def test_chosen_thresholds_have_the_best_iou() -> None:
    logits, mask, prompt = draw()
    counts = counts_of(logits, mask, prompt)
    for by in ("iou", "iou_image"):
        chosen = choose_thresholds(counts, by)
        assert chosen[2] == 0.5, "without images there is nothing to choose by"
        for number in range(2):
            own = prompt == number
            tried = [
                getattr(by_numpy(logits[own], mask[own], [threshold] * int(own.sum())), by) for threshold in THRESHOLDS
            ]
            found = tried[grid_place(chosen[number])]
            assert found == pytest.approx(max(tried), abs=1e-8)


def test_a_tie_of_thresholds_takes_the_one_nearest_to_one_half() -> None:
    # all thresholds from 0.27 to 0.62 separate the two pixels; the one nearest to 0.5 is 0.5
    logits = torch.tensor([0.265, 0.625]).logit().view(1, 1, 1, 2)
    mask, prompt = torch.tensor([0, 1]).view(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64)
    assert choose_thresholds(counts_of(logits, mask, prompt))[0] == 0.5
    # from 0.63 on
    assert choose_thresholds(counts_of(torch.tensor([0.625, 0.9]).logit().view(1, 1, 1, 2), mask, prompt))[0] == 0.63
    # a prompt that has only negatives
    assert choose_thresholds(counts_of(logits, 0 * mask, prompt))[0] == 0.5


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_prompts: 0 given, at least 1 needed"):
        SegmentationSums(0)
    counts = counts_of(*draw())
    with pytest.raises(ValueError, match=r"threshold: one of 0.01, 0.02 .. 0.99 is needed, got 0.505"):
        counts.of_prompt(0, 0.505)
    with pytest.raises(ValueError, match="thresholds: one for each of the 3 prompts is needed, got 1"):
        counts.overall([0.5])
