"""Weights that a network for windows of signals starts from: a run of its own, any file of weights of its encoder, or timm's."""

from __future__ import annotations

import timm
import torch
from torch import nn

from lightning_modules.pretrained import SavedWeights
from networks.frozen_backbone import TimmFeatures
from networks.signal_encoder import WindowNetwork, adapted
from networks.timm_network import folded_norms
from networks.transfer import transfer


def backbone_of(network: WindowNetwork) -> nn.Module:
    """The network of timm within the encoder, or the 1-D network: what has the names that weights of others have."""
    encoder = network.encoder
    return encoder.network if isinstance(encoder, TimmFeatures) else encoder


def fill(
    network: WindowNetwork, saved: SavedWeights, class_names: list[str] | None, min_loaded: float, trains: bool
) -> list[str]:
    """Fill the encoder with what fits, and the head where it is one of the same shape for the same classes.

    Args:
        network: To be filled; after an error it is as it was.
        saved: Weights by the encoder's names, or by those of a whole `WindowNetwork`.
        class_names: Of the run.
        min_loaded: Least share of the encoder's weights that must be filled, 0 to 1.
        trains: The encoder will be trained.

    Returns:
        What there is to say.

    Raises:
        ValueError: Less fits, or the weights can only be used frozen.
    """
    backbone = backbone_of(network)
    prefix = "encoder.network." if backbone is not network.encoder else "encoder."
    own = network.head.state_dict()
    head = {name: saved.tensors[f"head.{name}"] for name in own if f"head.{name}" in saved.tensors}
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in saved.tensors.items()
        if name.removeprefix("head.") not in head
    }
    tensors, notes = adapted(backbone, tensors)
    report = transfer(backbone, tensors, min_loaded=min_loaded)
    if trains and (folded := folded_norms(backbone)):
        raise ValueError(
            f"{len(folded)} batch norms were folded into the layers before, and the statistics of a batch would destroy what the "
            "network knows; take --model.freeze backbone"
        )
    same = {name: tensor.shape for name, tensor in head.items()} == {name: t.shape for name, t in own.items()}
    if same and saved.class_names in (None, class_names):
        network.head.load_state_dict(head)
        notes.append("head: taken over")
    return [*report.lines(), *notes]


def downloaded(architecture: str) -> SavedWeights:
    """Weights of timm for the network as timm has it, three channels and class token; `fill` does the rest.

    Raises:
        ValueError: They could not be had.
    """
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws numbers
            network = timm.create_model(architecture, pretrained=True)
    except Exception as error:  # of the hub, of the connection, of the file system: each library has its own
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the weights could not be had ({type(error).__name__}: {said}); without network give a file by weights "
            "(--model.weights FILE)"
        ) from error
    return SavedWeights(network.state_dict())
