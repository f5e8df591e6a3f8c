"""Writes predictions.csv: class, calibrated probability, early exit and the top five classes of each sample.

    index  [file]  class  probability  [exit]  class_2  probability_2 ..     up to five classes, the surest first

Probabilities are calibrated: softmax(logits / temperature), the temperature being that of the checkpoint, 1 where it has none.
``exit`` (yes or no) is there where the checkpoint has an exit threshold, or found that none keeps the promise (always no).
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from foundation.atomic_files import replace_file

CLASSES = 5


def write_predictions(
    path: Path, outputs: Iterable[Any], module: Any, names: Sequence[str], files: Sequence[str] | None = None
) -> None:
    """Write what ``trainer.predict`` returned, whole or not at all.

    Args:
        path: The file; an older one is replaced.
        outputs: Of each batch ``logits`` (B, K) and ``index`` (B,).
        module: Its ``temperature`` and ``chosen_threshold`` are used where it has them.
        names: Of the K classes.
        files: Of all samples, by index; None where samples are no files.
    """
    threshold = getattr(module, "chosen_threshold", None)
    further = [
        f"{column}_{rank}" for rank in range(2, min(CLASSES, len(names)) + 1) for column in ("class", "probability")
    ]
    header = ["index", *(["file"] if files is not None else []), "class", "probability"]
    # surrogateescape: a file's name may be bytes that are no UTF-8
    options: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with replace_file(path) as temporary, temporary.open("w", **options) as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(["exit"] if threshold is not None else []), *further])
        for index, ranking, exits in _evaluated(outputs, getattr(module, "temperature", 1.0), threshold):
            first, *others = [(names[number], f"{chance:.6f}") for number, chance in ranking]
            row = [index, *([files[index]] if files is not None else []), *first]
            row += [] if threshold is None else ["yes" if exits else "no"]
            writer.writerow([*row, *(cell for pair in others for cell in pair)])


def _evaluated(
    outputs: Iterable[Any], temperature: float, threshold: float | None
) -> Iterator[tuple[int, list[tuple[int, float]], bool]]:
    """Index, surest classes with their probabilities, and whether it exits, of each sample."""
    for batch in outputs:
        chances = (batch["logits"].float() / temperature).softmax(dim=1)
        # stable: of equals the class that comes first, as argmax has it
        top, classes = (part[:, :CLASSES] for part in chances.sort(dim=1, descending=True, stable=True))
        # in float32 like the confidences: 0.93 reaches a threshold of 0.93
        exits = top[:, 0] >= torch.tensor(torch.inf if threshold is None else threshold)
        for index, numbers, values, leaves in zip(
            batch["index"].tolist(), classes.tolist(), top.tolist(), exits.tolist(), strict=True
        ):
            yield index, list(zip(numbers, values, strict=True)), leaves
