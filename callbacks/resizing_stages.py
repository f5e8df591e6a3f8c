"""The stages of progressive resizing: their settings, their lengths, and checks against the run, the data and a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.dry_run import is_out_of_memory
from foundation.sizes import Size, in_proportion, pixels_of_size, sides, size_of, size_text

ScheduleScope = Literal["per_stage", "whole"]
SETTINGS = ("train_size", "batch_size", "strength")  # attributes of the datamodule that change between epochs


@dataclass(frozen=True, kw_only=True)
class ResizingStage:
    """A stage as configured.

    Args:
        size: Side of a training image in pixels, after augmentation. For data of another height than width: its shorter side, with
            the longer one in proportion (`foundation.sizes.in_proportion`), or [HEIGHT, WIDTH].
        epochs: Number of epochs.
        batch_size: Training samples per batch and process; None: the data's own ``batch_size``.
        lr: Factor on the peak learning rate; other values than 1 need the ``per_stage`` schedule.
        strength: Factor on RandAugment's magnitude, the probabilities of MixUp, CutMix and erasing, and the colour changes.
    """

    size: int | list[int]
    epochs: int
    batch_size: int | None = None
    lr: float = 1.0
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PlannedStage(ResizingStage):
    """A stage as trained: the length is final, and size and batch size are known."""

    size: Size  # type: ignore[assignment]
    batch_size: int

    def __str__(self) -> str:
        """Describe size, batch size, epochs, learning-rate factor and, unless 1, augmentation strength."""
        epochs = f"{self.epochs} epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        strength = "" if self.strength == 1 else f", strength x {self.strength:g}"
        return f"{size_text(self.size)} px, batch {self.batch_size}, {epochs}, lr x {self.lr:g}{strength}"

    @property
    def pixels(self) -> int:
        """Pixels per batch and channel; time and memory of a step are roughly proportional to it."""
        return self.batch_size * pixels_of_size(self.size)


def check_stages(stages: Sequence[ResizingStage], schedule: ScheduleScope) -> None:
    """Check the settings that do not depend on data or Trainer.

    Raises:
        ValueError: A setting is out of its range.
    """
    if schedule not in ("per_stage", "whole"):
        raise ValueError(f"schedule: per_stage or whole, got {schedule}")
    if not stages:
        raise ValueError("stages: one or more, got none")
    for number, stage in enumerate(stages, start=1):
        for name, good, wanted in (
            ("size", _is_size(stage.size), "1 pixel or more, or [HEIGHT, WIDTH]"),
            ("batch_size", stage.batch_size is None or stage.batch_size >= 1, "1 or more"),
            ("epochs", stage.epochs >= 1, "1 or more"),
            ("lr", stage.lr > 0, "a factor over 0"),
            ("lr", schedule == "per_stage" or stage.lr == 1, "1 with schedule whole, one curve over all stages"),
            ("strength", stage.strength >= 0, "0 or more"),
        ):
            if not good:
                raise ValueError(f"{name} of stage {number}: {wanted}, got {getattr(stage, name)}")


def _is_size(given: int | list[int]) -> bool:
    try:
        size_of(given)
    except ValueError:
        return False
    return True


def stretched(lengths: Sequence[int], epochs: int) -> list[int]:
    """Scale lengths to another sum, rounded to whole epochs; the last length is never 0.

    Args:
        lengths: Epochs of each stage, 1 or more.
        epochs: The new sum, 1 or more.
    """
    *before, total = accumulate(lengths)
    ends = [min((2 * share * epochs + total) // (2 * total), epochs - 1) for share in before]
    return [end - start for start, end in pairwise([0, *ends, epochs])]


def epochs_of(trainer: Trainer, stages: Sequence[ResizingStage], stretch: bool) -> list[int]:
    """Epochs of each stage of a run; 0 if stretching leaves it out.

    Raises:
        MisconfigurationException: ``stretch`` is set without ``max_epochs``.
    """
    lengths = [stage.epochs for stage in stages]
    if not stretch or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return lengths
    if (epochs := trainer.max_epochs or 0) < 1:
        raise MisconfigurationException(
            f"ProgressiveResizing: stretch needs trainer.max_epochs, 1 or more, got {trainer.max_epochs}"
        )
    return stretched(lengths, epochs)


def planned(trainer: Trainer, stages: Sequence[ResizingStage], stretch: bool) -> list[PlannedStage]:
    """Plan the stages of a run. Stages that get no epoch after stretching are left out; the last is always kept.

    Args:
        trainer: Trainer of a fit, with a datamodule.
        stages: The configured stages.
        stretch: Scale the stages to the Trainer's epochs.

    Raises:
        MisconfigurationException: The datamodule lacks the attributes to set, or ``stretch`` is set without ``max_epochs``.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not all(hasattr(data, name) for name in SETTINGS):
        raise MisconfigurationException(
            f"ProgressiveResizing: needs a datamodule with {', '.join(SETTINGS)}, got {type(data).__name__}"
        )
    lengths = epochs_of(trainer, stages, stretch)
    return [
        PlannedStage(
            **{
                **asdict(stage),
                "size": in_proportion(stage.size, data.image_size)
                if isinstance(stage.size, int)
                else size_of(stage.size),
                "epochs": length,
                "batch_size": stage.batch_size or data.batch_size,
            }
        )
        for stage, length in zip(stages, lengths, strict=True)
        if length
    ]


