"""What a cascade does: its execution, the sweep of its threshold, and the choice of one.

batch --stage 1--> confidence >= threshold: answered, leaves
                   else waits until a batch is full --stage 2--> answered

confidence = largest softmax probability of stage 1's logits / temperature
cost an image = cost of stage 1 + share that does not leave * cost of stage 2
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metrics import top_label
from metrics.confidence import Array
from tools.cascade.stages import Samples, Stage
from tools.command_line import watched

NEVER = math.inf


class Answers(NamedTuple):
    """What a cascade said of N images, on the host.

    Attributes:
        predicted: Class of each (N,).
        exited: Whether stage 1 answered (N,).
    """

    predicted: Tensor
    exited: Tensor

    def accuracy(self, labels: Tensor) -> float:
        """Share of right answers."""
        return float((self.predicted == labels).double().mean())


class Evaluated(NamedTuple):
    """Both stages' answers to the same samples (N,): what any threshold would do follows from them.

    Attributes:
        confidence: Of stage 1, float32.
        right1: Whether stage 1 is right.
        right2: Whether stage 2 is right.
    """

    confidence: NDArray[np.float32]
    right1: NDArray[np.bool_]
    right2: NDArray[np.bool_]

    def part(self, places: NDArray[np.int64]) -> Evaluated:
        """Those of some samples."""
        return Evaluated(self.confidence[places], self.right1[places], self.right2[places])


class Sweep(NamedTuple):
    """Every threshold that makes a difference, from the highest, at which nothing leaves, down to that of all.

    Attributes:
        threshold: (T,), the first is infinite.
        coverage: Share that stage 1 answers.
        accuracy: Of all answers.
        exit_accuracy: Of those of stage 1; NaN where there are none.
    """

    threshold: Array
    coverage: Array
    accuracy: Array
    exit_accuracy: Array

    def at(self, threshold: float) -> int:
        """The place that a threshold has the same effect as."""
        return int((self.threshold >= np.float32(threshold)).sum()) - 1

    def cost(self, first: float, second: float) -> Array:
        """Mean cost of an image at each threshold, in the unit of the stages' own."""
        return first + (1 - self.coverage) * second


def answer(
    stages: Sequence[Stage], images: Tensor, threshold: float, batch_size: int, temperature: float = 1.0
) -> Answers:
    """Run a cascade.

    Args:
        stages: The cheap one, then the costly one.
        images: (N, C, H, W) uint8.
        threshold: Stage 1 answers from this confidence on: 0 always, infinite never.
        batch_size: Images in a batch of either stage; the last ones may be fewer.
        temperature: What stage 1's logits are divided by.
    """
    first, second = stages
    predicted = torch.empty(len(images), dtype=torch.int64, device=first.device)
    exited = torch.zeros(len(images), dtype=torch.bool, device=first.device)
    waiting = torch.empty(0, dtype=torch.int64)
    limit = torch.tensor(threshold, dtype=torch.float32, device=first.device)
    for places in _batches(images, batch_size):
        confidence, predicted[places] = top_label(first.logits(images[places]) / temperature)
        exited[places] = confidence >= limit
        waiting = torch.cat([waiting, places[~(confidence >= limit).cpu()]])
        while len(waiting) >= batch_size:
            full, waiting = waiting[:batch_size], waiting[batch_size:]
            predicted[full] = second.logits(images[full]).argmax(dim=1)
    if len(waiting):
        predicted[waiting] = second.logits(images[waiting]).argmax(dim=1)
    return Answers(predicted.cpu(), exited.cpu())


def alone(stage: Stage, images: Tensor, batch_size: int) -> Tensor:
    """Classes (N,) that one stage gives to all images, on the host."""
    return torch.cat([stage.logits(images[places]).argmax(dim=1).cpu() for places in _batches(images, batch_size)])


