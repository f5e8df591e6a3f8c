"""Knowledge distillation: the distillation loss, and loading the teacher network from a run.

    loss = (1 - share) * cross-entropy + share * T^2 * KL(softmax(teacher / T) || softmax(student / T))

With class weights, each sample's cross-entropy and its KL are multiplied by the weight of its class; labels are smoothed in the
cross-entropy only, since the teacher's probabilities are soft.

Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The factor T^2 keeps the gradient of the soft part at the scale of the hard part's
for every T. The teacher gets exactly the student's batch, after cropping and mixing (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.loading import load_run


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, temperature: float, weight: Tensor | None = None
) -> Tensor:
    """T^2 times the batch mean of KL(teacher || student), both softened by the temperature.

    Args:
        logits: Logits of the student (B, K).
        teacher_logits: Logits of the teacher (B, K).
        temperature: T, above 0; both logits are divided by it.
        weight: Weight of each sample in the mean (B,), or None for equal weights.

    Returns:
        The loss, a scalar; 0 if both agree up to a constant per sample.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    if weight is None:
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)
    return (weight * each).sum() / weight.sum() * temperature**2


def load_teacher(run: str, expected: Mapping[str, object]) -> nn.Module:
    """Load the network of a finished run as a teacher, in eval mode and without gradients.

    Args:
        run: Run folder or checkpoint.
        expected: Settings by name that the teacher must share with the student, so that their logits are comparable.

    Raises:
        ValueError: The run cannot be read, or was trained for other classes or other inputs.
    """
    module = load_run(run)
    for name, value in expected.items():
        found = module.hparams.get(name)
        if found is not None and value is not None and _plain(found) != _plain(value):
            raise ValueError(f"{run} has {name} {_plain(found)}, this run {_plain(value)}; both must be the same")
    return module.network.requires_grad_(False).eval()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
