"""Learning from another network: its logits as soft targets.

    loss = (1 - share) * cross-entropy + share * T^2 * KL(softmax(teacher / T) || softmax(student / T))

Hinton, Vinyals and Dean 2015, arXiv 1503.02531; T^2 keeps the soft part's gradient as large as the hard part's whatever T is.
The teacher sees the very batch that the student sees, crops and mixing included (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.loading import load_run


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean Kullback-Leibler divergence of the softened student from the softened teacher.

    Args:
        logits: The student's (B, K).
        teacher_logits: The teacher's (B, K).
        temperature: T, over 0; both logits are divided by it.

    Returns:
        The loss, a scalar; 0 where both agree up to a constant of each sample.
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def load_teacher(run: str, expected: Mapping[str, object]) -> nn.Module:
    """The network of a finished run, in evaluation mode and without gradients.

    Args:
        run: Run folder or checkpoint.
        expected: What the teacher's settings must be, by name, for its logits to mean what the student's do.

    Raises:
        ValueError: It cannot be read, or was trained for other classes or other inputs.
    """
    module = load_run(run)
    for name, value in expected.items():
        found = module.hparams.get(name)
        if found is not None and value is not None and _plain(found) != _plain(value):
            raise ValueError(f"{run} has {name} {_plain(found)}, this run {_plain(value)}; both must be the same")
    return module.network.requires_grad_(False).eval()


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
