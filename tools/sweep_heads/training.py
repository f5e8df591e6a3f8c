"""Trains the heads of a grid together: one pass over the cache, every batch for all heads, each head as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from networks.batched_heads import Uniform
from networks.mlp_head import dropout_uniform
from tools.sweep_heads.batched_metrics import LOWER_IS_BETTER, metrics
from tools.sweep_heads.head_groups import Block, Outcome, Recipe

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
"""Features (B, D) float32 and labels (B,) of an epoch."""


def train(
    blocks: Sequence[Block],
    training: Batches,
    validation: Batches,
    recipe: Recipe,
    monitor: str,
    said: Callable[[], None] = lambda: None,
) -> list[tuple[int, Outcome]]:
    """Train blocks of heads on the same batches.

    Args:
        blocks: The heads, new.
        training: Batches of an epoch.
        validation: Batches of the validation split, the same in every epoch.
        recipe: What the heads share.
        monitor: Figure that decides which epoch of a head is its best.
        said: Is called after each epoch.

    Returns:
        Place in the grid and outcome of each head.
    """
    schedule, step = recipe.schedule(), 0
    outcomes: list[tuple[int, Outcome]] = []
    for epoch in range(recipe.epochs):
        for features, label in training(epoch):
            share, momentum = schedule.at(step)
            uniform = remembered()
            for block in blocks:
                block.step(features, label, share, recipe.momentum if momentum is None else momentum, uniform)
            step += 1
        last = epoch == recipe.epochs - 1
        for block, logits, label in evaluate(blocks, validation(epoch)):
            block.note(epoch, logits, metrics(logits, label, [monitor])[monitor], monitor in LOWER_IS_BETTER)
            if last:
                outcomes += block.outcomes(logits, label)
        said()
    return outcomes


@torch.no_grad()
def evaluate(
    blocks: Sequence[Block], batches: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block with its logits (n, N, K) of all batches and their labels (N,)."""
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


def remembered() -> Uniform:
    """`dropout_uniform` for the blocks of one step: what was drawn is not drawn again."""
    drawn: dict[tuple[int, int, int, tuple[int, ...]], Tensor] = {}

    def uniform(seed: int, layer: int, count: int, shape: Sequence[int], device: torch.device) -> Tensor:
        key = (seed, layer, count, tuple(shape))
        if key not in drawn:
            drawn[key] = dropout_uniform(seed, layer, count, shape, device)
        return drawn[key]

    return uniform
