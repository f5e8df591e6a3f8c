"""Stratified train/held-out split as a pure function of labels, fractions and seed; also checks labels and counts classes.

The samples of each class are shuffled with a separate seed. The held-out split takes the first round(fraction * n_c) samples, and
the training split takes the next ones. So the split of each class is within one sample of its share, the held-out samples do not
depend on how many of the others are used, a smaller training fraction is a subset of a larger one, and adding a sample to one class
does not change the split of the other classes.
"""

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.in_memory import seeded_generator


def stratified_split(
    labels: Tensor, held_out: float, *, seed: int, name: str, used: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Split samples so that each class keeps its share on both sides.

    Args:
        labels: (N,) int64 class of each sample, from 0.
        held_out: Share of every class that is held out, 0 to 1.
        seed: Seed of the split.
        name: Name of the held-out split (`val`, `test`); different names give unrelated splits even for the same seed.
        used: Share of the remaining samples that is kept, 0 to 1; at least one sample of each class that has any left.

    Returns:
        Positions of the kept samples and of the held-out samples, each in ascending order.
    """
    kept_parts, held_out_parts = [labels.new_empty(0)], [labels.new_empty(0)]
    for label in labels.bincount().nonzero().flatten().tolist():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=seeded_generator("split", name, seed, label))]
        first = round(held_out * len(members))
        rest = len(members) - first
        held_out_parts.append(members[:first])
        kept_parts.append(members[first : first + max(round(used * rest), min(rest, 1))])
    return torch.cat(kept_parts).sort().values, torch.cat(held_out_parts).sort().values


def strata(labels: Tensor) -> Tensor:
    """One class of each sample to stratify by: its own, or the rarest of several, which is the hardest to divide.

    Args:
        labels: (N,) int64 classes, which are returned; or (N, K) of 0 and 1.

    Returns:
        (N,) int64; K for a sample without a label. Among classes of equal size the first one counts as rarer.

    >>> strata(torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]))
    tensor([1, 0, 3])
    """
    if labels.ndim == 1:
        return labels
    counts = labels.sum(dim=0, dtype=torch.int64)
    size = torch.where(labels > 0, counts, len(labels) + 1)
    return torch.where((labels > 0).any(dim=1), size.argmin(dim=1), labels.shape[1])


def check_labels(labels: Tensor, num_classes: int, source: str) -> None:
    """Check that every label is a valid class number.

    Args:
        labels: (N,) int64.
        num_classes: Number of classes K; labels must lie in 0 to K - 1.
        source: Source of the labels, for the message.

    Raises:
        MisconfigurationException: A label is out of range.
    """
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero().flatten()
    if len(wrong):
        place = int(wrong[0])
        raise MisconfigurationException(
            f"label {int(labels[place])} of sample {place} in {source} is outside 0..{num_classes - 1}: "
            f"there are {num_classes} classes"
        )


def count_classes(labels: Tensor, class_names: list[str]) -> Tensor:
    """Count the training samples of each class.

    Args:
        labels: (N,) int64 labels of the training split, all in range; or (N, K) of 0 and 1.
        class_names: The K names.

    Returns:
        (K,) int64 counts, all positive.

    Raises:
        MisconfigurationException: A class has no sample, so it can be neither learned nor weighted by its frequency.
    """
    several = labels.ndim == 2
    counts = labels.sum(dim=0, dtype=torch.int64) if several else labels.bincount(minlength=len(class_names))
    empty = [f"{class_names[i]!r} ({i})" for i in (counts == 0).nonzero().flatten().tolist()]
    if empty:
        noun = "class has" if len(empty) == 1 else "classes have"
        raise MisconfigurationException(
            f"{len(empty)} {noun} no training sample: {', '.join(empty)}; add samples, lower --data.val_fraction, "
            f"or remove the name from the data set's class names"
        )
    return counts
