"""callbacks/pictures/confusion_matrix.py and evaluation.py: the plot and its tables, and which evaluation is shown."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix as sklearn_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor, nn, tensor

from callbacks.checkpoints import Checkpoints
from callbacks.pictures import confusion_matrix as confusion
from callbacks.pictures.confusion_matrix import ConfusionMatrix, draw_confusion, worst_classes
from callbacks.pictures.evaluation import label_text
from callbacks.run_folder import RunFolder
from datamodules import DigitsDataModule
from foundation.plotting import render
from lightning_modules import load_run
from metrics import class_metrics
from tests.runs.killing import TINY, Kill, forked

COUNTS = tensor([[6, 2, 0], [0, 0, 0], [1, 0, 120_000]])
NAMES = ["cat", "costs $5 or $6", "fox"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def counts_of(path: Path) -> Counter[tuple[str, str]]:
    return Counter({(row["true"], row["predicted"]): int(row["count"]) for row in table(path)})


def texts(figure: Figure) -> dict[tuple[float, float], str]:
    """Numbers in the cells, by row and column."""
    return {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in figure.axes[0].texts}


# ---- the plot ----------------------------------------------------------------------------------------------------------------


def test_cells_bars_and_title() -> None:
    figure = draw_confusion(COUNTS, NAMES, "run · test")
    render(figure)
    matrix, bars, _ = figure.axes
    shown = matrix.images[0].get_array()
    assert shown is not None
    assert shown.tolist() == [[0.75, 0.25, 0], [0, 0, 0], [1 / 120_001, 0, 120_000 / 120_001]]
    assert texts(figure) == {(0, 0): "6", (0, 1): "2", (2, 0): "1", (2, 2): "120k"}
    assert [bar.get_width() for bar in bars.patches] == [0.75, 0, 120_000 / 120_001]  # type: ignore[attr-defined]
    assert [text.get_text() for text in bars.texts] == ["75.0%  n=8", "n=0", "100.0%  n=120,001"]
    assert (matrix.get_xlabel(), matrix.get_ylabel()) == ("predicted class", "true class")
    for axis in (matrix.xaxis, matrix.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["cat", r"costs \$5 or \$6", "fox"]
    assert figure.get_suptitle() == "run · test\naccuracy 100.00% of 120,009 samples"
    assert matrix.yaxis_inverted()  # the first class on top, as in a table


@pytest.mark.slow
@pytest.mark.draws
@pytest.mark.parametrize("classes", [2, 20, 21, 40])
def test_nothing_overlaps_or_is_cut_off(classes: int) -> None:
    counts = torch.eye(classes, dtype=torch.int64) * 9_000 + 1_000
    figure = draw_confusion(counts, [f"a rather long name of class {k}" for k in range(classes)], "run · test")
    width = render(figure).shape[1]
    matrix, bars, _ = figure.axes
    names = [label.get_window_extent() for label in matrix.get_yticklabels()]
    assert len(names) == classes
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(names))
    below = [label.get_window_extent() for label in matrix.get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(below))
    assert min(box.x0 for box in names) >= 0
    assert min(box.y0 for box in below) >= 0
    assert max(text.get_window_extent().x1 for text in bars.texts) <= bars.get_window_extent().x1 < width
    cell = matrix.get_window_extent().width / classes
    assert len(matrix.texts) == (classes**2 if classes <= 20 else 0)
    assert all(text.get_window_extent().width < cell for text in matrix.texts)


def test_many_classes_show_the_worst() -> None:
    counts = torch.diag(torch.arange(1, 61)) + torch.ones(60, 60, dtype=torch.int64)  # class 0 is the worst
    figure = draw_confusion(counts, [f"class {k}" for k in range(60)], "run")
    render(figure)
    matrix, bars, _ = figure.axes
    assert [label.get_text() for label in bars.get_yticklabels()] == [f"class {k}" for k in range(20)]
    assert bars.yaxis_inverted()
    assert len(matrix.texts) == 0
    assert matrix.get_xlabel() == "predicted class (number)"


def test_worst_classes() -> None:
    counts = tensor([[9, 1, 0, 0], [5, 5, 0, 0], [0, 0, 0, 0], [0, 10, 0, 10]])
    # among equals the class with more samples comes first; a class without samples is skipped
    assert worst_classes(class_metrics(counts)) == [3, 1, 0]


def test_label_text() -> None:
    assert label_text("a\nb\tc") == "a b c"
    assert label_text(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\udce9"
    assert label_text("x" * 30, 10) == "xxxxx…xxxx"
    assert label_text("x" * 10, 10) == "x" * 10


# ---- in a run ----------------------------------------------------------------------------------------------------------------

LABELS = [[0, 0, 0, 1], [1, 2]]
PREDICTED = [  # the second epoch is the best
    [[0, 1, 1, 1], [1, 1]],
    [[0, 0, 1, 1], [1, 2]],
    [[0, 0, 0, 0], [0, 0]],
]
MATRICES = [
    {("cat", "cat"): 1, ("cat", "dog"): 2, ("dog", "dog"): 2, ("fox", "dog"): 1},
    {("cat", "cat"): 2, ("cat", "dog"): 1, ("dog", "dog"): 2, ("fox", "fox"): 1},
    {("cat", "cat"): 3, ("dog", "cat"): 2, ("fox", "cat"): 1},
]


class Loader:
    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter([{"image": torch.ones(len(part), 2), "label": tensor(part)} for part in LABELS])


class Module(LightningModule):
    metric_names = ("val/acc",)
    class_names = ("cat", "dog", "fox")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.layer(batch["image"]).mean()}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        predicted = tensor(PREDICTED[min(self.current_epoch, 2)][batch_idx])
        self.log("val/acc", (predicted == batch["label"]).float().mean(), batch_size=len(predicted))
        return {"logits": 2.0 * nn.functional.one_hot(predicted, 3), "label": batch["label"]}

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    everything = {"logger": False, "log_every_n_steps": 1, "max_epochs": 3, **quiet, **settings}
    return Trainer(
        default_root_dir=tmp_path, callbacks=[RunFolder(tmp_path / "run", resumed=True), *callbacks], **everything
    )


def titles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List that collects the titles of all plots drawn from now on."""
    found: list[str] = []

    def spy(counts: Tensor, names: list[str], title: str) -> Figure:
        found.append(title)
        return draw_confusion(counts, names, title)

    monkeypatch.setattr(confusion, "draw_confusion", spy)
    return found


