"""Loads initial weights into the encoder of the light segmenter, from a file or from timm."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from foundation.hub import hub_or_cache
from lightning_modules.pretrained import read_weights
from networks.segmenters.light import LightSegmenter
from networks.timm_network import Argument

log = logging.getLogger(__name__)


def fill_encoder(
    network: LightSegmenter,
    encoder: str,
    network_args: Mapping[str, Argument] | None,
    weights: str | None,
    pretrained: bool,
) -> None:
    """Load weights into the encoder of a segmenter; without ``weights`` and ``pretrained`` the encoder stays random.

    Args:
        network: The segmenter.
        encoder: Name of the timm network that is its encoder.
        network_args: Further arguments of ``timm.create_model`` for the encoder.
        weights: Run, checkpoint, safetensors or torch file, or Hugging Face folder.
        pretrained: Download timm's weights.

    Raises:
        ValueError: The weights cannot be loaded or do not fit; the message begins with the setting's name.
    """
    if weights is not None:
        setting = f"weights: {weights}"
        try:
            tensors: Mapping[str, Tensor] = read_weights(weights, network.encoder_network.state_dict().keys()).tensors
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
    for line in [report.lines()[0], *report.notes]:  # the others are about the head of the weights' original task
        log.info(f"{setting}: encoder: {line}")


def _downloaded(encoder: str, network_args: Mapping[str, Argument] | None) -> Mapping[str, Tensor]:
    try:
        with hub_or_cache(), torch.random.fork_rng(devices=[]):  # building a network draws random numbers
            filled = LightSegmenter(encoder, network_args=network_args, pretrained=True)
    except Exception as error:  # hub, connection or file system: each library has its own error classes
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"pretrained: timm's weights of {encoder} could not be loaded ({type(error).__name__}: {reason}); "
            "without network access load them from a file: --model.weights FILE --model.pretrained false"
        ) from error
    tensors: Mapping[str, Tensor] = filled.encoder_network.state_dict()
    return tensors
