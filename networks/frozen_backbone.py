"""Features of a network of timm that is never trained: what its layers make of an image, pooled to one vector.

    image (B, C, H, W) --timm network--> last or chosen layers --cls, avg or native pooling--> joined: features (B, D)

`TimmFeatures` is that as a plain module. `FrozenBackbone` holds one out of sight: `parameters()`, `buffers()` and `state_dict()` of
the modules above it do not have its tensors, so that no optimiser, average, checkpoint or other process is ever given them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from networks.timm_network import Argument, build_timm_network, classifier_names, is_inside
from networks.transfer import COUNTER, Transfer, transfer

Pooling = Literal["cls", "avg", "native"]

FINAL = (-1,)
MIN_LOADED = 0.999  # what lies in no file of weights are tables that a network computes by itself, and these are small


def full_name(architecture: str, network_args: Mapping[str, Argument] | None = None) -> str:
    """Name of a backbone with its arguments, as caches and checkpoints have it; a tag of weights is left out.

    >>> full_name("mobilenetv2_100.ra_in1k", {"pad_type": "same", "output_stride": 16})
    'mobilenetv2_100 output_stride=16 pad_type=same'
    """
    given = sorted((network_args or {}).items())
    return " ".join([architecture.partition(".")[0], *(f"{name}={_written(value)}" for name, value in given)])


def parse_name(name: str) -> tuple[str, dict[str, Argument]]:
    """Architecture and arguments of a backbone from its full name.

    >>> parse_name("mobilenetv2_100 output_stride=16 pad_type=same")
    ('mobilenetv2_100', {'output_stride': 16, 'pad_type': 'same'})
    """
    architecture, *arguments = name.split(" ")
    pairs = (argument.partition("=") for argument in arguments)
    return architecture, {key: _read(value) for key, _, value in pairs}


def _written(value: Argument) -> str:
    plain = isinstance(value, str) and value != "" and " " not in value and _read(value) == value
    return str(value) if plain else json.dumps(value).replace(" ", "\\u0020")


def _read(text: str) -> Argument:
    try:
        value: Argument = json.loads(text)
    except ValueError:
        return text
    return value


class TimmFeatures(nn.Module):
    """A network of timm without its classifier, and the pooling; see `FrozenBackbone` for the arguments."""

    def __init__(self, network: nn.Module, layers: Sequence[int], pooling: Pooling) -> None:
        super().__init__()
        self.network, self.layers, self.pooling = network, tuple(layers), pooling

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, C, H, W)."""
        network: Any = self.network
        if self.layers != FINAL:
            return torch.cat(self._of_layers(image), dim=1).float()
        features = network.forward_features(image)
        if self.pooling == "native":
            vector: Tensor = network.forward_head(features, pre_logits=True)
        else:
            # where a network pools before its last norm, the norm has this name
            last_norm = getattr(network, "fc_norm", None) or nn.Identity()
            vector = last_norm(self._pooled(features))
        return vector.flatten(1).float()

    def _pooled(self, features: Tensor) -> Tensor:
        network: Any = self.network
        if self.pooling == "cls":
            return features[:, 0]
        if features.ndim == 3:
            return features[:, getattr(network, "num_prefix_tokens", 0) :].mean(dim=1)
        last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return features.mean(dim=(1, 2) if last else (2, 3))

    def _of_layers(self, image: Tensor) -> list[Tensor]:
        """A vector of each layer; timm gives the layers in the order of the network, whatever order is asked for."""
        network: Any = self.network
        count = len(network.feature_info)
        places = [layer % count for layer in self.layers]
        asked: dict[str, Any] = {"indices": sorted(places), "norm": True, "intermediates_only": True}
        if self.pooling == "cls":
            found = network.forward_intermediates(image, return_prefix_tokens=True, **asked)
            vectors = [prefix[:, 0] for _, prefix in found]
        else:
            vectors = [features.mean(dim=(2, 3)) for features in network.forward_intermediates(image, **asked)]
        return [vectors[sorted(places).index(place)] for place in places]