def test_the_best_epoch_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = titles(monkeypatch)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    run = trainer(tmp_path, Checkpoints(), ConfusionMatrix(every_s=1e9), logger=logger)
    run.fit(Module(), Loader(), Loader())
    folder = tmp_path / "run"
    assert counts_of(folder / "confusion_val.csv") == MATRICES[1]
    # epoch 1 is drawn at once, epoch 2 only at the end because of every_s; epoch 3 is not the best
    by = f"{tmp_path.name}/run · val, epoch"
    assert drawn == [f"{by} 1: the best by val/acc", f"{by} 2: the best by val/acc"]
    assert (folder / "plots" / "confusion_val.png").is_file()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("plots/confusion_val")] == [6]
    assert table(folder / "per_class_val.csv") == [
        {"class": "cat", "n": "3", "accuracy": "0.666667", "precision": "1.000000", "most_confused_with": "dog"},
        {"class": "dog", "n": "2", "accuracy": "1.000000", "precision": "0.666667", "most_confused_with": ""},
        {"class": "fox", "n": "1", "accuracy": "1.000000", "precision": "1.000000", "most_confused_with": ""},
    ]


def test_without_checkpoints_the_last_epoch_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = titles(monkeypatch)
    trainer(tmp_path, ConfusionMatrix(every_s=0), enable_checkpointing=False).fit(Module(), Loader(), Loader())
    assert counts_of(tmp_path / "run" / "confusion_val.csv") == MATRICES[2]
    assert [title.partition("epoch ")[2] for title in drawn] == ["1: the last", "2: the last", "3: the last"]


