"""Feature extraction with timm networks: pooled features of chosen layers (`TimmFeatures`), and a frozen backbone around it.

    image (B, C, H, W) --timm network--> final or chosen layers --cls, avg or native pooling--> concatenated: features (B, D)

`TimmFeatures` is a plain module. `FrozenBackbone` holds one without registering it: its tensors do not appear in `parameters()`,
`buffers()` and `state_dict()` of the modules above it, so that optimisers, weight averaging, checkpoints and other processes never
get them.
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
MIN_LOADED = 0.999  # only small tables that a network computes itself are missing in weights files


def full_name(architecture: str, network_args: Mapping[str, Argument] | None = None) -> str:
    """Name of a backbone with its arguments, as stored in caches and checkpoints; a tag of pretrained weights is removed.

    >>> full_name("mobilenetv2_100.ra_in1k", {"pad_type": "same", "output_stride": 16})
    'mobilenetv2_100 output_stride=16 pad_type=same'
    """
    given = sorted((network_args or {}).items())
    return " ".join([architecture.partition(".")[0], *(f"{name}={_written(value)}" for name, value in given)])


def parse_name(name: str) -> tuple[str, dict[str, Argument]]:
    """Parse the full name of a backbone into architecture and arguments.

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
    """A timm network without its classifier, followed by pooling; see `FrozenBackbone` for the arguments."""

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
            # networks that pool before their last norm name this norm fc_norm
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
        """One vector per layer, in the order of `layers`; timm always returns them in the order of the network."""
        network: Any = self.network
        count = len(network.feature_info)
        places = [layer % count for layer in self.layers]
        settings: dict[str, Any] = {"indices": sorted(places), "norm": True, "intermediates_only": True}
        if self.pooling == "cls":
            found = network.forward_intermediates(image, return_prefix_tokens=True, **settings)
            vectors = [prefix[:, 0] for _, prefix in found]
        else:
            vectors = [features.mean(dim=(2, 3)) for features in network.forward_intermediates(image, **settings)]
        return [vectors[sorted(places).index(place)] for place in places]


class FrozenBackbone(nn.Module):
    """A timm network in eval mode, without gradients, whose tensors are not registered in the modules above it.

    It moves with them to a device, dtype and memory format. Before `load`, its weights are random, but equal in all processes.

    Args:
        name: A name of `timm.list_models()`, with or without a tag of pretrained weights.
        network_args: Further keyword arguments of `timm.create_model`.
        image_size: Height and width of the images in pixels; None uses timm's default.
        in_channels: C of the images.
        layers: Blocks of a transformer or stages of a convolutional network whose outputs are concatenated, in this order; negative
            numbers count from the end. `(-1,)` selects the final features, after the last norm.
        pooling: `cls`: the class token; `avg`: the mean of the patch tokens or of the feature map; `native`: the input of timm's
            own classifier, only for the final features. None: `cls` if there is a class token, else `native`.
        pretrained: Load timm's weights, which may be downloaded.

    Raises:
        ValueError: timm cannot build the network, or it has no such layer, class token or pooling.
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
        # random weights are always the same for a name, and the global random state does not change
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
        # in a tuple, so that nn.Module does not register it
        self._hidden = (TimmFeatures(network.requires_grad_(False), self.layers, self.pooling).eval(),)
        config: Any = network.pretrained_cfg
        size = image_size or config["input_size"][-1]
        self.feature_width = self(torch.zeros(1, in_channels, size, size)).shape[1]

    @property
    def features(self) -> TimmFeatures:
        """The unregistered feature module."""
        return self._hidden[0]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) float32 of normalised images (B, C, H, W)."""
        features: Tensor = self.features(image)
        return features

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode for any `mode`, as batch statistics would drift."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.features._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by timm's names, without the classifier and the batch counters, which do not affect features."""
        network = self.features.network
        heads = classifier_names(network)
        return {
            name: tensor
            for name, tensor in network.state_dict().items()
            if not is_inside(name, heads) and not name.endswith(COUNTER)
        }

    def load(self, tensors: Mapping[str, Tensor]) -> Transfer:
        """Load weights by timm's names, of any floating-point type; after an error the backbone is unchanged.

        Returns:
            Report of which tensors were loaded.

        Raises:
            ValueError: Part of the backbone would stay random, or the weights are for another number of image channels.
        """
        network = self.features.network
        heads = classifier_names(network)
        backbone = {name: tensor for name, tensor in tensors.items() if not is_inside(name, heads)}
        return transfer(network, backbone, min_loaded=MIN_LOADED)


def has_class_token(network: Any) -> bool:
    """Whether a timm network has a class token."""
    return getattr(network, "cls_token", None) is not None


def check_features(network: Any, name: str, layers: tuple[int, ...], pooling: str) -> None:
    """Check that a timm network has the layers and supports the pooling.

    Raises:
        ValueError: It does not; the message begins with the name of the setting.
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
        raise ValueError(f"layers: timm provides no inner layers of {name}; leave it at [-1]")
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ValueError(f"layers: {name} has {count} layers, {-count} to {count - 1}, got {list(layers)}")
    if len({layer % count for layer in layers}) < len(layers):
        raise ValueError(f"layers: each at most once, got {list(layers)}")
