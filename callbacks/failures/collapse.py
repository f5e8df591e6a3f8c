"""The WarnOnCollapse callback: says when a network predicts one class only, or no pixel or every pixel of a prompt's object.

    warning: no positive pixel predicted for 'segment pothole' in 3 validations: the network has collapsed; change ...
    warning: only class 'cat' was predicted in 3 validations: the network has collapsed; change --model.lr (now 0.1) ...
    warning: val/loss was 549 in 3 validations: the loss has exploded; change --model.lr (now 0.5, try 0.05)
    warning: --model.lr 0.5 is for the 256 samples of a step in the configuration, here a step has 16: the loss may explode; ...

A line appears when the validations in a row that found the same reach 3, 10, 30, 100, ..., and at the end of a fit if the latest
validation found something that no line has said yet. With EMA, the averaged weights count. The numbers are in the checkpoint.
Classes are counted here; masks are counted by the module, which chooses the thresholds (lightning_modules/segmentation_module.py).
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.find_callbacks import find_callbacks
from callbacks.learning_rate_finder import LearningRateFinder

log = logging.getLogger(__name__)

FIRST = 3  # validations in a row before the first line
TEXTS = {
    "none": "no positive pixel predicted for",
    "hardly any": "hardly a right positive pixel predicted for",
    "all": "every pixel predicted positive for",
}
ALL_LABELS = "every label had a probability above 0.5 in every image"
NO_LABEL = "no label had a probability of 0.5 in any image"
SMALLER = 2
"""A rate is too high for its batch if the configuration file has at least this many times the samples in an optimiser step."""
EXPLODED = 10.0
"""A classifier's validation loss has exploded above this many times the loss of guessing (ln K; ln 2 with several labels)."""
IMBALANCED = 1.5
"""Class weights are named if the largest class has more than this many times the training samples of the smallest one."""
# settings of the data and of the module, each with a value that makes a network predict more of what it lacks
REMEDIES = (
    ("data", "positive_share", 0.5),
    ("model", "over", "prompt"),
    ("model", "pos_weight", 5.0),
    ("model", "class_weights", "balanced"),
)


def is_due(validations: int) -> bool:
    """Whether a line is due after this number of validations in a row.

    >>> [count for count in range(1, 200) if is_due(count)]
    [3, 10, 30, 100]
    """
    return validations >= FIRST and str(validations).rstrip("0") in ("1", "3")


