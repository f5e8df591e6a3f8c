"""The frozen backbone of a module: built from its settings, filled with weights, and told apart from another.

A checkpoint holds no backbone, only its identity: full name, hash of the weights, layers, pooling, and how images are prepared for
it. What is loaded in its place must be the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features import hash_tensors
from features.identity import short
from lightning_modules.pretrained import read_weights
from networks.frozen_backbone import FINAL, FrozenBackbone, Pooling
from networks.timm_network import Argument

log = logging.getLogger(__name__)

DEFAULT = "vit_base_patch16_dinov3"
COMPARED = ("backbone", "weights_hash", "layers", "pooling", "image_size", "mean", "std")
"""What must agree for a head to make sense of features, in the order in which it is compared."""


@dataclass
class BackboneSettings:
    """Settings of a module that say what its backbone is; see `networks.frozen_backbone.FrozenBackbone`.

    Args:
        name: Of a timm network.
        network_args: Further arguments of `timm.create_model`, by name.
        image_size: Height and width of the images in pixels.
        in_channels: Channels of the images.
        layers: Layers whose outputs are joined; None: the final features.
        pooling: `cls`, `avg` or `native`; None: what fits the network.
        pretrained: Take timm's weights.
        weights: Run folder, checkpoint, safetensors or torch file.

    Raises:
        ValueError: Two sources of weights are given.
    """

    name: str
    network_args: Mapping[str, Argument] | None
    image_size: int | None
    in_channels: int
    layers: list[int] | None
    pooling: Pooling | None
    pretrained: bool
    weights: str | None

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise ValueError(f"pretrained and weights: only one of them, got {self.pretrained} and {self.weights}")

    def build(self, pretrained: bool = False) -> FrozenBackbone:
        """The backbone with random weights, or with timm's, which may download them."""
        return FrozenBackbone(
            self.name,
            self.network_args,
            self.image_size,
            self.in_channels,
            FINAL if self.layers is None else self.layers,
            self.pooling,
            pretrained,
        )

    def fill(self, backbone: FrozenBackbone, wanted: str | None = None) -> str:
        """Give a backbone the weights of the settings.

        Args:
            backbone: Made by `build`.
            wanted: Hash that the weights should have, for the message where there are none.

        Returns:
            Hash of its tensors.

        Raises:
            ValueError: They cannot be had, or do not fit.
        """
        needed = f"needed are those of {backbone.name}" + (f" with hash {short(wanted)}" if wanted else "")
        if self.weights is not None:
            self._fill_from_file(backbone, self.weights, needed)
        elif self.pretrained:
            backbone.load(self._downloaded(needed).tensors())
        else:
            log.warning(f"backbone: neither weights nor pretrained is given, the frozen {backbone.name} is random")
        found = hash_tensors(backbone.tensors())
        log.info(f"backbone   {backbone.name}: {backbone.feature_width} features, weights {short(found)}")
        return found

    def _fill_from_file(self, backbone: FrozenBackbone, weights: str, needed: str) -> None:
        if not Path(weights).exists():
            raise ValueError(f"weights: {weights} is not there; {needed}")
        try:
            report = backbone.load(read_weights(weights, backbone.tensors().keys()).tensors)
        except ValueError as error:
            raise ValueError(f"weights: {weights}: {str(error).removeprefix(f'{weights}: ')}; {needed}") from error
        for line in report.lines():
            log.info(f"weights: {weights}: {line}")

    def _downloaded(self, needed: str) -> FrozenBackbone:
        try:
            return self.build(pretrained=True)
        except Exception as error:  # of the hub, of the connection, of the file system: each library has its own
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"pretrained: timm's weights of {self.name} could not be had ({type(error).__name__}: {said}); {needed}; "
                "without network give a file by weights (--model.weights FILE) and leave pretrained false"
            ) from error


def describe(backbone: FrozenBackbone, weights_hash: str) -> dict[str, Any]:
    """Identity of a filled backbone as plain values."""
    return {
        "backbone": backbone.name,
        "weights_hash": weights_hash,
        "layers": list(backbone.layers),
        "pooling": backbone.pooling,
        "feature_width": backbone.feature_width,
    }


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Refuse a backbone that is not the one of a head, by the first thing that differs.

    Args:
        found: Identity of what is there.
        wanted: Identity of what the head was trained on.
        where: What the first one is of, for the message.

    Raises:
        ValueError: They differ.
    """
    for name in COMPARED:
        if name in found and name in wanted and found[name] != wanted[name]:
            raise ValueError(
                f"backbone: {name} is {short(found[name])} in {where}, but the head was trained on {short(wanted[name])}"
            )
