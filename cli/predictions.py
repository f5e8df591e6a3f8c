"""Writes predictions.csv: class, calibrated probability, early exit and the top five classes of each sample.

    index  [file]  class  probability  [exit]  [set]  class_2  probability_2 ..     up to five classes, most probable first

Probabilities are calibrated: softmax(logits / temperature), with the temperature stored in the checkpoint, or 1 without one.
Several labels a sample: index  [file]  labels  probability_NAME of each label; `labels` reach their thresholds, divided by `;`.
The column ``exit`` (yes or no) exists only if the checkpoint's calibration requested an exit threshold. If no threshold met the
target, ``chosen_threshold`` is infinite and ``exit`` is always no. The column ``set`` exists only if the checkpoint has prediction
sets: the classes in the set, divided by `;`, the most probable first; it may be empty.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from foundation.atomic_files import replace_file

CLASSES = 5
# surrogateescape: a file name may contain bytes that are not valid UTF-8
OPTIONS: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}


def write_predictions(
    path: Path, outputs: Iterable[Any], module: Any, names: Sequence[str], files: Sequence[str] | None = None
) -> None:
    """Write the output of ``trainer.predict`` to a CSV file, atomically.

    Args:
        path: The file to write; an existing file is replaced.
        outputs: ``logits`` (B, K) and ``index`` (B,) of each batch.
        module: The model; its attributes ``temperature`` and ``chosen_threshold`` are used if it has them.
        names: Names of the K classes.
        files: File of each sample, by index; None if samples are not files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if getattr(module, "several_labels", False):
        _write_labels(path, outputs, module, names, files)
        return
    threshold = getattr(module, "chosen_threshold", None)
    further = [
        f"{column}_{rank}" for rank in range(2, min(CLASSES, len(names)) + 1) for column in ("class", "probability")
    ]
    header = ["index", *(["file"] if files is not None else []), "class", "probability"]
    with replace_file(path) as temporary, temporary.open("w", **OPTIONS) as file:
        writer = csv.writer(file)
        sets_of = module.sets_of if getattr(module, "set_rule", None) is not None else None
        own = [*(["exit"] if threshold is not None else []), *(["set"] if sets_of is not None else [])]
        writer.writerow([*header, *own, *further])
        for index, ranking, exits, held in _evaluated(outputs, getattr(module, "temperature", 1.0), threshold, sets_of):
            first, *others = [(names[number], f"{chance:.6f}") for number, chance in ranking]
            row = [index, *([files[index]] if files is not None else []), *first]
            row += [] if threshold is None else ["yes" if exits else "no"]
            row += [] if sets_of is None else [";".join(names[number] for number in held)]
            writer.writerow([*row, *(cell for pair in others for cell in pair)])


def _write_labels(
    path: Path, outputs: Iterable[Any], module: Any, names: Sequence[str], files: Sequence[str] | None
) -> None:
    """Write the labels of each sample, and the probability of every label."""
    with replace_file(path) as temporary, temporary.open("w", **OPTIONS) as file:
        writer = csv.writer(file)
        own = [] if files is None else ["file"]
        writer.writerow(["index", *own, "labels", *(f"probability_{name}" for name in names)])
        for batch in outputs:
            logits = batch["logits"].float()
            rows = zip(batch["index"].tolist(), module.chosen(logits).tolist(), logits.sigmoid().tolist(), strict=True)
            for index, chosen, chances in rows:
                labels = ";".join(name for name, taken in zip(names, chosen, strict=True) if taken)
                place = [] if files is None else [files[index]]
                writer.writerow([index, *place, labels, *(f"{chance:.6f}" for chance in chances)])


def _evaluated(
    outputs: Iterable[Any],
    temperature: float,
    threshold: float | None,
    sets_of: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Iterator[tuple[int, list[tuple[int, float]], bool, list[int]]]:
    """Yield for each sample its index, the likeliest classes with their probabilities, whether it exits early, and its set."""
    for batch in outputs:
        chances = (batch["logits"].float() / temperature).softmax(dim=1)
        # stable: for equal probabilities the class with the lower index comes first, as with argmax
        ranked, order = chances.sort(dim=1, descending=True, stable=True)
        top, classes = ranked[:, :CLASSES], order[:, :CLASSES]
        # compared in float32 like the confidences, so that 0.93 reaches a threshold of 0.93
        exits = top[:, 0] >= torch.tensor(torch.inf if threshold is None else threshold)
        held = (
            torch.zeros(len(order), 0) if sets_of is None else sets_of(batch["logits"].float()).gather(1, order.cpu())
        )
        columns = (batch["index"], classes, top, exits, order, held)
        for index, numbers, values, leaves, every, inside in zip(*(part.tolist() for part in columns), strict=True):
            members = [number for number, there in zip(every, inside, strict=False) if there]
            yield index, list(zip(numbers, values, strict=True)), leaves, members
