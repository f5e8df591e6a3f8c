"""Balanced sampling: which samples an epoch serves so that every class comes equally often, as a pure function of seed and epoch.

    class of n_c samples --> N / K places of an epoch of N: a new random part of it, or all of it several times over

A sample that comes again in its epoch has the number `index + AGAIN * times`, so that it is augmented in another way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.in_memory import MOST, seeded_generator
from datamodules.splitting.stratified import strata

AGAIN = MOST + 1
"""Added to a position for each time that it was drawn before in its epoch; larger than any position."""


def balanced_draw(labels: Tensor, seed: int, epoch: int) -> Tensor:
    """Draw the samples of an epoch.

    Args:
        labels: (N,) int64 classes; or (N, K) of 0 and 1: the rarest label of a sample counts as its class.
        seed: Seed of the run.
        epoch: Epoch, from 0.

    Returns:
        (N,) int64 on the CPU, grouped by class: position + `AGAIN` * the number of earlier draws of the epoch. Every class that
        occurs has N / K places, rounded down or up; which ones are rounded up changes with the epoch. Within a class, the numbers
        of draws of two samples differ by at most one.

    >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
    >>> sorted(labels[balanced_draw(labels, seed=0, epoch=0) % AGAIN].tolist())
    [0, 0, 0, 1, 1, 1]
    """
    classes = strata(labels.cpu())
    there = classes.unique()
    generator = seeded_generator("balanced", seed, epoch)
    there = there[torch.randperm(len(there), generator=generator)]
    share, rest = divmod(len(classes), len(there))
    parts = []
    for place, number in enumerate(there.tolist()):
        members = (classes == number).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        times = torch.arange(share + (place < rest))
        parts.append(members[times % len(members)] + AGAIN * (times // len(members)))
    return torch.cat(parts)