class FrozenBackbone(nn.Module):
    """A network of timm in eval mode, without gradients, whose tensors the modules above do not see.

    It follows them to a device, a dtype and a memory format. Until `load` its weights are random, the same in every process.

    Args:
        name: A name of `timm.list_models()`, with or without a tag of pretrained weights.
        network_args: Further arguments of `timm.create_model`, by name.
        image_size: Height and width of the images in pixels; None leaves timm's own.
        in_channels: C of the images.
        layers: Blocks of a transformer or stages of a convolutional network whose outputs are joined, in this order; negative ones
            count from the end. `(-1,)` are the final features, after the last norm.
        pooling: `cls`: the class token; `avg`: the mean of the patch tokens or of the feature map; `native`: what timm's own
            classifier would be given, for the final features alone; None: `cls` where there is a class token, else `native`.
        pretrained: Fill it with timm's weights, which may download them.

    Raises:
        ValueError: timm cannot build it, or it has no such layer, class token or pooling.
    """

    def __init__(
        self,
        name: str,
        network_args: Mapping[str, Argument] | None = None,
        image_size: int | None = None,
        in_channels: int = 3,
        layers: Sequence[int] = FINAL,
        pooling: Pooling | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.layers = full_name(name, network_args), tuple(layers)
        # random weights are a function of the name, and nobody else's random numbers depend on them
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_timm_network(
                name,
                num_classes=0,
                in_channels=in_channels,
                image_size=image_size,
                network_args=network_args,
                pretrained=pretrained,
            )
        self.pooling: Pooling = pooling or ("cls" if has_class_token(network) else "native")
        check_features(network, self.name, self.layers, self.pooling)
        # in a tuple, which nn.Module does not look into
        self._hidden = (TimmFeatures(network.requires_grad_(False), self.layers, self.pooling).eval(),)
        config: Any = network.pretrained_cfg
        size = image_size or config["input_size"][-1]
        self.feature_width = self(torch.zeros(1, in_channels, size, size)).shape[1]

    @property
    def features(self) -> TimmFeatures:
        """The module that is hidden here."""
        return self._hidden[0]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, C, H, W) that are already normalised."""
        features: Tensor = self.features(image)
        return features

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: batch statistics would drift."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.features._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by timm's names; classifier and counts of batches left out, which change no feature."""
        network = self.features.network
        heads = classifier_names(network)
        return {
            name: tensor
            for name, tensor in network.state_dict().items()
            if not is_inside(name, heads) and not name.endswith(COUNTER)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> Transfer:
        """Fill it with weights by timm's names, of any floating-point type; after an error it is as it was.

        Returns:
            What became of the weights.

        Raises:
            ValueError: Something of the backbone would stay random, or the weights are for other image channels.
        """
        network = self.features.network
        heads = classifier_names(network)
        backbone = {name: tensor for name, tensor in tensors.items() if not is_inside(name, heads)}
        return transfer(network, backbone, min_loaded=MIN_LOADED)


def has_class_token(network: Any) -> bool:
    """Whether a network of timm has a class token among its tokens."""
    return getattr(network, "cls_token", None) is not None


def check_features(network: Any, name: str, layers: tuple[int, ...], pooling: str) -> None:
    """Refuse layers and a pooling that a network of timm does not have.

    Raises:
        ValueError: It has no such layers or pooling; the message begins with the setting.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling: one of {', '.join(get_args(Pooling))}, got {pooling}")
    if pooling == "cls" and not has_class_token(network):
        raise ValueError(f"pooling: {name} has no class token; give avg or native")
    if layers == FINAL:
        return
    if pooling == "native":
        raise ValueError(f"pooling: native is for the final features, layers [-1], got layers {list(layers)}; give avg")
    count = len(getattr(network, "feature_info", ()))
    if not count or not hasattr(network, "forward_intermediates"):
        raise ValueError(f"layers: timm gives no inner layers of {name}; leave it at [-1]")
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ValueError(f"layers: {name} has {count} layers, {-count} to {count - 1}, got {list(layers)}")
    if len({layer % count for layer in layers}) < len(layers):
        raise ValueError(f"layers: each at most once, got {list(layers)}")
