"""The heads of a grid that are trained together: blocks of the same widths, and one step of all heads of a block.

    batch --> block of n heads (networks/batched_heads.py) --> sum of their losses --> gradients, clipped head by head
          --> AdamW with a learning rate and a weight decay for each head --> average of the weights

A block holds heads of the same widths, in tensors of n matrices. The arithmetic is that of torch.optim.AdamW, clip_grad_norm_, our
schedules and our EMA, so that a head differs from one that `main.py fit` trains on the same batches by rounding alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD

from callbacks.ema import effective_decay, update_average
from lightning_modules.losses import classification_loss
from lightning_modules.schedules import Schedule, Shape, Stage
from networks.batched_heads import BatchedHeads, Uniform
from tools.sweep_heads.batched_metrics import metrics, names

BETA2, EPS = 0.999, 1e-8
ACTIVATIONS = 2**20
"""Bytes of hidden values of a block on a CPU: what a core's own cache holds, beside the weights; larger blocks were slower."""


class Head(NamedTuple):
    """One head of the grid."""

    lr: float
    weight_decay: float
    dropout: float
    hidden: tuple[int, ...]
    seed: int

    @property
    def setting(self) -> tuple[float, float, float, tuple[int, ...]]:
        """What it shares with the heads of other seeds."""
        return self[:4]


@dataclass(frozen=True)
class Recipe:
    """What all heads of a sweep share.

    Args:
        epochs: Passes over the training split.
        steps_per_epoch: Optimiser steps of each.
        shape: Of the schedule, warm-up in steps.
        momentum: beta1 of AdamW.
        momentum_low: The lowest beta1 of one-cycle; None where it does not cycle.
        label_smoothing: eps of torch's definition.
        class_weight: (K,), or None for equal weights.
        clip: The largest norm or value of a head's gradient; None does not clip.
        clip_by: `norm` or `value`.
        ema: Decay, warm-up and first step of the average (callbacks/ema.py); None judges the raw weights.
    """

    epochs: int
    steps_per_epoch: int
    shape: Shape
    momentum: float = 0.9
    momentum_low: float | None = None
    label_smoothing: float = 0.0
    class_weight: Tensor | None = None
    clip: float | None = None
    clip_by: str = "norm"
    ema: tuple[float, bool, int] | None = None

    def schedule(self) -> Schedule:
        """Share of the peak learning rate, and beta1, at each step."""
        bounds = None if self.momentum_low is None else (self.momentum_low, self.momentum)
        stages = [Stage(max(1, self.steps_per_epoch * self.epochs))]
        return Schedule(SGD([torch.zeros(1)], lr=1.0), self.shape, stages, bounds)


class Outcome(NamedTuple):
    """What became of a head: figures by name, at the end and at its best epoch."""

    head: Head
    final: dict[str, float]
    best: dict[str, float]
    best_epoch: int
    """From 0."""
    weights: dict[str, Tensor]
    """State dict for an `MLPHead` at the end: the averaged weights where there is an average."""

    @property
    def diverged(self) -> bool:
        """Whether its logits were not finite at the end."""
        return not math.isfinite(self.final["loss"])


