"""A kNN and a linear probe of frozen features.

kNN      the k training samples of the largest cosine similarity s vote with exp(s / temperature) for their class
         (Wu et al. 2018; Caron et al. 2021, DINO: k = 20, temperature 0.07)
linear   multinomial logistic regression; the L2 penalty, 1 / C, is chosen on the validation split
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.sweep_heads.batched_metrics import metrics
from tools.sweep_heads.logistic import CS
from tools.sweep_heads.logistic_path import logistic_path

AT_ONCE = 16_000_000
"""Largest number of similarities in memory."""


class Linear(NamedTuple):
    """The linear probe of the best C."""

    c: float
    weight: Tensor
    """(K, D) float64."""
    bias: Tensor
    """(K,) float64."""
    acc: float
    balanced_acc: float
    converged: bool


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in plain float32: the extraction may have allowed TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def knn_votes(
    train: Tensor, label: Tensor, query: Tensor, num_classes: int, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Votes of the nearest training samples for each class.

    Of training samples that are equally similar to a query, the earlier ones are nearer, so exactly k vote.

    Args:
        train: Features (N, D) float32 of the training samples.
        label: Their labels (N,) int64.
        query: Features (Q, D) float32.
        num_classes: Number of classes K.
        k: Number of neighbours, 1 to N.
        temperature: Above 0; a smaller one gives the nearest ones more weight.

    Returns:
        (Q, K) float64, where a vote of the nearest sample is 1.

    Raises:
        ValueError: k is out of its range.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"--k {k}: there are {len(train):,} training samples; give 1 to {len(train):,}")
    keys, classes = F.normalize(train, dim=1), F.one_hot(label, num_classes).double()
    found = []
    with exact_products():
        for part in F.normalize(query, dim=1).split(max(1, AT_ONCE // len(train))):
            similarity = part @ keys.T
            last = similarity.topk(k, dim=1).values[:, -1:]
            nearer, equal = similarity > last, similarity == last
            free = k - nearer.sum(dim=1, keepdim=True)
            chosen = nearer | (equal & (equal.cumsum(dim=1) <= free))
            closeness = (
                similarity - similarity.amax(dim=1, keepdim=True)
            ).double() / temperature  # 0 or less: no overflow
            found.append(closeness.exp().mul(chosen) @ classes)
    return torch.cat(found)


def accuracies(logits: Tensor, label: Tensor) -> tuple[float, float]:
    """Accuracy and balanced accuracy of logits or votes (N, K), 0 to 1; of equal ones the class with the lower number counts."""
    found = metrics(logits[None].float(), label, ("acc", "balanced_acc"))
    return float(found["acc"][0]), float(found["balanced_acc"][0])


def linear_probe(
    train: Tensor,
    label: Tensor,
    held: Tensor,
    held_label: Tensor,
    num_classes: int,
    by: str = "acc",
    cs: Sequence[float] = CS,
) -> Linear:
    """Fit logistic regression for each C, and keep the best on the validation split.

    Args:
        train: Training features (N, D) float32.
        label: Training labels (N,) int64.
        held: Validation features (M, D) float32.
        held_label: Validation labels (M,) int64.
        num_classes: Number of classes K.
        by: ``acc`` or ``balanced_acc``, which chooses C; among equal ones the lower loss wins, then the smaller C.
        cs: Values of C.
    """
    best: tuple[tuple[float, float], Linear] | None = None
    with exact_products():
        for one in logistic_path(train, label, num_classes, cs):
            logits = held @ one.weight.float().T + one.bias.float()
            found = {
                name: float(value[0])
                for name, value in metrics(logits[None], held_label, ("loss", "acc", "balanced_acc")).items()
            }
            rank = (found[by], -found["loss"])
            if best is None or rank > best[0]:
                best = (
                    rank,
                    Linear(one.c, one.weight, one.bias, found["acc"], found["balanced_acc"], one.converged),
                )
    assert best is not None
    return best[1]
