"""Windows a second of our encoders of signals beside pyts, and of our line plot beside matplotlib.

    python -m benchmarks.signal_images [--repeats 5] [--windows 64] [--sizes 64 128] [--threads N] [--json FILE]

A window has nine signals of 128 samples; an encoder makes nine images of it. pyts makes images of 64 and 128 pixels from them, not
of 224: it does not lengthen signals. It gets the signals as one array, as float64, and makes no images of three channels.

Times are those of a clock on the wall, and ours may use all of torch's threads: the machine should be idle.

matplotlib (Agg, no axes, no file) is measured twice. `new`: a figure for each image, as published pipelines do. `reused`: one
figure, of which only the curve is replaced, which is the least that matplotlib can do.
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
PLOTTED = 1  # windows that matplotlib draws in a call: each is slow enough to be timed alone
Array = NDArray[np.float64]


def blank(length: int, size: int, width: float) -> tuple[FigureCanvasAgg, Line2D]:
    """A figure of so many pixels whose axes fill it, with limits at which its curve covers the pixels that ours does."""
    figure = Figure(figsize=(size / 100, size / 100), dpi=100, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    (line,) = axes.plot(np.linspace(0, size - 1, length), np.zeros(length), color="white", linewidth=0.72 * width)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(-0.5, size - 0.5)
    axes.set_axis_off()
    return canvas, line


def matplotlib_plots(series: Array, size: int, width: float, reuse: bool = True) -> NDArray[np.float32]:
    """Draw each of (N, T) signals by matplotlib, scaled as `line_plot` does.

    Args:
        series: (N, T).
        size: Pixels.
        width: Of the line in pixels.
        reuse: One figure for all.

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
    """Encoder, its settings, and what pyts does for the same image."""
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
    """Seconds of a call, the mean of as many as take a fiftieth of a second."""
    begin, calls = perf_counter(), 0
    while calls == 0 or perf_counter() - begin < 0.02:
        action()
        calls += 1
    return (perf_counter() - begin) / calls


def compare(
    ours: Callable[[], Any], peer: Callable[[], Any] | None, windows: dict[str, int], repeats: int
) -> dict[str, Spread]:
    """Windows a second of each side and their ratio, the sides in turn; one call of each before the first counts for nothing.

    Args:
        ours: Encodes the windows.
        peer: Likewise, or None.
        windows: Of one call of `ours` and of `peer`.
        repeats: Timed calls of each.
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
    """Measure all encoders and print them; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--windows", type=int, default=64, help="windows of a call, 1 or more; the default is that of a batch"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224], help="pixels of the images")
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