class Block:
    """Some heads of the same widths with their optimiser.

    Args:
        heads: At least one; all of the same `hidden`.
        places: Of each head in the grid.
        in_features: D.
        num_classes: K.
        recipe: What they share.
        device: Where they are trained.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        places: Sequence[int],
        in_features: int,
        num_classes: int,
        recipe: Recipe,
        device: torch.device,
    ) -> None:
        self.heads, self.places, self.recipe = list(heads), list(places), recipe
        network = BatchedHeads(
            in_features, num_classes, heads[0].hidden, [h.dropout for h in heads], [h.seed for h in heads]
        )
        self.network = network.to(device).train()
        parts = self.network.parts()
        self.parameters = list(parts.values())
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.average = None if recipe.ema is None else {name: p.detach().clone() for name, p in parts.items()}
        self.steps = self.updates = 0
        # as BaseModule.parameter_groups has it: vectors, which a matrix of one row or column is, are not decayed
        self._decayed = [p[0].numel() != max(p.shape[1:]) for p in self.parameters]
        self._lr, self._decay = (
            torch.tensor([getattr(h, name) for h in heads], dtype=torch.float64) for name in ("lr", "weight_decay")
        )
        self.best: Tensor | None = None
        """Logits of validation at each head's best epoch."""
        self.best_epoch = torch.zeros(len(heads), dtype=torch.int64)
        self._best_value = torch.full((len(heads),), math.nan, dtype=torch.float64)

    def step(self, features: Tensor, label: Tensor, share: float, beta1: float, uniform: Uniform) -> None:
        """One step of all heads on a batch, at a share of their peak learning rates."""
        recipe, n = self.recipe, len(self.heads)
        logits = self.network(features, uniform=uniform).flatten(0, 1)
        # n times the mean over n heads: of each head's loss, its own gradient
        loss = n * classification_loss(logits, label.repeat(n), None, recipe.class_weight, recipe.label_smoothing)
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            self._clip(gradients)
            self._adamw(gradients, share, beta1)
            self.steps += 1
            self._update_average()

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """As torch.nn.utils.clip_grad_norm_ or clip_grad_value_ do to each head alone."""
        clip = self.recipe.clip
        if clip is None:
            return
        if self.recipe.clip_by == "value":
            for gradient in gradients:
                gradient.clamp_(-clip, clip)
            return
        norms = torch.stack([torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients])
        factor = (clip / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
        if factor.device.type != "cpu" or not bool((factor == 1).all()):
            for gradient in gradients:
                gradient.mul_(_by_head(factor, gradient))

    def _adamw(self, gradients: Sequence[Tensor], share: float, beta1: float) -> None:
        step, device = self.steps + 1, gradients[0].device
        size = (self._lr * share / (1 - beta1**step)).float().to(device, non_blocking=True)
        kept = (1 - self._lr * share * self._decay).float().to(device, non_blocking=True)
        root = math.sqrt(1 - BETA2**step)
        for parameter, gradient, (first, second), decayed in zip(
            self.parameters, gradients, self.moments, self._decayed, strict=True
        ):
            first.lerp_(gradient, 1 - beta1)
            second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            if decayed:
                parameter.mul_(_by_head(kept, parameter))
            change = second.sqrt().div_(root).add_(EPS).reciprocal_().mul_(first)
            parameter.addcmul_(change, _by_head(size, parameter), value=-1.0)

    def _update_average(self) -> None:
        if self.recipe.ema is None or self.average is None:
            return
        decay, warmup, start = self.recipe.ema
        weights = [parameter.detach() for parameter in self.parameters]
        if self.steps <= start:
            update_average(list(self.average.values()), weights, 0.0)
        else:
            update_average(list(self.average.values()), weights, effective_decay(decay, self.updates, warmup))
            self.updates += 1

    def evaluated(self) -> dict[str, Tensor]:
        """The tensors that are validated: averages where there are any."""
        return self.network.parts() if self.average is None else self.average

    def note(self, epoch: int, logits: Tensor, values: Tensor, lower: bool) -> None:
        """Keep the validation logits (n, N, K) of the heads whose monitored value (n,) is better than before."""
        better = values < self._best_value if lower else values > self._best_value
        better |= self._best_value.isnan() & ~values.isnan()
        self._best_value[better], self.best_epoch[better] = values[better], epoch
        if self.best is None:
            self.best = logits.clone()
        elif bool(better.any()):
            chosen = better.to(logits.device)
            self.best[chosen] = logits[chosen]

    def outcomes(self, logits: Tensor, label: Tensor) -> Iterator[tuple[int, Outcome]]:
        """Place in the grid and outcome of each head, from the last validation logits."""
        assert self.best is not None
        wanted = names(logits.shape[2])
        final, best = (metrics(values, label, wanted) for values in (logits, self.best))
        for i, (place, head) in enumerate(zip(self.places, self.heads, strict=True)):
            ends = [{name: float(values[i]) for name, values in end.items()} for end in (final, best)]
            weights = self.network.head(i, self.evaluated())
            yield place, Outcome(head, ends[0], ends[1], int(self.best_epoch[i]), weights)


def _by_head(values: Tensor, like: Tensor) -> Tensor:
    """(n,) in the shape that multiplies a tensor of n matrices or vectors."""
    return values.view(-1, *[1] * (like.ndim - 1))


def blocks_of(
    heads: Sequence[Head],
    in_features: int,
    num_classes: int,
    recipe: Recipe,
    batch_size: int,
    device: torch.device,
    most: int | None = None,
) -> list[partial[Block]]:
    """What makes the blocks of a grid, of at most so many heads; those of one seed together, as they share draws of dropouts."""
    order = sorted(range(len(heads)), key=lambda place: (heads[place].hidden, heads[place].seed, place))
    made: list[partial[Block]] = []
    for hidden in sorted({head.hidden for head in heads}):
        same = [place for place in order if heads[place].hidden == hidden]
        size = len(same) if most is None else most
        if hidden and device.type == "cpu":
            size = max(1, min(size, ACTIVATIONS // (4 * batch_size * max(hidden))))
        for begin in range(0, len(same), size):
            chosen = same[begin : begin + size]
            made.append(partial(Block, [heads[p] for p in chosen], chosen, in_features, num_classes, recipe, device))
    return made


def bytes_of(head: Head, in_features: int, num_classes: int, validated: int) -> int:
    """Memory of a head: weights, gradient, two moments and average, and the validation logits now, at best, and in between."""
    widths = [in_features, *head.hidden, num_classes]
    weights = sum(out * (fan_in + 1) for fan_in, out in itertools.pairwise(widths))
    return 4 * (6 * weights + 4 * validated * num_classes)
