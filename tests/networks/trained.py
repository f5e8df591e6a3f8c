"""Helpers for tests: ResNets with batch norms as after training (random statistics, gammas of both signs and zero), and images."""

from typing import Any

import torch
from torch import nn

from networks import ResNet, build_resnet


def as_if_trained(network: ResNet, seed: int = 0) -> ResNet:
    """Set random values in the batch norms, in place, and put the network into eval mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.weight.uniform_(-0.5, 1.5, generator=random)
                norm.weight[3] = 0.0
                norm.bias.normal_(generator=random)
                norm.running_mean.normal_(generator=random)
                norm.running_var.uniform_(0.3, 2.0, generator=random)
        for name, parameter in network.named_parameters():  # ttq: two values that differ
            if name.endswith("quantizer.negative"):
                parameter.mul_(1.25)
    return network.eval()


def resnet(architecture: Any = "resnet20", seed: int = 0, **settings: Any) -> ResNet:
    """A network with weights from a seed and batch norms as after training."""
    torch.manual_seed(seed)
    return as_if_trained(build_resnet(architecture, **{"num_classes": 10, **settings}), seed)


def images(size: int = 12, channels: int = 3, count: int = 4) -> torch.Tensor:
    """Images (count, channels, size, size), normalised."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))
