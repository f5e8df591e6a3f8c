"""The WarnOnCollapse callback: says when a network predicts one class only, or no pixel or every pixel of a prompt's object.

    warning: no positive pixel predicted for 'segment pothole' in 3 validations: the network has collapsed; change ...
    warning: only class 'cat' was predicted in 3 validations: the network has collapsed; change --model.lr (now 0.1) ...
    warning: val/loss was 63.7 to 549 in 3 validations: the loss has exploded; change --model.lr (now 0.5, try 0.05),
             --trainer.gradient_clip_val (now null, try 1)
    warning: val/loss was 1.04e+19: the loss has exploded; change --model.lr (now 0.5, try 0.0312)
    warning: --model.lr 0.5 is for the 256 samples of a step in the configuration, here a step has 16: the loss may explode; ...

A line appears when the validations in a row that found the same reach 3, 10, 30, 100, ..., and at the end of a fit if the latest
validation found something that no line has said yet; an absurd loss is said at once
(callbacks/failures/explosion.py). With EMA, the averaged weights count. The numbers are in the checkpoint.
Classes are counted here; masks are counted by the module, which chooses the thresholds (lightning_modules/segmentation_module.py).
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.failures.explosion import (
    ABSURD,
    EXPLODED,
    guessing_loss,
    is_over,
    lower_rate,
    only_in_validation,
    samples_of_step,
)
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
        losses: Lowest and highest loss of the validations in a row that found an exploded one.
        exploded: The latest validation's loss if it had exploded, else None.
    """

    def __init__(self, recipe: tuple[float, int] | None = None) -> None:
        self.recipe = recipe
        self.found: dict[str, tuple[int, str]] = {}
        self.said: set[str] = set()
        self.losses: list[float] = []
        self.exploded: float | None = None
        self._train_loss: Tensor | None = None  # sum over the steps of the epoch, on the device
        self._train_steps = 0
        # the lowest predicted class, minus the highest one; the same of the true classes; with several labels, of the logits and
        # of the 0 and 1 of the truth
        self._extremes: Tensor | None = None
        self._outputs = 0  # K
        self._several = False

    def state_dict(self) -> dict[str, Any]:
        """The counts and texts, and an exploded loss."""
        found = {key: list(entry) for key, entry in self.found.items()}
        return {"found": found, "said": sorted(self.said), "losses": self.losses, "exploded": self.exploded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; older checkpoints have no losses."""
        self.found = {key: (int(count), str(text)) for key, (count, text) in state_dict["found"].items()}
        self.said = {*state_dict["said"]}
        self.losses, self.exploded = [*state_dict.get("losses", ())], state_dict.get("exploded")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the configuration's learning rate is for a larger batch, before the first step."""
        if trainer.global_step == 0 and (text := rate_of_larger_batch(trainer, pl_module, self.recipe)):
            log.warning(text)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the training loss of the previous epoch."""
        self._train_loss, self._train_steps = None, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the loss of a step, on its device."""
        loss = outputs["loss"].detach()
        self._train_loss = loss.clone() if self._train_loss is None else self._train_loss + loss
        self._train_steps += 1

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
        absurd = is_over(self._loss(trainer), ABSURD, self._guessing(pl_module))
        for key, (count, text) in self.found.items():
            if is_due(count):
                self._say(key, f"{text} in {count} validations", trainer, pl_module, collapsed=True)
            elif key == "loss" and absurd and key not in self.said:
                self._say(key, text if count == 1 else f"{text} in {count} validations", trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the latest validation found, unless a line has said it."""
        for key, (count, text) in self.found.items():
            if key not in self.said:
                last = f"{count} validations" if count > 1 else "validation"
                self._say(key, f"{text} in the last {last}", trainer, pl_module)

    def _of_classes(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        """What this validation found of an absurd loss, else of classes or labels, else of an exploded loss."""
        loss, guessing = self._loss(trainer), self._guessing(pl_module)
        self.exploded = loss if is_over(loss, EXPLODED, guessing) else None
        found = {} if is_over(loss, ABSURD, guessing) else self._only_class(trainer, pl_module)
        if found or self.exploded is None:
            self.losses = []
            return found
        ordered = sorted([*self.losses, loss], key=lambda value: (math.isnan(value), value))
        self.losses = [ordered[0], ordered[-1]]
        return {"loss": f"val/loss was {' to '.join(dict.fromkeys(f'{value:.3g}' for value in self.losses))}"}

    @staticmethod
    def _loss(trainer: Trainer) -> float:
        return float(getattr(trainer, "callback_metrics", {}).get("val/loss", 0.0))

    def _guessing(self, pl_module: LightningModule) -> float | None:
        """Loss of guessing, in nats; None where it is not known."""
        return math.log(2) if self._several else guessing_loss(pl_module, self._outputs)

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
        why = ": the network has collapsed" if collapsed else ""
        if self.exploded is not None:
            # Lightning divides the loss by the number of accumulated batches
            share = int(getattr(trainer, "accumulate_grad_batches", 1))
            mean = None if self._train_loss is None else float(self._train_loss) * share / self._train_steps
            fits = not rate_of_larger_batch(trainer, pl_module, self.recipe)
            if fits and (cause := only_in_validation(trainer, pl_module, mean, self._guessing(pl_module))):
                log.warning(f"{text}: {cause}")
                return
            why = ": the loss has exploded" + ("" if key == "loss" else f" (val/loss {self.exploded:.3g})")
        changes = remedies(trainer, pl_module, lacking, self.exploded is not None, self.recipe)
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
        bare = trainer.gradient_clip_val in (None, 0)  # steep gradients of the first steps, with few steps of warm-up
        clip = ["--trainer.gradient_clip_val (now null, try 1)"] if bare else []
        return [f"--model.lr (now {pl_module.lr:g}, try {lower_rate(trainer, pl_module, recipe):.3g})", *clip, *found]
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else "no limit"
    return [*found, f"--model.lr (now {pl_module.lr:g})", f"--trainer.max_epochs (now {epochs})"]


def rate_of_larger_batch(trainer: Trainer, pl_module: LightningModule, recipe: tuple[float, int] | None) -> str:
    """Say that SGD trains with the recipe's learning rate on batches of half the recipe's size or less, and which rate fits.

    The step of other optimisers depends less on the batch, and `LearningRateFinder` finds a rate of its own: then it is empty.
    """
    if recipe is None or getattr(pl_module, "optimizer_name", "") != "sgd" or float(pl_module.lr) != recipe[0]:  # type: ignore[arg-type]
        return ""
    rate, recipe_batch = recipe
    samples = samples_of_step(trainer, recipe_batch)
    if samples * SMALLER > recipe_batch or find_callbacks(trainer, LearningRateFinder):
        return ""
    return (
        f"--model.lr {rate:g} is for the {recipe_batch} samples of a step in the configuration, here a step has {samples}: the "
        f"loss may explode; give --model.lr {rate * samples / recipe_batch:.3g}, in proportion"
    )


def _balanced(data: object) -> bool:
    """Whether the training samples of the classes are known to be about as many."""
    counts = getattr(data, "class_counts", None)
    return counts is not None and float(counts.max()) <= IMBALANCED * float(counts.min())
