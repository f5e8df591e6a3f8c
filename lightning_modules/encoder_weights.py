"""Weights that the encoder of a light segmenter starts from: a file's, or timm's own."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_modules.pretrained import read_weights
from networks.segmenter_light import LightSegmenter
from networks.timm_network import Argument

log = logging.getLogger(__name__)


def fill_encoder(
    network: LightSegmenter,
    encoder: str,
    network_args: Mapping[str, Argument] | None,
    weights: str | None,
    pretrained: bool,
) -> None:
    """Give the encoder its weights; with neither source it stays random.

    Args:
        network: Whose encoder is filled.
        encoder: Name of its timm network.
        network_args: Its further arguments.
        weights: Run folder, checkpoint, safetensors or torch file.
        pretrained: Take timm's weights, which are downloaded.

    Raises:
        ValueError: They cannot be had or do not fit; the message begins with the setting's name.
    """
    if weights is not None:
        inner = getattr(network.encoder, "model", network.encoder)
        setting = f"weights: {weights}"
        try:
            tensors: Mapping[str, Tensor] = read_weights(weights, inner.state_dict().keys()).tensors
        except ValueError as error:
            raise ValueError(f"weights: {error}") from error
    elif pretrained:
        setting, tensors = "pretrained", _downloaded(encoder, network_args)
    else:
        return
    try:
        report = network.fill_encoder(tensors)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
    for line in report.lines()[:1]:  # the rest is the head of the weights' own task
        log.info(f"{setting}: encoder: {line}")


def _downloaded(encoder: str, network_args: Mapping[str, Argument] | None) -> Mapping[str, Tensor]:
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws numbers
            filled = LightSegmenter(encoder, network_args=network_args, pretrained=True)
    except Exception as error:  # of the hub, of the connection, of the file system: each library has its own
        said = " ".join(str(error).split())[:200]
        raise ValueError(
            f"pretrained: timm's weights of {encoder} could not be had ({type(error).__name__}: {said}); "
            "without network give a file by weights (--model.weights FILE)"
        ) from error
    tensors: Mapping[str, Tensor] = getattr(filled.encoder, "model", filled.encoder).state_dict()
    return tensors
