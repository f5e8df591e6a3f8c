"""Renames weights of torchvision, transformers and fastai to timm's names, for the networks that are equal in both.

    torchvision, transformers   a family is known by one of its tensors (`FAMILIES`); its names are rewritten, and the separate
                                queries, keys and values of an attention are joined
    fastai, other torchvision   numbered names (`0.4.1.conv2.weight`, `features.3.conv.1.0.weight`): tensor by tensor in the order
                                of the layers, only if the kind and shape of every tensor agree (`in_order`)

Nothing is guessed: tensors of a network that is not equal keep their names, and the report of `networks.transfer` names them.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from networks.timm_network import classifier_names, input_layer_names, is_inside

COUNTER = "num_batches_tracked"
"""Counter of a batch norm: missing in older files, and nothing depends on it."""

Rule = tuple[str, str]


class Family(NamedTuple):
    """Networks of a library that share their names.

    Args:
        name: Name for the report.
        marker: Tensor that tells the family; what precedes it is a prefix of all names.
        also: Pattern of the beginning of another tensor that must be there.
        rules: Patterns and their replacements, applied in this order.
        halved: Numbers in the replaced names count stages and downsamplings in turn, so they are halved.
    """

    name: str
    marker: str
    also: str
    rules: tuple[Rule, ...]
    halved: bool = False


_VIT_LAYER: tuple[Rule, ...] = (
    (r"\.attention\.(?:attention\.|self\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attn\.([qkv])(?:uery|ey|alue)\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\..*relative_position_bias_table$", ".attn.relative_position_bias_table"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.lambda_(\d)$", r".gamma_\1"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
_EMBEDDINGS: tuple[Rule, ...] = (
    (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^embeddings\.", ""),
)
_HEADS: tuple[Rule, ...] = (
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)

FAMILIES = (
    Family(
        "torchvision's vision transformer",
        "conv_proj.weight",
        r"encoder\.layers\.encoder_layer_0\.",
        (
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.head\.", "head."),
        ),
    ),
    Family(
        "torchvision's Swin transformer",
        "features.0.0.weight",
        r"features\.1\.0\.attn\.qkv\.",
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.(\d+)\.(reduction|norm)\.", r"layers.<\1>.downsample.\2."),
            (r"^features\.(\d+)\.(\d+)\.", r"layers.<\1>.blocks.\2."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
            (r"^head\.", "head.fc."),
        ),
        halved=True,
    ),
    Family(
        "torchvision's ConvNeXt",
        "features.0.0.weight",
        r"features\.1\.0\.layer_scale",
        (
            (r"^features\.0\.", "stem."),
            (r"^features\.(\d+)\.(\d+)\.layer_scale$", r"stages.<\1>.blocks.\2.gamma"),
            (r"^features\.(\d+)\.(\d+)\.block\.0\.", r"stages.<\1>.blocks.\2.conv_dw."),
            (r"^features\.(\d+)\.(\d+)\.block\.2\.", r"stages.<\1>.blocks.\2.norm."),
            (r"^features\.(\d+)\.(\d+)\.block\.3\.", r"stages.<\1>.blocks.\2.mlp.fc1."),
            (r"^features\.(\d+)\.(\d+)\.block\.5\.", r"stages.<\1>.blocks.\2.mlp.fc2."),
            (r"^features\.(\d+)\.", r"stages.<\1>.downsample."),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
        halved=True,
    ),
    Family(
        "transformers' vision transformer",
        "embeddings.cls_token",
        r"(?:encoder\.layer|layers)\.0\.",
        (
            *_EMBEDDINGS,
            (r"^(?:encoder\.layer|layers)\.", "blocks."),
            *_VIT_LAYER,
            (r"^pooler\.layernorm\.", "fc_norm."),
            (r"^layernorm\.", "norm."),
            *_HEADS,
        ),
    ),
    Family(
        "transformers' DINOv3",
        "embeddings.cls_token",
        r"(?:model\.)?layer\.0\.",
        (
            (r"^embeddings\.register_tokens$", "reg_token"),
            *_EMBEDDINGS,
            (r"^(?:model\.)?layer\.", "blocks."),
            *_VIT_LAYER,
            *_HEADS,
        ),
    ),
    Family(
        "transformers' Swin transformer",
        "embeddings.patch_embeddings.projection.weight",
        r"encoder\.layers\.0\.blocks\.0\.",
        (
            *_EMBEDDINGS,
            (r"^encoder\.", ""),
            *_VIT_LAYER,
            (r"^layers\.(\d+)\.downsample\.", r"layers.<\1>.downsample."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head.fc."),
        ),
    ),
    Family(
        "transformers' ConvNeXt",
        "embeddings.patch_embeddings.weight",
        r"encoder\.stages\.0\.layers\.0\.dwconv\.",
        (
            (r"^embeddings\.patch_embeddings\.", "stem.0."),
            (r"^embeddings\.layernorm\.", "stem.1."),
            (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"\.grn\.", ".mlp.grn."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"^layernorm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ),
    ),
    Family(
        "transformers' ResNet",
        "embedder.embedder.convolution.weight",
        r"encoder\.stages\.0\.layers\.0\.layer\.",
        (
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"layer<\1>.\2."),
            (r"\.layer\.(\d+)\.convolution\.", r".conv<\1>."),
            (r"\.layer\.(\d+)\.normalization\.", r".bn<\1>."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"^classifier\.1\.", "fc."),
        ),
    ),
)

# names that only some of timm's networks use, by those that the rules give
_ALSO = ((r"\.ls(\d)\.gamma$", r".gamma_\1"), (r"\.mlp\.fc1\.", ".mlp.fc1_x."), (r"^norm\.", "fc_norm."))


def is_published_form(names: Collection[str]) -> bool:
    """Whether tensors have the names of one of `FAMILIES`, behind any prefix."""
    return any(True for family in FAMILIES for _ in _prefixes(family, names))


def renamed(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors by the network's names, and the form that they had.

    Args:
        network: A timm network, whole or as its feature maps only.
        tensors: Weights by any names, in the order of their file.

    Returns:
        The tensors, and a name of the form; unchanged and "" if the names are of no known form.
    """
    own = network.state_dict()
    for family in FAMILIES:
        for prefix in _prefixes(family, tensors):
            found = _of_family(family, {_behind(prefix, name): tensor for name, tensor in tensors.items()}, own)
            found = placed(own, found)
            return {name: _squeezed(tensor, own.get(name)) for name, tensor in found.items()}, family.name
    found = in_order(network, tensors)
    return (found, "numbered names, matched by shape and order,") if found else (dict(tensors), "")


