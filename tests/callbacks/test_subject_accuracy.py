"""callbacks/pictures/subject_accuracy.py: counts, table and plot of the accuracy of each person and activity."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.colors import to_rgba

from callbacks.pictures.subject_accuracy import SubjectAccuracy, SubjectTable, draw_subjects
from foundation.plotting import ORANGE, render
from metrics import GroupAccuracy

MODULE: Any = SimpleNamespace(class_names=["walk", "sit", "lie"])
TRAINER: Any = SimpleNamespace(datamodule=None)


def counted() -> tuple[SubjectAccuracy, SubjectTable]:
    """Two batches: subject 7 has two of three right and no window of lying, subject 30 has one of one."""
    callback = SubjectAccuracy()
    callback.begin(TRAINER, MODULE)
    for logits, label, subject in (
        (torch.eye(3), [0, 1, 2], [7, 7, 30]),
        (torch.eye(3)[:1], [1], [7]),
    ):
        callback.add(TRAINER, MODULE, logits, torch.tensor(label), {"subject": torch.tensor(subject)})
    return callback, callback.collect(TRAINER, MODULE)


def test_counts_and_table_by_hand(tmp_path: Path) -> None:
    callback, found = counted()
    assert found.subjects == {7: GroupAccuracy(3, 2), 30: GroupAccuracy(1, 1)}
    assert found.cells == {(7, 0): GroupAccuracy(1, 1), (7, 1): GroupAccuracy(2, 1), (30, 2): GroupAccuracy(1, 1)}
    callback.write(tmp_path, "val", found)
    with (tmp_path / "per_subject_val.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["subject", "n", "accuracy", "walk", "sit", "lie"],
        ["7", "3", "0.666667", "1.000000", "0.500000", ""],
        ["30", "1", "1.000000", "", "", "1.000000"],
    ]


def test_the_worst_subject_is_on_top() -> None:
    _, found = counted()
    axes = draw_subjects(found, "a run").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["7 (n=3)", "30 (n=1)"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["all", "walk", "sit", "lie"]
    texts = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "67%", (0, 1): "100%", (0, 2): "50%", (1, 0): "100%", (1, 3): "100%"}
    assert render(draw_subjects(found, "a run")).ndim == 3


def test_an_accuracy_below_the_scale_has_another_colour() -> None:
    """Which of 0 and 50 % a cell is must be seen: the scale begins at 50 %."""
    image = draw_subjects(counted()[1], "a run").axes[0].images[0]
    below, lowest = image.to_rgba(np.array([0.0, 0.5]))
    assert tuple(below) == to_rgba(ORANGE) != tuple(lowest)


def test_batches_without_subject_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="SubjectAccuracy: the batches have no 'subject'"):
        SubjectAccuracy().add(TRAINER, MODULE, torch.eye(3), torch.tensor([0, 1, 2]), {})


def test_without_people_nothing_is_pretended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = SubjectAccuracy()
    callback.begin(TRAINER, MODULE)
    callback.add(TRAINER, MODULE, torch.eye(3), torch.tensor([0, 1, 2]), {"subject": torch.tensor([-1, -1, -1])})
    found = callback.collect(TRAINER, MODULE)
    (tmp_path / "per_subject_test.csv").write_text("of another test")
    with caplog.at_level(logging.INFO, "callbacks.pictures.subject_accuracy"):
        callback.write(tmp_path, "test", found)
    assert callback.draw(found, "a run") is None
    assert not list(tmp_path.iterdir())
    assert caplog.messages == ["people     are not known in the test data: no accuracy of each person"]


def test_people_have_their_names(tmp_path: Path) -> None:
    """A datamodule that knows names gives them to the table and to the plot."""
    callback, _ = counted()
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(subject_name={7: "carl", 30: "ana"}.__getitem__))
    found = callback.collect(trainer, MODULE)
    callback.write(tmp_path, "test", found)
    lines = (tmp_path / "per_subject_test.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["subject", "carl", "ana"]
    labels = draw_subjects(found, "a run").axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["carl (n=3)", "ana (n=1)"]
