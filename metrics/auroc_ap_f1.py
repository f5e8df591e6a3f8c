"""Figures of a classifier on classes of unequal size: AUROC, average precision, F1 and balanced accuracy.

    auroc: chance that a sample of the class scores higher than one that is not of it, ties counted half
    ap: mean precision over the samples of the class, taken from the highest score to the lowest (sklearn's average_precision_score)
    f1: 2 hits / (2 hits + false alarms + misses)
    balanced_acc: mean over the classes of the share that was recognised

Two classes: `auroc`, `ap` and `f1` are those of class 1. More: each is the mean over the classes of one class against the rest
(macro), over those classes for which it is defined. A figure that is defined for no class is left out.
"""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from metrics.confusion_matrix import confusion_matrix


def classification_scores(logits: Tensor, label: Tensor) -> dict[str, float]:
    """AUROC, average precision, F1 and balanced accuracy; see the top of the file.

    Args:
        logits: (N, K) of any float type, K >= 2.
        label: Class ids (N,).

    Returns:
        By name; NaN where logits are not finite.

    >>> import torch
    >>> classification_scores(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -1.0]]), torch.tensor([0, 1, 0]))
    {'auroc': 1.0, 'ap': 1.0, 'f1': 0.6666666666666666, 'balanced_acc': 0.75}
    """
    # in float64, where only logits that are 36 apart tie that did not; on the host, as not every device has that
    scores = logits.detach().cpu().double().softmax(dim=1)
    label = label.cpu()
    if not scores.isfinite().all():
        return {name: float("nan") for name in ("auroc", "ap", "f1", "balanced_acc")}
    counts = confusion_matrix(logits.detach().cpu(), label).double()
    classes = [1] if logits.shape[1] == 2 else range(logits.shape[1])
    positives = {k: (label == k).long() for k in classes if (label == k).any()}
    separable = {k: own for k, own in positives.items() if not own.all()}
    hits, members, taken = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    occurring = [k for k in classes if members[k] + taken[k] > 0]
    recalls = [float(hits[k] / members[k]) for k in range(len(counts)) if members[k] > 0]
    values = {
        "auroc": [float(binary_auroc(scores[:, k], own, validate_args=False)) for k, own in separable.items()],
        "ap": [float(binary_average_precision(scores[:, k], own, validate_args=False)) for k, own in separable.items()],
        "f1": [float(2 * hits[k] / (members[k] + taken[k])) for k in occurring],
        "balanced_acc": recalls,
    }
    return {name: sum(of_classes) / len(of_classes) for name, of_classes in values.items() if of_classes}


class ClassificationScores(Metric):
    """The figures of an epoch: ``update`` keeps the logits, on their device, in float32; ``compute`` has those of all processes.

    So its memory grows with the samples, 4 K + 8 bytes each: it is for validation and test.
    """

    full_state_update = False
    logits: list[Tensor]
    label: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Add a batch; logits (B, K) of any float type and class ids (B,)."""
        self.logits.append(logits.detach().float())
        self.label.append(label)

    def compute(self) -> dict[str, float]:
        """The figures so far, as :func:`classification_scores` gives them."""
        return classification_scores(dim_zero_cat(self.logits), dim_zero_cat(self.label))