class WarnOnCollapse(Callback):
    """Counts the validations in a row that found a collapse, and logs a warning; see the top of the file.

    Args:
        recipe: Learning rate and batch size that go together in the configuration files; None: not known.

    Attributes:
        found: Validations in a row and the latest one's text, by prompt, or ``classes``, ``labels`` or ``loss``.
        said: Entries of ``found`` that a line has said.
    """

    def __init__(self, recipe: tuple[float, int] | None = None) -> None:
        self.recipe = recipe
        self.found: dict[str, tuple[int, str]] = {}
        self.said: set[str] = set()
        # the lowest predicted class, minus the highest one; the same of the true classes; with several labels, of the logits and
        # of the 0 and 1 of the truth
        self._extremes: Tensor | None = None
        self._outputs = 0  # K
        self._several = False

    def state_dict(self) -> dict[str, Any]:
        """The counts and texts."""
        return {"found": {key: list(entry) for key, entry in self.found.items()}, "said": sorted(self.said)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts and texts."""
        self.found = {key: (int(count), str(text)) for key, (count, text) in state_dict["found"].items()}
        self.said = {*state_dict["said"]}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the configuration's learning rate is for a larger batch, before the first step."""
        if trainer.global_step == 0 and (text := rate_of_larger_batch(trainer, pl_module, self.recipe)):
            log.warning(text)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the classes of the previous validation."""
        self._extremes = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note the predicted and the true classes of a batch, on its device."""
        if not isinstance(outputs, dict) or outputs["logits"].ndim != 2 or outputs["label"].ndim not in (1, 2):
            return
        logits = outputs["logits"]
        self._outputs, self._several = logits.shape[1], outputs["label"].ndim == 2
        predicted = logits.float() if self._several else logits.argmax(dim=1)
        label = outputs["label"].to(predicted.dtype)  # 0 and 1 are uint8, which has no negative
        extremes = torch.stack([predicted.amin(), -predicted.amax(), label.amin(), -label.amax()])
        self._extremes = extremes if self._extremes is None else torch.minimum(self._extremes, extremes)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what this validation found, and say it if it is due."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        masks = getattr(pl_module, "collapsed", {})
        texts = {
            **self._of_classes(trainer, pl_module),
            **{name: f"{TEXTS[how]} {name!r}" for name, how in masks.items()},
        }
        self.found = {key: (self.found.get(key, (0, ""))[0] + 1, text) for key, text in texts.items()}
        self.said &= self.found.keys()
        for key, (count, text) in self.found.items():
            if is_due(count):
                self._say(key, f"{text} in {count} validations", trainer, pl_module, collapsed=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the latest validation found, unless a line has said it."""
        for key, (count, text) in self.found.items():
            if key not in self.said:
                last = f"{count} validations" if count > 1 else "validation"
                self._say(key, f"{text} in the last {last}", trainer, pl_module)

    def _of_classes(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """What this validation found of classes or labels, else of the loss."""
        found = self._only_class(trainer, pl_module)
        return found or ({"loss": f"val/loss was {self._loss(trainer):.3g}"} if self._exploded(trainer) else {})

    @staticmethod
    def _loss(trainer: Trainer) -> float:
        return float(getattr(trainer, "callback_metrics", {}).get("val/loss", 0.0))

    def _exploded(self, trainer: Trainer) -> bool:
        """Whether the validation loss of a classifier is far above that of guessing, or not finite."""
        loss, outputs = self._loss(trainer), 2 if self._several else self._outputs
        return outputs > 1 and not loss <= EXPLODED * math.log(outputs)  # not finite: no comparison holds

    def _only_class(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        if self._extremes is None:
            return {}
        extremes = self._extremes
        if trainer.world_size > 1:
            extremes = pl_module.all_gather(extremes).amin(dim=0)  # type: ignore[union-attr]
        lowest, highest, first, last = extremes.tolist()
        if self._several:  # a logit of 0 is a probability of 0.5
            if lowest > 0 and first == 0:
                return {"labels": ALL_LABELS}
            return {"labels": NO_LABEL} if -highest < 0 and last == -1 else {}
        if lowest != -highest or first == -last:  # several classes are predicted, or the data has only one
            return {}
        names = getattr(pl_module, "class_names", None)
        return {"classes": f"only class {repr(names[lowest]) if names else lowest} was predicted"}

    def _say(self, key: str, text: str, trainer: Trainer, pl_module: LightningModule, collapsed: bool = False) -> None:
        self.said.add(key)
        lacking = not text.startswith((TEXTS["all"], ALL_LABELS))
        exploded = self._exploded(trainer)
        changes = remedies(trainer, pl_module, lacking, exploded, self.recipe)
        why = ": the network has collapsed" if collapsed else ""
        if exploded:
            why = ": the loss has exploded" + ("" if key == "loss" else f" (val/loss {self._loss(trainer):.3g})")
        log.warning(f"{text}{why}; change {', '.join(changes)}")


def remedies(
    trainer: Trainer,
    pl_module: LightningModule,
    lacking: bool = True,
    exploded: bool = False,
    recipe: tuple[float, int] | None = None,
) -> list[str]:
    """Settings to change after a collapse, with their values now, of those that the module and its data have.

    Args:
        trainer: The trainer of the run.
        pl_module: The module.
        lacking: Something is never predicted, and not everything is.
        exploded: The loss has exploded, so that the learning rate comes first.
        recipe: Learning rate and batch size that go together.
    """
    owners = {"data": getattr(trainer, "datamodule", None), "model": pl_module}
    found = []
    sampled = getattr(owners["data"], "sampling", None) == "balanced"  # weights would count a rare class twice
    for part, name, better in REMEDIES if lacking else ():
        if name == "class_weights" and sampled:
            continue
        now = getattr(owners[part], name, None)
        if now is not None and now != better and not (name == "class_weights" and _balanced(owners["data"])):
            found.append(f"--{part}.{name} (now {now}, try {better})")
    if exploded:
        return [f"--model.lr (now {pl_module.lr:g}, try {lower_rate(trainer, pl_module, recipe):g})", *found]
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "no limit"
    return [*found, f"--model.lr (now {pl_module.lr:g})", f"--trainer.max_epochs (now {epochs})"]


def lower_rate(trainer: Trainer, pl_module: LightningModule, recipe: tuple[float, int] | None) -> float:
    """The recipe's learning rate in proportion to the batch, if that is lower than the rate now; else a tenth of the rate now."""
    now = float(pl_module.lr)  # type: ignore[arg-type]
    if recipe is not None:
        rate, recipe_batch = recipe
        scaled = rate * _samples_of_step(trainer, recipe_batch) / recipe_batch
        if scaled < now:
            return scaled
    return now / 10


def rate_of_larger_batch(trainer: Trainer, pl_module: LightningModule, recipe: tuple[float, int] | None) -> str:
    """Say that SGD trains with the recipe's learning rate on batches of half the recipe's size or less, and which rate fits.

    The step of other optimisers depends less on the batch, and `LearningRateFinder` finds a rate of its own: then it is empty.
    """
    if recipe is None or getattr(pl_module, "optimizer_name", "") != "sgd" or float(pl_module.lr) != recipe[0]:  # type: ignore[arg-type]
        return ""
    rate, recipe_batch = recipe
    samples = _samples_of_step(trainer, recipe_batch)
    if samples * SMALLER > recipe_batch or find_callbacks(trainer, LearningRateFinder):
        return ""
    return (
        f"--model.lr {rate:g} is for the {recipe_batch} samples of a step in the configuration, here a step has {samples}: the "
        f"loss may explode; give --model.lr {rate * samples / recipe_batch:.3g}, in proportion"
    )


def _samples_of_step(trainer: Trainer, unknown: int) -> int:
    """Samples of an optimiser step over all processes; ``unknown`` a batch if the data has no batch size."""
    size = int(getattr(getattr(trainer, "datamodule", None), "batch_size", unknown))
    return size * trainer.world_size * int(getattr(trainer, "accumulate_grad_batches", 1))


def _balanced(data: object) -> bool:
    """Whether the training samples of the classes are known to be about as many."""
    counts = getattr(data, "class_counts", None)
    return counts is not None and float(counts.max()) <= IMBALANCED * float(counts.min())
