"""Says before the first step of a fit that its checkpoints will not fit on the disk: a full disk ends a run hours later."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from foundation.disk import existing, free_space

log = logging.getLogger(__name__)

FILES = 3  # best.ckpt, last.ckpt, and the one being written
OPTIMIZER = 2  # values that an optimiser keeps for each trained weight, at most


def check_space(folder: Path, pl_module: LightningModule, averaged: bool) -> None:
    """Check that the disk of a folder has room for the checkpoints of a module.

    Args:
        folder: Folder of the checkpoints, which need not exist.
        pl_module: The module.
        averaged: Whether a checkpoint holds averaged weights, too.

    Raises:
        MisconfigurationException: Not even the weights of one checkpoint fit.
    """
    left_out = getattr(pl_module, "left_out", ())  # frozen weights below adapters
    saved = [tensor for name, tensor in pl_module.state_dict().items() if name not in left_out]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in saved)
    trained = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    least = weights * (2 if averaged else 1)
    needed, free = FILES * (least + OPTIMIZER * trained), free_space(folder)
    left = f"{free / 1e9:.3g} GB are free in {existing(folder)}"
    if free < least:
        raise MisconfigurationException(
            f"disk: a checkpoint takes at least {least / 1e9:.3g} GB, but only {left}; make room, or give another --run_dir"
        )
    if free < needed:
        log.warning(f"disk: {FILES} checkpoints may take {needed / 1e9:.3g} GB, and {left}")
