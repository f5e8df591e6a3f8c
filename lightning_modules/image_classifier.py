"""Image classifier with any timm network: training from scratch, fine-tuning, frozen backbone, layer-wise learning rates."""

from __future__ import annotations

import fnmatch
import logging
import warnings
from typing import Any, ClassVar, Literal

import timm
import torch
from torch import nn

from foundation.hub import hub_or_cache
from lightning_modules.adapted_classifier import AdaptedClassifier
from lightning_modules.pretrained import ADAPTED, ONE_SOURCE, SavedWeights, read_weights, said_of
from networks.adapters import is_adapter
from networks.timm_network import (
    backbone_modules,
    build_timm_network,
    classifier_names,
    folded_norms,
    is_inside,
    layer_numbers,
    statistics_modules,
)
from networks.transfer import transfer


class ImageClassifier(AdaptedClassifier):
    """Classifies images with a timm network. The head is its classifier, the last linear layer; the backbone is everything else.

    Args:
        architecture: Name of a timm network (``timm.list_models()``); with ``pretrained``, a tag may follow: ``resnet50.a1_in1k``.
        network_args: Further keyword arguments of ``timm.create_model``, such as ``pad_type: same``.
        dropout: Probability of dropping a feature before the head.
        drop_path: Maximum probability of skipping a residual branch (stochastic depth), reached in the last block; if supported.
        pretrained: Start from timm's pretrained weights, which are downloaded when training begins.
        weights: Run, checkpoint, safetensors or torch file, or Hugging Face folder. Tensors that fit are loaded, others are listed
            in the log. Rows of the head are matched by class name if both sides have names. A resumed run does not read it again.
        min_loaded: Minimum fraction of the network's weights outside the head that ``weights`` must fill, 0 to 1; a frozen backbone
            must be filled completely.
        freeze: ``backbone`` trains only the head; the backbone stays bit-identical and in eval mode. ``norm_statistics`` trains all
            weights and freezes only the statistics of batch norms. ``none`` trains everything. With ``adapter lora`` the backbone
            is always frozen.
        backbone_lr: Factor on the learning rate of the backbone, above 0; with adapters, on theirs.
        layer_decay: Factor on the learning rate from each layer to the one before it, above 0 and at most 1. Layers are grouped by
            timm (one per block); the head uses ``lr``.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *AdaptedClassifier.fixed_on_resume,
        "architecture",
        "network_args",
        "freeze",
        "backbone_lr",
        "layer_decay",
    )

    def __init__(
        self,
        *,
        architecture: str = "resnet50",
        network_args: dict[str, bool | int | float | str | None] | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pretrained: bool = False,
        weights: str | None = None,
        min_loaded: float = 1.0,
        freeze: Literal["none", "backbone", "norm_statistics"] = "none",
        backbone_lr: float = 1.0,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.architecture, self.network_args = architecture, network_args
        self.dropout, self.drop_path = dropout, drop_path
        self.pretrained, self.weights, self.min_loaded = pretrained, weights, min_loaded
        self.freeze_part, self.backbone_lr, self.layer_decay = freeze, backbone_lr, layer_decay
        if pretrained and weights is not None:
            raise ValueError(ONE_SOURCE.format(weights))
        if not 0 <= min_loaded <= 1:
            raise ValueError(f"min_loaded: a share of the network, 0 to 1, got {min_loaded}")
        if backbone_lr <= 0:
            raise ValueError(f"backbone_lr: a factor over 0 (for 0 there is freeze: backbone), got {backbone_lr}")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay: a factor over 0, at most 1, got {layer_decay}")
        if kwargs.get("adapter", "none") != "none":
            if freeze == "norm_statistics":
                raise ValueError(
                    "freeze: norm_statistics trains all weights, and adapter lora freezes the backbone; leave it out"
                )
            self.freeze_part = "backbone"
        elif freeze == "backbone":
            # a configuration may have them for another run; on_fit_start says that they are without effect
            self.backbone_lr = self.layer_decay = 1.0
        super().__init__(**kwargs)
        self.train()

    # ---- the network ----

    def configure_network(self) -> None:
        """Build the network, with its adapters, and freeze parameters according to ``freeze``; downloads nothing."""
        self.network = self.plain_network()
        if self.pretrained and not timm.models.is_model_pretrained(self.architecture.partition(".")[0]):
            raise ValueError(f"pretrained: timm has no weights of {self.architecture}; set weights to a file")
        if self.freeze_part == "backbone":
            heads = classifier_names(self.network)
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad = is_inside(name, heads)
        elif self.freeze_part == "norm_statistics" and not statistics_modules(self.network):
            raise ValueError(f"freeze: norm_statistics: {self.architecture} has no batch norms")
        if self.layer_decay != 1:
            layer_numbers(self.network)  # raises if timm defines no layers for this network
        self.adapt_network()

    def plain_network(self) -> nn.Module:
        """See :class:`AdaptedClassifier`."""
        return self._build(pretrained=False)

    def _build(self, pretrained: bool) -> nn.Module:
        return build_timm_network(
            self.architecture,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
            image_size=self.image_size,
            dropout=self.dropout,
            drop_path=self.drop_path,
            network_args=self.network_args,
            pretrained=pretrained,
        )

    def train(self, mode: bool = True) -> ImageClassifier:
        """Set training mode, except for frozen modules: their batch-norm statistics would drift, and dropout would add noise."""
        super().train(mode)
        if mode and self.freeze_part != "none":
            frozen = backbone_modules if self.freeze_part == "backbone" else statistics_modules
            for module in frozen(self.network):
                module.training = False
        return self

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        if self.freeze_part != "none":  # Lightning warns of modules in eval mode, which is intended here
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    # ---- weights to start from ----

    def fill(self, network: nn.Module) -> list[tuple[int, str]]:
        """Load ``weights`` or timm's pretrained weights; see :class:`AdaptedClassifier`."""
        setting = "weights" if self.weights is not None else "pretrained"
        if self.weights is not None:
            try:
                saved = read_weights(self.weights, network.state_dict().keys())
            except ValueError as error:
                raise ValueError(f"weights: {error}") from error
        elif self.pretrained:
            saved = self._download()
        else:
            ways = "--model.weights FILE, or --model.pretrained true, or --model.freeze none"
            warning = f"freeze: backbone without weights: the frozen backbone is random; give {ways}"
            return [(logging.WARNING, warning)] if self.freeze_part == "backbone" else []
        source = self.weights or f"timm's {self.architecture}"
        try:
            report = transfer(
                network,
                saved.tensors,
                source_classes=saved.class_names,
                classes=self.class_names,
                min_loaded=self.min_loaded,
                frozen=self.freeze_part == "backbone",
            )
        except ValueError as error:
            raise ValueError(f"{setting}: {source}: {error}") from error
        if self.freeze_part == "none" and (folded := folded_norms(network)):
            raise ValueError(
                f"{setting}: {source}: {len(folded)} batch norms have mean 0 and variance 1: they were folded into the layers "
                "before them, and training with batch statistics would destroy the features; add --model.freeze norm_statistics"
            )
        lines = report.levels()
        ours, theirs = (self.mean, self.std), (saved.mean, saved.std)
        if None not in (*ours, *theirs) and ours != theirs:
            there, here = (f"mean {mean}, std {std}" for mean, std in (theirs, ours))
            lines.append((logging.WARNING, f"trained on images normalised with {there}; this run uses {here}"))
        if self.weights is None and self.in_channels != 3:
            lines.append((logging.INFO, f"{ADAPTED} {self.in_channels} channels of this run"))
        return said_of(setting, source, lines)

    def _download(self) -> SavedWeights:
        """Download timm's weights; timm adapts them to channels and grid. The head is left out if the number of classes differs."""
        try:
            with hub_or_cache(), torch.random.fork_rng(devices=[]):  # building a network draws random numbers
                network = self._build(pretrained=True)
        except Exception as error:  # hub, connection or file system: each library has its own error classes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"pretrained: timm's weights of {self.architecture} could not be loaded ({type(error).__name__}: {reason}); "
                "without network access load them from a file: --model.weights FILE --model.pretrained false"
            ) from error
        config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        state = network.state_dict()
        if config["num_classes"] != self.num_classes:
            heads = classifier_names(network)
            state = {name: tensor for name, tensor in state.items() if not is_inside(name, heads)}
        return SavedWeights(state, None, list(config["mean"]), list(config["std"]))

    def unused_settings(self) -> dict[str, str]:
        """See :class:`BaseModule`."""
        unused = super().unused_settings()
        if self.adapter != "none":
            unused |= {"drop_path": f"adapter {self.adapter}"}
        elif self.freeze_part == "backbone":
            unused |= dict.fromkeys(("drop_path", "backbone_lr", "layer_decay"), "freeze backbone")
        return unused if self.weights or self.pretrained else {**unused, "min_loaded": "no weights"}

    # ---- learning rates ----

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups: weights and vectors, separate for head, backbone or layers if their learning rates differ.

        The groups are named ``weights`` and ``vectors``; with ``backbone_lr``: ``head_weights``, ``backbone_weights``, ...; with
        ``layer_decay``: ``head_weights``, ``layer03_weights``, .... The first group has the highest learning rate. Weight decay is
        not applied to vectors and to parameters that timm excludes (position embeddings).
        """
        heads = classifier_names(self.network)
        layers = layer_numbers(self.network) if self.layer_decay != 1 else {}
        last = max(layers.values(), default=0)
        undecayed = self._undecayed()
        groups: dict[tuple[int, int], dict[str, Any]] = {}
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            head, layer = is_inside(name, heads), layers.get(name, last)
            part, factor = self._part(head, layer, last)
            vector = parameter.numel() == max(parameter.shape, default=1) or name in undecayed
            vector = vector and not is_adapter(name)  # those of rank 1 are matrices, too
            kind = "vectors" if vector else "weights"
            group = {
                "params": [],
                "name": f"{part}{kind}",
                "lr": self.lr * factor,
                "weight_decay": 0.0 if vector else self.weight_decay,
            }
            # head first, then the layers from the last to the first
            rank = -1 if head and part else last - layer
            groups.setdefault((rank, int(vector)), group)["params"].append(parameter)
        return [groups[key] for key in sorted(groups)]

    def _part(self, head: bool, layer: int, last: int) -> tuple[str, float]:
        """Prefix of a group's name and factor on its learning rate."""
        factor = self.layer_decay ** (last - layer) * (1.0 if head else self.backbone_lr)
        if self.layer_decay != 1:
            return ("head_" if head else f"layer{layer:02d}_"), factor
        if self.backbone_lr != 1:
            return ("head_" if head else "backbone_"), factor
        return "", factor

    def _undecayed(self) -> set[str]:
        """Names of the parameters that timm excludes from weight decay; timm may specify them as patterns."""
        patterns = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()  # type: ignore[operator]
        names = [name for name, _ in self.network.named_parameters()]
        return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
