"""Runs `tools.sweep_heads --logistic`: logistic regression over a grid of C on a feature cache, and writes the results.

OUTPUT/logistic.csv    every C with its objective and its metrics
OUTPUT/logistic.png    loss and accuracy against C
OUTPUT/logistic.json   size of the search, duration, cost, winner
OUTPUT/logistic.safetensors   the winner's head.layers.0.weight (K, D) and head.layers.0.bias (K,), float32
"""

from __future__ import annotations

import argparse
import csv
import shlex
import time
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from torch import Tensor

from features import CachedSplit
from foundation.atomic_files import replace_file, write_json
from foundation.plotting import BLUE, VERMILION, render, write_png
from foundation.project import TOOL
from metrics import direction_of
from tools.command_line import Progress
from tools.sweep_heads.batched_metrics import metrics, names
from tools.sweep_heads.logistic_path import Solution
from tools.sweep_heads.logistic_path import logistic_path as solve
from tools.sweep_heads.settings import class_weights, pick_device, read_config

CS = tuple(10 ** (-6 + 11 * number / 44) for number in range(45))
"""Default values of C, as in the linear evaluation of DINOv2 (arXiv 2304.07193)."""


def logistic_path(options: argparse.Namespace, arguments: list[str], command: list[str]) -> int:
    """Solve for every C, evaluate on the validation split, and write the files listed at the top of this module.

    Args:
        options: Flags as parsed by tools/sweep_heads/__main__.py.
        arguments: Arguments as for `main.py fit`.
        command: The whole command line, stored with the results.

    Returns:
        0.

    Raises:
        ValueError: A flag is out of its range.
    """
    begun = time.monotonic()
    data, config = read_config(arguments)
    known, monitor = names(data.num_classes), options.monitor.removeprefix("val/")
    if monitor not in known:
        raise ValueError(f"--monitor: no metric {options.monitor!r}; available: {', '.join(f'val/{n}' for n in known)}")
    device = pick_device(config["trainer"]["accelerator"])
    data.setup("fit")
    (x, y), (held, label) = (
        _read_split(CachedSplit(data.cache, data.header, split, verify=False), device) for split in ("train", "val")
    )
    cs = sorted(set(options.c or CS))
    print(f"logistic   {len(cs)} values of C, {len(y):,} x {x.shape[1]} features on {device}", flush=True)
    model = config["model"]["init_args"]
    weight = class_weights(model, data)
    if weight is not None:
        print(f"           class weights: {', '.join(f'{value:.3g}' for value in weight.tolist())}")
    if model["focal_gamma"]:
        print(f"           model.focal_gamma {model['focal_gamma']} is not used: the loss is cross-entropy")
    if model["label_smoothing"]:
        print(f"           model.label_smoothing {model['label_smoothing']} is not used: the labels are not smoothed")
    rows: list[tuple[Solution, dict[str, float]]] = []
    progress = Progress("solved", len(cs), "values of C")
    for solution in solve(x, y, data.num_classes, cs, class_weight=weight):
        logits = held.float() @ solution.weight.float().T + solution.bias.float()
        evaluated = metrics(logits[None], label, known)
        rows.append((solution, {name: float(value[0]) for name, value in evaluated.items()}))
        progress()
    sign = 1 if direction_of(monitor) == "min" else -1
    best = min(range(len(rows)), key=lambda number: (sign * rows[number][1][monitor], rows[number][1]["loss"]))
    seconds = time.monotonic() - begun
    _write(options, rows, best, weight, monitor, seconds, f"{TOOL}sweep_heads {shlex.join(command)}")
    return 0


def _read_split(split: CachedSplit, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return all feature vectors of a split, each view as a separate sample, and their labels."""
    return split.whole(device).float(), split.label.repeat_interleave(split.views).to(device)


def _write(
    options: argparse.Namespace,
    rows: list[tuple[Solution, dict[str, float]]],
    best: int,
    weight: Tensor | None,
    monitor: str,
    seconds: float,
    command: str,
) -> None:
    output, (winner, evaluated) = options.output, rows[best]
    output.mkdir(parents=True, exist_ok=True)
    with replace_file(output / "logistic.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["c", "objective", "steps", "converged", *evaluated])
        for s, values in rows:
            numbers = [f"{value:.8g}" for value in values.values()]
            writer.writerow([f"{s.c:.8g}", f"{s.objective:.10g}", s.steps, s.converged, *numbers])
    with replace_file(output / "logistic.safetensors") as temporary:
        tensors = {"weight": winner.weight, "bias": winner.bias}
        save_file({f"head.layers.0.{n}": t.float().cpu().contiguous() for n, t in tensors.items()}, temporary)
    write_png(output / "logistic.png", render(picture(rows, best)))
    hours = seconds / 3600
    content: dict[str, Any] = {
        "command": command,
        "values_of_c": len(rows),
        "class_weight": None if weight is None else weight.tolist(),
        "not_converged": sum(not s.converged for s, _ in rows),
        "seconds": round(seconds, 3),
        "device_hours": hours,
        "price_per_hour": options.price,
        "cost": None if options.price is None else hours * options.price,
        "monitor": f"val/{monitor}",
        "winner": {"c": winner.c, "objective": winner.objective, **evaluated},
    }
    write_json(output / "logistic.json", content)
    listed = "  ".join(f"{name} {value:.4f}" for name, value in evaluated.items())
    print(f"best       C {winner.c:.4g}: {listed}\nsearched   {len(rows)} values of C in {seconds:.1f} s; {output}")


def picture(rows: list[tuple[Solution, dict[str, float]]], best: int) -> Figure:
    """Plot validation loss and accuracy against C."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    cs = [solution.c for solution, _ in rows]
    left.plot(cs, [values["loss"] for _, values in rows], color=BLUE, marker=".")
    right.plot(cs, [100 * values["acc"] for _, values in rows], color=VERMILION, marker=".")
    left.axvline(cs[best], color="#555555", linewidth=1, linestyle=":")
    left.set_xscale("log")
    left.set_xlabel("C, inverse strength of the penalty (dotted: the best)")
    left.set_ylabel("validation loss, nats", color=BLUE)
    right.set_ylabel("validation accuracy, %", color=VERMILION)
    left.grid(alpha=0.3)
    return figure
