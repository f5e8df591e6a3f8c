"""`Prediction` and `MaskPrediction`: what a network says of one sample or picture, as plain values; results of use in Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """The answer of a classifier for one sample.

    Attributes:
        class_name: Name of the most probable class.
        number: Number of that class, from 0.
        probability: Its calibrated probability, 0 to 1.
        exits: Whether the sample exits early: its probability reaches the threshold that the run's calibration chose. None if no
            threshold was asked for.
        file: File of the sample; of a window also its number in the file. None for pictures and arrays in memory.
        labels: With several labels a sample: names of those that reach their thresholds, which may be none; `class_name` is the
            most probable of all labels. None: one label a sample.
        set: Names of the classes in the prediction set, the most probable first; it may be empty. None: the run has no sets.
    """

    class_name: str
    number: int
    probability: float
    exits: bool | None = None
    file: str | None = None
    labels: tuple[str, ...] | None = None
    set: tuple[str, ...] | None = None


class Predictions(list[Prediction]):
    """A list of predictions, in the order of the samples.

    Attributes:
        probabilities: (N, K) float32; column k belongs to class ``class_names[k]``. With one label a sample each row sums to 1.
        class_names: Names of the K classes.
    """

    def __init__(self, found: Iterable[Prediction], probabilities: Tensor, class_names: Sequence[str]) -> None:
        super().__init__(found)
        self.probabilities, self.class_names = probabilities, list(class_names)

    @classmethod
    def of(
        cls,
        probabilities: Tensor,
        class_names: Sequence[str] | None,
        threshold: float | None,
        files: Sequence[str | None],
        chosen: Tensor | None = None,
        sets: Tensor | None = None,
    ) -> Predictions:
        """Name the most probable class of each sample.

        Args:
            probabilities: (N, K) calibrated probabilities.
            class_names: Names of the K classes; None: their numbers.
            threshold: Lowest probability at which a sample exits early; None if none was asked for.
            files: File of each of the N samples, or None.
            chosen: (N, K) bool, the labels of each sample if it has several; None: one label a sample.
            sets: (N, K) bool, the classes in the prediction set of each sample; None without sets.
        """
        names = list(class_names or map(str, range(probabilities.shape[1])))
        best, numbers = probabilities.max(dim=1)  # of equal ones the first
        exits = [None] * len(best) if threshold is None else exits_early(best, threshold).tolist()
        labels: list[tuple[str, ...] | None] = [None] * len(best)
        if chosen is not None:
            labels = [tuple(name for name, taken in zip(names, row, strict=True) if taken) for row in chosen.tolist()]
        in_sets = [None] * len(best) if sets is None else names_in_sets(probabilities, sets, names)
        rows = zip(numbers.tolist(), best.tolist(), exits, files, labels, in_sets, strict=True)
        return cls([Prediction(names[k], k, *rest) for k, *rest in rows], probabilities, names)


def names_in_sets(probabilities: Tensor, sets: Tensor, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Names of the classes in each set (N, K) bool, in the order of falling probabilities (N, K)."""
    order = probabilities.argsort(dim=1, descending=True, stable=True).tolist()
    return [tuple(names[k] for k in ranked if held[k]) for ranked, held in zip(order, sets.tolist(), strict=True)]


def exits_early(confidences: Tensor, threshold: float) -> Tensor:
    """Whether each confidence reaches the threshold; compared in their own type, so that 0.93 in float32 reaches 0.93."""
    return confidences >= torch.tensor(threshold, dtype=confidences.dtype, device=confidences.device)


@dataclass(frozen=True)
class MaskPrediction:
    """The answer of a segmenter for one picture.

    Attributes:
        prompts: The P prompts.
        masks: (P, H, W) bool, in the picture's own size: the pixels whose probability reaches the threshold of their prompt.
        thresholds: Threshold of each prompt, 0 to 1.
        areas: Share of the picture that each mask covers, 0 to 1.
        file: File of the picture; None for one in memory.
    """

    prompts: tuple[str, ...]
    masks: Tensor = field(repr=False)
    thresholds: tuple[float, ...]
    areas: tuple[float, ...]
    file: str | None = None
