"""A frozen timm network that gives features: a plain `TimmFeatures` whose tensors the modules above it do not see.

`FrozenBackbone` holds the network without registering it: its tensors do not appear in `parameters()`, `buffers()` and
`state_dict()` of the modules above it, so that optimisers, weight averaging, checkpoints and other processes never get them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from foundation.sizes import Size, sides
from networks.timm_features import FINAL, Pooling, TimmFeatures, refused_size
from networks.timm_network import Argument, build_timm_network, classifier_names, is_inside
from networks.transfer import COUNTER, Transfer, transfer


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


class FrozenBackbone(nn.Module):
    """A timm network in eval mode, without gradients, whose tensors are not registered in the modules above it.

    It moves with them to a device, dtype and memory format. Before `load`, its weights are random, but equal in all processes.

    Args:
        name: A name of `timm.list_models()`, with or without a tag of pretrained weights.
        network_args: Further keyword arguments of `timm.create_model`.
        image_size: Side of the images in pixels, or their height and width; None uses timm's default.
        in_channels: C of the images.
        layers: Blocks of a transformer or stages of a convolutional network whose outputs are concatenated, in this order; negative
            numbers count from the end. `(-1,)` selects the final features, after the last norm.
        pooling: `cls`: the class token; `avg`: the mean of the patch tokens or of the feature map; `native`: what timm gives
            without its classifier, only for the final features; see networks/timm_features.py. None: `cls` if there is a class
            token that the last norm is for, else `native`, or `avg` for inner layers.
        pretrained: Load timm's weights, which may be downloaded.

    Raises:
        ValueError: timm cannot build the network, or it has no such layer, class token or pooling.
    """

    def __init__(
        self,
        name: str,
        network_args: Mapping[str, Argument] | None = None,
        image_size: Size | None = None,
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
        # in a tuple, so that nn.Module does not register it
        self._hidden = (TimmFeatures(network.requires_grad_(False), self.layers, pooling, self.name).eval(),)
        config: Any = network.pretrained_cfg
        size = image_size or config["input_size"][-1]
        with refused_size(self.name, size, in_channels):
            self.feature_width = self(torch.zeros(1, in_channels, *sides(size))).shape[1]

    @property
    def features(self) -> TimmFeatures:
        """The unregistered feature module."""
        return self._hidden[0]

    @property
    def pooling(self) -> str:
        """Name of the pooling as recorded in caches and checkpoints; see `TimmFeatures.recorded`."""
        return self.features.recorded

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
        """Load weights by the names of timm or of the original release; after an error the backbone is unchanged.

        Returns:
            Report of which tensors were loaded.

        Raises:
            ValueError: A tensor of the backbone would stay random, or the weights are for another number of image channels.
        """
        return transfer(self.features.network, tensors, frozen=True, setting="backbone")
