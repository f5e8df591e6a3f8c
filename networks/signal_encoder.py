"""Networks for signal windows: an encoder (a timm network on images of the signals, or a 1-D network on the signals) and a head.

    image (B, C, N, N)        channels or grid   --encoder--> (B, D) --head--> logits (B, K)
    image (B, S, C, N, N)     flatten            --S in B, encoder--> (B, S, D) --head--> (B, S, K), the mean is the prediction
    signal (B, S, T)          no image           --1-D network--> (B, D) --head--> logits (B, K)

The original encoder is a ViT-B/8 in the layout of Pix2Seq (Chen et al. 2022, arXiv 2109.10852): `vit_base_patch8_224` with
`class_token: false, global_pool: avg`. Its stem is an 8x8 convolution with stride 8; at 224 px its blocks process 784 tokens of
width 768.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from foundation.sizes import Size
from networks.mlp_head import MLPHead
from networks.signal_network import SignalResNet
from networks.timm_features import FINAL, Pooling, TimmFeatures, refused_size
from networks.timm_network import Argument, build_timm_network, input_layer_names

Fusion = Literal["logits", "features"]

SIGNAL_NETWORK = "signal_resnet"
"""Name of the encoder for signals; every other name is a timm network."""


def build_encoder(
    architecture: str,
    *,
    in_channels: int,
    image_size: Size | None,
    drop_path: float = 0.0,
    network_args: Mapping[str, Argument] | None = None,
    layers: Sequence[int] = FINAL,
    pooling: Pooling | None = None,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """Build an encoder that maps images or signals to features (B, D) float32.

    Args:
        architecture: A name of `timm.list_models()`, or `signal_resnet` for signals without images.
        in_channels: C of the images, or S of the signals.
        image_size: Height and width of the images in pixels; None uses timm's default.
        drop_path: Maximum probability in [0, 1) of skipping a residual branch in training, reached in the last block.
        network_args: Further keyword arguments of `timm.create_model`, or of `SignalResNet`.
        layers: Blocks or stages whose outputs are concatenated, as in `FrozenBackbone`. For time series, middle layers of a frozen
            transformer classify better than its last layer (Roschmann et al. 2025, arXiv 2506.08641).
        pooling: As in `FrozenBackbone`.
        grad_checkpointing: Recompute the blocks' activations in the backward pass instead of keeping them.

    Raises:
        ValueError: The encoder cannot be built with these arguments.
    """
    if architecture == SIGNAL_NETWORK:
        given = {"layers": tuple(layers) != FINAL, "pooling": pooling, "grad_checkpointing": grad_checkpointing}
        for name, value in {**given, "drop_path": drop_path}.items():
            if value:
                raise ValueError(f"{name}: is only for timm networks, {SIGNAL_NETWORK} has none; leave it out")
        try:
            return SignalResNet(in_channels, **dict(network_args or {}))  # type: ignore[arg-type]
        except TypeError as error:
            raise ValueError(f"network_args: {SIGNAL_NETWORK} takes width and blocks, got {network_args}") from error
    network: Any = build_timm_network(
        architecture,
        num_classes=0,
        in_channels=in_channels,
        image_size=image_size,
        drop_path=drop_path,
        network_args=network_args,
    )
    encoder = TimmFeatures(network, layers, pooling, architecture)
    if grad_checkpointing:
        try:
            network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ValueError(f"grad_checkpointing: timm has none for {architecture}; leave it at false") from error
    return encoder


def feature_width(encoder: nn.Module, shape: Sequence[int]) -> int:
    """Width D of an encoder's features for one input of the given shape, on the meta device where the encoder can run there.

    Raises:
        ValueError: The encoder cannot take inputs of this shape.
    """
    # a module that a network uses in several places (CoaT) is listed once: replaced twice, it would keep its meta tensors
    named = [*encoder.named_parameters(), *encoder.named_buffers()]
    tensors = {name: tensor.to("meta") for name, tensor in named}
    training = encoder.training
    name = type(encoder.network if isinstance(encoder, TimmFeatures) else encoder).__name__
    empty = torch.zeros(1, *shape, device="meta")
    encoder.eval()
    try:
        with torch.no_grad():
            features = torch.func.functional_call(encoder, tensors, (empty,), tie_weights=False)
    except (RuntimeError, AssertionError, IndexError):
        # some networks need values or hold tensors that are no buffers; the meta device has no values
        device = next(encoder.parameters()).device
        with torch.no_grad(), refused_size(name, shape[-1], shape[0]):
            features = encoder(torch.zeros(1, *shape, device=device))
    finally:
        encoder.train(training)
    return int(features.shape[1])


def adapted(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt weights to a timm network with another number of input channels or without class token.

    The first layer's weights are repeated over the channels and scaled, as in timm: a grey image, repeated over any number of
    channels, gives the same activations as repeated over three.

    Args:
        network: A timm network.
        tensors: Weights by timm's names.

    Returns:
        The adapted weights, and notes on the changes.
    """
    own, found, notes = network.state_dict(), dict(tensors), []
    for name in input_layer_names(network):
        here, there = own.get(f"{name}.weight"), tensors.get(f"{name}.weight")
        if here is None or there is None or there.ndim < 3 or there.shape[1] != 3 or here.shape[1] == 3:
            continue
        found[f"{name}.weight"] = adapt_input_conv(here.shape[1], there)
        notes.append(f"{name}: from 3 to {here.shape[1]} channels")
    positions = tensors.get("pos_embed")
    if "cls_token" in tensors and "cls_token" not in own and positions is not None:
        tokens = positions.shape[1]
        if round(tokens**0.5) ** 2 != tokens:  # otherwise there is no position for the class token
            found["pos_embed"] = positions[:, 1:]
        del found["cls_token"]
        notes.append("cls_token: dropped with its position, as the network has no class token")
    return found, notes


