"""Base of classifiers whose encoder is frozen for some epochs, or always, and trained afterwards, within one resumable run."""

from __future__ import annotations

import fnmatch
import logging
import warnings
from typing import Any, ClassVar, Literal, Protocol, cast

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_modules.base import BaseModule
from lightning_modules.classification import Classifier

log = logging.getLogger(__name__)


class HasEncoder(Protocol):
    """Attributes that the network must have."""

    encoder: nn.Module
    frozen: bool
    """The encoder is in eval mode and gets no gradients."""


class FrozenThenTrained(Classifier):
    """A classifier whose network has an `encoder` and a flag `frozen`; the rest of the network is its head.

    The optimiser has all parameter groups from the first step on. It skips parameters without gradient: no weight decay, no
    moments. Frozen weights therefore stay bit-identical, and whether the encoder is frozen depends only on the epoch.

    Args:
        freeze: ``backbone`` freezes the encoder in eval mode; ``none`` trains everything.
        unfreeze_epoch: First epoch, counted from 0, in which a frozen encoder is trained too; None: never.
        unfreeze_lr: Factor on ``lr`` of head and encoder from that epoch on; the schedule restarts there, without warm-up.
        backbone_lr: Factor on the learning rate of the encoder, above 0.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (*BaseModule.fixed_on_resume, "freeze", "unfreeze_epoch")

    def __init__(
        self,
        *,
        freeze: Literal["none", "backbone"] = "none",
        unfreeze_epoch: int | None = None,
        unfreeze_lr: float = 0.05,
        backbone_lr: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if unfreeze_epoch is not None and (freeze != "backbone" or unfreeze_epoch < 1):
            wanted = "an epoch of at least 1, with freeze: backbone"
            raise ValueError(f"unfreeze_epoch: {wanted}, got {unfreeze_epoch} with freeze: {freeze}")
        for name, value in (("unfreeze_lr", unfreeze_lr), ("backbone_lr", backbone_lr)):
            if value <= 0:
                raise ValueError(f"{name}: a factor over 0, got {value}")
        self.freeze_part, self.unfreeze_epoch, self.unfreeze_lr = freeze, unfreeze_epoch, unfreeze_lr
        self.backbone_lr = backbone_lr
        super().__init__(**kwargs)
        if freeze == "backbone" and unfreeze_epoch is None:
            self._switched.encoder.requires_grad_(False)
        self._follow_epoch()

    @property
    def _switched(self) -> HasEncoder:
        return cast(HasEncoder, self.network)

    def _follow_epoch(self) -> None:
        """Freeze or unfreeze the encoder depending only on the epoch, so that a resumed run gets the same state."""
        frozen = self.freeze_part == "backbone" and (
            self.unfreeze_epoch is None or self.current_epoch < self.unfreeze_epoch
        )
        if frozen != self._switched.frozen:
            self._switched.frozen = frozen
            if not frozen:
                log.info(f"unfrozen   the encoder is trained from epoch {self.current_epoch} on")
        self.train(self.training)

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        if self.freeze_part == "none":
            return
        # the encoder is in eval mode on purpose
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")
        unused = getattr(self.trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
        if self.trainer.world_size > 1 and self.unfreeze_epoch is not None and not unused:
            raise MisconfigurationException(
                "unfreeze_epoch: the encoder has no gradients before that epoch, so with several processes DDP must find unused "
                "parameters; add --trainer.strategy ddp_find_unused_parameters_true"
            )

    def on_train_start(self) -> None:
        """See :class:`BaseModule`; needed because a run that resumes mid-epoch does not call ``on_train_epoch_start``."""
        super().on_train_start()
        self._follow_epoch()

    def on_train_epoch_start(self) -> None:
        """See :class:`Classifier`; also unfreezes the encoder at ``unfreeze_epoch``."""
        super().on_train_epoch_start()
        self._follow_epoch()

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        unused = super().unused_settings()
        if self.unfreeze_epoch is None:
            unused["unfreeze_lr"] = "no unfreeze_epoch"
            if self.freeze_part == "backbone":
                unused |= dict.fromkeys(("backbone_lr", "drop_path"), "freeze backbone, no unfreeze_epoch")
        return unused

    def batch_norms(self) -> dict[str, nn.Module]:
        """See :class:`BaseModule`; includes those of an encoder that is frozen until ``unfreeze_epoch``."""
        frozen = self._switched.frozen
        self._switched.frozen = frozen and self.unfreeze_epoch is None
        try:
            return super().batch_norms()
        finally:
            self._switched.frozen = frozen

    def _rows(self) -> list[tuple[int, int, float]] | None:
        """Two stages of the schedule, before and from ``unfreeze_epoch``; see :class:`BaseModule`."""
        rows, epochs = super()._rows(), self.trainer.max_epochs
        if self.unfreeze_epoch is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return rows
        if rows is not None:
            raise MisconfigurationException(
                "unfreeze_epoch: a callback divides the run into stages already; use only one of the two"
            )
        if epochs is None or epochs <= self.unfreeze_epoch:
            raise MisconfigurationException(
                f"model.unfreeze_epoch: it must be before the end of the run, --trainer.max_epochs {epochs}, "
                f"got {self.unfreeze_epoch}"
            )
        steps, left = self._steps_per_epoch(), epochs - self.unfreeze_epoch
        return [(self.unfreeze_epoch, self.unfreeze_epoch * steps, 1.0), (left, left * steps, self.unfreeze_lr)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups ``head_weights``, ``head_vectors`` and, unless always frozen, ``backbone_weights``, ``backbone_vectors``."""
        excepted = [
            f"encoder.{name}.{pattern}".replace("..", ".")
            for name, module in self._switched.encoder.named_modules()
            if hasattr(module, "no_weight_decay")
            for pattern in module.no_weight_decay()
        ]
        groups: dict[str, dict[str, Any]] = {
            f"{part}_{kind}": {
                "params": [],
                "name": f"{part}_{kind}",
                "lr": self.lr * (self.backbone_lr if part == "backbone" else 1.0),
                "weight_decay": self.weight_decay if kind == "weights" else 0.0,
            }
            for part in ("head", "backbone")
            for kind in ("weights", "vectors")
        }
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                part = "backbone" if name.startswith("encoder.") else "head"
                vector = parameter.numel() == max(parameter.shape, default=1)
                vector = vector or any(fnmatch.fnmatch(name, pattern) for pattern in excepted)
                groups[f"{part}_{'vectors' if vector else 'weights'}"]["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]
