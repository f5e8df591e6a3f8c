"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): where in an image a network sees what speaks for a class.

    image -> network -> last map A (B, D, h, w) -> head -> score y of a class
    a_k = mean over h and w of dy / dA_k                  heat = relu(sum over k of a_k A_k)

For a network whose head is a mean and a linear layer this is the class activation map: a_k is the layer's weight divided by h w.

A is the output of `forward_features`: a map (B, D, h, w) or (B, h, w, D), or tokens (B, N, D) without class and register tokens. A
head that reads only the class token gives the other tokens no gradient. Then A is the input of the last block that timm names in
`feature_info`, whose attention takes the patches into the class token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.in_parts import in_parts
from foundation.sizes import size_text
from networks.timm_features import FINAL, TimmFeatures, prefix_tokens


class NoMapError(ValueError):
    """A network has no map of the image that heat could be read from."""


class _Parts(NamedTuple):
    """A network as timm splits it: what gives its final features, what makes logits of them, and the module that has the layers."""

    features: Callable[[Tensor], Any]
    head: Callable[[Tensor], Tensor]
    body: nn.Module


def grad_cam(network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Heat of classes, each row of images for itself, at the size of the network's last map.

    Gradients are taken with respect to that map only, in float32. Weights, their ``grad``, modes and random generators stay as they
    are. Works within `torch.inference_mode` and for frozen weights.

    Args:
        network: A network in eval mode: of timm, a `ResNet`, or `TimmFeatures` and a head in a `Sequential`.
        images: (B, C, H, W), normalised, on the network's device and in its dtype.
        classes: Numbers of n classes for each image, (B, n) int64.

    Returns:
        (B, n, h, w) float32, 0 or more; not scaled.

    Raises:
        NoMapError: The network has no such map, or it has only one pixel.
    """
    parts, done = _parts_of(network), 0

    def of_rows(rows: Tensor) -> Tensor:
        nonlocal done
        found = _of_batch(parts, rows, classes[done : done + len(rows)].to(rows.device))
        done += len(rows)
        return found

    with torch.inference_mode(False), torch.autocast(images.device.type, enabled=False):
        classes = classes.clone()  # one made in inference mode could not be kept for the gradients
        return in_parts(of_rows, images)


def scaled_heat(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps (B, n, h, w) to (B, n, height, width), bilinear, and divide each by its largest value; all of 0 stays 0."""
    resized = F.interpolate(heat, size, mode="bilinear", align_corners=False)
    return resized / resized.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(resized.dtype).tiny)


def _parts_of(network: nn.Module) -> _Parts:
    if isinstance(network, nn.Sequential) and len(network) == 2 and isinstance(network[0], TimmFeatures):
        features, head = network
        assert isinstance(features, TimmFeatures)
        body: Any = features.network
        if features.layers != FINAL:
            raise NoMapError(f"the head reads the layers {list(features.layers)}; heat is of the final features, [-1]")
        return _Parts(body.forward_features, lambda found: head(features.pooled(found)), body)
    whole: Any = network
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise NoMapError(f"{type(network).__name__} has no forward_features and forward_head, so no map of the image")
    return _Parts(whole.forward_features, whole.forward_head, network)


def _of_batch(parts: _Parts, images: Tensor, classes: Tensor) -> Tensor:
    size = (images.shape[2], images.shape[3])
    with torch.no_grad():
        final = parts.features(images)
    if not isinstance(final, Tensor) or final.ndim not in (3, 4):
        shape = f"a tensor of shape {tuple(final.shape)}" if isinstance(final, Tensor) else f"a {type(final).__name__}"
        raise NoMapError(f"the final features of {type(parts.body).__name__} are {shape}, not one map of the image")
    prefix = prefix_tokens(parts.body) if final.ndim == 3 else 0
    if final.ndim == 4 or final.shape[1] > prefix:
        with torch.enable_grad():
            leaf = _leaf_of(final)
            gradients = _gradients(parts.head(leaf.clone().to(final.dtype)), leaf, classes)
        patches = gradients[:, :, prefix:] if prefix else gradients
        if not prefix or patches.any():
            return _heat(parts.body, leaf, gradients, size, prefix)
    leaf, gradients = _before_last_block(parts, images, classes)
    if leaf.ndim == 3 and final.shape[1] > prefix:  # the class token may be joined to the patches later only
        prefix += leaf.shape[1] - final.shape[1]
    return _heat(parts.body, leaf, gradients, size, prefix)


