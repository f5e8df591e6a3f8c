"""The order of an epoch of shards: a function of (seed, epoch), the same on any number of processes.

Shards are shuffled, and then the samples within each block of k consecutive shards. Reads stay within k shards at a time, so that a
cache of k shards is enough. Rank r of W takes order[r::W], as everywhere (`datamodules.in_memory`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.in_memory import seeded_generator


def shard_order(shards: Tensor, block: int, seed: int, epoch: int) -> Tensor:
    """Return the order of an epoch.

    Args:
        shards: (n,) int64, number of the shard of each sample, 0 or more.
        block: Shards whose samples are shuffled together, 1 or more.
        seed: Seed of the order.
        epoch: Epoch, from 0.

    Returns:
        (n,) int64, each position 0 to n - 1 once.
    """
    used, number = shards.unique(return_inverse=True)  # shards without a sample, as in another split, take no place
    turn = torch.randperm(len(used), generator=seeded_generator("order of shards", seed, epoch))
    place = torch.empty_like(turn).scatter_(0, turn, torch.arange(len(used)))  # when the turn of a shard comes
    samples = torch.randperm(len(shards), generator=seeded_generator("order of samples", seed, epoch))
    blocks = place[number[samples]] // block
    return samples[blocks.argsort(stable=True)]