def placed(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by names of `own`: some networks of feature maps have `stages_0` where the whole network has `stages.0`."""
    flat = {name.replace(".", "_"): name for name in own}
    return {flat.get(name.replace(".", "_"), name): tensor for name, tensor in tensors.items()}


def _prefixes(family: Family, names: Collection[str]) -> Iterator[str]:
    """The prefix of all names before the family's own, if the tensors are of this family."""
    for name in names:
        prefix = name.removesuffix(family.marker)
        if name.endswith(family.marker) and prefix[-1:] in ("", "."):
            there = re.compile(re.escape(prefix) + family.also)
            if any(there.match(other) for other in names):
                yield prefix


def _behind(prefix: str, name: str) -> str:
    """A name without the prefix of its network, or without the parts of it that the name has, as that of a head next to it."""
    for part in prefix.split(".")[:-1]:
        if not name.startswith(f"{part}."):
            break
        name = name.partition(".")[2]
    return name


def _of_family(family: Family, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in family.rules:
            name = re.sub(pattern, replacement, name)
        # transformers counts from 0 where timm counts from 1; torchvision numbers stages and downsamplings in turn
        name = re.sub(r"<(\d+)>", lambda m: str(int(m[1]) // 2 if family.halved else int(m[1]) + 1), name)
        found[name] = tensor
    known = {name.replace(".", "_") for name in own}
    for pattern, replacement in _ALSO:
        for name in [n for n in found if n.replace(".", "_") not in known]:
            other = re.sub(pattern, replacement, name)
            if other != name and other.replace(".", "_") in known:
                found[other] = found.pop(name)
    return _joined(found, own)


def _joined(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with queries, keys and values of an attention as one; a key without a bias has the bias 0."""
    found = dict(tensors)
    for name in tensors:
        if not name.endswith(".attn.q.weight"):
            continue
        block = name.removesuffix("q.weight")
        weights = [found.pop(f"{block}{part}.weight", None) for part in "qkv"]
        biases = [found.pop(f"{block}{part}.bias", None) for part in "qkv"]
        if f"{block}q_proj.weight" in own:
            pairs = zip("qkv", weights, biases, strict=True)
            parts = {f"{block}{part}_proj": both for part, *both in pairs}
            found |= {
                f"{n}.{kind}": t
                for n, both in parts.items()
                for kind, t in zip(("weight", "bias"), both, strict=True)
                if t is not None
            }
            continue
        if any(weight is None for weight in weights):
            continue
        found[f"{block}qkv.weight"] = torch.cat([weight for weight in weights if weight is not None])
        if f"{block}q_bias" in own:
            found |= {
                f"{block}{part}_bias": bias
                for part, bias in zip("qkv", biases, strict=True)
                if bias is not None and part != "k"
            }
        elif any(bias is not None for bias in biases):
            zeros = [weight.new_zeros(len(weight)) for weight in weights if weight is not None]
            found[f"{block}qkv.bias"] = torch.cat([z if b is None else b for b, z in zip(biases, zeros, strict=True)])
    return found


def _squeezed(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The tensor in a shape that differs only in sides of length 1, as of a linear layer and a 1 x 1 convolution."""
    if like is None or like.shape == tensor.shape or _sides(like) != _sides(tensor):
        return tensor
    return tensor.reshape(like.shape)


def _sides(tensor: Tensor) -> list[int]:
    return [side for side in tensor.shape if side != 1]


def in_order(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Match tensors with numbered names to the network's in the order of its layers.

    All tensors outside the head must agree in their kind (`weight`, `bias`, `running_mean`, ...) and shape, one after the other.
    Further tensors of the file may only be of a head: they have no spatial convolution.

    Returns:
        The tensors by the network's names; empty if they are not numbered, or one of them does not agree.
    """
    heads, inputs = classifier_names(network), input_layer_names(network)
    own = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    body = [name for name in own if not is_inside(name, heads)]
    if len(tensors) == 0 or not any(part.isdigit() for name in tensors for part in name.split(".")):
        return {}
    there = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not name.endswith(COUNTER)]
    words = {_word(name) for name in own}
    for order in (there, sorted(there, key=_natural)):
        for wanted in ([*body, *(name for name in own if name not in body)], body):
            rest = order[len(wanted) :]
            fits = len(order) >= len(wanted) and all(
                _agree(name, own[name], other, tensors[other], inputs, words)
                for name, other in zip(wanted, order, strict=False)
            )
            if fits and not any(tensors[name].ndim > 2 and max(tensors[name].shape[2:]) > 1 for name in rest):
                pairs = zip(wanted, order, strict=False)
                found = {name: _squeezed(tensors[other], own[name]) for name, other in pairs}
                return {**found, **{name: tensors[name] for name in rest if name not in found}}
    return {}


def _agree(name: str, here: Tensor, other: str, there: Tensor, inputs: Sequence[str], words: set[str]) -> bool:
    """Whether two tensors have the same kind and shape; the channels of the first layer may differ.

    A layer that has a name of the network's own must have it in the same place: `norm2` is not `norm1`.
    """
    if _word(other) in words and not _word(other).isdigit() and _word(other) != _word(name):
        return False
    if is_inside(name, tuple(inputs)) and here.ndim == there.ndim > 1:
        same = here.shape[:1] + here.shape[2:] == there.shape[:1] + there.shape[2:]
    else:
        same = _sides(here) == _sides(there)
    return same and name.rpartition(".")[2] == other.rpartition(".")[2]


def _word(name: str) -> str:
    """Name of the layer that a tensor is in: `conv2` of `layer1.0.conv2.weight`."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts numbers by value, and a norm's statistics behind its weight and bias."""
    kinds = ("weight", "bias", "running_mean", "running_var")
    first, _, last = name.rpartition(".")
    parts = [(int(part), "") if part.isdigit() else (-1, part) for part in first.split(".")]
    return [*parts, (kinds.index(last), "") if last in kinds else (len(kinds), last)]
