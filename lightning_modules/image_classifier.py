"""Image classifier: any network of timm, from scratch or from weights, with a frozen backbone or learning rates by layer."""

from __future__ import annotations

import fnmatch
import logging
import warnings
from typing import Any, ClassVar, Literal

import timm
import torch
from torch import nn

from lightning_modules.base import BaseModule
from lightning_modules.pretrained import SavedWeights, StartsFromWeights, read_weights
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


class ImageClassifier(StartsFromWeights):
    """A timm network. The head is its classifier, the last linear layer; the backbone is everything else.

    Args:
        architecture: Name of a timm network (``timm.list_models()``); with ``pretrained`` a tag can follow: ``resnet50.a1_in1k``.
        network_args: Further arguments of ``timm.create_model``, by name, such as ``pad_type: same``.
        dropout: Probability of dropping a feature before the head.
        drop_path: Probability of skipping a residual branch (stochastic depth), where the network has them; that of the last block.
        pretrained: Start from timm's own weights, which are downloaded when training begins.
        weights: Run folder, checkpoint, safetensors or torch file to start from. What fits is loaded and the rest is said; rows of
            the head are taken over by class name where both sides have names. A resumed run does not need it any more.
        min_loaded: Least share of the network's weights outside the head that ``weights`` must fill, 0 to 1.
        freeze: ``backbone`` trains the head alone, the rest stays as it is to the bit, in eval mode; ``norm_statistics`` trains all
            weights and keeps only the statistics of batch norms; ``none`` trains everything.
        backbone_lr: Factor on the learning rate of the backbone, over 0.
        layer_decay: Factor on the learning rate from each layer to the one before it, over 0 and at most 1; layers are those that
            timm groups (a block each), and the head has ``lr``.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *BaseModule.fixed_on_resume,
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
        min_loaded: float = 0.5,
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
            raise ValueError(f"pretrained and weights: only one of them, got {pretrained} and {weights}")
        if not 0 <= min_loaded <= 1:
            raise ValueError(f"min_loaded: a share of the network, 0 to 1, got {min_loaded}")
        if backbone_lr <= 0:
            raise ValueError(f"backbone_lr: a factor over 0 (for 0 there is freeze: backbone), got {backbone_lr}")
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay: a factor over 0, at most 1, got {layer_decay}")
        if freeze == "backbone" and (backbone_lr, layer_decay) != (1, 1):
            raise ValueError("backbone_lr and layer_decay: leave them at 1.0, for freeze: backbone trains no backbone")
        super().__init__(**kwargs)
        self.train()

    # ---- the network ----

    def configure_network(self) -> None:
        """Build the network and freeze what is to be frozen; nothing is downloaded."""
        self.network = self._build(pretrained=False)
        if self.pretrained and not timm.models.is_model_pretrained(self.architecture.partition(".")[0]):
            raise ValueError(f"pretrained: timm has no weights of {self.architecture}; give a file by weights")
        if self.freeze_part == "backbone":
            heads = classifier_names(self.network)
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad = is_inside(name, heads)
        elif self.freeze_part == "norm_statistics" and not statistics_modules(self.network):
            raise ValueError(f"freeze: norm_statistics: {self.architecture} has no batch norms")
        if self.layer_decay != 1:
            layer_numbers(self.network)  # says so where timm knows none

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
        """Training mode for all but what is frozen: its batch norms would drift and its dropout would blur what does not learn."""
        super().train(mode)
        if mode and self.freeze_part != "none":
            frozen = backbone_modules if self.freeze_part == "backbone" else statistics_modules
            for module in frozen(self.network):
                module.training = False
        return self

    def on_fit_start(self) -> None:
        """See :class:`BaseModule`."""
        super().on_fit_start()
        if self.freeze_part != "none":  # Lightning warns of modules in eval mode, which are meant to be
            warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode at the start of training")

    # ---- weights to start from ----

    def give_weights(self) -> list[tuple[int, str]]:
        """Start from ``weights`` or timm's own; see :class:`StartsFromWeights`."""
        setting = "weights" if self.weights is not None else "pretrained"
        if self.weights is not None:
            try:
                saved = read_weights(self.weights, self.network.state_dict().keys())
            except ValueError as error:
                raise ValueError(f"weights: {error}") from error
        elif self.pretrained:
            saved = self._download()
        else:
            unsaid = "freeze: backbone without weights or pretrained: what is frozen is random"
            return [(logging.WARNING, unsaid)] if self.freeze_part == "backbone" else []
        source = self.weights or f"timm's {self.architecture}"
        try:
            report = transfer(
                self.network,
                saved.tensors,
                source_classes=saved.class_names,
                classes=self.class_names,
                min_loaded=self.min_loaded,
            )
        except ValueError as error:
            raise ValueError(f"{setting}: {source}: {error}") from error
        if self.freeze_part == "none" and (folded := folded_norms(self.network)):
            raise ValueError(
                f"{setting}: {source}: {len(folded)} batch norms have mean 0 and variance 1, they were folded into the layers "
                "before, and the statistics of a batch would destroy what the network knows; add --model.freeze norm_statistics"
            )
        said = [(logging.INFO, line) for line in report.lines()]
        ours, theirs = (self.mean, self.std), (saved.mean, saved.std)
        if None not in (*ours, *theirs) and ours != theirs:
            there, here = (f"mean {mean}, std {std}" for mean, std in (theirs, ours))
            said.append((logging.WARNING, f"trained on images of {there}; those of this run have {here}"))
        return [(level, f"{setting}: {source}: {line}") for level, line in said]

    def _download(self) -> SavedWeights:
        """Weights of timm, brought into shape by timm: other channels, another grid, no head where the classes differ."""
        try:
            with torch.random.fork_rng(devices=[]):  # building a network draws numbers
                network = self._build(pretrained=True)
        except Exception as error:  # of the hub, of the connection, of the file system: each library has its own
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"pretrained: timm's weights of {self.architecture} could not be had ({type(error).__name__}: {said}); "
                "without network give a file by weights (--model.weights FILE)"
            ) from error
        config: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        state = network.state_dict()
        if config["num_classes"] != self.num_classes:
            heads = classifier_names(network)
            state = {name: tensor for name, tensor in state.items() if not is_inside(name, heads)}
        return SavedWeights(state, None, list(config["mean"]), list(config["std"]))

    # ---- learning rates ----

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Weights and vectors, apart for the head, the backbone or its layers where their learning rates differ.

        Groups are called ``weights`` and ``vectors``; ``head_weights``, ``backbone_weights``, ... with ``backbone_lr``;
        ``head_weights``, ``layer03_weights``, ... with ``layer_decay``. The first has the highest learning rate. Not decayed are
        vectors, and what timm says is not to be (position embeddings).
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
        """Prefix of a group's name, and factor on its learning rate."""
        factor = self.layer_decay ** (last - layer) * (1.0 if head else self.backbone_lr)
        if self.layer_decay != 1:
            return ("head_" if head else f"layer{layer:02d}_"), factor
        if self.backbone_lr != 1:
            return ("head_" if head else "backbone_"), factor
        return "", factor

    def _undecayed(self) -> set[str]:
        """Parameters that timm excepts from weight decay; it may give them as patterns."""
        patterns = self.network.no_weight_decay() if hasattr(self.network, "no_weight_decay") else ()  # type: ignore[operator]
        names = [name for name, _ in self.network.named_parameters()]
        return {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
