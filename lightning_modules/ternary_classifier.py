"""Ternary image classifier: a CIFAR ResNet whose weights are -1, 0 or +1 times a scale, trained with straight-through gradients."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_modules.base import BaseModule, Batch, StageName
from lightning_modules.distillation import distillation_loss, load_teacher
from lightning_modules.pretrained import StartsFromWeights, other_run, read_weights
from networks import ResNet, build_resnet, own_names, public_names, ternary_shares, warm_start
from networks.integer import PackedGpuRuntime, PackedRuntime

log = logging.getLogger(__name__)

LIKE_TEACHER = ("num_classes", "class_names", "in_channels", "image_size", "mean", "std")
"""Settings in which a teacher must equal the run."""


class TernaryClassifier(StartsFromWeights):
    """A ResNet with ternary convolutions and linear layers, or with ``quantizer: none`` the same network in full precision.

    Besides loss and accuracy it logs, once per epoch and for every ternary layer, the fractions of the symbols
    ``ternary/<layer>/minus``, ``zero``, ``plus`` (0 to 1) and the ``scale``, computed from the raw (not averaged) weights.

    Args:
        architecture: ``resnet18`` (CIFAR stem, 11.2 M parameters) or ``resnet20``/``32``/``56`` of He et al. 2016 (0.27-0.86 M).
        quantizer: Rule that makes weights ternary: ``twn``, ``ttq``, ``absmean``, ``learned_threshold``; ``none``: full precision.
        scale: One scale (and threshold) per ``layer`` or per output ``channel``.
        full_precision: Names of the parts of the network that stay in full precision; default stem and classifier.
        activation_bits: 32 does not quantise activations, 8 rounds the input of each ternary layer to int8.
        dropout: Probability of dropping a feature before the classifier.
        init_from: Run folder, checkpoint or weights.safetensors of the same architecture, ternary or not, to start from, or a
            file of pytorch_resnet_cifar10 or pytorch-cifar. Learned scales are set from the loaded weights. A resumed run does not
            read it again.
        teacher: Run folder or checkpoint of a network of any architecture that is used as distillation teacher, or a file of
            plain weights of a full-precision ResNet of the list above.
        distill_share: Weight of the distillation term in the loss, 0 to 1 (see lightning_modules/distillation.py).
        distill_temperature: Temperature T of the softened probabilities, above 0.
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
        init_from: str | None = None,
        teacher: str | None = None,
        distill_share: float = 0.9,
        distill_temperature: float = 4.0,
        **kwargs: Any,
    ) -> None:
        if not 0 <= distill_share <= 1:
            raise ValueError(f"distill_share: a share of the loss, 0 to 1, got {distill_share}")
        if distill_temperature <= 0:
            raise ValueError(f"distill_temperature: a value over 0, got {distill_temperature}")
        self.architecture, self.quantizer, self.scale = architecture, quantizer, scale
        self.full_precision = ["stem", "classifier"] if full_precision is None else list(full_precision)
        self.activation_bits, self.dropout = activation_bits, dropout
        self.init_from, self.teacher = init_from, teacher
        self.distill_share, self.distill_temperature = distill_share, distill_temperature
        self._teacher: list[nn.Module] = []  # in a list, so that the teacher's weights are not registered here
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

    def give_weights(self) -> list[tuple[int, str]]:
        """Load ``init_from``; all of its tensors must fit; see :class:`StartsFromWeights`."""
        if self.init_from is not None:
            try:
                names = self.network.state_dict().keys()
                tensors = read_weights(self.init_from, {*names, *public_names(names)}).tensors
                warm_start(self.network, self._of_this_rule(own_names(tensors)))
            except ValueError as error:
                text = str(error).removeprefix(f"{self.init_from}: ")
                other = other_run(self.init_from, self) if "the weights" in text else ""
                raise ValueError(f"init_from: {self.init_from}: {text}{other}") from error
            source = Path(self.init_from).resolve()
            if source.is_file() and not any((folder / "config.yaml").is_file() for folder in source.parents[:2]):
                log.info(
                    "init_from: a file does not tell which images it was trained on; if the validation images are among them, "
                    "val metrics are too good and the best epoch is an early one: then use the last (test --ckpt last)"
                )
        return []

    def use_packed_runtime(self) -> None:
        """Compute the network with integers (networks/integer/), on the CPU or on the GPU where the module is.

        Raises:
            KernelError: The kernel cannot be compiled, or does not run on this device.
        """
        try:
            if self.device.type == "cuda":
                self.network = PackedGpuRuntime.of(cast(ResNet, self.network)).to(self.device)
            else:
                self.network = PackedRuntime.of(cast(ResNet, self.network))
        except ValueError as error:
            raise ValueError(f"runtime packed: {error}") from error
        self.channels_last = False  # the kernel has its own layout

    def setup(self, stage: str) -> None:
        """Compute the class weights and load the teacher."""
        super().setup(stage)
        if stage == "fit" and self.teacher is not None and self.distill_share > 0:
            inputs = {name: self.hparams[name] for name in LIKE_TEACHER if self.hparams[name] is not None}
            try:
                self._teacher = [load_teacher(self.teacher, inputs)]
            except ValueError as error:
                raise MisconfigurationException(f"teacher: {error}") from error

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        unused = super().unused_settings()
        if self.quantizer == "none":
            unused |= dict.fromkeys(("scale", "full_precision"), "quantizer none")
        if self.teacher is None:
            return unused | dict.fromkeys(("distill_share", "distill_temperature"), "no teacher")
        if self.distill_share == 0:
            return unused | dict.fromkeys(("teacher", "distill_temperature"), "distill_share 0")
        return unused | ({"label_smoothing": "distill_share 1, no cross-entropy"} if self.distill_share == 1 else {})

    def _of_this_rule(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights without the learned scales of another rule, so that the scales are set from the weights."""
        own = {name: tensor.shape for name, tensor in self.network.state_dict().items() if ".quantizer." in name}
        given = {name: tensor.shape for name, tensor in weights.items() if ".quantizer." in name}
        return weights if given == own else {name: weights[name] for name in weights if name not in given}

    def on_fit_start(self) -> None:
        """Move the teacher to the network's device, set its memory format and compile it."""
        super().on_fit_start()
        for teacher in self._teacher:
            teacher.to(self.device)
            if self.channels_last:
                teacher.to(memory_format=torch.channels_last)
            if self.compile_network:
                teacher.compile(mode=self.compile_mode)

    def training_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy, combined with the distillation loss if there is a teacher."""
        loss = super().training_loss(logits, batch)
        for teacher in self._teacher:
            image = batch["image"]
            if self.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                soft = teacher(image)
            distilled = distillation_loss(logits, soft, self.distill_temperature, self.sample_weights(batch))
            loss = torch.lerp(loss, distilled, self.distill_share)
        return loss

    def log_epoch(self, stage: StageName) -> None:
        """Log loss and accuracy; together with the training metrics also symbol fractions and scales of the ternary layers."""
        first = stage == "train" and self.sums["train_sums"].update_called
        super().log_epoch(stage)
        if first:
            layers = ternary_shares(self.network).items()
            self.log_dict(
                {f"ternary/{layer}/{name}": value for layer, metrics in layers for name, value in metrics.items()}
            )
