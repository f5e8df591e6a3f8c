"""Pictures of one evaluation: of the epoch that best.ckpt holds in a fit, of the checkpoint that ``validate`` and ``test`` judge.

    fit        plots/NAME_val.png        of the best epoch so far, or of the last where nothing says which is best
    validate   plots/NAME_validate.png   so that judging another checkpoint leaves the fit's own picture alone
    test       plots/NAME_test.png

What is shown are step outputs of validation and test, of the weights that ``val/*`` and ``test/*`` are about: the average with
EMA, whose second pass over the raw weights (``val_raw/*``) comes to no hook. A validation that a resume starts anew begins
from nothing. Tables are written at once, pictures at most every few seconds, and at the end.
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
from callbacks.pictures.picture import tensorboard_writers
from callbacks.run_folder import evaluation_folder
from callbacks.stop_on_signal import Interrupted
from foundation.atomic_files import replace_file
from foundation.plotting import render, write_png

Found = TypeVar("Found")


class Shown(NamedTuple, Generic[Found]):
    """What an evaluation found, and the line that says which evaluation it was."""

    found: Found
    title: str


def label_text(name: str, longest: int = 24) -> str:
    """A class or file name as matplotlib may show it: shortened in its middle, no mathematics, no bytes that are no UTF-8.

    >>> label_text("n02085620-Chihuahua_long_haired", 16)
    'n0208562…_haired'
    """
    name = " ".join(name.encode("utf-8", "backslashreplace").decode().split())
    if len(name) > longest:
        head = longest // 2
        name = f"{name[:head]}…{name[head + 1 - longest :]}"
    return name.replace("$", r"\$")


def stage_of(trainer: Trainer) -> str:
    """``val``, ``validate`` or ``test``: what the files of the running evaluation are named by."""
    return "val" if trainer.state.fn == "fit" else str(trainer.state.fn.value)  # type: ignore[union-attr]


def class_names_of(trainer: Trainer, pl_module: LightningModule, classes: int) -> list[str]:
    """Names of the K classes by the module or the datamodule; their numbers where neither knows them."""
    for owner in (pl_module, getattr(trainer, "datamodule", None)):
        names = getattr(owner, "class_names", None)
        if names is not None and len(names) == classes:
            return [str(name) for name in names]
    return [str(number) for number in range(classes)]


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV whole or not at all; names may hold bytes that are no UTF-8."""
    with (
        replace_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows([header, *rows])


class EvaluationPicture(Callback, ABC, Generic[Found]):
    """Base of the callbacks that show one evaluation.

    Subclasses set ``name`` and define ``begin``, ``add``, ``collect``, ``write`` and ``draw``; the last two are called by the first
    process alone.

    Args:
        every_s: Seconds between two drawings during training, 0 or more; the end of training is always drawn.
    """

    name: ClassVar[str]

    def __init__(self, every_s: float = 10.0) -> None:
        if every_s < 0:
            raise ValueError(f"every_s: 0 seconds or more, got {every_s}")
        self.every_s = every_s
        self._drawn = -float("inf")  # the first is always drawn
        self._checkpoint_epoch: int | None = None
        self._waiting: Shown[Found] | None = None  # a validation that is not yet known to be the best
        self._undrawn: Shown[Found] | None = None
        self._pixels: NDArray[np.uint8] | None = None

    # ---- what a subclass does ----

    @abstractmethod
    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the evaluation before."""

    @abstractmethod
    def add(
        self, trainer: Trainer, pl_module: LightningModule, logits: Tensor, label: Tensor, batch: dict[str, Any]
    ) -> None:
        """Take in a batch: logits (B, K), class ids (B,)."""

    @abstractmethod
    def collect(self, trainer: Trainer, pl_module: LightningModule) -> Found:
        """What all processes found, on the CPU."""

    @abstractmethod
    def write(self, folder: Path, stage: str, found: Found) -> None:
        """Write the tables, or remove older ones where there is nothing to say."""

    @abstractmethod
    def draw(self, found: Found, title: str) -> Figure | None:
        """The picture, or None where there is nothing to show."""

    # ---- when ----

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
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
        """Take in the step's output."""
        if self._wanted(trainer):
            self._add(trainer, pl_module, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show it, or in a fit wait for the judgement; the last one of an epoch is judged when the epoch has its figures."""
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
        """Judge the validation at the end of the epoch."""
        self._evaluate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was not yet drawn, and hand the final picture to TensorBoard."""
        self._draw(trainer)
        self._to_tensorboard(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A run that a signal ends may go on without a better epoch: it should have the picture of its best one."""
        if isinstance(exception, Interrupted):
            self._draw(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
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
        """Take in the step's output."""
        if self._wanted(trainer):
            self._add(trainer, pl_module, outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show it."""
        if self._wanted(trainer):
            self._show(trainer, self.collect(trainer, pl_module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note the epoch of the weights that are about to be judged."""
        if trainer.state.fn != "fit":
            self._checkpoint_epoch = checkpoint["epoch"] + 1 if checkpoint["global_step"] else 0

    # ---- how ----

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
        """Keep the waiting validation if best.ckpt is about to hold its weights: Checkpoints stands behind every other callback."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or not trainer.is_global_zero:
            return
        for checkpoints in find_callbacks(trainer, Checkpoints):
            value = checkpoints.score(trainer)
            if value is None or not checkpoints.is_better(value):
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
        (folder / "plots").mkdir(exist_ok=True)
        self.write(folder, stage, found)
        epoch, self._checkpoint_epoch = self._checkpoint_epoch, None
        weights = "" if epoch is None else f", weights of epoch {epoch}" if epoch else ", untrained weights"
        self._undrawn, self._pixels = Shown(found, stage + weights), None
        self._draw(trainer)
        self._to_tensorboard(trainer)

    def _draw(self, trainer: Trainer) -> None:
        shown, self._undrawn = self._undrawn, None
        folder = evaluation_folder(trainer)
        if shown is None or folder is None:
            return
        path = self._path(trainer, folder)
        figure = self.draw(shown.found, f"{folder.parent.name}/{folder.name} · {shown.title}")
        self._pixels = None if figure is None else render(figure)
        if self._pixels is None:
            path.unlink(missing_ok=True)  # an older one would contradict what is now known
        else:
            write_png(path, self._pixels)
        self._drawn = monotonic()

    def _path(self, trainer: Trainer, folder: Path) -> Path:
        return folder / "plots" / f"{self.name}_{stage_of(trainer)}.png"

    def _to_tensorboard(self, trainer: Trainer) -> None:
        """Only the final picture: every redrawing would stay in the event file."""
        if self._pixels is None:
            return
        for writer in tensorboard_writers(trainer):
            tag = f"plots/{self.name}_{stage_of(trainer)}"
            writer.add_image(tag, self._pixels, trainer.global_step, dataformats="HWC")