def left_out(stages: Sequence[ResizingStage], lengths: Sequence[int]) -> str:
    """Say which stages get no epoch after stretching, and from how many epochs on all get one; empty if all do.

    >>> left_out([ResizingStage(size=size, epochs=epochs) for size, epochs in ((128, 12), (176, 8), (224, 5))], [1, 0, 1])
    'ProgressiveResizing: 2 epochs are too few for its 3 stages, left out: 176 px; all are trained from --trainer.max_epochs 3 on'
    """
    missing = [
        f"{size_text(size_of(stage.size))} px" for stage, length in zip(stages, lengths, strict=True) if not length
    ]
    if not missing:
        return ""
    asked, least = [stage.epochs for stage in stages], len(stages)
    while not all(stretched(asked, least)):
        least += 1
    return (
        f"ProgressiveResizing: {sum(lengths)} epoch{'s are' if sum(lengths) > 1 else ' is'} too few for its {len(stages)} stages, "
        f"left out: {', '.join(missing)}; all are trained from --trainer.max_epochs {least} on"
    )


def image_size_flag(size: Size) -> str:
    """A size as the value of a flag.

    >>> image_size_flag(224), image_size_flag((96, 160))
    ('224', '[96,160]')
    """
    return str(size) if isinstance(size, int) else f"[{size[0]},{size[1]}]"


def stages_for(stages: Sequence[PlannedStage], size: Size, batch_size: int) -> str:
    """The stages as YAML, with sizes in proportion to another last size: multiples of 8 pixels where that size is one.

    Args:
        stages: The planned stages.
        size: The size of the last stage.
        batch_size: That of the data; a stage of another one keeps its own.

    >>> made = [PlannedStage(size=s, epochs=e, batch_size=64, strength=x) for s, e, x in ((128, 4, 0.5), (224, 5, 1.0))]
    >>> stages_for(made, 64, 64)
    '[{size: 40, epochs: 4, strength: 0.5}, {size: 64, epochs: 5}]'
    """
    factor, step = min(sides(size)) / min(sides(stages[-1].size)), 1 if min(sides(size)) % 8 else 8
    items = []
    for stage in stages:
        shorter = max(step, step * round(factor * min(sides(stage.size)) / step))
        own = size if stage is stages[-1] else in_proportion(shorter, size)
        values = {"size": image_size_flag(own).replace(",", ", "), "epochs": stage.epochs}
        values |= {"batch_size": stage.batch_size} if stage.batch_size != batch_size else {}
        values |= {name: f"{value:g}" for name in ("lr", "strength") if (value := getattr(stage, name)) != 1}
        items.append("{" + ", ".join(f"{name}: {value}" for name, value in values.items()) + "}")
    return f"[{', '.join(items)}]"


