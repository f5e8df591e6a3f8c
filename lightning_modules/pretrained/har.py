"""Loads initial weights into a HAR network (encoder and head), from a run, a weights file or timm."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

from foundation.hub import hub_or_cache
from lightning_modules.pretrained import SavedWeights
from networks.signal_encoder import WindowNetwork, adapted
from networks.timm_features import TimmFeatures
from networks.timm_network import folded_norms
from networks.transfer import by_timm_names, transfer


def backbone_of(network: WindowNetwork) -> nn.Module:
    """The timm network inside the encoder, or the 1-D network: the module whose parameter names match published weights."""
    encoder = network.encoder
    return encoder.network if isinstance(encoder, TimmFeatures) else encoder


def fill(
    network: WindowNetwork,
    saved: SavedWeights,
    class_names: list[str] | None,
    min_loaded: float,
    trains: bool,
    frozen: bool = False,
) -> list[tuple[int, str]]:
    """Load the weights that fit into the encoder, and into the head if its shape and its classes are the same.

    Args:
        network: The network to fill; unchanged after an error.
        saved: Weights with the names of the encoder or of a whole `WindowNetwork`.
        class_names: Class names of the run.
        min_loaded: Minimum fraction of the encoder's weights that must be loaded, 0 to 1.
        trains: Whether the encoder will be trained from the start.
        frozen: Whether the encoder will never be trained, so that all of it must be loaded.

    Returns:
        Lines for the log, as (logging level, line).

    Raises:
        ValueError: Fewer weights fit, or the weights can only be used with a frozen encoder.
    """
    backbone = backbone_of(network)
    prefix = "encoder.network." if backbone is not network.encoder else "encoder."
    own = network.head.state_dict()
    head = {name: saved.tensors[f"head.{name}"] for name in own if f"head.{name}" in saved.tensors}
    tensors: Mapping[str, Tensor] = {
        name.removeprefix(prefix): tensor
        for name, tensor in saved.tensors.items()
        if name.removeprefix("head.") not in head
    }
    tensors, named = by_timm_names(backbone, tensors)
    tensors, notes = adapted(backbone, tensors)
    notes = named + notes
    report = transfer(backbone, tensors, min_loaded=min_loaded, frozen=frozen)
    if trains and (folded := folded_norms(backbone)):
        raise ValueError(
            f"{len(folded)} batch norms were folded into the layers before them, and training with batch statistics would destroy "
            "the features; set --model.freeze backbone"
        )
    same = {name: tensor.shape for name, tensor in head.items()} == {name: t.shape for name, t in own.items()}
    if same and saved.class_names in (None, class_names):
        network.head.load_state_dict(head)
        notes.append("head: loaded")
    return [*report.levels(), *((logging.INFO, note) for note in notes)]


def downloaded(architecture: str) -> SavedWeights:
    """Download timm's weights of an unmodified timm network, with three channels and class token; `fill` adapts them.

    Raises:
        ValueError: They could not be loaded.
    """
    try:
        with hub_or_cache(), torch.random.fork_rng(devices=[]):  # building a network draws random numbers
            network = timm.create_model(architecture, pretrained=True)
    except Exception as error:  # hub, connection or file system: each library has its own error classes
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the weights could not be loaded ({type(error).__name__}: {reason}); without network access load them from a file: "
            "--model.weights FILE --model.pretrained false"
        ) from error
    return SavedWeights(network.state_dict())