def _before_last_block(parts: _Parts, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the last block (B, N, D), and the gradients (n, B, N, D) of the classes' scores."""
    layers: Any = getattr(parts.body, "feature_info", None)
    block = dict(parts.body.named_modules()).get(layers[-1]["module"]) if layers else None
    if block is None:
        raise NoMapError(
            f"the head of {type(parts.body).__name__} reads no patches, and timm names no layer before them"
        )
    leaves: list[Tensor] = []

    def start(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.append(_leaf_of(inputs[0]))
        torch.set_grad_enabled(True)  # until the no_grad below ends
        return (leaves[-1].clone().to(inputs[0].dtype), *inputs[1:])

    hook = block.register_forward_pre_hook(start)
    try:
        with torch.no_grad():
            logits = parts.head(parts.features(images))
            if not leaves:
                raise NoMapError(f"the last block of {type(parts.body).__name__} is never called")
            return leaves[-1], _gradients(logits, leaves[-1], classes)
    finally:
        hook.remove()


def _leaf_of(values: Tensor) -> Tensor:
    return values.detach().float().clone().requires_grad_()


def _gradients(logits: Tensor, leaf: Tensor, classes: Tensor) -> Tensor:
    """Gradients (n, ...) of the scores of n classes with respect to a leaf (...)."""
    scores = logits.float().gather(1, classes).sum(dim=0)  # no row depends on another
    found = [torch.autograd.grad(score, leaf, retain_graph=True, materialize_grads=True)[0] for score in scores]
    return torch.stack(found)


def _heat(body: nn.Module, leaf: Tensor, gradients: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """Heat (B, n, h, w) of a map, or of tokens of which the first ``prefix`` are no patches, and the gradients (n, ...) to it."""
    with torch.no_grad():
        maps = _as_map(body, leaf.detach(), size, prefix)
        if maps.shape[2] * maps.shape[3] < 2:
            raise NoMapError(
                f"the last map of {type(body).__name__} is one pixel at images of {size_text(size)}: it shows no place; larger "
                "images have a larger map"
            )
        weights = torch.stack(
            [_as_map(body, one, size, prefix).mean(dim=(2, 3)) for one in gradients], dim=1
        )  # (B, n, D)
        heat: Tensor = torch.einsum("bnd,bdhw->bnhw", weights, maps).relu()
        return heat


def _as_map(body: nn.Module, features: Tensor, size: tuple[int, int], prefix: int) -> Tensor:
    """Final features or tokens as a map (B, D, h, w)."""
    if features.ndim == 4:
        width = getattr(
            body, "num_features", None
        )  # the blocks of some networks, such as VOLO, have their channels last
        last = getattr(body, "output_fmt", "NCHW") == "NHWC" or (
            width == features.shape[3] and width != features.shape[1]
        )
        return features.permute(0, 3, 1, 2) if last else features
    patches = features[:, prefix:]
    placed: Tensor = patches.transpose(1, 2).unflatten(2, _grid(body, patches.shape[1], size))
    return placed


def _grid(body: nn.Module, count: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patch tokens, in the proportions of the image."""
    embedding: Any = getattr(body, "patch_embed", None)
    known = getattr(embedding, "dynamic_feat_size", None)
    if known is not None and (grid := tuple(known(size)))[0] * grid[1] == count:
        return grid[0], grid[1]
    step = (size[0] * size[1] / count) ** 0.5
    rows, columns = (max(1, round(side / step)) for side in size)
    if rows * columns != count:
        raise NoMapError(f"the {count} tokens of {type(body).__name__} are no grid of an image of {size_text(size)}")
    return rows, columns
