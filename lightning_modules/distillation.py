"""Knowledge distillation: the distillation loss, and loading the teacher network from a run or from plain weights.

    loss = (1 - share) * cross-entropy + share * T^2 * KL(softmax(teacher / T) || softmax(student / T))

With class weights, each sample's cross-entropy and its KL are multiplied by the weight of its class; labels are smoothed in the
cross-entropy only, since the teacher's probabilities are soft.

Hinton, Vinyals and Dean 2015, arXiv 1503.02531. The factor T^2 keeps the gradient of the soft part at the scale of the hard part's
for every T. The teacher gets exactly the student's batch, after cropping and mixing (Beyer et al. 2022, arXiv 2106.05237).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.loading import load_run
from lightning_modules.pretrained import read_weights
from networks import Architecture, ResNet, build_resnet, own_names, warm_start

log = logging.getLogger(__name__)


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


def load_teacher(source: str, expected: Mapping[str, object]) -> nn.Module:
    """Load the network of a finished run, or a full-precision ResNet from plain weights, as a teacher without gradients.

    Args:
        source: Run folder, checkpoint of a run, or a file of weights of `resnet18`, `resnet20`, `resnet32` or `resnet56`: its
            `weights.safetensors`, or a file of pytorch_resnet_cifar10 or pytorch-cifar. Such a file does not tell the
            normalisation of its training, so the log says which one is assumed.
        expected: Settings by name that the teacher must share with the student, so that their logits are comparable.

    Raises:
        ValueError: The source cannot be read, was trained for other classes or other inputs, or is of no ResNet of ours.
    """
    path = Path(source)
    if path.is_file() and path.resolve().parent.name != "checkpoints":
        network: nn.Module = _from_plain_weights(path, expected)
        return network.requires_grad_(False).eval()
    module = load_run(source)
    for name, value in expected.items():
        found = module.hparams.get(name)
        if found is not None and value is not None and _plain(found) != _plain(value):
            raise ValueError(f"{source} has {name} {_plain(found)}, this run {_plain(value)}; both must be the same")
    return module.network.requires_grad_(False).eval()


def _from_plain_weights(path: Path, expected: Mapping[str, object]) -> ResNet:
    classes, channels = (int(str(expected[name])) for name in ("num_classes", "in_channels"))
    candidates = {
        name: build_resnet(name, num_classes=classes, in_channels=channels, quantizer="none")
        for name in get_args(Architecture)
    }
    tensors = own_names(read_weights(str(path), candidates["resnet56"].state_dict().keys()).tensors)
    for name, network in candidates.items():
        if _shapes(network.state_dict()) == _shapes(tensors):
            warm_start(network, tensors)
            inputs = ", ".join(f"{key} {_plain(expected[key])}" for key in ("mean", "std") if key in expected)
            log.info(f"teacher: {path} is a {name} in full precision; it gets the inputs of this run ({inputs})")
            return network
    known = ", ".join(candidates)
    raise ValueError(
        f"{path}: is not a {known} of {classes} classes and {channels} channels; of others give the run folder"
    )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dim() > 0
    }  # without batch norms' counters


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
