"""Finds the batch norms of a module that training updates."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained_batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers whose running statistics training updates, by name; frozen layers are left out."""
    modes = {part: part.training for part in module.modules()}
    module.train()
    found = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats and part.training
    }
    for part, mode in modes.items():
        part.training = mode
    return found
