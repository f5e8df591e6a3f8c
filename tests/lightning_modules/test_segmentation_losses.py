"""Tests of lightning_modules/losses/segmentation.py: values computed by hand, and torchvision's focal loss."""

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from lightning_modules import PromptedSegmenter
from lightning_modules.losses.segmentation import SegmentationLoss, pixel_loss, region_loss


def loss_with(*terms: Any, **settings: Any) -> SegmentationLoss:
    """The loss with PromptedSegmenter's default settings, and those given."""
    parameters = inspect.signature(PromptedSegmenter).parameters
    names = list(inspect.signature(SegmentationLoss).parameters)
    defaults = {name: parameters[name].default for name in names}
    return SegmentationLoss(**{**defaults, **dict(zip(("pixel", "region"), terms, strict=False)), **settings})


def logit(*probabilities: float) -> Tensor:
    """Logits (1, 1, 1, W) for the given probabilities."""
    return torch.tensor(probabilities, dtype=torch.float64).logit().float().view(1, 1, 1, -1)


def mask(*values: int) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


def test_bce_by_hand() -> None:
    value = pixel_loss(logit(0.9, 0.2, 0.6), mask(1, 0, 0))
    assert float(value) == pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3)
    weighted = pixel_loss(logit(0.9, 0.2, 0.6), mask(1, 0, 0), pos_weight=5)
    assert float(weighted) == pytest.approx(-(5 * math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3)


def test_focal_by_hand_and_against_torchvision() -> None:
    value = pixel_loss(logit(0.9, 0.2), mask(1, 0), gamma=2)
    assert float(value) == pytest.approx(-(0.1**2 * math.log(0.9) + 0.2**2 * math.log(0.8)) / 2, rel=1e-5)
    torch.manual_seed(0)
    logits, truth = 4 * torch.randn(3, 1, 5, 5), (torch.rand(3, 1, 5, 5) > 0.7).float()
    # torchvision's alpha weights the object by alpha and the rest by 1 - alpha: 0.75 and 0.25 equal 3 and 1 times 0.25
    expected = sigmoid_focal_loss(logits, truth, alpha=0.75, gamma=1.5, reduction="mean") / 0.25
    assert float(pixel_loss(logits, truth, pos_weight=3, gamma=1.5)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("value", [-200.0, 200.0])
def test_confident_wrong_prediction_has_a_gradient(value: float) -> None:
    logits = torch.full((1, 1, 2, 2), value, requires_grad=True)
    wrong = torch.full((1, 1, 2, 2), float(value < 0))
    loss_with("focal", "tversky")(logits, wrong).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad.abs().sum()) == pytest.approx(1, rel=1e-3)


def test_dice_by_hand() -> None:
    # sum p y = 0.9, sum p = 1.7, sum y = 1; (2 * 0.9 + 2) / (1.7 + 1 + 2), as s = 1 corresponds to 2 in this form
    value = region_loss(logit(0.9, 0.2, 0.6), mask(1, 0, 0))
    assert float(value) == pytest.approx(1 - (2 * 0.9 + 2) / (1.7 + 1 + 2))


def test_tversky_by_hand() -> None:
    # TP 0.9, FP 0.8, FN 0.1
    value = region_loss(logit(0.9, 0.2, 0.6), mask(1, 0, 0), alpha=0.3, beta=0.7, smooth=0.5)
    assert float(value) == pytest.approx(1 - (0.9 + 0.5) / (0.9 + 0.3 * 0.8 + 0.7 * 0.1 + 0.5))


def test_empty_masks() -> None:
    empty = mask(0, 0, 0, 0)
    assert float(region_loss(torch.full((1, 1, 1, 4), -90.0), empty)) == 0
    # FP = 2 and alpha = 0.5, so alpha FP = s = 1: half
    assert float(region_loss(logit(0.5, 0.5, 0.5, 0.5), empty)) == pytest.approx(0.5)
    # a full mask that is missed completely
    assert float(region_loss(torch.full((1, 1, 1, 4), -90.0), mask(1, 1, 1, 1))) == pytest.approx(1 - 1 / 3)


def test_sums_over_samples_and_over_the_batch() -> None:
    logits = torch.cat([logit(0.9, 0.1), logit(0.4, 0.6)])
    truth = torch.cat([mask(1, 0), mask(0, 0)])
    # per sample: TP 0.9, FP + FN 0.2; TP 0, FP 1
    samples = ((1 - (0.9 + 1) / (0.9 + 0.1 + 1)) + (1 - 1 / (0.5 + 1))) / 2
    assert float(region_loss(logits, truth)) == pytest.approx(samples)
    batch = 1 - (0.9 + 1) / (0.9 + 0.5 * 1.2 + 1)
    assert float(region_loss(logits, truth, over="batch")) == pytest.approx(batch)


def test_sums_over_the_masks_of_each_prompt() -> None:
    torch.manual_seed(0)
    logits, truth, prompt = torch.randn(5, 1, 4, 6), torch.rand(5, 1, 4, 6) > 0.7, torch.tensor([2, 0, 2, 0, 2])
    truth[2:4] = False  # empty masks are judged together with the others of their prompt
    groups = [region_loss(logits[prompt == n], truth[prompt == n], over="batch") for n in prompt.tolist()]
    value = region_loss(logits, truth, over="prompt", prompt=prompt)
    assert float(value) == pytest.approx(sum(map(float, groups)) / 5)
    loss = loss_with("none", "dice", over="prompt")
    assert torch.equal(loss(logits, truth, None, prompt), value)
    assert torch.equal(loss(logits, truth, None, prompt, over="sample"), region_loss(logits, truth))


@pytest.mark.parametrize("over", ["sample", "batch"])
def test_excluded_pixels_do_not_affect_the_loss(over: Any) -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 1, 6, 8), torch.rand(2, 1, 6, 8) > 0.5
    valid = torch.zeros(2, 1, 6, 8, dtype=torch.bool)
    valid[..., :4, :5] = True
    loss = loss_with("focal", "tversky", over=over, pos_weight=2)
    assert torch.allclose(loss(logits, truth, valid), loss(logits[..., :4, :5], truth[..., :4, :5]))
    assert float(loss(logits, truth, torch.zeros_like(valid))) == 0


