"""Confusion matrix, and the accuracy (recall), precision and most frequent confusion of each class.

accuracy of a class = its correctly predicted samples / its samples             (recall)
precision of a class = its correctly predicted samples / all samples predicted as this class

Counts are exact on any number of processes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


def confusion_matrix(logits: Tensor, label: Tensor) -> Tensor:
    """Counts the samples of each true class (row) that were predicted as each class (column).

    Args:
        logits: (B, K).
        label: Class ids (B,), 0 to K - 1.

    Returns:
        (K, K) int64 on the same device. Unlike ``bincount``, this does not synchronise with the device.

    >>> confusion_matrix(torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    tensor([[1, 0],
            [1, 1]])
    """
    classes = logits.shape[1]
    pairs = label * classes + logits.argmax(dim=1)
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=logits.device)
    return counts.scatter_add_(0, pairs, torch.ones_like(pairs)).view(classes, classes)


class ClassMetrics(NamedTuple):
    """Metrics of one class.

    Attributes:
        n: Samples of the class.
        accuracy: Share of them that was predicted correctly; None if the class has no samples.
        precision: Share of correct predictions among the samples predicted as this class; None if there are no such predictions.
        confused_with: The class most often predicted wrongly for its samples, the first one of a tie; None if no prediction was
            wrong.
    """

    n: int
    accuracy: float | None
    precision: float | None
    confused_with: int | None


def class_metrics(counts: Tensor) -> list[ClassMetrics]:
    """Accuracy, precision and most frequent confusion of each class.

    Args:
        counts: (K, K), rows are true classes and columns predicted classes.

    >>> class_metrics(torch.tensor([[8, 2], [0, 0]]))[0]
    ClassMetrics(n=10, accuracy=0.8, precision=1.0, confused_with=1)
    """
    recognised, wrong = counts.diagonal(), counts.clone().fill_diagonal_(0)
    rows = zip(
        counts.sum(dim=1).tolist(),
        counts.sum(dim=0).tolist(),
        recognised.tolist(),
        wrong.max(dim=1).values.tolist(),
        wrong.argmax(dim=1).tolist(),
        strict=True,
    )
    return [
        ClassMetrics(n, hits / n if n else None, hits / taken if taken else None, other if most else None)
        for n, taken, hits, most, other in rows
    ]


class ConfusionSums(Metric):
    """Confusion matrix of an epoch. ``update`` does not synchronise with the host; ``compute`` returns (K, K) int64.

    Args:
        num_classes: Number of classes K.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(num_classes, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch; logits (B, K) and class ids (B,)."""
        # not in place: a state that was reset in inference mode cannot be changed in place outside it
        self.counts = self.counts + confusion_matrix(logits.detach(), label)

    def compute(self) -> Tensor:
        """Confusion matrix of all samples so far."""
        return self.counts
