"""Signal encoders, `encode` and `arrange`: pixels compared with scipy, PIL, matplotlib and slow numpy code."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import signal as scipy_signal
from torch import Tensor

from transforms import Encoder, arrange, encode, signal_scaling, window_mean

Array = NDArray[np.float64]
ENCODERS: tuple[Encoder, ...] = get_args(Encoder)
# shorter, equal, longer than the image; divisible by its size and not
SIZES = [(128, 64), (128, 128), (128, 48), (100, 37), (60, 7)]


def walks(batch_size: int, signals: int, length: int, offset: float = 1.0) -> Tensor:
    """Random walks far from 0, like an accelerometer that measures gravity: 1 +- 0.01."""
    steps = torch.randn(batch_size, signals, length, generator=torch.Generator().manual_seed(length))
    return offset + 0.002 * steps.cumsum(-1)


def flat(signals: Tensor) -> Array:
    return signals.flatten(0, 1).double().numpy()


def shortened(series: Array, size: int) -> Array:
    bounds = np.arange(size + 1) * series.shape[1] // size
    return np.stack([series[:, a:b].mean(1) for a, b in pairwise(bounds)], 1)


def close(images: Tensor, expected: Array, atol: float = 1e-5) -> None:
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.flatten(0, 1).numpy(), expected, rtol=0, atol=atol)


def resized(image: Array, size: int) -> Array:
    """PIL's bilinear resampling, which is anti-aliased when it shrinks."""
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("length", "size"), SIZES)
def test_gramian_angular_field_is_of_the_angles(length: int, size: int) -> None:
    signals = walks(2, 2, length)
    values = shortened(flat(signals), size)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    angle = np.arccos((2 * (values - low) / (high - low) - 1).clip(-1, 1))
    first, second = angle[:, :, None], angle[:, None]
    close(encode(signals, "gramian_angular_field", size), (1 + np.cos(first + second)) / 2)
    difference = encode(signals, "gramian_angular_field", size, method="difference")
    close(difference, (1 + np.sin(first - second)) / 2)


@pytest.mark.parametrize("percentage", [0.1, 12.5, 50, 100])
@pytest.mark.parametrize(("length", "size"), SIZES)
def test_recurrence_plot_is_of_the_distances(length: int, size: int, percentage: float) -> None:
    signals = walks(2, 2, length)
    values = shortened(flat(signals), size)
    distance = np.abs(values[:, :, None] - values[:, None])
    largest = distance.max((1, 2), keepdims=True)
    limit = np.percentile(distance, percentage, axis=(1, 2), keepdims=True)
    settings: dict[str, Any] = {"percentage": percentage}
    close(encode(signals, "recurrence_plot", size), distance / largest)
    close(encode(signals, "recurrence_plot", size, threshold="point", **settings), (distance < limit).astype(float))
    near = (distance < percentage / 100 * largest).astype(float)
    close(encode(signals, "recurrence_plot", size, threshold="distance", **settings), near)


@pytest.mark.parametrize("percentage", [0, 7, 37.5, 100])  # 0.07 * 100 is a little more than 7, and 93 + that is 100
@pytest.mark.parametrize("length", [2, 9, 255, 256, 300])
def test_thresholds_are_exact_among_equal_distances(length: int, percentage: float) -> None:
    signals = torch.randint(0, 101, (2, 2, length), generator=torch.Generator().manual_seed(length)).float()
    signals[..., 0], signals[..., -1] = 100, 0
    values = flat(signals)
    values = values - values[:, :1]
    values = values - values.min(1, keepdims=True)
    distance = np.abs(values[:, :, None] - values[:, None])
    for threshold, limit in {
        "point": np.percentile(distance, percentage, axis=(1, 2), keepdims=True),
        "distance": distance.max((1, 2), keepdims=True) * (percentage / 100),
    }.items():
        found = encode(signals, "recurrence_plot", length, threshold=threshold, percentage=percentage)
        close(found, distance < limit, atol=0)


