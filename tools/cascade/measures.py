"""Runs a cascade of two classifiers, computes coverage and accuracy at every threshold, and chooses a threshold.

batch --stage 1--> confidence >= threshold: stage 1 answers
                   otherwise: collected until a batch is full --stage 2--> stage 2 answers

confidence = largest softmax probability of (logits of stage 1 / temperature)
cost per image = cost of stage 1 + share of samples that stage 2 answers * cost of stage 2
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
    """Predictions of a cascade for N images, on the CPU.

    Attributes:
        predicted: Predicted class of each image, (N,) int64.
        exited: Whether stage 1 answered, (N,) bool.
    """

    predicted: Tensor
    exited: Tensor

    def accuracy(self, labels: Tensor) -> float:
        """Share of correct predictions, 0 to 1."""
        return float((self.predicted == labels).double().mean())


class Evaluated(NamedTuple):
    """Results of both stages on the same N samples, enough to compute the cascade's accuracy at any threshold.

    Attributes:
        confidence: Confidence of stage 1, (N,) float32.
        right1: Whether stage 1 is correct, (N,).
        right2: Whether stage 2 is correct, (N,).
    """

    confidence: NDArray[np.float32]
    right1: NDArray[np.bool_]
    right2: NDArray[np.bool_]

    def part(self, places: NDArray[np.int64]) -> Evaluated:
        """Select the samples at the given indices."""
        return Evaluated(self.confidence[places], self.right1[places], self.right2[places])


class Sweep(NamedTuple):
    """Coverage and accuracy at each distinct threshold, in descending order.

    At the first threshold stage 2 answers every sample, at the last one stage 1 does.

    Attributes:
        threshold: Thresholds, (T,); the first is infinite.
        coverage: Share of samples that stage 1 answers, (T,).
        accuracy: Accuracy of the cascade, (T,).
        exit_accuracy: Accuracy of stage 1 on the samples that it answers, (T,); NaN where it answers none.
    """

    threshold: Array
    coverage: Array
    accuracy: Array
    exit_accuracy: Array

    def at(self, threshold: float) -> int:
        """Return the index of the threshold in the sweep that has the same effect as the given one."""
        return int((self.threshold >= np.float32(threshold)).sum()) - 1

    def cost(self, first: float, second: float) -> Array:
        """Mean cost per image at each threshold, from the costs of stage 1 and stage 2 in any common unit."""
        return first + (1 - self.coverage) * second


def answer(
    stages: Sequence[Stage], images: Tensor, threshold: float, batch_size: int, temperature: float = 1.0
) -> Answers:
    """Run a cascade on images.

    Args:
        stages: The cheap stage, then the costly one.
        images: Images, (N, C, H, W) uint8.
        threshold: Stage 1 answers if its confidence is at least this; 0 means always, infinity never.
        batch_size: Images per batch, for both stages; the last batch may be smaller.
        temperature: Divisor of stage 1's logits.

    Returns:
        The predictions, and which of them come from stage 1.
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
    """Predict the classes of all images with one stage; returns (N,) int64 on the CPU."""
    return torch.cat([stage.logits(images[places]).argmax(dim=1).cpu() for places in _batches(images, batch_size)])


def seconds(
    stage_or_stages: Stage | Sequence[Stage],
    images: Tensor,
    batch_size: int,
    threshold: float = NEVER,
    temperature: float = 1.0,
) -> float:
    """Measure the wall time from uint8 images in memory to predicted classes on the CPU.

    Args:
        stage_or_stages: One stage to measure by itself, or the two stages of a cascade.
        images: Images, (N, C, H, W) uint8.
        batch_size: Images per batch.
        threshold: Threshold of the cascade, see :func:`answer`.
        temperature: Divisor of stage 1's logits in the cascade.

    Returns:
        Seconds for all images.
    """
    began = time.perf_counter()
    if isinstance(stage_or_stages, Stage):
        alone(stage_or_stages, images, batch_size)
    else:
        answer(stage_or_stages, images, threshold, batch_size, temperature)
    return time.perf_counter() - began


def evaluate(stages: Sequence[Stage], samples: Samples, batch_size: int, temperature: float = 1.0) -> Evaluated:
    """Run both stages on all samples.

    Args:
        stages: The cheap stage, then the costly one.
        samples: Images and labels.
        batch_size: Images per batch.
        temperature: Divisor of stage 1's logits, for its confidence.
    """
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
    """Compute coverage and accuracy at every threshold.

    >>> s = sweep(Evaluated(np.float32([0.9, 0.5, 0.7]), np.array([1, 0, 1], bool), np.array([0, 1, 1], bool)))
    >>> s.coverage.round(2).tolist(), s.accuracy.round(2).tolist()
    ([0.0, 0.33, 0.67, 1.0], [0.67, 1.0, 1.0, 0.67])
    """
    confidence, right1, right2 = evaluated
    order = np.argsort(-confidence, kind="stable")
    descending, n = confidence[order], len(order)
    # samples of equal confidence are treated alike: take the last index of each run of equal values
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
    """Choose the cheapest threshold at which the cascade is as accurate as stage 2 by itself, within a tolerance.

    The search starts at the most accurate threshold and goes down until the accuracy first falls short. A lower threshold whose
    accuracy is sufficient again is usually so by chance.

    Args:
        swept: Sweep over the samples on which the threshold is chosen.
        tolerance: Accuracy that may be lost, as a share: 0.001 means 0.1 points. A negative value requires a gain; if no threshold
            reaches it, the most accurate one is chosen.

    Returns:
        Index of the threshold in the sweep.
    """
    best = int(swept.accuracy.argmax())
    short = np.flatnonzero(swept.accuracy[best:] < swept.accuracy[0] - tolerance - 1e-12)
    if not len(short):
        return len(swept.accuracy) - 1
    return best + max(int(short[0]) - 1, 0)


def choose_at_cost(swept: Sweep, first: float, second: float, share: float) -> int:
    """Choose the most accurate threshold whose cost is at most a given share of the cost of stage 2.

    Args:
        swept: Sweep over the samples on which the threshold is chosen.
        first: Cost of stage 1 per image.
        second: Cost of stage 2 per image, in the same unit.
        share: Largest cost as a share of ``second``, above 0.

    Returns:
        Index of the threshold in the sweep.

    Raises:
        ValueError: Stage 1 by itself already costs more.
    """
    affordable = np.flatnonzero(swept.cost(first, second) <= share * second)
    if not len(affordable):
        least = float(swept.cost(first, second).min()) / second
        raise ValueError(
            f"--budget {share:g}: no threshold reaches it: stage 1 by itself already takes {least:.3g} of stage 2's operations; "
            "give more than that, or a cheaper stage 1"
        )
    return int(affordable[swept.accuracy[affordable].argmax()])


def halves(samples: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw two random halves of the indices 0 to ``samples`` - 1, each in ascending order; an odd index goes to the first half."""
    order = np.random.default_rng(seed).permutation(samples)
    middle = (samples + 1) // 2
    return np.sort(order[:middle]), np.sort(order[middle:])
