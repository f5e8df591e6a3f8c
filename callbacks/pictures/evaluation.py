"""Base class of plots and tables of one evaluation: in a fit the best epoch, in validate and test the given checkpoint.

    fit        plots/NAME_val.png        the best epoch so far, or the last if there is no monitored metric
    validate   plots/NAME_validate.png   a separate file, so that evaluating another checkpoint keeps the plot of the fit
    test       plots/NAME_test.png

The plots use step outputs of validation and test, from the same weights as ``val/*`` and ``test/*``: with EMA, the averaged ones.
EMA's second pass over the raw weights (``val_raw/*``) calls no hook. A validation restarted by a resume starts empty. Tables are
written at once; plots at most every few seconds, and at the end.
"""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from callbacks.checkpoints import EPOCH, Checkpoints
from callbacks.find_callbacks import find_callbacks
from callbacks.pictures.picture import send_picture
from callbacks.run_folder import evaluation_folder
from callbacks.stop_on_signal import Interrupted
from foundation.atomic_files import replace_file
from foundation.plotting import render, write_png

Found = TypeVar("Found")


class Shown(NamedTuple, Generic[Found]):
    """Result of an evaluation, and the title that names the evaluation."""

    found: Found
    title: str


def label_text(name: str, longest: int = 24) -> str:
    """Prepare a class or file name for matplotlib: shorten it in the middle, escape mathtext, replace bytes that are not UTF-8.

    >>> label_text("n02085620-Chihuahua_long_haired", 16)
    'n0208562…_haired'
    """
    name = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    if len(name) > longest:
        head = longest // 2
        name = f"{name[:head]}…{name[head + 1 - longest :]}"
    return name.replace("$", r"\$")


def file_text(file: str, longest: int) -> str:
    """A file's name for matplotlib, with as many of its folders as there is room for: files of two folders can have one name.

    >>> file_text("photos/walls/1.png", 12), file_text("photos/walls/photograph.png", 12)
    ('walls/1.png', 'photog…h.png')
    """
    *folders, text = file.split("/")
    for folder in reversed(folders):
        if len(folder) + 1 + len(text) > longest:
            break
        text = f"{folder}/{text}"
    return label_text(text, longest)


def stage_of(trainer: Trainer) -> str:
    """Return ``val`` (in a fit), ``validate`` or ``test``: the suffix of the files of the current evaluation."""
    return "val" if trainer.state.fn == "fit" else str(trainer.state.fn.value)  # type: ignore[union-attr]


