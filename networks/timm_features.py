"""Features of a timm network without its classifier: what each pooling of its final or inner output means (`TimmFeatures`).

    image (B, C, H, W) --timm network--> final or chosen layers --cls, avg or native pooling--> concatenated: features (B, D)

    cls     the class token after the last norm. A last norm that a network has only for the mean of its patches (`fc_norm` of
            BEiT and EVA-02) is not applied to the class token
    avg     the mean of the patch tokens or of the feature map after the last norm, also where this norm lies in the head, after
            the pooling (`head.norm` of ConvNeXt, MetaFormer, MaxViT and others). Class and register tokens are left out
    native  what timm gives for `num_classes=0`: its own pooling and all of its head before the classifier. A batch norm that timm
            counts as part of the classifier (LeViT, RepViT, SHViT) is left out

Networks with several outputs (CrossViT, CoaT) give one vector per output, concatenated.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from foundation.sizes import Size, sides

Pooling = Literal["cls", "avg", "native"]

FINAL = (-1,)
SECOND = " (2)"
"""Ends the recorded name of a pooling whose meaning was corrected for some networks; see `TimmFeatures.recorded`."""


class TimmFeatures(nn.Module):
    """A timm network without its classifier, followed by pooling; see `networks.frozen_backbone.FrozenBackbone`.

    Args:
        network: The network, made with `num_classes=0`.
        layers: As in `FrozenBackbone`.
        pooling: As in `FrozenBackbone`; None: see `default_pooling`.
        name: Name of the network for messages.

    Version 1 of this class put `cls` through `fc_norm` always, `avg` through no norm in the head, and averaged VOLO's class token
    in. A module that loads a state dict of version 1 goes on so, and saves version 1 again.

    Attributes:
        pooling: The pooling in use.

    Raises:
        ValueError: The network has no such layer, class token or pooling.
    """

    _version = 2

    def __init__(self, network: nn.Module, layers: Sequence[int], pooling: Pooling | None, name: str) -> None:
        super().__init__()
        self.network, self.layers = network, tuple(layers)
        self._given = pooling
        self.pooling: Pooling = pooling or default_pooling(network, self.layers)
        check_features(network, name, self.layers, self.pooling)

    def forward(self, image: Tensor) -> Tensor:
        """Features (B, D) float32 of images (B, C, H, W).

        Raises:
            ValueError: The network gives nothing that the pooling could use; the message names the setting.
        """
        network: Any = self.network
        if self.layers != FINAL:
            return torch.cat(self._of_layers(image), dim=1).float()
        return self.pooled(network.forward_features(image))

    def pooled(self, features: Any) -> Tensor:
        """Features (B, D) float32 of the network's final output, what its `forward_features` gives; for `layers` (-1,).

        Raises:
            ValueError: As for `forward`.
        """
        network: Any = self.network
        if self.pooling == "native":
            vector: Tensor = network.forward_head(features, pre_logits=True)
            return vector.flatten(1).float()
        parts = features if isinstance(features, (list, tuple)) else [features]
        if len(parts) > 1 and not has_class_token(network):
            raise ValueError(
                f"pooling: the final output of {type(network).__name__} is {len(parts)} parts that only its own head joins; give "
                f"native, or avg with layers [{len(network.feature_info) - 1}]"
            )
        vector = torch.cat([self._pooled(part) for part in parts], dim=1)
        norm = _norm_of_mean(network)
        if self.first_form:
            norm = getattr(network, "fc_norm", None)
        elif self.pooling == "cls" and not _pools_class_token(network):
            norm = None
        return vector.float() if norm is None else _normed(network, norm, vector).float()

    def _pooled(self, features: Tensor) -> Tensor:
        network: Any = self.network
        if self.pooling == "cls":
            return features[:, 0]
        if features.ndim == 3:
            prefix = getattr(network, "num_prefix_tokens", 0) if self.first_form else prefix_tokens(network)
            if features.shape[1] <= prefix:
                name = type(network).__name__
                raise ValueError(
                    f"pooling: the final output of {name} is only its class token; give cls, or avg with layers "
                    f"[{len(network.feature_info) - 1}]"
                )
            return features[:, prefix:].mean(dim=1)
        last = getattr(network, "output_fmt", "NCHW") == "NHWC"
        return features.mean(dim=(1, 2) if last else (2, 3))

    def _of_layers(self, image: Tensor) -> list[Tensor]:
        """One vector per layer, in the order of `layers`; timm always returns them in the order of the network."""
        network: Any = self.network
        count = len(network.feature_info)
        places = [layer % count for layer in self.layers]
        settings: dict[str, Any] = {"indices": sorted(places), "norm": True, "intermediates_only": True}
        if _norm_of_mean(network) is not None and not hasattr(network, "norm"):
            settings["norm"] = False  # the only last norm is for the mean; Hiera refuses True
        if self.pooling == "cls":
            found = network.forward_intermediates(image, return_prefix_tokens=True, **settings)
            vectors = [prefix[:, 0] for _, prefix in found]
        else:
            vectors = [features.mean(dim=(2, 3)) for features in network.forward_intermediates(image, **settings)]
        return [vectors[sorted(places).index(place)] for place in places]

    def pool_as(self, recorded: str) -> None:
        """Pool as a checkpoint or cache records, see `recorded`, unless another pooling was asked for."""
        name = recorded.removesuffix(SECOND)
        if self._given in (None, name) and name in get_args(Pooling):
            self.pooling = cast(Pooling, name)
            self._version = 2 if recorded.endswith(SECOND) else 1  # a state dict saves it

    @property
    def first_form(self) -> bool:
        """Pool as version 1 of this class did; see the class."""
        return self._version == 1

    @property
    def recorded(self) -> str:
        """Name of the pooling for caches and checkpoints: it ends in `SECOND` where version 1 of this class gave other features."""
        network: Any = self.network
        if self.first_form or self.layers != FINAL or self.pooling == "native":
            return self.pooling
        norm = _norm_of_mean(network)
        if self.pooling == "cls":
            changed = norm is not None and not _pools_class_token(network)
        else:
            first_norm, first_prefix = getattr(network, "fc_norm", None), getattr(network, "num_prefix_tokens", 0)
            changed = (norm is not None and norm is not first_norm) or prefix_tokens(network) != first_prefix
        return self.pooling + SECOND if changed else self.pooling

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        if local_metadata.get("version") == 1:
            self.pool_as(
                self._given or ("cls" if getattr(self.network, "cls_token", None) is not None else self.pooling)
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def has_class_token(network: nn.Module) -> bool:
    """Whether the final output of a timm network begins with a class token."""
    tokens = [
        *network.named_parameters(recurse=False),
        *getattr(network, "embeds", nn.Module()).named_parameters(recurse=False),
    ]
    return any(name.startswith("cls_token") for name, _ in tokens)


def prefix_tokens(network: nn.Module) -> int:
    """Number of class and register tokens before the patch tokens of a timm network."""
    # VOLO, CrossViT and CoaT have a class token without telling
    return int(getattr(network, "num_prefix_tokens", int(has_class_token(network))))


def default_pooling(network: nn.Module, layers: Sequence[int]) -> Pooling:
    """`cls` if there is a class token that the last norm is for, else `native`, or `avg` for inner layers."""
    has_token = getattr(network, "cls_token", None) is not None
    if tuple(layers) != FINAL:
        return "cls" if has_token and _gives_prefix_tokens(network) else "avg"
    for_mean = _norm_of_mean(network) is not None and not _pools_class_token(network)
    if has_token and not for_mean:
        return "cls"
    return "native" if _has_head(network) else "avg"


@contextlib.contextmanager
def refused_size(name: str, size: Size, channels: int = 3) -> Iterator[None]:
    """Turn the errors of a network's first pass into one that names the image size, and channels of another number than 3.

    Raises:
        ValueError: The network cannot take images of this size, or its pooling is refused.
    """
    try:
        yield
    except (RuntimeError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        of, other = (f" and {channels} channels", ", or another architecture") if channels != 3 else ("", "")
        high, wide = sides(size)
        raise ValueError(
            f"image_size: {name} cannot take images of {high} x {wide} pixels{of} ({reason}); take the size that timm gives for "
            f"it{other}"
        ) from error


def check_features(network: Any, name: str, layers: tuple[int, ...], pooling: str) -> None:
    """Check that a timm network has the layers and supports the pooling.

    Raises:
        ValueError: It does not; the message begins with the name of the setting.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"pooling: one of {', '.join(get_args(Pooling))}, got {pooling}")
    if pooling == "cls" and not has_class_token(network):
        raise ValueError(f"pooling: {name} has no class token; give {'avg or native' if _has_head(network) else 'avg'}")
    if layers == FINAL:
        if pooling == "native" and not _has_head(network):
            raise ValueError(f"pooling: timm has no head for {name}, so there is no native pooling; give avg")
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
    if pooling == "cls" and not _gives_prefix_tokens(network):
        raise ValueError(f"pooling: timm gives no class token of the inner layers of {name}; give avg")