def check_run(trainer: Trainer, stages: Sequence[PlannedStage]) -> list[int]:
    """Check the stages against data and Trainer.

    Args:
        trainer: Trainer of a fit, whose datamodule is set up.
        stages: The planned stages of this start.

    Returns:
        Batches per epoch of each stage.

    Raises:
        MisconfigurationException: Stages, data and Trainer do not fit together.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _check_length(trainer, sum(stage.epochs for stage in stages))
    if (last := stages[-1].size) != data.image_size:
        raise MisconfigurationException(
            f"size of stage {len(stages)}: validation and test use the data's {size_text(data.image_size)} px, so the last stage "
            f"must too, got {size_text(last)}; give --data.image_size {image_size_flag(last)}, or the stages in proportion: "
            f"--trainer.callbacks.ProgressiveResizing.stages '{stages_for(stages, data.image_size, data.batch_size)}'"
        )
    if getattr(getattr(data, "augmentation", None), "turn", False):
        _check_square(stages)
    batches = [_count(trainer, stage, number) for number, stage in enumerate(stages, start=1)]
    every, fewest = trainer.val_check_interval, min(batches)
    within_epochs = trainer.check_val_every_n_epoch is not None
    # Lightning would raise this error only when the stage begins
    if isinstance(every, int) and within_epochs and trainer.limit_val_batches and every > fewest:
        raise MisconfigurationException(
            f"trainer.val_check_interval: at most the {fewest} batches of an epoch of stage {batches.index(fewest) + 1}, "
            f"got {every}"
        )
    return batches


def check_network(trainer: Trainer, module: Any, stages: Sequence[PlannedStage]) -> None:
    """Run the network on one image of zeros of each size to come, in evaluation mode; no weight and no statistic changes.

    Raises:
        MisconfigurationException: The network has a fixed size, or strides that leave no pixel.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    context = trainer.precision_plugin.forward_context()
    with context, module.evaluating(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for number, stage in enumerate(stages, start=1):
            if stage.size == data.image_size:
                continue
            try:
                module.of_one_sample(stage.size)
            except (RuntimeError, AssertionError, IndexError, ValueError) as error:
                if is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise MisconfigurationException(
                    f"size of stage {number}: the network cannot take images of {size_text(stage.size)} px ({reason}); give sizes "
                    "that are multiples of its patches and strides, or a network that takes several sizes"
                ) from error


def _check_length(trainer: Trainer, epochs: int) -> None:
    if trainer.max_epochs != epochs:
        raise MisconfigurationException(
            f"ProgressiveResizing: the stages have {epochs} epochs together, but trainer.max_epochs is {trainer.max_epochs}; "
            f"set --trainer.max_epochs {epochs}, other epochs for the stages, or "
            "--trainer.callbacks.ProgressiveResizing.stretch true"
        )
    if trainer.max_steps > 0:
        raise MisconfigurationException(
            "trainer.max_steps: the stages of ProgressiveResizing set the length of the run, leave it out; "
            f"got {trainer.max_steps}; --trainer.max_epochs and --trainer.limit_train_batches make a run shorter"
        )


def _check_square(stages: Sequence[PlannedStage]) -> None:
    for number, stage in enumerate(stages, start=1):
        if len({*sides(stage.size)}) > 1:
            raise MisconfigurationException(
                f"size of stage {number}: {size_text(stage.size)} px, but data.turn makes quarter turns, which need a square; "
                "give a square size, or --data.turn false"
            )


def _count(trainer: Trainer, stage: PlannedStage, number: int) -> int:
    """Batches per epoch of a stage, after limits."""
    try:
        batches = trainer.datamodule.num_train_batches(stage.batch_size)  # type: ignore[attr-defined]
    except MisconfigurationException as error:
        message = str(error).replace("--data.batch_size", "batch_size")
        raise MisconfigurationException(f"stage {number} of ProgressiveResizing: {message}") from error
    limit = trainer.overfit_batches or trainer.limit_train_batches  # type: ignore[attr-defined]
    limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if not limited:
        raise MisconfigurationException(
            f"trainer.limit_train_batches: {limit} of the {batches} batches of stage {number} leaves none; give more"
        )
    return int(limited)


def check_same(stages: Sequence[PlannedStage], saved: Sequence[PlannedStage], done: int, begun: int) -> None:
    """Check that a resumed run does not change stages that have already been trained.

    A stage that is over must stay the same. The current stage must keep its size and batch size, and must have at least the epochs
    that it has already trained. The same holds for the last stage of a finished run, which may be made longer. Stages that have not
    begun may change freely.

    Args:
        stages: Stages of this start.
        saved: Stages of the checkpoint.
        done: Number of completed epochs.
        begun: Number of epochs that have begun, ``done`` or one more.

    Raises:
        MisconfigurationException: A stage that must not change has changed.
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
                f"stage {number} of ProgressiveResizing: cannot change in a resumed run after {begun} epochs have begun "
                f"(was {was}; now {now or 'missing'}); change later stages, or start a new run"
            )
        first = end
