"""Accuracy per group of samples, such as the windows of one person; an overall mean would hide a group that fails completely."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GroupAccuracy(NamedTuple):
    """Number of samples and of correct predictions (hits, 0 or more) of a group, and its accuracy, 0 to 1."""

    n: int
    hits: int

    @property
    def accuracy(self) -> float:
        """Share of the samples that were predicted correctly."""
        return self.hits / self.n


def group_accuracies(groups: Tensor, hits: Tensor) -> dict[int, GroupAccuracy]:
    """Computes the accuracy of each group.

    Args:
        groups: (N,) int64, group number of each sample.
        hits: (N,) bool, True where the prediction is correct.

    Returns:
        Samples and hits by group number, ascending.

    >>> group_accuracies(torch.tensor([7, 3, 7]), torch.tensor([True, True, False]))
    {3: GroupAccuracy(n=1, hits=1), 7: GroupAccuracy(n=2, hits=1)}
    """
    names, places, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros_like(counts).index_add_(0, places, hits.to(counts))
    rows = zip(names.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return {name: GroupAccuracy(n, right) for name, n, right in rows}


class GroupSums(Metric):
    """Accuracy of each group in an epoch. Group numbers from 0 need not be known beforehand; a negative one is of no group."""

    full_state_update = False
    groups: list[Tensor]
    hits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("groups", [], dist_reduce_fx="cat")
        self.add_state("hits", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor, group: Tensor) -> None:
        """Add a batch: logits (B, K), class ids (B,), group numbers (B,)."""
        self.groups.append(group)
        self.hits.append(logits.argmax(dim=1) == label)

    def compute(self) -> dict[int, GroupAccuracy]:
        """Samples, hits and accuracy of each group; of samples without a group nothing, so that there may be none."""
        groups, hits = dim_zero_cat(self.groups), dim_zero_cat(self.hits)
        return group_accuracies(groups[groups >= 0], hits[groups >= 0])
