"""Tests metrics/directions.py: the direction of each metric, contradictions, and the order of epochs with ties."""

import itertools
import math

import pytest

from metrics.directions import GivenMode, direction_of, is_better, resolve_mode, tie_breaker


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/loss", "min"),
        ("val_raw/loss", "min"),
        ("loss", "min"),
        ("val/ece_mass", "min"),
        ("test/ece_high_calibrated", "min"),
        ("test/nll_calibrated", "min"),
        ("val/negative_area", "min"),
        ("test/aurc", "min"),
        ("val/focal_loss", "min"),
        ("val/acc", "max"),
        ("train/acc_mix", "max"),
        ("val/iou/segment_crack_loss", "max"),
        ("test/nothing_iou_image", "max"),
        ("val/exit_coverage_0.9", "max"),
        ("test/exit_acc_stored", "max"),
        ("test/boundary_f1/segment_crack", "max"),
        ("epoch", "max"),
        ("test/ece_floor", None),
        ("test/ece_floor_calibrated", None),
        ("val/threshold/segment_crack", None),
        ("ternary/layer/scale", None),
        ("lr/loss", None),
        ("val/mae", None),
    ],
)
def test_direction(name: str, mode: str | None) -> None:
    assert direction_of(name) == mode


@pytest.mark.parametrize(
    ("monitor", "mode", "found"),
    [("val/loss", "auto", "min"), ("val/acc", "auto", "max"), ("val/acc", "max", "max"), ("val/mae", "min", "min")],
)
def test_the_direction_follows_the_metric(monitor: str, mode: GivenMode, found: str) -> None:
    assert resolve_mode("checkpoint.mode", monitor, mode) == found


@pytest.mark.parametrize(
    ("monitor", "mode", "message"),
    [
        ("val/loss", "max", "checkpoint.mode: lower values of val/loss are better, got max; leave it out, or give min"),
        ("epoch", "min", "checkpoint.mode: higher values of epoch are better, got min; leave it out, or give max"),
        ("val/mae", "auto", "checkpoint.mode: it is not known whether lower or higher values of val/mae are better"),
    ],
)
def test_a_contradiction_is_refused(monitor: str, mode: GivenMode, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_mode("checkpoint.mode", monitor, mode)


def test_ties_are_broken_by_the_loss_of_the_same_stage() -> None:
    names = ("val/acc", "train/acc", "val/iou/crack", "val/loss", "epoch", "lr/weights")
    assert [tie_breaker(name) for name in names] == ["val/loss", "train/loss", "val/loss", None, None, None]


def test_the_order_of_epochs_equals_that_of_sorted_pairs() -> None:
    epochs = list(itertools.product((0.1, 0.2), (0.3, 0.5)))
    for new, best in itertools.product(epochs, epochs):
        assert is_better(new, best, "max") == ((-new[0], new[1]) < (-best[0], best[1]))
        assert is_better(new, best, "min") == (new < best)


def test_values_that_are_not_numbers_or_not_known() -> None:
    nan = math.nan
    assert is_better((0.1, None), None, "max")
    assert not is_better((nan, 0.1), None, "max")
    assert not is_better((nan, 0.1), (0.5, 0.2), "max")
    assert not is_better((nan, 0.1), (0.5, 0.2), "min")
    assert is_better((0.5, 0.2), (0.5, nan), "max")
    assert not is_better((0.5, nan), (0.5, 0.2), "max")
    # the loss of an earlier epoch that is not known might be the lower one
    assert not is_better((0.5, 0.2), (0.5, None), "max")