def seconds(
    stage_or_stages: Stage | Sequence[Stage],
    images: Tensor,
    batch_size: int,
    threshold: float = NEVER,
    temperature: float = 1.0,
) -> float:
    """Wall time of one stage alone, or of the cascade of two, from uint8 images in memory to classes on the host."""
    began = time.perf_counter()
    if isinstance(stage_or_stages, Stage):
        alone(stage_or_stages, images, batch_size)
    else:
        answer(stage_or_stages, images, threshold, batch_size, temperature)
    return time.perf_counter() - began


def evaluate(stages: Sequence[Stage], samples: Samples, batch_size: int, temperature: float = 1.0) -> Evaluated:
    """Show all samples to both stages."""
    logits = []
    for number, stage in enumerate(stages, start=1):
        places = _batches(samples.image, batch_size)
        parts = [stage.logits(samples.image[p]).cpu() for p in watched(f"stage {number}", places, "batches")]
        logits.append(torch.cat(parts))
    confidence, first = top_label(logits[0] / temperature)
    right = [(predicted == samples.label).numpy() for predicted in (first, logits[1].argmax(dim=1))]
    return Evaluated(confidence.numpy(), right[0], right[1])


def _batches(images: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    batches: tuple[Tensor, ...] = torch.arange(len(images)).split(batch_size)
    return batches


def sweep(evaluated: Evaluated) -> Sweep:
    """Coverage and accuracy at every threshold.

    >>> s = sweep(Evaluated(np.float32([0.9, 0.5, 0.7]), np.array([1, 0, 1], bool), np.array([0, 1, 1], bool)))
    >>> s.coverage.round(2).tolist(), s.accuracy.round(2).tolist()
    ([0.0, 0.33, 0.67, 1.0], [0.67, 1.0, 1.0, 0.67])
    """
    confidence, right1, right2 = evaluated
    order = np.argsort(-confidence, kind="stable")
    descending, n = confidence[order], len(order)
    # equal confidences leave together: a threshold ends where the next confidence is another
    ends = np.append(np.flatnonzero(descending[1:] != descending[:-1]), n - 1)
    hits, others = right1[order].cumsum()[ends], right2[order].cumsum()[ends]
    exits, rest = ends + 1, right2.sum() - others
    return Sweep(
        np.concatenate([[NEVER], descending[ends].astype(np.float64)]),
        np.concatenate([[0.0], exits / n]),
        np.concatenate([[right2.sum() / n], (hits + rest) / n]),
        np.concatenate([[math.nan], hits / exits]),
    )


def choose_within(swept: Sweep, tolerance: float) -> int:
    """The cheapest threshold that costs no accuracy beside stage 2 alone, as the place in the sweep.

    It is sought from the most accurate threshold downwards and ends where the accuracy first falls short: a lower one that is
    good again is so by chance more often than not.

    Args:
        swept: On the samples that choose.
        tolerance: Accuracy that may be lost, as a share: 0.001 for 0.1 points; negative asks for a gain where there is one.
    """
    best = int(swept.accuracy.argmax())
    short = np.flatnonzero(swept.accuracy[best:] < swept.accuracy[0] - tolerance - 1e-12)
    if not len(short):
        return len(swept.accuracy) - 1
    return best + max(int(short[0]) - 1, 0)


def choose_at_cost(swept: Sweep, first: float, second: float, share: float) -> int:
    """The most accurate threshold of those that cost at most a share of stage 2 alone, as the place in the sweep.

    Args:
        swept: On the samples that choose.
        first: Cost of stage 1 an image.
        second: Cost of stage 2, in the same unit.
        share: Of ``second``, over 0.

    Raises:
        ValueError: Stage 1 alone costs more.
    """
    affordable = np.flatnonzero(swept.cost(first, second) <= share * second)
    if not len(affordable):
        raise ValueError(f"--budget {share:g}: stage 1 alone costs {first / second:.3g} of stage 2")
    return int(affordable[swept.accuracy[affordable].argmax()])


def halves(samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of two halves drawn by seed, each ascending; the first is the larger where the number is odd."""
    order = np.random.default_rng(seed).permutation(samples)
    middle = (samples + 1) // 2
    return np.sort(order[:middle]), np.sort(order[middle:])