@pytest.mark.parametrize(
    ("settings", "pixel", "region"),
    [
        ({}, {}, {}),
        ({"pixel": "focal"}, {"gamma": 2.0}, {}),
        ({"region": "tversky", "smooth": 3.0}, {}, {"alpha": 0.3, "beta": 0.7, "smooth": 3.0}),
        ({"over": "batch", "pos_weight": 4.0}, {"pos_weight": 4.0}, {"over": "batch"}),
        ({"region": "none"}, {}, None),
        ({"pixel": "none"}, None, {}),
    ],
)
def test_terms_are_added_with_weights(settings: Any, pixel: Any, region: Any) -> None:
    torch.manual_seed(1)
    logits, truth = torch.randn(3, 1, 4, 4), torch.rand(3, 1, 4, 4) > 0.6
    expected = 0.0
    if pixel is not None:
        expected += 0.5 * float(pixel_loss(logits, truth, **pixel))
    if region is not None:
        expected += 2 * float(region_loss(logits, truth, **region))
    loss = loss_with(pixel_weight=0.5, region_weight=2.0, **settings)
    assert float(loss(logits, truth)) == pytest.approx(expected)


def test_half_precision_is_computed_in_float32() -> None:
    logits, truth = torch.randn(1, 1, 300, 300).bfloat16(), torch.rand(1, 1, 300, 300) > 0.9
    loss = loss_with()
    value = loss(logits, truth)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(logits.float(), truth))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pixel": "ce"}, "pixel: one of bce, focal, none, got ce"),
        ({"region": "iou"}, "region: one of dice, tversky, none, got iou"),
        ({"over": "epoch"}, "over: one of auto, sample, batch, prompt, got epoch"),
        ({"pixel": "none", "region": "none"}, "pixel: with pixel none and region none there is no loss"),
        ({"pos_weight": 0.0}, "pos_weight: a number above 0 is needed, got 0.0"),
        ({"smooth": float("nan")}, "smooth: a number above 0 is needed, got nan"),
        ({"focal_gamma": -1.0}, "focal_gamma: a number of at least 0 is needed, got -1.0"),
    ],
)
def test_bad_settings(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss_with(**settings)


def test_weights_of_samples() -> None:
    torch.manual_seed(5)
    logits, mask = torch.randn(3, 1, 4, 4), (torch.rand(3, 1, 4, 4) < 0.4).float()
    weight = torch.tensor([1.0, 3.0, 0.5])
    for function in (pixel_loss, region_loss):
        each = torch.stack([function(logits[i : i + 1], mask[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(logits, mask, weight=weight), (weight * each).sum() / weight.sum())
        torch.testing.assert_close(function(logits, mask, weight=torch.full((3,), 2.0)), function(logits, mask))
    valid = torch.rand(3, 1, 4, 4) < 0.7
    inside = torch.stack([pixel_loss(logits[i : i + 1], mask[i : i + 1], valid[i : i + 1]) for i in range(3)])
    shares = weight * valid.sum(dim=(1, 2, 3))
    torch.testing.assert_close(pixel_loss(logits, mask, valid, weight=weight), (shares * inside).sum() / shares.sum())