@pytest.mark.parametrize(
    ("encoder", "settings"),
    [
        ("gramian_angular_field", {}),
        ("recurrence_plot", {}),
        ("recurrence_plot", {"threshold": "point"}),
        ("recurrence_plot", {"threshold": "distance", "dimension": 2}),
    ],
)
def test_images_made_in_parts_are_those_made_at_once(
    encoder: Encoder, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = walks(7, 2, 60)
    at_once = encode(signals, encoder, 30, **settings)
    monkeypatch.setattr(signal_scaling, "CACHE", 3 * at_once[0].nbytes)
    assert torch.equal(encode(signals, encoder, 30, **settings), at_once)


def test_recurrence_plot_of_states_is_of_the_distances() -> None:
    signals = walks(2, 2, 70)
    states = np.stack([flat(signals)[:, i : i + 60] for i in (0, 5, 10)], -1)
    distance = np.linalg.norm(states[:, :, None] - states[:, None], axis=-1)
    expected = distance / distance.max((1, 2), keepdims=True)
    close(encode(signals, "recurrence_plot", 60, dimension=3, delay=5), expected)


@pytest.mark.parametrize(("length", "size"), SIZES)
def test_markov_transition_field_is_of_the_counts(length: int, size: int) -> None:
    signals = walks(2, 1, length)
    expected = []
    for series in flat(signals):
        place = np.searchsorted(np.percentile(series, [20, 40, 60, 80]), series)
        counts = np.zeros((5, 5))
        np.add.at(counts, (place[:-1], place[1:]), 1)
        field = (counts / counts.sum(1, keepdims=True).clip(1))[place[:, None], place]
        expected.append(shortened(shortened(field, size).T, size).T)
    close(encode(signals, "markov_transition_field", size, bins=5), np.stack(expected))


def test_recurrence_plot_with_ranges_is_distance_by_extent() -> None:
    signals = torch.tensor([[[0.0, 1.0, 5.0], [0.0, 1.0, 5.0]]])
    ranges = torch.tensor([[0.0, 4.0], [-5.0, 5.0]])
    first = [[0, 0.25, 1], [0.25, 0, 1], [1, 1, 0]]  # 5 and 4 of an extent of 4
    second = [[0, 0.1, 0.5], [0.1, 0, 0.4], [0.5, 0.4, 0]]
    close(encode(signals, "recurrence_plot", 3, ranges=ranges), np.array([first, second]))


def test_markov_transition_field_of_few_values_by_hand() -> None:
    """0 0 1 0 with two bins: the median is 0, and only the 1 is above it; 0 is followed once by 0 and once by 1."""
    signals = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
    m = {(0, 0): 0.5, (0, 1): 0.5, (1, 0): 1.0, (1, 1): 0.0}
    q = [0, 0, 1, 0]
    close(encode(signals, "markov_transition_field", 4, bins=2), np.array([[[m[a, b] for b in q] for a in q]]))


@pytest.mark.parametrize("ranges", [None, (-3.0, 5.0)])
@pytest.mark.parametrize(
    ("length", "size", "segment", "hop"), [(128, 64, 64, 2), (128, 20, 32, 5), (101, 90, 16, 1), (40, 33, 78, 7)]
)
def test_log_spectrogram_is_scipys(
    ranges: tuple[float, float] | None, length: int, size: int, segment: int, hop: int
) -> None:
    signals = walks(2, 2, length, offset=0.3) + torch.sin(torch.arange(length) * 0.7)
    series = np.pad(flat(signals), ((0, 0), (segment // 2, segment // 2)), mode="reflect")
    *_, power = scipy_signal.spectrogram(
        series, window="hann", nperseg=segment, noverlap=segment - hop, detrend=False, scaling="spectrum", mode="psd"
    )
    power[:, 1:-1] /= 2  # one-sided power has the negative frequencies added
    # with this scaling a sine of amplitude A has A^2 / 4 at its frequency
    full = power.max((1, 2), keepdims=True) if ranges is None else np.float64(4.0**2 / 4)
    image = (1 + 10 * np.log10(power / full) / 50).clip(0, 1)[:, ::-1]
    expected = np.stack([resized(one, size) for one in image])
    close(encode(signals, "log_spectrogram", size, ranges=ranges, segment=segment, hop=hop, decibels=50.0), expected)


def test_a_sine_that_fills_its_range_is_white_at_its_frequency() -> None:
    """8 periods in 64 samples are bin 4 of 32 samples: row 12 of 17 from the top."""
    signals = torch.sin(2 * torch.pi * torch.arange(64) / 8)[None, None]
    image = encode(signals, "log_spectrogram", 17, ranges=(-1.0, 1.0), segment=32, hop=4)[0, 0]
    torch.testing.assert_close(image[12, 8], torch.tensor(1.0), rtol=0, atol=1e-6)
    assert image[:, 8].argmax() == 12
    assert (image[:8, 8] == 0).all()


def curve(series: Array, size: int, width: float) -> tuple[Array, Array]:
    """Columns and rows of the samples in the picture."""
    low, high = series.min(), series.max()
    unit = (series - low) / (high - low) if high > low else np.zeros_like(series)
    margin = (width + 1) / 2
    return np.linspace(0, size - 1, len(series)), size - 1 - margin - unit * (size - 1 - 2 * margin)


def distances(x: Array, y: Array, columns: Array, rows: Array) -> Array:
    """Distance of each point from the nearest piece of the curve."""
    least = np.full(columns.shape, np.inf)
    for x0, y0, x1, y1 in zip(x, y, x[1:], y[1:], strict=False):
        along = ((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / ((x1 - x0) ** 2 + (y1 - y0) ** 2)
        along = along.clip(0, 1)
        least = np.minimum(least, np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)))
    return least


def end(x: Array, y: Array, column: float, radius: float, outwards: float) -> float:
    """The row, by bisection, where a column leaves the line: outwards -1 for the upper end, 1 for the lower."""
    # The line covers one interval of a column; the search starts where the curve crosses it, so no second interval is missed.
    inside, outside = float(np.interp(column, x, y)), outwards * 1000.0
    for _ in range(50):
        middle = (inside + outside) / 2
        within = distances(x, y, np.array(column), np.array(middle)) <= radius
        inside, outside = (middle, outside) if within else (inside, middle)
    return inside


def drawn(series: Array, size: int, width: float) -> Array:
    x, y = curve(series, size, width)
    rows = np.arange(size, dtype=float)[:, None]
    (top_0, top_1), (low_0, low_1) = (
        [np.array([end(x, y, column, (width + one) / 2, outwards) for column in range(size)]) for one in (1, -1)]
        for outwards in (-1, 1)
    )
    drawing: Array = np.minimum((rows - top_0) / (top_1 - top_0), (low_0 - rows) / (low_0 - low_1)).clip(0, 1)
    return drawing


@pytest.mark.slow
@pytest.mark.parametrize(("length", "size", "width"), [(9, 24, 1.5), (25, 14, 1.0), (12, 12, 3.0), (2, 9, 1.5)])
def test_line_plot_is_the_slow_one(length: int, size: int, width: float) -> None:
    signals = walks(1, 2, length)
    expected = np.stack([drawn(series, size, width) for series in flat(signals)])
    close(encode(signals, "line_plot", size, width=width), expected)


@pytest.mark.parametrize(("length", "size"), [(128, 96), (40, 96)])
def test_line_plot_is_nearly_the_distance_to_the_curve(length: int, size: int) -> None:
    smooth = torch.sin(torch.arange(length) * (14 / length))[None, None] * torch.linspace(0.2, 1, length)
    x, y = curve(flat(smooth)[0], size, 1.5)
    columns, rows = np.meshgrid(np.arange(size, dtype=float), np.arange(size, dtype=float))
    expected = (1.25 - distances(x, y, columns, rows)).clip(0, 1)
    close(encode(smooth, "line_plot", size), expected[None], atol=0.2)
    assert np.abs(encode(smooth, "line_plot", size)[0, 0].numpy() - expected).mean() < 1e-3


@pytest.mark.draws
def test_line_plot_looks_like_matplotlibs() -> None:
    from benchmarks.signal_images import matplotlib_plots

    signals = walks(1, 3, 128)
    ours, theirs = encode(signals, "line_plot", 96), torch.from_numpy(matplotlib_plots(flat(signals), 96, 1.5))
    for mine, peer in zip(ours[0], theirs, strict=True):
        assert float(torch.corrcoef(torch.stack((mine.flatten(), peer.flatten())))[0, 1]) > 0.95
        assert abs(float(mine.mean() - peer.mean())) < 0.02


@pytest.mark.parametrize(
    ("length", "size", "segment", "hop", "starts"),
    [
        (12, 4, 4, 4, [0, 4, 8]),
        (12, 9, 5, 3, [0, 2, 5, 7]),  # the last row starts at 7, and 7/3 and 14/3 are rounded
        (6, 3, 6, 1, [0]),
        (7, 5, None, 2, [0, 2, 4]),  # the root of 7 is 2.6: rows of 3
        (128, 128, 11, 1, list(range(118))),
    ],
)
def test_segment_stack_is_the_slow_one(
    length: int, size: int, segment: int | None, hop: int, starts: list[int]
) -> None:
    signals = walks(2, 2, length)
    width = segment or 3
    series = flat(signals)
    series = (series - series.min(1, keepdims=True)) / np.ptp(series, axis=1, keepdims=True)
    expected = [resized(np.stack([one[start : start + width] for start in starts]), size) for one in series]
    close(encode(signals, "segment_stack", size, segment=segment, hop=hop), np.stack(expected))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize(("length", "size"), [(30, 12), (30, 30), (30, 47), (128, 224)])
def test_images_of_all_encoders(encoder: Encoder, length: int, size: int) -> None:
    signals = walks(3, 9, length)
    before, images = signals.clone(), encode(signals, encoder, size)
    assert images.shape == (3, 9, size, size)
    assert images.dtype == torch.float32
    assert (images >= 0).all()
    assert (images <= 1).all()
    assert images.std() > 0.01
    assert torch.equal(signals, before)
    assert torch.equal(encode(signals, encoder, size), images)
    torch.testing.assert_close(encode(signals[1:2, 4:5], encoder, size), images[1:2, 4:5], rtol=0, atol=1e-6)


@pytest.mark.parametrize("encoder", ["gramian_angular_field", "recurrence_plot", "line_plot", "segment_stack"])
def test_ranges_keep_amplitudes_and_their_absence_hides_them(encoder: Encoder) -> None:
    signals = walks(1, 3, 50, offset=0.0)
    torch.testing.assert_close(encode(0.25 * signals, encoder, 20), encode(signals, encoder, 20), rtol=0, atol=1e-6)
    ranges = torch.tensor([[-0.05, 0.05]]).expand(3, 2)
    absolute = encode(signals, encoder, 20, ranges=ranges)
    assert (encode(0.25 * signals, encoder, 20, ranges=ranges) - absolute).abs().max() > 0.1
    pair = encode(signals, encoder, 20, ranges=(-0.05, 0.05))
    torch.testing.assert_close(pair, absolute, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [8, 20, 33])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_constant_signal(encoder: Encoder, size: int) -> None:
    image = encode(torch.full((1, 1, 20), 0.1), encoder, size)[0, 0]
    if encoder in ("gramian_angular_field", "markov_transition_field"):
        torch.testing.assert_close(image, torch.ones(size, size), rtol=0, atol=1e-6)
    elif encoder in ("recurrence_plot", "segment_stack"):
        assert (image == 0).all()
    elif encoder == "line_plot":
        assert torch.equal(image, image[:, :1].expand(-1, size))
        assert image[:, 0].argmax() in (size - 2, size - 3)
    else:
        assert image[-1].min() > 0.9  # all of the power is at frequency 0
        assert encode(torch.zeros(1, 1, 20), encoder, size).max() == 0


def test_flattened_images_of_a_window_stay_together() -> None:
    images = torch.arange(2 * 9 * 4.0).view(2, 9, 2, 2)
    flattened = arrange(images, "flatten")
    assert flattened.shape == (18, 3, 2, 2)
    for window in range(2):
        for signal in range(9):
            assert (flattened[window * 9 + signal] == images[window, signal]).all()
    logits = flattened[:, :2, 0, 0]
    assert torch.equal(window_mean(logits, 9), images[:, :, 0, 0].mean(1, keepdim=True).expand(-1, 2))
    assert arrange(images, "flatten", channels=1).shape == (18, 1, 2, 2)


def test_a_grid_has_its_tiles_row_by_row_and_channels_are_the_images() -> None:
    images = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    grid = arrange(images, "grid", channels=1, columns=3)
    assert grid.shape == (2, 1, 8, 12)
    for signal in range(6):
        row, column = divmod(signal, 3)
        assert torch.equal(grid[:, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4], images[:, signal])
    assert arrange(images.repeat(1, 3, 1, 1)[:, :9], "grid").shape == (2, 3, 12, 12)
    assert arrange(images, "channels") is images


def holed(value: float) -> Tensor:
    signals = walks(3, 2, 10)
    signals[1, 0, 4] = value
    return signals


X = walks(3, 2, 40)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: encode(X, "gaf", 8), "encoder must be one of gramian_angular_field, .* got gaf"),  # type: ignore[arg-type]
        (lambda: encode(X, "line_plot", 8, bins=3), "line_plot has the settings ranges, width, got bins"),
        (lambda: encode(X, "markov_transition_field", 8, (0, 1)), "transition_field has the settings bins, got ranges"),
        (lambda: encode(X, "line_plot", 1), "size must be 2 pixels or more, got 1"),
        (lambda: encode(X[0], "line_plot", 8), r"signals must be \(B, S, T\) float32 .* shape \(2, 40\) of float32"),
        (lambda: encode(X.double(), "line_plot", 8), "signals must be .* of float64"),
        (lambda: encode(X[..., :1], "line_plot", 8), r"with 2 samples or more, got shape \(3, 2, 1\)"),
        (lambda: encode(holed(torch.nan), "line_plot", 8), "finite: window 1, signal 0 .* has nan at sample 4"),
        (lambda: encode(holed(-torch.inf), "recurrence_plot", 8), "window 1, signal 0 .* has -inf at sample 4"),
        (lambda: encode(X, "line_plot", 8, (1.0, 1.0)), r"ranges must be a least .* got \[1.0, 1.0\]"),
        (lambda: encode(X, "line_plot", 8, torch.zeros(3, 2)), r"ranges must be .* as \(2, 2\)"),
        (lambda: encode(X, "line_plot", 8, width=0.5), "width must be 1 pixel or more and below size - 1, 7, got 0.5"),
        (lambda: encode(X, "gramian_angular_field", 8, method="s"), "method must be summation or difference, got s"),
        (lambda: encode(X, "recurrence_plot", 8, threshold="p"), "threshold must be none, point or distance, got p"),
        (lambda: encode(X, "recurrence_plot", 8, percentage=101), "percentage must be between 0 and 100, got 101"),
        (lambda: encode(X, "recurrence_plot", 8, dimension=5, delay=10), "below the 40 samples, got 5 and 10"),
        (lambda: encode(X, "markov_transition_field", 8, bins=1), "bins must be 2 or more, got 1"),
        (lambda: encode(X, "log_spectrogram", 8, segment=7), r"segment must be an even .* to 2 \(T - 1\), 78, got 7"),
        (lambda: encode(X, "log_spectrogram", 8, segment=80), "segment must be an even .* got 80"),
        (lambda: encode(X, "log_spectrogram", 8, hop=0), "hop must be 1 sample or more, got 0"),
        (lambda: encode(X, "log_spectrogram", 8, decibels=0.0), "decibels must be positive, got 0"),
        (lambda: encode(X, "segment_stack", 8, segment=41), "segment must be between 1 and the 40 samples, got 41"),
        (lambda: encode(X, "segment_stack", 8, hop=0), "hop must be 1 sample or more, got 0"),
        (lambda: arrange(X, "flatten"), r"images must be \(B, C, H, W\)"),
        (lambda: arrange(X[None], "tiles"), "mode must be one of flatten, grid, channels, got tiles"),  # type: ignore[arg-type]
        (lambda: arrange(X[None], "flatten", channels=0), "channels must be 1 or more, got 0"),
        (lambda: arrange(X[None], "grid", columns=2), "columns must divide the 3 signals, got 2"),
        (lambda: window_mean(torch.zeros(10, 6), 9), "values must hold all 9 images of each window, got 10 images"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