def _norm_of_mean(network: Any) -> nn.Module | None:
    """The norm that a network applies after its pooling; None if its last norm is before the pooling."""
    head = getattr(network, "head", None)
    after_pooling = [(name, module) for name, module in _children(head) if name != "global_pool"]
    if after_pooling and after_pooling[0][0] == "norm":
        norm: nn.Module | None = after_pooling[0][1]
    elif hasattr(network, "encoder"):  # timm's classifiers around the vision towers of language models
        norm = getattr(network, "norm", None)
    else:
        norm = getattr(network, "fc_norm", None)
    return None if norm is None or isinstance(norm, nn.Identity) else norm


def _children(module: Any) -> list[tuple[str, nn.Module]]:
    return list(module.named_children()) if isinstance(module, nn.Module) else []


def _normed(network: Any, norm: nn.Module, vector: Tensor) -> Tensor:
    """A vector (B, D) after a norm for vectors or, in heads that pool maps, for maps (B, D, 1, 1)."""
    maps = any(name == "global_pool" for name, _ in _children(getattr(network, "head", None)))
    normed: Tensor = norm(vector[:, :, None, None]).flatten(1) if maps else norm(vector)
    return normed


def _has_head(network: Any) -> bool:
    return hasattr(network, "get_classifier")


def _pools_class_token(network: Any) -> bool:
    return getattr(network, "global_pool", None) == "token"


def _gives_prefix_tokens(network: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(network.forward_intermediates).parameters