def class_names_of(trainer: Trainer, pl_module: LightningModule, classes: int) -> list[str]:
    """Return the names of the K classes from the module or the datamodule, or their numbers if neither has names."""
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        names = getattr(owner, "class_names", None)
        if names is not None and len(names) == classes:
            return [str(name) for name in names]
    return [str(number) for number in range(classes)]


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file atomically; names may contain bytes that are not UTF-8."""
    with (
        replace_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows([header, *rows])


def _named(folder: Path) -> str:
    """Name of a run, or of one of its evaluations (`RUN/evaluations/NAME`), for a title."""
    parts = folder.absolute().parts
    return "/".join(parts[-4:-2] + parts[-1:] if folder.parent.name == "evaluations" else parts[-2:])


class EvaluationPicture(Callback, ABC, Generic[Found]):
    """Base class of callbacks that plot and tabulate one evaluation.

    Subclasses set ``name`` and define ``begin``, ``add``, ``collect``, ``write`` and ``draw``. Only the first process calls
    ``write`` and ``draw``.

    Args:
        every_s: Seconds between two drawings during training, 0 or more; the end of training is always drawn.
    """

    name: ClassVar[str]
    of_masks: ClassVar[bool] = False
    """Whether it shows masks of a segmenter, not classes."""
    of_labels: ClassVar[bool] = False
    """Whether it shows a classifier of several labels an image."""

    def __init__(self, every_s: float = 10.0) -> None:
        if every_s < 0:
            raise ValueError(f"every_s: 0 seconds or more, got {every_s}")
        self.every_s = every_s
        self._drawn = -float("inf")  # the first evaluation is always drawn
        self._checkpoint_epoch: int | None = None
        self._waiting: Shown[Found] | None = None  # a validation that is not yet compared with the best
        self._undrawn: Shown[Found] | None = None
        self._pixels: dict[str, NDArray[np.uint8]] = {}  # of the latest plots, by name

    one_label: ClassVar[str] = "it compares the predicted class with the true one"
    """Why it needs one label an image."""

    # ---- methods of a subclass ----

    @abstractmethod
    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the state of the previous evaluation."""

    @abstractmethod
    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Add a batch: logits (B, K), class ids (B,)."""

    @abstractmethod
    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Found:
        """Combine the results of all processes, on the CPU."""

    @abstractmethod
    def write(self, folder: Path, stage: str, found: Found) -> None:
        """Write the tables, or remove older ones if there is nothing to write."""

    @abstractmethod
    def draw(self, found: Found, title: str) -> Figure | None:
        """Draw the plot; None if there is nothing to show."""

    def draw_more(self, found: Found, title: str) -> dict[str, Figure | None]:
        """Draw further plots by name; None removes an older one. None by default."""
        return {}

    # ---- hooks ----

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a segmenter, or a classifier in a subclass for segmenters, before the first step."""
        masks = not getattr(getattr(trainer, "datamodule", None), "numbers_classes", not self.of_masks)
        if masks != self.of_masks:
            reason = (
                f"is for classifiers, but {type(pl_module).__name__} segments: it chooses its thresholds in every validation, and "
                "SegmentationPictures shows its masks"
                if masks
                else f"is for segmenters, but {type(pl_module).__name__} has no masks; ConfusionMatrix and WorstMistakes are for it"
            )
            raise MisconfigurationException(f"{type(self).__name__}: {reason}; remove it from trainer.callbacks")
        if getattr(pl_module, "several_labels", False) != self.of_labels and not self.of_masks:
            reason = (
                "is for --model.task multilabel, this run has one label an image"
                if self.of_labels
                else f"is for one label an image: {self.one_label}, and --model.task multilabel has none"
            )
            raise MisconfigurationException(f"{type(self).__name__}: {reason}; remove it from trainer.callbacks")

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new evaluation."""
        if self._wanted(trainer):
            self.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the step's output."""
        if self._wanted(trainer):
            self._add(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and draw the result; in a fit, only if it is the best, which for the last validation of an epoch is known later."""
        if not self._wanted(trainer):
            return
        found = self.collect(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._show(trainer, found)
            return
        epoch, best = trainer.current_epoch + 1, next(iter(find_callbacks(trainer, Checkpoints)), None)
        which = f"the best by {best.monitor}" if best is not None and best.monitor != EPOCH else "the last"
        self._waiting = Shown(found, f"val, epoch {epoch}: {which}")
        if not trainer.is_last_batch:
            self._evaluate(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the validation at the end of the epoch with the best."""
        self._evaluate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the best evaluation if it is not drawn yet, and send the final plot to the loggers."""
        self._draw(trainer)
        self._to_loggers(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Draw the best evaluation when a signal ends the run, because a resumed run may find no better epoch."""
        if isinstance(exception, Interrupted):
            self._draw(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new evaluation."""
        if self._wanted(trainer):
            self.begin(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the step's output."""
        if self._wanted(trainer):
            self._add(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and draw the result."""
        if self._wanted(trainer):
            self._show(trainer, self.collect(trainer, pl_module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember the epoch of the checkpoint that is about to be evaluated."""
        if trainer.state.fn != "fit":
            self._checkpoint_epoch = checkpoint["epoch"] + 1 if checkpoint["global_step"] else 0

    # ---- helpers ----

    def _wanted(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and evaluation_folder(trainer) is not None

    def _add(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        logits = outputs.get("logits") if isinstance(outputs, dict) else None
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
            found = "none" if logits is None else f"logits of shape {tuple(logits.shape)}"
            raise MisconfigurationException(
                f"{type(self).__name__}: needs a classifier's step outputs, logits (B, K) of two classes or more, got {found}; "
                "remove it from trainer.callbacks"
            )
        self.add(trainer, pl_module, logits.detach(), outputs["label"], batch)

    def _evaluate(self, trainer: Trainer) -> None:
        """Write the waiting validation's tables if it is the best; best.ckpt is written later, as Checkpoints runs last."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or not trainer.is_global_zero:
            return
        for checkpoints in find_callbacks(trainer, Checkpoints):
            if not checkpoints.beats_best(trainer):
                waiting = None
        folder = evaluation_folder(trainer)
        if waiting is not None and folder is not None:
            self.write(folder, "val", waiting.found)
            self._undrawn = waiting
        if monotonic() - self._drawn >= self.every_s:
            self._draw(trainer)

    def _show(self, trainer: Trainer, found: Found) -> None:
        """Write and draw an evaluation outside of training."""
        folder, stage = evaluation_folder(trainer), stage_of(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        (folder / "plots").mkdir(parents=True, exist_ok=True)
        self.write(folder, stage, found)
        epoch, self._checkpoint_epoch = self._checkpoint_epoch, None
        weights = "" if epoch is None else f", weights of epoch {epoch}" if epoch else ", untrained weights"
        self._undrawn, self._pixels = Shown(found, stage + weights), {}
        self._draw(trainer)
        self._to_loggers(trainer)

    def _draw(self, trainer: Trainer) -> None:
        shown, self._undrawn = self._undrawn, None
        folder = evaluation_folder(trainer)
        if shown is None or folder is None:
            return
        title = f"{_named(folder)} · {shown.title}"
        figures = {self.name: self.draw(shown.found, title), **self.draw_more(shown.found, title)}
        self._pixels = {name: render(figure) for name, figure in figures.items() if figure is not None}
        for name in figures:
            path = folder / "plots" / f"{name}_{stage_of(trainer)}.png"
            if name in self._pixels:
                write_png(path, self._pixels[name])
            else:
                path.unlink(missing_ok=True)  # an older plot would contradict the new result
        self._drawn = monotonic()

    def _to_loggers(self, trainer: Trainer) -> None:
        """Send the final plot only, because TensorBoard keeps every plot."""
        for name, pixels in self._pixels.items():
            send_picture(trainer, f"plots/{name}_{stage_of(trainer)}", pixels)
