"""Accuracy of each group of samples, such as the windows of one person: a mean hides the one for whom nothing works."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class GroupAccuracy(NamedTuple):
    """Samples and hits (0 or more) of a group, and their quotient, 0 to 1."""

    n: int
    hits: int

    @property
    def accuracy(self) -> float:
        """Share of the samples that were hit."""
        return self.hits / self.n


def group_accuracies(groups: Tensor, hits: Tensor) -> dict[int, GroupAccuracy]:
    """Figures of each group.

    Args:
        groups: (N,) int64, the number of each sample's group.
        hits: (N,) bool.

    Returns:
        By number of the group, ascending.

    >>> group_accuracies(torch.tensor([7, 3, 7]), torch.tensor([True, True, False]))
    {3: GroupAccuracy(n=1, hits=1), 7: GroupAccuracy(n=2, hits=1)}
    """
    names, places, counts = groups.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros_like(counts).index_add_(0, places, hits.to(counts))
    rows = zip(names.tolist(), counts.tolist(), sums.tolist(), strict=True)
    return {name: GroupAccuracy(n, right) for name, n, right in rows}


class GroupSums(Metric):
    """Group and hit of every sample; any numbers may be groups, so that nothing is known of them before."""

    full_state_update = False
    groups: list[Tensor]
    hits: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("groups", [], dist_reduce_fx="cat")
        self.add_state("hits", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor, group: Tensor) -> None:
        """Add a batch: logits (B, K), class ids (B,), numbers of the groups (B,)."""
        self.groups.append(group)
        self.hits.append(logits.argmax(dim=1) == label)

    def compute(self) -> dict[int, GroupAccuracy]:
        """Figures of each group."""
        return group_accuracies(dim_zero_cat(self.groups), dim_zero_cat(self.hits))
