"""Ternary image classifier: a CIFAR ResNet whose weights are -1, 0 or +1 times a scale, trained with straight-through gradients."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from lightning_modules.base import BaseModule, StageName
from lightning_modules.classification import Classifier
from networks import build_resnet, ternary_shares


class TernaryClassifier(Classifier):
    """A ResNet with ternary convolutions and linears, or with ``quantizer: none`` its full-precision twin.

    Besides loss and accuracy it logs ``ternary/<layer>/minus``, ``zero``, ``plus`` (shares, 0 to 1) and ``scale`` of every ternary
    layer once an epoch, of the weights in training.

    Args:
        architecture: ``resnet18`` (CIFAR stem, 11.2 M parameters) or ``resnet20``/``32``/``56`` of He et al. 2016 (0.27-0.86 M).
        quantizer: Rule that makes weights ternary: ``twn``, ``ttq``, ``absmean``, ``learned_threshold``; ``none`` leaves them.
        scale: One scale (and threshold) per ``layer`` or per output ``channel``.
        full_precision: Parts of the network, by name, that stay in full precision; default stem and classifier.
        activation_bits: 32 leaves activations alone, 8 rounds each ternary layer's input to int8.
        dropout: Probability of dropping a feature before the classifier.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *BaseModule.fixed_on_resume,
        "architecture",
        "quantizer",
        "scale",
        "full_precision",
        "activation_bits",
    )

    def __init__(
        self,
        *,
        architecture: Literal["resnet18", "resnet20", "resnet32", "resnet56"] = "resnet18",
        quantizer: Literal["twn", "ttq", "absmean", "learned_threshold", "none"] = "twn",
        scale: Literal["layer", "channel"] = "channel",
        full_precision: list[str] | None = None,
        activation_bits: Literal[32, 8] = 32,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.architecture, self.quantizer, self.scale = architecture, quantizer, scale
        self.full_precision = ["stem", "classifier"] if full_precision is None else list(full_precision)
        self.activation_bits, self.dropout = activation_bits, dropout
        super().__init__(**kwargs)

    def configure_network(self) -> None:
        """Build the ResNet."""
        self.network = build_resnet(
            self.architecture,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            quantizer=self.quantizer,
            scale=self.scale,
            full_precision=self.full_precision,
            activation_bits=self.activation_bits,
            dropout=self.dropout,
        )

    def log_epoch(self, stage: StageName) -> None:
        """Log loss and accuracy, and with the training figures what the ternary layers look like."""
        first = stage == "train" and self.sums["train_sums"].update_called
        super().log_epoch(stage)
        if first:
            layers = ternary_shares(self.network).items()
            self.log_dict(
                {f"ternary/{layer}/{name}": value for layer, figures in layers for name, value in figures.items()}
            )
