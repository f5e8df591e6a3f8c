"""Builds a frozen backbone from settings, loads its weights, and checks that it equals the one a head was trained on.

A checkpoint does not hold the backbone, only its identity: full name, hash of the weights, layers, pooling and image preprocessing.
A backbone loaded later must have the same identity.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from features import hash_tensors
from features.identity import short
from foundation.hub import hub_or_cache
from foundation.sizes import Size
from lightning_modules.pretrained import ADAPTED, ONE_SOURCE, absent, read_weights, said_of
from networks.frozen_backbone import FrozenBackbone, full_name
from networks.timm_features import FINAL, Pooling
from networks.timm_network import Argument

log = logging.getLogger(__name__)

DEFAULT = "vit_base_patch16_dinov3"
WAYS = "--model.weights FILE of main.py, --weights FILE of a tool, or load_run(..., weights=FILE)"
"""How a user says where the weights of a trained head's backbone are."""
COMPARED = ("backbone", "weights_hash", "layers", "pooling", "image_size", "mean", "std")
"""Fields that must be equal for a head to work on features, in the order of comparison."""


@dataclass
class BackboneSettings:
    """Settings that define a frozen backbone; see `networks.frozen_backbone.FrozenBackbone`.

    Args:
        name: Name of a timm network.
        network_args: Further keyword arguments of `timm.create_model`.
        image_size: Side of the images in pixels, or their height and width.
        in_channels: Channels of the images.
        layers: Layers whose outputs are concatenated; None: the final features.
        pooling: `cls`, `avg` or `native`; None: the default of the network.
        pretrained: Use timm's weights.
        weights: Run, checkpoint, safetensors or torch file, or Hugging Face folder.

    Raises:
        ValueError: Both ``pretrained`` and ``weights`` are given.
    """

    name: str
    network_args: Mapping[str, Argument] | None
    image_size: Size | None
    in_channels: int
    layers: list[int] | None
    pooling: Pooling | None
    pretrained: bool
    weights: str | None

    def __post_init__(self) -> None:
        if self.pretrained and self.weights is not None:
            raise ValueError(ONE_SOURCE.format(self.weights))

    @property
    def weights_from(self) -> dict[str, str] | None:
        """Where the weights come from: ``{"file": absolute path}``, ``{"pretrained": name}``, or None for random weights."""
        if self.weights is not None:
            return {"file": str(Path(self.weights).resolve())}
        return {"pretrained": self.name} if self.pretrained else None

    def take_weights_from(self, place: Mapping[str, str]) -> None:
        """Set ``weights``, or ``name`` and ``pretrained``, to a place as in ``weights_from``.

        Raises:
            ValueError: It is no such place, or names weights of another network, as only a damaged or forged file does.
        """
        name = place.get("pretrained", self.name) if isinstance(place, Mapping) else None
        file = place.get("file") if isinstance(place, Mapping) else None
        known = isinstance(name, str) and isinstance(file, str | None) and len(place) == 1
        if not known or full_name(str(name)) != full_name(self.name):
            raise ValueError(
                f"weights_from: is no place of weights of {self.name}, got {place}; name their file: {WAYS}"
            )
        self.weights, self.pretrained, self.name = file, "pretrained" in place, str(name)

    def build(self, pretrained: bool = False) -> FrozenBackbone:
        """Build the backbone with random weights, or with timm's, which may be downloaded."""
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
        """Load the weights of the settings into a backbone.

        Args:
            backbone: A backbone made by `build`.
            wanted: Hash that the weights should have; used only in error messages.

        Returns:
            Hash of the backbone's tensors.

        Raises:
            ValueError: The weights cannot be loaded or do not fit.
        """
        needed = f"the weights of {backbone.name} are needed"
        if wanted is not None:
            needed = f"the weights of {backbone.name} with hash {short(wanted)} are needed; name their file: {WAYS}"
        if self.weights is not None:
            self._fill_from_file(backbone, self.weights, needed)
        elif self.pretrained:
            backbone.load(self._downloaded(needed).tensors())
            if self.in_channels != 3:
                log.info(f"pretrained: {backbone.name}: {ADAPTED} {self.in_channels} channels of this run")
        else:
            log.warning(
                f"backbone: neither weights nor pretrained is given, the frozen {backbone.name} is random; give "
                "--model.weights FILE, or --model.pretrained true"
            )
        found = hash_tensors(backbone.tensors())
        log.info(f"backbone   {backbone.name}: {backbone.feature_width} features, weights {short(found)}")
        return found

    def _fill_from_file(self, backbone: FrozenBackbone, weights: str, needed: str) -> None:
        if not Path(weights).exists():
            raise ValueError(f"weights: {absent(Path(weights))}; {needed}")
        try:
            report = backbone.load(read_weights(weights, backbone.tensors().keys()).tensors)
        except ValueError as error:
            raise ValueError(f"weights: {weights}: {str(error).removeprefix(f'{weights}: ')}; {needed}") from error
        for level, line in said_of("weights", weights, [(logging.INFO, line) for line in report.lines()]):
            log.log(level, line)

    def _downloaded(self, needed: str) -> FrozenBackbone:
        try:
            with hub_or_cache():
                return self.build(pretrained=True)
        except Exception as error:  # hub, connection or file system: each library has its own error classes
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"pretrained: timm's weights of {self.name} could not be loaded ({type(error).__name__}: {reason}); {needed}; "
                "without network access load them from a file: --model.weights FILE --model.pretrained false"
            ) from error


def describe(backbone: FrozenBackbone, weights_hash: str) -> dict[str, Any]:
    """Identity of a backbone with loaded weights, as plain values."""
    return {
        "backbone": backbone.name,
        "weights_hash": weights_hash,
        "layers": list(backbone.layers),
        "pooling": backbone.pooling,
        "feature_width": backbone.feature_width,
    }


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Check that a backbone equals the one that a head was trained on.

    Args:
        found: Identity of the present backbone.
        wanted: Identity of the backbone that the head was trained on.
        where: Where ``found`` comes from, for the message.

    Raises:
        ValueError: They differ; the message names the first field that differs.
    """
    for name in COMPARED:
        if name in found and name in wanted and found[name] != wanted[name]:
            raise ValueError(
                f"backbone: {name} is {short(found[name])} in {where}, but the head was trained on {short(wanted[name])}"
            )
