"""AUROC, average precision, F1 and balanced accuracy: metrics of a classifier for classes of unequal size.

    auroc: probability that a sample of the class scores higher than a sample of another class; a tie counts half
    ap: mean precision over the samples of the class, from the highest score to the lowest (sklearn's average_precision_score)
    f1: 2 TP / (2 TP + FP + FN)
    balanced_acc: mean recall over the classes

With two classes, `auroc`, `ap` and `f1` are computed for class 1. With more classes, each is the one-against-the-rest mean over the
classes (macro) for which it is defined. A metric that is defined for no class is left out.
"""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

from metrics.confusion_matrix import confusion_matrix


def classification_scores(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Computes AUROC, average precision, F1 and balanced accuracy; the module docstring defines them.

    Args:
        logits: (N, K) of any float type, K >= 2.
        label: Class ids (N,).

    Returns:
        Value of each metric by name; all are NaN if any logit is not finite.

    >>> import torch
    >>> classification_scores(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -1.0]]), torch.tensor([0, 1, 0]))
    {'auroc': 1.0, 'ap': 1.0, 'f1': 0.6666666666666666, 'balanced_acc': 0.75}
    """
    # in float64, where softmax creates a new tie only between logits that differ by 36 or more; on the host, because not every
    # device has float64
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
    """AUROC, average precision, F1 and balanced accuracy of an epoch.

    ``update`` keeps the logits in float32 on their device; ``compute`` uses the logits of all processes. Memory grows with the
    number of samples, by 4 K + 8 bytes each, so use this metric for validation and test only.
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
        """Metrics of all samples so far, as returned by :func:`classification_scores`."""
        return classification_scores(dim_zero_cat(self.logits), dim_zero_cat(self.label))
