"""Metrics of a classifier that a run asks for by name: `metrics: [f1, mcc, top5]`.

    f1, precision, recall      mean over the classes, each against the rest; f1_weighted: weighted by the samples of the class
    balanced_acc               mean recall over the classes that occur
    auroc, ap                  mean over the classes, each against the rest
    mcc                        Matthews correlation coefficient
    kappa, kappa_quadratic     Cohen's kappa; with quadratic weights, for classes in an order
    top2, top3, ..             share of the samples whose class is among the N most probable ones

With two classes, `auroc`, `ap`, `f1`, `precision` and `recall` are those of class 1. A class that neither occurs nor is predicted
is left out of means.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torchmetrics.functional.classification import multiclass_cohen_kappa, multiclass_matthews_corrcoef
from torchmetrics.utilities import dim_zero_cat

from metrics.auroc_ap_f1 import ClassificationScores, classification_scores
from metrics.confusion_matrix import confusion_matrix

RANKING = ("auroc", "ap", "f1", "balanced_acc")
BY_NAME = (*RANKING, "f1_weighted", "precision", "recall", "mcc", "kappa", "kappa_quadratic")
"""Names that a run can ask for, besides top2, top3, .."""
_TOP = re.compile(r"^top([1-9]\d*)$")


def check_names(names: Sequence[str], classes: int) -> None:
    """Check the names of metrics.

    Raises:
        ValueError: A name is not known or given twice, or topN has no fewer than all classes.
    """
    for name in names:
        if (top := _TOP.match(name)) is not None:
            if not 2 <= int(top[1]) < classes:
                known = "no such metric" if classes < 3 else "top2" if classes == 3 else f"top2 to top{classes - 1}"
                raise ValueError(f"metrics: {name}: with {classes} classes there is {known}")
        elif name not in BY_NAME:
            near = next(
                (one for one in (*BY_NAME, "top5") if one.replace("_", "") == name.lower().replace("_", "")), None
            )
            meant = f" (did you mean {near}?)" if near else ""
            raise ValueError(f"metrics: there is no {name!r}{meant}; there are {', '.join(BY_NAME)}, top2, top3, ..")
        if list(names).count(name) > 1:
            raise ValueError(f"metrics: {name} is given twice")


def metrics_by_name(names: Sequence[str], logits: Tensor, label: Tensor) -> dict[str, float]:
    """Compute metrics; the module docstring defines them.

    Args:
        names: Names that `check_names` accepts.
        logits: (N, K) of any float type, K >= 2.
        label: Class ids (N,).

    Returns:
        Value of each metric that is defined, by name; all are NaN if any logit is not finite.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    >>> metrics_by_name(["recall", "top2"], logits, torch.tensor([0, 1, 2]))
    {'recall': 0.6666666666666666, 'top2': 1.0}
    """
    logits, label = logits.detach().cpu(), label.cpu()
    if not logits.isfinite().all():
        return dict.fromkeys(names, float("nan"))
    counts = confusion_matrix(logits, label).double()
    hits, members, taken = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    classes = [1] if len(counts) == 2 else [k for k in range(len(counts)) if members[k] + taken[k] > 0]
    f1 = 2 * hits / (members + taken).clamp(min=1)
    found: dict[str, float] = {}
    if any(name in RANKING for name in names):
        found |= classification_scores(logits, label)
    for name in names:
        if top := _TOP.match(name):
            best = logits.topk(int(top[1]), dim=1).indices
            found[name] = float((best == label[:, None]).any(dim=1).double().mean())
        elif name == "f1_weighted":
            found[name] = float((f1 * members).sum() / members.sum())
        elif name in ("precision", "recall"):
            shares = hits / (taken if name == "precision" else members).clamp(min=1)
            found[name] = float(shares[classes].mean())
        elif name == "mcc":
            found[name] = float(multiclass_matthews_corrcoef(logits, label, len(counts), validate_args=False))
        elif name.startswith("kappa"):
            weights: Literal["quadratic", "none"] = "quadratic" if name == "kappa_quadratic" else "none"
            found[name] = float(multiclass_cohen_kappa(logits, label, len(counts), weights, validate_args=False))
    return {name: found[name] for name in names if name in found}


class MetricsByName(ClassificationScores):
    """Metrics by name of an epoch, of all processes; memory as for `ClassificationScores`.

    Args:
        names: Names that `check_names` accepts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def compute(self) -> dict[str, float]:
        """Metrics of all samples so far, as `metrics_by_name` returns them."""
        return metrics_by_name(self.names, dim_zero_cat(self.logits), dim_zero_cat(self.label))