def test_a_validation_within_the_epoch_may_be_the_best(tmp_path: Path) -> None:
    run = trainer(tmp_path, Checkpoints(), ConfusionMatrix(), max_epochs=1, val_check_interval=1)
    run.fit(Module(), Loader(), Loader())
    assert counts_of(tmp_path / "run" / "confusion_val.csv") == MATRICES[0]


def test_validate_and_test_write_separate_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = titles(monkeypatch)
    run = trainer(tmp_path, Checkpoints(), ConfusionMatrix(every_s=1e9))
    run.fit(Module(), Loader(), Loader())
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    run.test(Module(), Loader(), ckpt_path=checkpoint, weights_only=True, verbose=False)
    run.validate(Module(), Loader(), verbose=False)
    assert [title.rpartition(" · ")[2] for title in drawn[2:]] == ["test, weights of epoch 2", "validate"]
    names = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
    assert names == {f"confusion_{stage}.png" for stage in ("val", "test", "validate")}
    assert counts_of(tmp_path / "run" / "confusion_val.csv") == MATRICES[1]
    # the module predicts by the trainer's epoch, which is the third
    assert counts_of(tmp_path / "run" / "confusion_test.csv") == MATRICES[2]


def test_no_files_without_a_run_folder(tmp_path: Path) -> None:
    run = trainer(tmp_path, ConfusionMatrix(), fast_dev_run=True)
    run.callbacks[0].path = None  # type: ignore[attr-defined]
    run.fit(Module(), Loader(), Loader())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(4, 1), (4, 3, 8, 8), None])
def test_only_classifiers(tmp_path: Path, shape: tuple[int, ...] | None) -> None:
    class Other(Module):
        def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            return {"loss": tensor(0.0)} if shape is None else {"logits": torch.ones(shape), "label": batch["label"]}

    message = r"ConfusionMatrix: needs a classifier's step outputs, .* got (none|logits of shape .*); remove it from"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, ConfusionMatrix()).fit(Other(), Loader(), Loader())


def test_bad_setting() -> None:
    with pytest.raises(ValueError, match="every_s: 0 seconds or more, got -1"):
        ConfusionMatrix(every_s=-1)


# ---- the command line: averaged weights, a kill during validation -----------------------------------------------------------


def expected(module: Any, data: DigitsDataModule, split: str) -> Counter[tuple[str, str]]:
    """The confusion matrix of a split, computed with scikit-learn."""
    predicted = module.logits(data.splits[split]["image"]).argmax(dim=1)
    matrix = sklearn_matrix(data.splits[split]["label"], predicted, labels=range(10))
    return Counter({(str(i), str(j)): int(matrix[i, j]) for i in range(10) for j in range(10) if matrix[i, j]})


@pytest.mark.slow
def test_a_killed_run_its_resume_and_its_evaluations(tmp_path: Path) -> None:
    overlay, folder, log = tmp_path / "overlay.yaml", tmp_path / "run", tmp_path / "log"
    overlay.write_text("trainer:\n  max_epochs: 3\n  callbacks+:\n    - class_path: ConfusionMatrix\n")
    start = ["fit", "--config", TINY, "--config", str(overlay), "--run_dir", str(folder)]
    assert forked(start, Kill("val", 7), log) == -9, log.read_text()  # within the second validation
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    data, module = DigitsDataModule(batch_size=16, train_fraction=0.1), load_run(folder)
    for split, stage in (("val", "fit"), ("test", "test")):
        data.setup(stage)
        if split == "test":
            assert forked(["test", "--run", str(folder)], log=log) == 0, log.read_text()
            assert forked(["validate", "--run", str(folder), "--ckpt", "last"], log=log) == 0, log.read_text()
        assert counts_of(folder / f"confusion_{split}.csv") == expected(module, data, split)
        assert (folder / "plots" / f"confusion_{split}.png").is_file()
    last = expected(load_run(folder, "last"), data, "val")
    assert counts_of(folder / "confusion_validate.csv") == last
    accuracy = json.loads((folder / "test_metrics.json").read_text())["metrics"]["test/acc"]
    rows = table(folder / "per_class_test.csv")
    assert sum(int(row["n"]) * float(row["accuracy"]) for row in rows) / 359 == pytest.approx(accuracy, abs=1e-4)
