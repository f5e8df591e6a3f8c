"""Signal encoders: pixels compared with pyts. A separate file, because pyts compiles slowly when it is imported."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch

from tests.transforms.test_signal_image import SIZES, close, flat, shortened, walks
from transforms import encode

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", ["summation", "difference"])
@pytest.mark.parametrize(("length", "size"), SIZES)
def test_gramian_angular_field_is_pyts(method: Literal["summation", "difference"], length: int, size: int) -> None:
    image = pytest.importorskip("pyts.image")
    signals = walks(3, 2, length)
    expected = image.GramianAngularField(size, method=method).transform(flat(signals))
    close(encode(signals, "gramian_angular_field", size, method=method), (expected + 1) / 2)


def test_gramian_angular_field_with_ranges_is_pyts_of_scaled_signals() -> None:
    image = pytest.importorskip("pyts.image")
    signals = torch.randn(3, 2, 40, generator=torch.Generator().manual_seed(0))
    ranges = torch.tensor([[-2.0, 1.5], [-1.0, 3.0]])
    low, high = ranges.double().numpy().T[:, None, :, None]
    scaled = 2 * (signals.double().numpy().clip(low, high) - low) / (high - low) - 1
    expected = image.GramianAngularField(40, sample_range=None).transform(scaled.reshape(6, 40))
    close(encode(signals, "gramian_angular_field", 40, ranges=ranges), (expected + 1) / 2)


@pytest.mark.parametrize("threshold", ["none", "point", "distance"])
@pytest.mark.parametrize(("length", "size"), SIZES)
def test_recurrence_plot_is_pyts(threshold: str, length: int, size: int) -> None:
    image = pytest.importorskip("pyts.image")
    signals = walks(3, 2, length)
    peer = image.RecurrencePlot(threshold=None if threshold == "none" else threshold, percentage=12.5)
    expected = peer.transform(shortened(flat(signals), size))
    if threshold == "none":
        expected = expected / expected.max((1, 2), keepdims=True)
    close(encode(signals, "recurrence_plot", size, threshold=threshold, percentage=12.5), expected)


@pytest.mark.parametrize(("threshold", "percentage"), [("none", 10), ("point", 0.1), ("point", 100), ("distance", 30)])
def test_recurrence_plot_of_states_is_pyts(threshold: str, percentage: float) -> None:
    image = pytest.importorskip("pyts.image")
    signals = walks(2, 2, 70)
    settings: dict[str, Any] = {"dimension": 3, "percentage": percentage}
    peer = image.RecurrencePlot(time_delay=5, threshold=None if threshold == "none" else threshold, **settings)
    expected = peer.transform(flat(signals))
    if threshold == "none":
        expected = expected / expected.max((1, 2), keepdims=True)
    close(encode(signals, "recurrence_plot", 60, threshold=threshold, delay=5, **settings), expected)


@pytest.mark.parametrize("bins", [2, 5, 8])
@pytest.mark.parametrize(("length", "size"), SIZES)
def test_markov_transition_field_is_pyts(bins: int, length: int, size: int) -> None:
    image = pytest.importorskip("pyts.image")
    signals = walks(3, 2, length)
    expected = image.MarkovTransitionField(size, n_bins=bins).transform(flat(signals))
    close(encode(signals, "markov_transition_field", size, bins=bins), expected)
