"""Light prompted segmenter without CLIP: any timm encoder, U-Net decoder with FiLM by prompt at each level, hashed text encoder.

    image  -> timm encoder -> features at strides 2 .. 32    |
    image  -> convolutions of 2x2 pixels at stride 2         | -> decoder -> logits (N, 1, H, W)
    prompt -> hashed n-grams -> vector, by FiLM              |

With `mobilenetv2_100` it has 2.0 million parameters. The caller normalises the images as the encoder's weights require.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import timm
import torch
from timm.models import FeatureHookNet
from torch import Tensor, nn

from networks.depthwise import keep_in_float32
from networks.segmenters.parts import PairSegmenter, PromptedDecoder
from networks.segmenters.text import HashedTextEncoder
from networks.timm_network import Argument, check_architecture
from networks.transfer import Transfer, transfer

# arguments of create_model that the user must not pass, and why
_RESERVED = {
    "in_chans": "images have 3 channels",
    "num_classes": "there are no classes",
    "features_only": "it is always on",
    "pretrained": "it is the setting pretrained",
    "checkpoint_path": "it is the setting weights",
    "output_stride": "the strides are the encoder's own",
}


class LightSegmenter(PairSegmenter):
    """Segments the object that a prompt names; see networks/segmenters/parts.py for the interface.

    Args:
        encoder: A name of `timm.list_models()`, with or without a tag of pretrained weights.
        network_args: Further keyword arguments of `timm.create_model` for the encoder.
        pretrained: Load timm's weights into the encoder, which may be downloaded.
        width: Channels of the decoder, an even number; its last level has half of them.
        text_width: Length of a prompt's vector.
        text_rows: Rows of the table that the n-grams of prompts are hashed into, 1 or more.

    Raises:
        ValueError: timm has no such encoder, it has no feature maps, or an argument or the width does not fit.
    """

    def __init__(
        self,
        encoder: str = "mobilenetv2_100",
        *,
        network_args: Mapping[str, Argument] | None = None,
        pretrained: bool = False,
        width: int = 48,
        text_width: int = 64,
        text_rows: int = 2048,
    ) -> None:
        super().__init__()
        self.encoder = _build_encoder(encoder, dict(network_args or {}), pretrained)
        info: Any = self.encoder.feature_info
        channels, strides = info.channels(), info.reduction()
        self.multiple = math.lcm(2, *strides)
        self._channels_last = _gives_channels_last(self.encoder, self.multiple, channels, encoder)
        self.text = HashedTextEncoder(text_width, text_rows)
        self.decoder = PromptedDecoder(channels, strides, text_width, width)
        self.stages = len(channels)
        self._frozen: list[nn.Module] = []

    def vectors(self, prompts: Sequence[str]) -> Tensor:
        """See :class:`PairSegmenter`: of hashed n-grams."""
        vectors: Tensor = self.text(prompts)
        return vectors

    def features(self, image: Tensor) -> list[Tensor]:
        """See :class:`PairSegmenter`: the encoder's features, each (B, C', H / stride, W / stride)."""
        features: list[Tensor] = self.encoder(image)
        return [feature.permute(0, 3, 1, 2) for feature in features] if self._channels_last else list(features)

    def decoded(self, image: Tensor, features: list[Tensor], vectors: Tensor, image_index: Tensor) -> Tensor:
        """See :class:`PairSegmenter`."""
        logits: Tensor = self.decoder(image, features, vectors, image_index)
        return logits

    def fill_encoder(self, tensors: Mapping[str, Tensor], min_loaded: float = 1.0) -> Transfer:
        """Load weights of the whole timm network into the encoder; after an error it is unchanged.

        Args:
            tensors: Weights by the names of timm, of another library or of the release, of any floating-point type.
            min_loaded: Minimum fraction, 0 to 1, of the encoder's weights that must be loaded.

        Raises:
            ValueError: Fewer weights fit, or the weights are for another number of image channels.
        """
        return transfer(self.encoder_network, tensors, min_loaded=min_loaded, setting="encoder")

    def freeze_stages(self, count: int) -> None:
        """Stop training the first stages of the encoder: all weights that its first feature maps depend on.

        Their gradients are never computed, and their batch norms keep to the stored statistics. The beginning of a pretrained
        encoder serves any images, and has the largest maps: of a MobileNetV2 at 256 px, two stages are nearly half of a step.

        Args:
            count: Number of feature maps, finest first, from 0 to `stages`.

        Raises:
            ValueError: The encoder has fewer stages.
        """
        if not 0 <= count <= self.stages:
            raise ValueError(f"frozen_stages: 0 to {self.stages}, the stages of this encoder, got {count}")
        self.encoder.requires_grad_(True)
        self._frozen = []
        if count == 0:
            self.train(self.training)
            return
        weights = [*self.encoder.parameters()]
        was_training = self.encoder.training
        with torch.enable_grad():
            image = torch.zeros(
                1, 3, self.multiple, 2 * self.multiple, device=weights[0].device, dtype=weights[0].dtype
            )
            maps = self.encoder.eval()(image)[:count]
            used = torch.autograd.grad([one.sum() for one in maps], weights, allow_unused=True)
        frozen = {id(weight) for weight, gradient in zip(weights, used, strict=True) if gradient is not None}
        for weight in weights:
            weight.requires_grad_(id(weight) not in frozen)
        own = ((module, [*module.parameters(recurse=False)]) for module in self.encoder.modules())
        self._frozen = [module for module, held in own if held and all(id(weight) in frozen for weight in held)]
        self.encoder.train(was_training)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, of all but the frozen modules."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @property
    def encoder_network(self) -> nn.Module:
        """The timm network in the encoder, whose names are those of the weights.

        The feature maps of a ViT come from a wrapper around it, those of Xception and NASNet from hooks on the whole network.
        """
        outer: Any = self.encoder
        hooked = isinstance(outer, FeatureHookNet) and "body" in outer
        network: nn.Module = outer["body"] if hooked else getattr(outer, "model", outer)
        return network


def _build_encoder(name: str, given: dict[str, Argument], pretrained: bool) -> nn.Module:
    try:
        check_architecture(name)
    except ValueError as error:
        raise ValueError(str(error).replace("architecture:", "encoder:", 1)) from error
    for argument in given.keys() & _RESERVED.keys():
        raise ValueError(f"network_args: {argument} cannot be given here, {_RESERVED[argument]}")
    config = timm.get_pretrained_cfg(name)
    # networks with a fixed image size need one of these options to accept any size; some have neither
    switches: list[dict[str, Any]] = [{}]
    if config is not None and config.fixed_input_size:
        switches = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    problem: Exception | None = None
    for switch in switches:
        try:
            encoder: nn.Module = timm.create_model(
                name, features_only=True, pretrained=pretrained, **{**switch, **given}
            )
            keep_in_float32(encoder)
            return encoder
        except TypeError as error:
            problem = error
            if not any(argument in str(error) for argument in switch):
                break
        except (
            RuntimeError,
            ValueError,
            AssertionError,
            KeyError,
            AttributeError,
            NotImplementedError,
            OSError,
        ) as error:
            problem = error
            break
    if any(argument in str(problem) for switch in switches for argument in switch):
        raise ValueError(f"encoder: {name} takes images of one size only") from problem
    other = "; leave them out, --model.network_args null, or give an encoder that takes them" if given else ""
    raise ValueError(
        f"encoder: timm cannot build feature maps of {name}{f' with network_args {given}' if given else ''}: "
        f"{' '.join(str(problem).split())[:200]}{other}"
    ) from problem


def _gives_channels_last(encoder: nn.Module, side: int, channels: Sequence[int], name: str) -> bool:
    """Whether the encoder's features are (B, H, W, C), as in Swin. Tested with an image, as timm does not always state it.

    Raises:
        ValueError: The encoder does not accept images of any size.
    """
    was_training = encoder.training
    image = torch.zeros(1, 3, side, 2 * side)  # not square, so that height and width of the features differ
    try:
        with torch.no_grad():
            features = encoder.eval()(image)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"encoder: {name} does not take images of {side} x {2 * side} pixels: "
            f"{' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from error
    finally:
        encoder.train(was_training)
    first = features[-1]
    last = first.shape[-1] == channels[-1] and first.shape[1] == 1
    if not last and first.shape[1] != channels[-1]:
        raise ValueError(
            f"encoder: {name} gives features of shape {tuple(first.shape)}, no maps of {channels[-1]} channels"
        )
    return bool(last)
