"""Losses as pure functions of logits and targets: of classes, and of masks (`lightning_modules.losses.segmentation`)."""

from lightning_modules.losses.classification import (
    balanced_weights,
    classification_loss,
    sample_weights,
    weights_by_name,
)

__all__ = ["balanced_weights", "classification_loss", "sample_weights", "weights_by_name"]
