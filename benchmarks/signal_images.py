"""Benchmark: windows per second of our signal encoders against pyts, and of our line plot against matplotlib.

    python -m benchmarks.signal_images [--repeats 5] [--windows 64] [--sizes 64 128] [--threads N] [--json FILE]

A window has nine signals of 128 samples; an encoder creates nine images from it. pyts creates images of 64 and 128 pixels, but not
of 224, because it does not lengthen signals. It gets the signals as one float64 array and does not create images with three
channels.

Times are wall-clock times, and our encoders may use all of torch's threads, so the machine should be idle.

matplotlib (Agg, no axes, no file) is measured twice. `new`: a new Figure for each image, as in published pipelines. `reused`: one
Figure in which only the curve is replaced, which is the least work matplotlib can do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from foundation import measuring
from foundation.measuring import Spread
from transforms import Encoder, encode

SIGNALS, LENGTH, PYTS_LARGEST = 9, 128, 128
PLOTTED = 1  # windows that matplotlib draws in a call; one is slow enough to be timed by itself
Array = NDArray[np.float64]


def blank(length: int, size: int, width: float) -> tuple[FigureCanvasAgg, Line2D]:
    """Creates a Figure of size x size pixels filled by its axes, with limits at which its curve covers the same pixels as ours."""
    figure = Figure(figsize=(size / 100, size / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    (line,) = axes.plot(np.linspace(0, size - 1, length), np.zeros(length), color="white", linewidth=0.72 * width)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(-0.5, size - 0.5)
    axes.set_axis_off()
    return canvas, line


def matplotlib_plots(series: Array, size: int, width: float, reuse: bool = True) -> NDArray[np.float32]:
    """Draws each signal with matplotlib, scaled as in `line_plot`.

    Args:
        series: Signals (N, T).
        size: Height and width of the images in pixels.
        width: Width of the line in pixels.
        reuse: Use one Figure for all signals instead of a new Figure each.

    Returns:
        (N, size, size) in [0, 1].
    """
    extent = np.ptp(series, axis=1, keepdims=True)
    margin = (width + 1) / 2
    heights = margin + (series - series.min(1, keepdims=True)) / extent * (size - 1 - 2 * margin)
    images = np.empty((len(series), size, size), dtype=np.float32)
    canvas, line = blank(series.shape[1], size, width)
    for image, height in zip(images, heights, strict=True):
        if not reuse:
            canvas, line = blank(series.shape[1], size, width)
        line.set_ydata(height)
        canvas.draw()
        image[:] = np.asarray(canvas.buffer_rgba())[..., 0] / np.float32(255)
    return images


def pyts_sides(series: Array, size: int) -> dict[str, tuple[Encoder, dict[str, Any], Callable[[], Any]]]:
    """Encoders that pyts has too, by name: our encoder, its settings, and the call of pyts for the same image."""
    from pyts.approximation import PiecewiseAggregateApproximation
    from pyts.image import GramianAngularField, MarkovTransitionField, RecurrencePlot

    def recurrence(threshold: str | None) -> Any:
        shorter = PiecewiseAggregateApproximation(window_size=None, output_size=size, overlapping=False)
        return RecurrencePlot(threshold=threshold).transform(shorter.transform(series))

    fields: dict[str, tuple[Encoder, dict[str, Any], Callable[[], Any]]] = {
        f"Gramian angular field, {method}": (
            "gramian_angular_field",
            {"method": method},
            partial(GramianAngularField(size, method=method).transform, series),
        )
        for method in ("summation", "difference")
    }
    for threshold in ("none", "point", "distance"):
        theirs = partial(recurrence, None if threshold == "none" else threshold)
        fields[f"recurrence plot, {threshold}"] = ("recurrence_plot", {"threshold": threshold}, theirs)
    fields["Markov transition field"] = (
        "markov_transition_field",
        {},
        partial(MarkovTransitionField(size).transform, series),
    )
    return fields


def seconds(action: Callable[[], Any]) -> float:
    """Mean seconds of a call, over as many calls as fit into a fiftieth of a second."""
    begin, calls = perf_counter(), 0
    while calls == 0 or perf_counter() - begin < 0.02:
        action()
        calls += 1
    return (perf_counter() - begin) / calls


def compare(
    ours: Callable[[], Any], peer: Callable[[], Any] | None, windows: dict[str, int], repeats: int
) -> dict[str, Spread]:
    """Windows per second of each side and their ratio. The sides alternate; a first call of each side is a warm-up.

    Args:
        ours: Encodes the windows with our encoder.
        peer: Encodes the windows with the peer, or None.
        windows: Number of windows in one call of `ours` and of `peer`.
        repeats: Number of timed calls of each side.
    """
    sides = {"ours": partial(seconds, ours), **({"peer": partial(seconds, peer)} if peer else {})}
    measuring.interleave(sides, 1)
    times = measuring.interleave(sides, repeats)
    speeds = {name: [windows[name] / value for value in values] for name, values in times.items()}
    metrics = {name: Spread.of(values) for name, values in speeds.items()}
    if peer:
        metrics["ratio"] = Spread.of([a / b for a, b in zip(speeds["ours"], speeds["peer"], strict=True)])
    return metrics


def main(args: list[str] | None = None) -> None:
    """Measures all encoders and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.set_defaults(threads=1)
    parser.add_argument("--windows", type=int, default=64, help="windows in a call, 1 or more; the default is a batch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224], help="image sizes in pixels")
    options, before = measuring.begin(parser, args)
    if options.windows < 1 or min(options.sizes) < 8:
        parser.error(f"--windows: 1 or more, --sizes: 8 or more, got {options.windows} and {options.sizes}")
    steps = torch.randn(options.windows, SIGNALS, LENGTH, generator=torch.Generator().manual_seed(0))
    signals = steps.cumsum(-1)
    series = signals.flatten(0, 1).double().numpy()
    rows, content = [], []

    def add(name: str, size: int, peer_name: str, ours: Callable[[], Any], peer: Callable[[], Any] | None) -> None:
        drawn = min(options.windows, PLOTTED) if peer_name.startswith("matplotlib") else options.windows
        metrics = compare(ours, peer, {"ours": options.windows, "peer": drawn}, options.repeats)
        cells = [
            metrics[key].text(digits) if key in metrics else "-"
            for key, digits in (("peer", 1), ("ours", 0), ("ratio", 1))
        ]
        rows.append([name, str(size), peer_name, *cells])
        spreads = {key: spread._asdict() for key, spread in metrics.items()}
        content.append({"encoder": name, "size": size, "peer": peer_name, **spreads})

    for size in options.sizes:
        for name, (encoder, settings, peer) in pyts_sides(series, size).items():
            has_peer = size <= PYTS_LARGEST
            ours = partial(encode, signals, encoder, size, **settings)
            add(name, size, "pyts" if has_peer else "-", ours, peer if has_peer else None)
        for reuse in (False, True):
            peer = partial(matplotlib_plots, series[: PLOTTED * SIGNALS], size, 1.5, reuse)
            name = f"matplotlib, {'reused' if reuse else 'new'} figure"
            add("line plot", size, name, partial(encode, signals, "line_plot", size), peer)
        for other in ("log_spectrogram", "segment_stack"):
            add(other.replace("_", " "), size, "-", partial(encode, signals, other, size), None)
    print(measuring.table(("encoder", "pixels", "peer", "peer, windows/s", "ours, windows/s", "ratio"), rows))
    print(f"\nmedian (least .. most) of {options.repeats} repeats of {options.windows} windows")
    settings = {"repeats": options.repeats, "windows": options.windows}
    measuring.report(before, {"benchmark": "signal_images", **settings, "encoders": content}, options.json)


if __name__ == "__main__":
    main()
