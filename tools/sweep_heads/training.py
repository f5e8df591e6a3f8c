"""Trains and validates blocks of heads together: each batch is read once and used by all heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from metrics import direction_of
from networks.batched_heads import Uniform
from networks.mlp_head import dropout_uniform
from tools.sweep_heads.batched_metrics import metrics
from tools.sweep_heads.head_groups import Block, Outcome, Recipe

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Returns the features (B, D) float32 and labels (B,) of an epoch."""


def train(
    blocks: Sequence[Block],
    training: Batches,
    validation: Batches,
    recipe: Recipe,
    monitor: str,
    on_epoch_end: Callable[[], None] = lambda: None,
) -> list[tuple[int, Outcome]]:
    """Train blocks of heads on the same batches; each head becomes what it would be if trained by itself.

    Args:
        blocks: The heads, not yet trained.
        training: Returns the training batches of an epoch.
        validation: Returns the validation batches of an epoch, which are the same in every epoch.
        recipe: Training settings that the heads share.
        monitor: Metric that selects the best epoch of a head.
        on_epoch_end: Called after each epoch.

    Returns:
        Index in the grid and outcome of each head.
    """
    schedule, step = recipe.schedule(), 0
    outcomes: list[tuple[int, Outcome]] = []
    for epoch in range(recipe.epochs):
        for features, label in training(epoch):
            share, momentum = schedule.at(step)
            uniform = shared_dropout_uniform()
            for block in blocks:
                block.step(features, label, share, recipe.momentum if momentum is None else momentum, uniform)
            step += 1
        last = epoch == recipe.epochs - 1
        for block, logits, label in evaluate(blocks, validation(epoch)):
            values = metrics(logits, label, {monitor, "loss"})
            block.keep_best(epoch, logits, values[monitor], values["loss"], direction_of(monitor) == "min")
            if last:
                outcomes += block.outcomes(logits, label)
        on_epoch_end()
    return outcomes


@torch.no_grad()
def evaluate(
    blocks: Sequence[Block], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Yield each block with its logits (n, N, K) on all batches and their labels (N,)."""
    logits: list[list[Tensor]] = [[] for _ in blocks]
    labels = []
    for block in blocks:
        block.network.eval()
    for features, label in batches:
        labels.append(label)
        for block, parts in zip(blocks, logits, strict=True):
            parts.append(block.network(features, block.evaluated()))
    for block, parts in zip(blocks, logits, strict=True):
        block.network.train()
        yield block, torch.cat(parts, dim=1), torch.cat(labels)


def shared_dropout_uniform() -> Uniform:
    """Return a cached `dropout_uniform` for one step, so that blocks with the same seed share their random numbers."""
    drawn: dict[tuple[int, int, int, tuple[int, ...]], Tensor] = {}

    def uniform(seed: int, layer: int, count: int, shape: Sequence[int], device: torch.device) -> Tensor:
        key = (seed, layer, count, tuple(shape))
        if key not in drawn:
            drawn[key] = dropout_uniform(seed, layer, count, shape, device)
        return drawn[key]

    return uniform
