"""A stage of progressive resizing, and which stages make sense: alone, for a run and its data, and in a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

ScheduleScope = Literal["per_stage", "whole"]
SETTINGS = ("train_size", "batch_size", "strength")  # of the datamodule, set between epochs


@dataclass(frozen=True, kw_only=True)
class ResizingStage:
    """A part of a run, as it is asked for.

    Args:
        size: Height and width of a training image in pixels, after augmentation.
        epochs: Length.
        batch_size: Training samples in a batch of one process; None: the data's own ``batch_size``.
        lr: Factor on the peak learning rate; needs ``per_stage``.
        strength: Factor on RandAugment's magnitude and on the probabilities of MixUp, CutMix and erasing.
    """

    size: int
    epochs: int
    batch_size: int | None = None
    lr: float = 1.0
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PlannedStage(ResizingStage):
    """A part of a run as it is trained: its length and its batch size are known."""

    batch_size: int

    def __str__(self) -> str:
        """In words: what it trains on, and what differs from the configured peak and augmentation."""
        epochs = f"{self.epochs} epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        strength = "" if self.strength == 1 else f", strength x {self.strength:g}"
        return f"{self.size} px, batch {self.batch_size}, {epochs}, lr x {self.lr:g}{strength}"

    @property
    def pixels(self) -> int:
        """Pixels of a batch of one channel, to which its time and memory are about proportional."""
        return self.batch_size * self.size**2


def check_stages(stages: Sequence[ResizingStage], schedule: ScheduleScope) -> None:
    """Check what needs neither data nor Trainer.

    Raises:
        ValueError: A setting is out of its range.
    """
    if schedule not in ("per_stage", "whole"):
        raise ValueError(f"schedule: per_stage or whole, got {schedule}")
    if not stages:
        raise ValueError("stages: one or more, got none")
    for number, stage in enumerate(stages, start=1):
        for name, good, wanted in (
            ("size", stage.size >= 1, "1 pixel or more"),
            ("batch_size", stage.batch_size is None or stage.batch_size >= 1, "1 or more"),
            ("epochs", stage.epochs >= 1, "1 or more"),
            ("lr", stage.lr > 0, "a factor over 0"),
            ("lr", schedule == "per_stage" or stage.lr == 1, "1 with schedule whole, one curve over all stages"),
            ("strength", stage.strength >= 0, "0 or more"),
        ):
            if not good:
                raise ValueError(f"{name} of stage {number}: {wanted}, got {getattr(stage, name)}")


def stretched(lengths: Sequence[int], epochs: int) -> list[int]:
    """Lengths in the same proportions, to whole epochs, with another sum; the last is never 0.

    Args:
        lengths: Each 1 or more.
        epochs: The sum, 1 or more.
    """
    *before, total = accumulate(lengths)
    ends = [min((2 * share * epochs + total) // (2 * total), epochs - 1) for share in before]
    return [end - start for start, end in pairwise([0, *ends, epochs])]


def planned(trainer: Trainer, stages: Sequence[ResizingStage], stretch: bool) -> list[PlannedStage]:
    """The stages of a run: those that get an epoch or more, the last always.

    Args:
        trainer: Of a fit, with a datamodule.
        stages: As asked for.
        stretch: To the Trainer's epochs.

    Raises:
        MisconfigurationException: The datamodule has no sizes to set, or there is no length to stretch to.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not all(hasattr(data, name) for name in SETTINGS):
        raise MisconfigurationException(
            f"ProgressiveResizing: needs a datamodule with {', '.join(SETTINGS)}, got {type(data).__name__}"
        )
    lengths = [stage.epochs for stage in stages]
    if stretch and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        if (epochs := trainer.max_epochs or 0) < 1:
            raise MisconfigurationException(
                f"ProgressiveResizing: stretch needs trainer.max_epochs, 1 or more, got {trainer.max_epochs}"
            )
        lengths = stretched(lengths, epochs)
    return [
        PlannedStage(**{**asdict(stage), "epochs": length, "batch_size": stage.batch_size or data.batch_size})
        for stage, length in zip(stages, lengths, strict=True)
        if length
    ]


