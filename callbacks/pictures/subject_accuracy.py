"""The SubjectAccuracy callback: plots and tabulates the accuracy of each person, over all activities and per activity.

plots/subjects_val.png   per_subject_val.csv      which evaluation: see callbacks/pictures/evaluation.py
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from callbacks.pictures.evaluation import EvaluationPicture, class_names_of, label_text, write_table
from foundation.plotting import ORANGE, put_title
from metrics import GroupAccuracy, GroupSums

log = logging.getLogger(__name__)


class SubjectTable(NamedTuple):
    """Accuracy of each person, accuracy of each person and true class, the class names, and the names of the people by number."""

    subjects: dict[int, GroupAccuracy]
    cells: dict[tuple[int, int], GroupAccuracy]
    names: list[str]
    people: dict[int, str]


def draw_subjects(found: SubjectTable, title: str) -> Figure:
    """Plot a heat map: persons as rows, worst on top; the first column is the overall accuracy, the others are activities.

    Args:
        found: Accuracies of at least one person.
        title: Title of the plot.
    """
    subjects = sorted(found.subjects, key=lambda subject: found.subjects[subject].accuracy)
    columns = ["all", *(label_text(name) for name in found.names)]
    shares = np.full((len(subjects), len(columns)), np.nan)
    for row, subject in enumerate(subjects):
        shares[row, 0] = found.subjects[subject].accuracy
        for k in range(len(found.names)):
            if (cell := found.cells.get((subject, k))) is not None:
                shares[row, k + 1] = cell.accuracy
    figure = Figure(figsize=(2.4 + 0.8 * len(columns), 2.6 + 0.3 * len(subjects)), layout="constrained")
    put_title(figure, label_text(title, 200))
    axes = figure.add_subplot()
    # accuracy is rarely below 0.5; a scale from 0 would hide the differences
    colours = colormaps["Blues"].with_extremes(under=ORANGE)
    image = axes.imshow(shares, cmap=colours, vmin=0.5, vmax=1.0, aspect="auto")
    for row, column in zip(*np.nonzero(~np.isnan(shares)), strict=True):
        colour = "white" if shares[row, column] > 0.8 else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=8, color=colour)
    axes.axvline(0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(
        range(len(subjects)),
        [f"{label_text(found.people[one])} (n={found.subjects[one].n})" for one in subjects],
        fontsize=8,
    )
    axes.set_xlabel("true activity")
    axes.set_ylabel("subject (windows), worst on top")
    figure.colorbar(image, ax=axes, format=PercentFormatter(1.0, decimals=0), label="accuracy", extend="min")
    return figure


class SubjectAccuracy(EvaluationPicture[SubjectTable]):
    """Draws ``plots/subjects_val.png`` of the best epoch and ``subjects_test.png``, and writes the accuracies as CSV.

    Batches must contain `subject` (B,), the person of each sample; a negative one is not known. Without any person, nothing is
    drawn and written, and a line says so.

    Args:
        every_s: Seconds between two drawings during training; the end of training is always drawn.
    """

    name: ClassVar[str] = "subjects"

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__(every_s)
        self._sums: GroupSums | None = None
        self._classes = 0

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset; the sums are created at the first batch, when the number of classes is known."""
        self._sums = None

    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Count the hits of a batch; the group number encodes person and class."""
        if "subject" not in batch:
            raise MisconfigurationException(
                "SubjectAccuracy: the batches have no 'subject'; remove it from trainer.callbacks"
            )
        if self._sums is None:
            self._sums, self._classes = GroupSums().to(logits.device), logits.shape[1]
        self._sums.update(logits, label, batch["subject"] * self._classes + label)

    def collect(self, trainer: Trainer, pl_module: LightningModule) -> SubjectTable:
        """Combine the counts of all processes."""
        assert self._sums is not None
        cells = {divmod(number, self._classes): one for number, one in self._sums.compute().items()}
        subjects: dict[int, GroupAccuracy] = {}
        for (subject, _), one in cells.items():
            so_far = subjects.get(subject, GroupAccuracy(0, 0))
            subjects[subject] = GroupAccuracy(so_far.n + one.n, so_far.hits + one.hits)
        name = getattr(getattr(trainer, "datamodule", None), "subject_name", str)
        people = {subject: name(subject) for subject in subjects}
        return SubjectTable(subjects, cells, class_names_of(trainer, pl_module, self._classes), people)

    def write(self, folder: Path, stage: str, found: SubjectTable) -> None:
        """Write a row for each person; the cell of a class without windows is empty. Without people, remove an older table."""
        path = folder / f"per_subject_{stage}.csv"
        if not found.subjects:
            log.info(f"people     are not known in the {stage} data: no accuracy of each person")
            path.unlink(missing_ok=True)
            return
        rows = []
        for subject, one in found.subjects.items():
            cells = [found.cells.get((subject, k)) for k in range(len(found.names))]
            shares = ["" if cell is None else f"{cell.accuracy:.6f}" for cell in cells]
            rows.append((found.people[subject], one.n, f"{one.accuracy:.6f}", *shares))
        write_table(path, ("subject", "n", "accuracy", *found.names), rows)

    def draw(self, found: SubjectTable, title: str) -> Figure | None:
        """Draw the heat map; None without people."""
        return draw_subjects(found, title) if found.subjects else None
