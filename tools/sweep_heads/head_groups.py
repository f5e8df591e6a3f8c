"""Groups the heads of a sweep into blocks of the same hidden sizes, and runs the optimiser step of all heads in a block.

    batch --> block of n heads (networks/batched_heads.py) --> sum of their losses --> gradients, clipped head by head
          --> AdamW with a learning rate and a weight decay for each head --> average of the weights

A block stores its n heads in tensors of n matrices. The arithmetic equals torch.optim.AdamW, clip_grad_norm_, and the schedules and
EMA of this project: a head differs only by rounding from one that `main.py fit` trains on the same batches.
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
from lightning_modules.schedules import Schedule, Shape, Stage, momentum_bounds
from networks.batched_heads import BatchedHeads, Uniform
from tools.sweep_heads.batched_metrics import metrics, names

BETA2, EPS = 0.999, 1e-8
ACTIVATIONS = 2**20
"""Largest size in bytes of a block's hidden values on a CPU, so that they fit into a core's cache; larger blocks were slower."""


class Head(NamedTuple):
    """Settings of one head of the grid."""

    lr: float
    weight_decay: float
    dropout: float
    hidden: tuple[int, ...]
    seed: int

    @property
    def setting(self) -> tuple[float, float, float, tuple[int, ...]]:
        """All settings except the seed."""
        return self[:4]


@dataclass(frozen=True)
class Recipe:
    """Training settings that all heads of a sweep share.

    Args:
        epochs: Passes over the training split.
        steps_per_epoch: Optimiser steps per epoch.
        shape: Shape of the learning-rate schedule, with warm-up in steps.
        momentum: beta1 of AdamW.
        momentum_low: Lowest beta1 of the one-cycle schedule; None if beta1 is constant.
        label_smoothing: Label smoothing as in torch.nn.CrossEntropyLoss.
        focal_gamma: Exponent of focal loss; 0 is cross-entropy.
        class_weight: Class weights (K,), or None for equal weights.
        clip: Largest norm or value of a head's gradient; None does not clip.
        clip_by: `norm` or `value`.
        ema: Decay, warm-up and first step of the weight average (callbacks/ema.py); None evaluates the raw weights.
    """

    epochs: int
    steps_per_epoch: int
    shape: Shape
    momentum: float = 0.9
    momentum_low: float | None = None
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_weight: Tensor | None = None
    clip: float | None = None
    clip_by: str = "norm"
    ema: tuple[float, bool, int] | None = None

    def schedule(self) -> Schedule:
        """Return the schedule, which gives the share of the peak learning rate and beta1 at each step."""
        bounds = momentum_bounds(self.momentum_low, self.momentum)
        stages = [Stage(max(1, self.steps_per_epoch * self.epochs))]
        return Schedule(SGD([torch.zeros(1)], lr=1.0), self.shape, stages, bounds)


class Outcome(NamedTuple):
    """Result of a trained head: metrics by name, at the end and at its best epoch."""

    head: Head
    final: dict[str, float]
    best: dict[str, float]
    best_epoch: int
    """Epoch with the best monitored value, counted from 0."""
    weights: dict[str, Tensor]
    """Final state dict for an `MLPHead`: the averaged weights if EMA is used, else the raw ones."""

    @property
    def diverged(self) -> bool:
        """Whether the logits of the head were not finite at the end."""
        return not math.isfinite(self.final["loss"])


class Block:
    """Heads of the same hidden sizes, with their AdamW state and weight average.

    Args:
        heads: At least one head; all with the same `hidden`.
        places: Index of each head in the grid.
        in_features: D, width of the features.
        num_classes: K, number of classes.
        recipe: Settings that the heads share.
        device: Device on which they are trained.
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
        # as in BaseModule.parameter_groups: vectors get no weight decay, and a matrix of one row or column counts as a vector
        self._decayed = [p[0].numel() != max(p.shape[1:]) for p in self.parameters]
        self._lr, self._decay = (
            torch.tensor([getattr(h, name) for h in heads], dtype=torch.float64) for name in ("lr", "weight_decay")
        )
        self.best: Tensor | None = None
        """Validation logits (n, N, K) at each head's best epoch."""
        self.best_epoch = torch.zeros(len(heads), dtype=torch.int64)
        self._best_value = torch.full((len(heads),), math.nan, dtype=torch.float64)
        self._best_loss = self._best_value.clone()

    def step(self, features: Tensor, label: Tensor, share: float, beta1: float, uniform: Uniform) -> None:
        """Run one optimiser step of all heads.

        Args:
            features: Features (B, D).
            label: Labels (B,).
            share: Learning rate as a share of each head's peak.
            beta1: beta1 of AdamW.
            uniform: Random numbers for dropout.
        """
        recipe, n = self.recipe, len(self.heads)
        logits = self.network(features, uniform=uniform).flatten(0, 1)
        # n times the mean over all heads, so that each head gets the gradient of its own loss
        loss = n * classification_loss(
            logits, label.repeat(n), None, recipe.class_weight, recipe.label_smoothing, recipe.focal_gamma
        )
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            self._clip(gradients)
            self._adamw(gradients, share, beta1)
            self.steps += 1
            self._update_average()

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        """Clip each head's gradient separately, as torch.nn.utils.clip_grad_norm_ or clip_grad_value_ does."""
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
        """Return the weights used in validation: the averages if there are any, else the raw weights."""
        return self.network.parts() if self.average is None else self.average

    def keep_best(self, epoch: int, logits: Tensor, values: Tensor, losses: Tensor, lower: bool) -> None:
        """Keep the validation logits of the heads whose epoch is better than before, as in metrics/directions.py.

        Args:
            epoch: The epoch, from 0.
            logits: Validation logits (n, N, K).
            values: Monitored values (n,).
            losses: Losses (n,); the lower one is better where the values are equal.
            lower: Whether lower values are better.
        """
        better = values < self._best_value if lower else values > self._best_value
        better |= (values == self._best_value) & (losses < self._best_loss)
        better |= self._best_value.isnan() & ~values.isnan()
        self._best_value[better], self._best_loss[better] = values[better], losses[better]
        self.best_epoch[better] = epoch
        if self.best is None:
            self.best = logits.clone()
        elif bool(better.any()):
            chosen = better.to(logits.device)
            self.best[chosen] = logits[chosen]

    def outcomes(self, logits: Tensor, label: Tensor) -> Iterator[tuple[int, Outcome]]:
        """Yield the index in the grid and the outcome of each head.

        Args:
            logits: Validation logits (n, N, K) after the last epoch.
            label: Validation labels (N,).
        """
        assert self.best is not None
        wanted = names(logits.shape[2])
        final, best = (metrics(values, label, wanted) for values in (logits, self.best))
        for i, (place, head) in enumerate(zip(self.places, self.heads, strict=True)):
            ends = [{name: float(values[i]) for name, values in end.items()} for end in (final, best)]
            weights = self.network.head(i, self.evaluated())
            yield place, Outcome(head, ends[0], ends[1], int(self.best_epoch[i]), weights)


def _by_head(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values (n,) so that they multiply a tensor of n matrices or vectors."""
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
    """Divide the heads of a grid into blocks of equal hidden sizes.

    Heads of the same seed are placed together, because they share their random numbers for dropout.

    Args:
        heads: The grid.
        in_features: D, width of the features.
        num_classes: K, number of classes.
        recipe: Settings that the heads share.
        batch_size: Samples per batch, which limits the size of a block on a CPU.
        device: Device on which the heads are trained.
        most: Largest number of heads in a block; None sets no limit.

    Returns:
        Functions that create the blocks.
    """
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
    """Return the memory of a head in bytes: six copies of its weights and four of its validation logits.

    These are weights, gradient, two moments, average and temporaries; and current, best and temporary logits.
    """
    widths = [in_features, *head.hidden, num_classes]
    weights = sum(out * (fan_in + 1) for fan_in, out in itertools.pairwise(widths))
    return 4 * (6 * weights + 4 * validated * num_classes)