def check_run(trainer: Trainer, stages: Sequence[PlannedStage]) -> list[int]:
    """Check the stages against data and Trainer.

    Args:
        trainer: Of a fit, with a datamodule that is set up.
        stages: Of this start.

    Returns:
        Batches in an epoch of each stage.

    Raises:
        MisconfigurationException: They do not fit together.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _check_length(trainer, sum(stage.epochs for stage in stages))
    if (last := stages[-1].size) != data.image_size:
        raise MisconfigurationException(
            f"size of stage {len(stages)}: validation and test are at the data's {data.image_size} px, so must the last stage be, "
            f"got {last}"
        )
    batches = [_count(trainer, stage, number) for number, stage in enumerate(stages, start=1)]
    every, fewest = trainer.val_check_interval, min(batches)
    within_epochs = trainer.check_val_every_n_epoch is not None
    # Lightning finds this out when the stage begins
    if isinstance(every, int) and within_epochs and trainer.limit_val_batches and every > fewest:
        raise MisconfigurationException(
            f"trainer.val_check_interval: at most the {fewest} batches of an epoch of stage {batches.index(fewest) + 1}, "
            f"got {every}"
        )
    return batches


def _check_length(trainer: Trainer, epochs: int) -> None:
    if trainer.max_epochs != epochs:
        raise MisconfigurationException(
            f"ProgressiveResizing: the stages have {epochs} epochs together, but trainer.max_epochs is {trainer.max_epochs}; "
            f"set --trainer.max_epochs {epochs}, other epochs for the stages, or stretch: true"
        )
    if trainer.max_steps > 0:
        raise MisconfigurationException(
            "trainer.max_steps: the stages of ProgressiveResizing give the length of the run, leave it out; "
            f"got {trainer.max_steps}"
        )


def _count(trainer: Trainer, stage: PlannedStage, number: int) -> int:
    """Batches in an epoch of a stage."""
    try:
        batches = trainer.datamodule.num_train_batches(stage.batch_size)  # type: ignore[attr-defined]
    except MisconfigurationException as error:
        said = str(error).replace("--data.batch_size", "batch_size")
        raise MisconfigurationException(f"stage {number} of ProgressiveResizing: {said}") from error
    limit = trainer.overfit_batches or trainer.limit_train_batches  # type: ignore[attr-defined]
    limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if not limited:
        raise MisconfigurationException(
            f"trainer.limit_train_batches: {limit} of the {batches} batches of stage {number} is none; give more"
        )
    return int(limited)


def check_same(stages: Sequence[PlannedStage], saved: Sequence[PlannedStage], done: int, begun: int) -> None:
    """Check that what is behind a resumed run stays as it was.

    A stage that is over stays the same. The one that goes on keeps its size and batch size, and at least the epochs that it has
    had; so does the last one of a run that is over, which may be made longer. Stages that have not begun are free.

    Args:
        stages: Of this start.
        saved: Of the checkpoint.
        done: Epochs that are over.
        begun: Epochs that have begun, ``done`` or one more.

    Raises:
        MisconfigurationException: A stage changed that cannot.
    """
    first = 0
    for number, was in enumerate(saved, start=1):
        if first >= begun:
            return
        end = first + was.epochs
        now = stages[number - 1] if number <= len(stages) else None
        if end < begun or (end == done and number < len(saved)):
            same = now == was
        else:
            same = now is not None and (now.size, now.batch_size) == (was.size, was.batch_size)
            same = same and now is not None and first + now.epochs >= begun
        if not same:
            raise MisconfigurationException(
                f"stage {number} of ProgressiveResizing: cannot change in a resumed run of which {begun} epochs have begun "
                f"(was {was}; now {now or 'missing'}); change later stages, or start a new run"
            )
        first = end
