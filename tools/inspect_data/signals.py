"""Inspects windows of signals: people, length, scale of each signal, flat and broken windows, duplicates; draws windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, isqrt
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from callbacks.pictures.evaluation import label_text
from datamodules.signals.base import SignalDataModule
from foundation.plotting import BLUE, put_title
from tools.inspect_data.findings import Findings, equal_keys
from tools.inspect_data.measures import Sample
from tools.inspect_data.pictures import ABOVE_LEGEND, COLOURS, WITH_NAMES, draw_counts, figure_of
from tools.inspect_data.samples import chosen_samples

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")  # of signals with the same colour
ENTRY = 1.7  # width of a legend entry in inches


def inspect_signals(
    data: SignalDataModule, samples: Sequence[Sample], table: dict[str, list[int]], shown: tuple[int, int]
) -> Findings:
    """Inspect windows of signals.

    Args:
        data: Datamodule after ``setup``.
        samples: All samples of the splits.
        table: Number of windows of each class, for each split.
        shown: Number of windows in the picture, and of epochs in which they are augmented.
    """
    windows = torch.cat([data.splits[split]["signal"].cpu().float() for split in table])
    train = data.splits["train"]["signal"].cpu().double()
    mean, std = train.mean(dim=(0, 2)), train.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    flat = (windows.amax(dim=2) == windows.amin(dim=2)).sum(dim=0)
    broken = int((~windows.isfinite().flatten(1).all(dim=1)).sum())
    people = {split: _people(data, split) for split in table}
    units = data.signal_units or [""] * len(data.signal_names)
    report: dict[str, Any] = {
        "window_length": data.window_length,
        "sampling_rate": data.sampling_rate,
        "people": people,
        "signals": [
            {
                "name": name,
                "unit": unit or None,
                "mean": round(float(m), 5),
                "std": round(float(s), 5),
                "flat_windows": int(n),
            }
            for name, unit, m, s, n in zip(data.signal_names, units, mean, std, flat, strict=True)
        ],
        "not_finite": broken,
    }
    return Findings(
        "window",
        report,
        _lines(data, report, len(windows)),
        equal_keys(data, samples),
        lambda title: _draw_overview(data, table, people, (mean, std), title),
        lambda title: _draw_windows(data, shown, title),
    )


def _people(data: SignalDataModule, split: str) -> dict[str, int]:
    """Number of windows of each person in a split, by name."""
    numbers, counts = data.splits[split]["subject"].unique(return_counts=True)
    return {data.subject_name(int(number)): int(count) for number, count in zip(numbers, counts, strict=True)}


def _lines(data: SignalDataModule, report: dict[str, Any], count: int) -> list[str]:
    rate = data.sampling_rate
    long = f"{data.window_length} samples" + (f" ({data.window_length / rate:.3g} s at {rate:g} Hz)" if rate else "")
    network = (
        "read as signals"
        if data.signal_images.mode == "signals"
        else (f"encoded as images of {data.image_size} px ({data.signal_images.mode}, {data.signal_images.encoder})")
    )
    lines = [f"windows    {long}, {network}"]
    for split, people in report["people"].items():
        fewest, most = min(people.values()), max(people.values())
        each = f"{fewest} windows each" if fewest == most else f"{fewest} to {most} windows each"
        lines.append(f"people     {split}: {len(people)} with {each}: {', '.join(people)}")
    width = max(len(signal["name"]) for signal in report["signals"])
    for signal in report["signals"]:
        flat = f", flat in {signal['flat_windows']:,} windows" if signal["flat_windows"] else ""
        unit = f" {signal['unit']}" if signal["unit"] and signal["unit"] not in signal["name"] else ""
        lines.append(
            f"signal     {signal['name']:<{width}}  mean {signal['mean']:>9.4g}, std {signal['std']:.4g}{unit}{flat}"
        )
    if report["not_finite"]:
        lines.append(f"warning: {report['not_finite']:,} of {count:,} windows have values that are not finite")
    return lines


def _draw_overview(
    data: SignalDataModule,
    table: dict[str, list[int]],
    people: dict[str, dict[str, int]],
    scale: tuple[Tensor, Tensor],
    title: str,
) -> Figure:
    """Draw windows per class, windows per person, and mean and standard deviation of each signal."""
    figure, (bars, persons, values) = figure_of(max(len(data.class_names), len(data.signal_names)), title)
    draw_counts(bars, data.class_names, table, "windows")
    begin = 0
    for split, counts in people.items():
        places = range(begin, begin + len(counts))
        persons.bar(places, list(counts.values()), color=COLOURS[split], width=0.8, label=f"{split}: {len(counts)}")
        begin += len(counts)
    persons.set_title("windows per person", pad=ABOVE_LEGEND)
    persons.set(xlabel="people", ylabel="windows")
    names = [name for counts in people.values() for name in counts]
    persons.set_xticks(*((range(begin), [label_text(name, 12) for name in names]) if begin <= WITH_NAMES else ([], [])))
    persons.tick_params(axis="x", labelsize=8, rotation=90 if begin > 12 or max(map(len, names)) > 3 else 0)
    persons.legend(ncols=3, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    mean, std = scale
    rows = np.arange(len(mean))
    values.errorbar(mean.numpy(), rows, xerr=std.numpy(), fmt="o", color=BLUE, markersize=4, capsize=3)
    values.set_yticks(rows, [label_text(name) for name in data.signal_names], fontsize=8)
    values.set_ylim(len(rows) - 0.4, -0.6)
    values.axvline(0, color="0.8", linewidth=1, zorder=0)
    values.set(title="signals of the training windows", xlabel="mean ± std, in the units of the data")
    for axes in (persons, values):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_windows(data: SignalDataModule, shown: tuple[int, int], title: str) -> Figure:
    """Draw one column for each window: its signals on top, and below them the network's input in each epoch."""
    chosen = chosen_samples(data, shown[0])
    batch = {name: values.cpu().index_select(0, chosen) for name, values in data.splits["train"].items()}
    inputs = [data.augment(dict(batch), epoch) for epoch in range(shown[1])]
    figure = Figure(figsize=(1.9 * len(chosen) + 0.8, 1.7 * (1 + len(inputs)) + 0.9), layout="constrained")
    put_title(figure, label_text(f"{title} · training windows: recorded and augmented", 200), fontsize=11)
    grid = figure.subplots(1 + len(inputs), len(chosen), squeeze=False)
    for column, label in enumerate(batch["label"].tolist()):
        grid[0, column].set_title(label_text(data.class_names[label], 18), fontsize=9)
        _draw_signals(grid[0, column], batch["signal"][column])
        for row, one in enumerate(inputs, start=1):
            if "image" in one:
                _draw_image(grid[row, column], _pixels(data, one["image"][column]))
            else:
                _draw_signals(
                    grid[row, column], one["signal"][column, : len(data.signal_names)]
                )  # not the compressed ones
    for row, axes in enumerate(grid[:, 0]):
        axes.set_ylabel("recorded" if row == 0 else f"epoch {row}", fontsize=9)
    handles = grid[0, 0].get_lines()[: len(LINES) * len(STYLES)]
    names = [label_text(name) for name in data.signal_names[: len(handles)]]
    if len(handles) < len(data.signal_names):
        names[-1] += f" and {len(data.signal_names) - len(handles)} more"
    columns = min(len(handles), max(1, int(figure.get_figwidth() / ENTRY)))
    figure.legend(handles, names, ncols=columns, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _draw_signals(axes: Axes, signals: Tensor) -> None:
    for number, values in enumerate(signals.float().numpy()):
        style = STYLES[number // len(LINES) % len(STYLES)]
        axes.plot(values, linewidth=0.7, color=LINES[number % len(LINES)], linestyle=style)
    axes.tick_params(labelsize=6)
    axes.set_xticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _draw_image(axes: Axes, pixels: Tensor) -> None:
    axes.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _pixels(data: SignalDataModule, image: Tensor) -> Tensor:
    """Grey pixels (H, W) in 0..1 of the images of a window: its images or channels as tiles, row by row from the upper left."""
    mean, std = data.signal_images.pixels
    images = image.float() * std + mean
    if data.signal_images.mode != "channels":
        images = images[..., :1, :, :]  # equal channels
    tiles = images.reshape(-1, *images.shape[-2:]).clamp(0, 1)
    columns = isqrt(len(tiles) - 1) + 1
    rows = ceil(len(tiles) / columns)
    tiles = torch.cat([tiles, tiles.new_ones(rows * columns - len(tiles), *tiles.shape[1:])])
    grid: Tensor = tiles.unflatten(0, (rows, columns)).permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return grid
