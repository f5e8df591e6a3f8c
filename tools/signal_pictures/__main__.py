"""The command that draws the image of each signal encoder for two example windows: the picture in docs/signal_images.md.

    python -m tools.signal_pictures [--data "data/har/UCI HAR Dataset"] [--output docs/images/signal_images.png]

It reads one signal of one training window for each of two activities, in the layout of UCI HAR, and prints the path of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from matplotlib.figure import Figure

from foundation.plotting import BLUE, render, write_png
from tools.command_line import Parser, run_command, start
from transforms import Encoder, encode

ACTIVITIES = {1: "walking", 4: "sitting"}
SIGNAL, LABEL = "total_acc_x", "total acceleration, x"
STEP = np.uint8(17)  # 16 levels per colour look the same and halve the file size
RATE, SIZE, SETTINGS = 50, 128, {"gramian_angular_field": ("summation", "difference")}


def windows(data: Path, number: int) -> dict[str, torch.Tensor]:
    """Read one training window (T,) of each activity, float32, in g.

    Args:
        data: Folder of UCI HAR.
        number: Index of the window among those of the activity, from 0.

    Returns:
        The windows by name of the activity.

    Raises:
        ValueError: An activity has fewer windows.
    """
    labels = np.loadtxt(data / "train" / "y_train.txt", dtype=int)
    if not 0 <= number < (fewest := min(int((labels == label).sum()) for label in ACTIVITIES)):
        raise ValueError(
            f"--number {number}: there are {fewest} windows of an activity, numbered from 0 to {fewest - 1}"
        )
    signals = np.loadtxt(data / "train" / "Inertial Signals" / f"{SIGNAL}_train.txt", dtype=np.float32)
    return {name: torch.from_numpy(signals[labels == label][number]) for label, name in ACTIVITIES.items()}


def draw(signals: dict[str, torch.Tensor]) -> Figure:
    """Draw a row for each window: its curve, then the image of each encoder."""
    columns = [(encoder, method) for encoder in get_args(Encoder) for method in SETTINGS.get(encoder, ("",))]
    figure = Figure(figsize=(8.2, 2.7), layout="constrained")
    axes = figure.subplots(len(signals), 1 + len(columns), width_ratios=[1.3, *[1] * len(columns)])
    for row, (name, signal) in zip(axes, signals.items(), strict=True):
        row[0].plot(np.arange(len(signal)) / RATE, signal, color=BLUE, linewidth=1)
        row[0].set_ylabel(f"{name}\n{LABEL} (g)", fontsize=5)
        row[0].set_xlabel("time (s)", fontsize=5)
        row[0].tick_params(labelsize=5)
        for place, (encoder, method) in zip(row[1:], columns, strict=True):
            settings: dict[str, Any] = {"method": method} if method else {}
            place.imshow(
                encode(signal[None, None], encoder, SIZE, **settings)[0, 0].numpy(), cmap="gray", vmin=0, vmax=1
            )
            place.set_title("\n".join((encoder.replace("_", " "), method)).strip(), fontsize=5)
            place.set_xticks([])
            place.set_yticks([])
    return figure


def parser() -> Parser:
    """Create the argument parser of the command."""
    parser = Parser("signal_pictures", "Draw the image of each signal encoder for a window of two activities.")
    parser.add_argument("--data", type=Path, default=Path("data/har/UCI HAR Dataset"), help="folder of UCI HAR")
    parser.add_argument("--output", type=Path, default=Path("docs/images/signal_images.png"), help="PNG to write")
    parser.add_argument(
        "--number", type=int, default=100, help="index of the window of each activity, from 0 (default: 100)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> None:
        options = parser().parse_args(argv)
        if not options.data.is_dir():
            raise ValueError(f"--data: no folder {options.data}")
        pixels = render(draw(windows(options.data, options.number)))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_png(options.output, np.rint(pixels / STEP).astype(np.uint8) * STEP)
        print(options.output)

    return run_command(command)


if __name__ == "__main__":
    start(main)