class WindowNetwork(nn.Module):
    """Encoder and head for signal windows; see the top of the file.

    Args:
        encoder: Encoder made by `build_encoder`.
        width: D, width of the encoder's features.
        num_classes: K, length of the logits.
        hidden: Widths of the head's hidden layers, as in `MLPHead`.
        dropout: Probability in [0, 1) of dropping a hidden value in training.
        seed: Seed of the head's initial weights and dropout.
        fusion: How the S images of a flattened window are combined. `logits`: each image is classified; `features`: their features
            are concatenated in the order of the signals and classified once.
        images: S, required for `features`.

    Attributes:
        frozen: The encoder is in eval mode and gets no gradient.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int,
        num_classes: int,
        hidden: Sequence[int],
        dropout: float,
        seed: int,
        fusion: Fusion = "logits",
        images: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.fusion, self.frozen = encoder, fusion, False
        joined = width * (images if fusion == "features" else 1)
        # with the norm, one learning rate suits features of any scale
        self.head: nn.Module = nn.Sequential(nn.LayerNorm(joined), MLPHead(joined, num_classes, hidden, dropout, seed))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K), or (B, S, K) for flattened windows whose images are classified one by one."""
        count = inputs.shape[0]  # len() would become a constant in an exported graph
        folded = inputs.flatten(0, 1) if inputs.ndim == 5 else inputs
        with torch.no_grad() if self.frozen else nullcontext():
            features = self.encoder(folded)
        if inputs.ndim == 5 and self.fusion == "features":
            features = features.unflatten(0, (count, -1)).flatten(1)
        logits: Tensor = self.head(features.to(next(self.head.parameters()).dtype))  # an encoder gives float32
        each = inputs.ndim == 5 and self.fusion == "logits"
        return logits.unflatten(0, (count, -1)) if each else logits

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for a frozen encoder, whose batch statistics would drift."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self


class WindowAnswer(nn.Module):
    """Wraps a `WindowNetwork` so that it returns one prediction per window in every mode: logits (B, K)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K); the mean over a window's images if these are classified one by one."""
        logits: Tensor = self.network(inputs)
        return logits.mean(dim=1) if logits.ndim == 3 else logits
