"""Sweep over timm's families: what the backbone, the classifier, the HAR encoder and the segmenter make of each, as a table.

    python -m benchmarks.timm_families [NAME ...] [--json FILE]

Each network gets random weights (no download) and one random image of its own size. `cls`, `avg`, `native` and every inner layer
are compared with a statement of the same pooling that shares no code with networks/timm_features.py: timm's plain forward without
classes, hooks on the layers that timm names, the tokens counted by their parameters. An entry is a width, or the number of the line
that refuses; any other error or difference is a fault. Without NAME, all members that docs/backbones.md lists are checked.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from networks.frozen_backbone import FrozenBackbone
from networks.segmenters.light import LightSegmenter
from networks.signal_encoder import build_encoder, feature_width
from networks.timm_features import Pooling, TimmFeatures
from networks.timm_network import backbone_modules, build_timm_network, classifier_names, is_inside, layer_numbers

DOCS = Path(__file__).resolve().parent.parent / "docs" / "backbones.md"
COLUMNS = (
    "member",
    "size",
    "default",
    "cls",
    "avg",
    "native",
    "inner",
    "inner cls",
    "fine-tuning",
    "layer_decay",
    "HAR",
    "segmenter",
)
Row = dict[str, str]


class FaultError(Exception):
    """A network gives something else than its statement, or an error that is no line for the user."""


def family(name: str) -> tuple[str, str]:
    """Module of timm that defines a network, and the first word of its name without numbers.

    >>> family("convnextv2_atto")
    ('convnext', 'convnextv')
    """
    first = name.partition("_")[0]
    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    return module, re.sub(r"\d.*$", "", first) or first


def members(path: Path = DOCS) -> list[str]:
    """Smallest member of each kind of network, from the last block of the documentation."""
    return path.read_text(encoding="utf-8").rpartition("```text\n")[2].partition("```")[0].split()


def check_network(name: str) -> Row:
    """One row of the table: for each column a width, `yes`, or the line that refuses.

    Raises:
        FaultError: Something is wrong without a word.
    """
    config = timm.get_pretrained_cfg(name)
    size = int(config.input_size[-1]) if config else 224
    row = {"member": name, "size": str(size), **features_of(name, size)}
    gc.collect()
    whole: dict[str, Tensor] = {}
    row["fine-tuning"] = _asked(lambda: _fine_tuned(name, size, whole))
    gc.collect()
    row["layer_decay"] = _asked(lambda: _layers(name, size))
    row["HAR"] = _asked(lambda: _signals(name, size))
    gc.collect()
    row["segmenter"] = _asked(lambda: _segmenter(name, whole))
    return row


def features_of(name: str, size: int, network_args: dict[str, Any] | None = None) -> Row:
    """The columns of a frozen backbone at an image size, each compared with its statement.

    Raises:
        FaultError: Features differ from their statement, or an error is no line for the user.
    """
    torch.manual_seed(0)
    try:
        backbone = FrozenBackbone(name, network_args, size)
    except ValueError as error:
        return {"default": _line(error)}
    image = torch.randn(1, 3, size, size)
    _shake_finite(backbone.features.network, image)
    return _poolings(backbone, name, image)


def _asked(question: Callable[[], str]) -> str:
    try:
        return question()
    except ValueError as error:
        return _line(error)


def _line(error: Exception) -> str:
    line = str(error)
    if "\n" in line or not re.match(r"[a-z_]+: ", line):
        raise FaultError(f"no line that names a setting: {line}") from error
    return f"! {line}"


@torch.no_grad()
def _shake_finite(network: Any, image: Tensor) -> None:
    """Shake the weights, by a tenth if this makes the output overflow; a deep network without norms may need that.

    Raises:
        FaultError: The output is not finite with either.
    """
    for share in (1.0, -0.9):
        _shake(network, share)
        output = network.forward_features(image)
        if all(torch.isfinite(part).all() for part in (output if isinstance(output, (list, tuple)) else [output])):
            return
    raise FaultError(f"{type(network).__name__}: random weights overflow")


def _shake(network: nn.Module, share: float) -> None:
    """Move all weights away from the zeros and ones of their initialisation, always in the same direction."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(len(name)))
            tensor.add_(noise, alpha=share * (0.05 if tensor.ndim < 2 else 0.01))


# ---- poolings ----


@torch.no_grad()
def _poolings(backbone: FrozenBackbone, name: str, image: Tensor) -> Row:
    network: Any = backbone.features.network
    row = {"default": f"{backbone.features.pooling} {backbone.feature_width}"}
    count = len(getattr(network, "feature_info", ()))
    outputs, final = _hooked(network, [network.feature_info[i]["module"] for i in range(count)], image)
    plain, network.forward_features = (
        network.forward_features,
        lambda _, **__: final,
    )  # the same for all: one pass is enough
    stated: dict[str, Callable[[], Tensor]] = {
        "cls": lambda: _stated_cls(network, image),
        "avg": lambda: _stated_avg(network, image),
        "native": lambda: network(image).flatten(1),
    }
    for pooling, statement in stated.items():
        found = _asked_features(network, (-1,), pooling, name, image)
        if isinstance(found, Tensor):
            _same(found, statement(), f"{name}: {pooling}")
        row[pooling] = found if isinstance(found, str) else str(found.shape[1])
    network.forward_features = plain
    for column, pooling in (("inner", "avg"), ("inner cls", "cls")):
        found = _asked_features(network, tuple(range(count)), pooling, name, image)
        if isinstance(found, str):
            row[column] = found
            continue
        widths = [info["num_chs"] for info in network.feature_info]
        for place, (part, output) in enumerate(zip(found.split(widths, dim=1), outputs, strict=True)):
            last = final if place == count - 1 else None
            _check_layer(network, pooling, part, output, last, f"{name}: layer {place}, {pooling}")
        row[column] = f"{count} layers"
    return row


def _asked_features(network: Any, layers: tuple[int, ...], pooling: str, name: str, image: Tensor) -> Tensor | str:
    try:
        features: Tensor = TimmFeatures(network, layers, cast(Pooling, pooling), name).eval()(image)
    except ValueError as error:
        return _line(error)
    return features


def _same(found: Tensor, wanted: Tensor, what: str) -> None:
    if found.shape != wanted.shape or not torch.isfinite(found).all():
        raise FaultError(f"{what}: {tuple(found.shape)}, stated {tuple(wanted.shape)}, or not finite")
    distance = (found - wanted).abs().max() / wanted.abs().max()
    if distance > 1e-4:
        raise FaultError(f"{what}: differs from its statement by {distance:.2g} of the largest value")


def _tokens(network: Any, output: Tensor) -> tuple[Tensor, Tensor]:
    """Class, register and distillation tokens (B, P, D), counted by their parameters, and patch tokens or positions (B, N, D)."""
    if output.ndim == 4:
        height, width = output.shape[1:3]
        flat = output.flatten(1, 2) if height == width != output.shape[3] else output.flatten(2).transpose(1, 2)
        return flat[:, :0], flat
    own = [
        *network.named_parameters(recurse=False),
        *(network.embeds.named_parameters(recurse=False) if hasattr(network, "embeds") else []),
    ]
    counts = {
        re.sub(r"_?\d+$", "", name): parameter.shape[-2]
        for name, parameter in own
        if re.search(r"(cls|dist|reg|class)_token", name)
    }
    tokens = sum(counts.values())
    return output[:, :tokens], output[:, tokens:]


def _stated_cls(network: Any, image: Tensor) -> Tensor:
    output = network.forward_features(image)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    return torch.cat([_tokens(network, one)[0][:, 0] if one.shape[1] > 2 else one[:, 0] for one in outputs], dim=1)


def _stated_avg(network: Any, image: Tensor) -> Tensor:
    """The mean of the patches, after the norm that timm's own head applies to it first, if it does."""
    output = network.forward_features(image)
    outputs = output if isinstance(output, (list, tuple)) else [output]
    mean = torch.cat([_tokens(network, one)[1].mean(dim=1) for one in outputs], dim=1)
    if not hasattr(network, "get_classifier"):
        return mean
    called: list[tuple[nn.Module, Tensor]] = []
    leaves = [  # a norm may have no parameters (vision towers of language models)
        m
        for m in network.modules()
        if next(m.children(), None) is None and (next(m.parameters(), None) is not None or "Norm" in type(m).__name__)
    ]
    handles = [leaf.register_forward_hook(lambda m, given, _: called.append((m, given[0]))) for leaf in leaves]
    network.forward_head(output)
    for handle in handles:
        handle.remove()
    if called and "Norm" in type(called[0][0]).__name__ and called[0][1][0].numel() == mean.shape[1]:
        norm, given = called[0]
        _same(mean, given.flatten(1), f"{type(network).__name__}: what timm's own head gives to its norm")
        return norm(mean.reshape(given.shape)).flatten(1)  # type: ignore[no-any-return]
    return mean


def _hooked(network: Any, modules: list[str], image: Tensor) -> tuple[list[Any], Any]:
    """Outputs of the modules that timm names as inner layers, and the final output, in a plain forward pass."""
    outputs: dict[str, Any] = {}
    there = {name.removeprefix("encoder."): module for name, module in network.named_modules()}  # Gemma 4's names
    there |= dict(network.named_modules())
    handles = [
        there[name].register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name in set(modules) & there.keys()
    ]
    final = network.forward_features(image)
    for handle in handles:
        handle.remove()
    return [outputs.get(name) for name in modules], final


def _check_layer(network: Any, pooling: str, part: Tensor, output: Any, final: Any, what: str) -> None:
    """Compare a layer with the output that timm names, with it after a last norm, or, the last one, with the final output."""
    if isinstance(output, tuple):
        output = next((one for one in output if isinstance(one, Tensor) and part.shape[1] in one.shape), None)
    if not isinstance(output, Tensor) or output.ndim < 3 or part.shape[1] not in output.shape:
        if not torch.isfinite(part).all() or not part.any():
            raise FaultError(f"{what}: not finite or all zero")
        return  # timm names no module that gives this layer
    norms: list[Any] = [nn.Identity()]
    for last in (getattr(network, "norm", None), getattr(network, "neck", None), _inner_norm(network)):
        norms += last if isinstance(last, nn.ModuleList) else [last] if isinstance(last, nn.Module) else []
    candidates = [(norm, output) for norm in norms]
    if isinstance(final, Tensor):
        candidates.append((nn.Identity(), final))
    for norm, one in candidates:
        for axes in (one, one.movedim(1, -1), one.movedim(-1, 1)):
            try:
                special, patches = _tokens(network, norm(axes))
            except (RuntimeError, NotImplementedError):
                continue
            stated = [patches.mean(1), norm(axes).flatten(1, -2).mean(1)]
            if pooling == "cls" and special.shape[1]:
                stated = [special[:, 0]]
            least = 1e-4 * float(part.abs().max())
            if any(one.shape == part.shape and torch.allclose(one, part, atol=least, rtol=1e-4) for one in stated):
                return
    raise FaultError(f"{what}: is neither the output of the layer that timm names nor this output after the last norm")


def _inner_norm(network: Any) -> Any:
    """The last norm of a vision tower inside a classifier."""
    return getattr(getattr(network, "encoder", None), "norm", None)


# ---- training ----


def _fine_tuned(name: str, size: int, whole: dict[str, Tensor]) -> str:
    """Build a classifier, and train only its head for one step without touching the backbone."""
    network: Any = build_timm_network(name, num_classes=5, image_size=size, dropout=0.1)
    heads = classifier_names(network)
    with torch.device("meta"):
        other = build_timm_network(name, num_classes=7, image_size=size).state_dict()
    own = network.state_dict()
    whole.update(own)
    resized = {key for key in own if own[key].shape != other[key].shape}
    if not resized or {key for key in own if is_inside(key, heads) and own[key].shape[:1] == (5,)} != resized:
        raise FaultError(f"{name}: the head is {heads}, but the classes change {sorted(resized)}")
    for key, parameter in network.named_parameters():
        parameter.requires_grad = is_inside(key, heads)
    before = {key: tensor.clone() for key, tensor in own.items() if not is_inside(key, heads)}
    for module in network.train() and backbone_modules(network):
        module.training = False
    logits = network(torch.randn(2, 3, size, size))
    if not isinstance(logits, Tensor) or logits.shape != (2, 5):
        raise FaultError(f"{name}: in training the logits are {type(logits).__name__}")
    logits.square().sum().backward()
    if any(parameter.requires_grad and parameter.grad is None for parameter in network.parameters()):
        raise FaultError(f"{name}: part of the head gets no gradient")
    if any(not torch.equal(tensor, network.state_dict()[key]) for key, tensor in before.items()):
        raise FaultError(f"{name}: the frozen backbone changed")
    return " and ".join(heads)


def _layers(name: str, size: int) -> str:
    with torch.device("meta"):
        network = build_timm_network(name, num_classes=5, image_size=size)
    return str(max(layer_numbers(network).values()) + 1)


@torch.no_grad()
def _signals(name: str, size: int) -> str:
    """Width of the HAR encoder for 2 channels, of which the features are then computed."""
    encoder = build_encoder(name, in_channels=2, image_size=size)
    width = feature_width(encoder, (2, size, size))
    features = encoder.eval()(torch.randn(1, 2, size, size))
    if features.shape != (1, width):
        raise FaultError(f"{name}: the HAR encoder gives {tuple(features.shape)}, its width is {width}")
    return str(width)


@torch.no_grad()
def _segmenter(name: str, whole: dict[str, Tensor]) -> str:
    network = LightSegmenter(name, width=8, text_width=8).eval()
    side = max(network.multiple, 32)
    logits = network(torch.randn(1, 3, side, 2 * side), ["cat"])
    if logits.shape != (1, 1, side, 2 * side) or not torch.isfinite(logits).all():
        raise FaultError(f"{name}: the segmenter gives {tuple(logits.shape)}")
    if whole:
        network.fill_encoder(whole)
    return "yes"


def table(rows: list[Row]) -> str:
    """The table in Markdown, and below it the lines that refuse, by number."""
    notes: dict[str, int] = {}
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = []
        for column in COLUMNS:
            cell = row.get(column, "")
            if cell.startswith("! "):
                reason = cell[2:].replace(row["member"], "NAME")
                reason = re.sub(r"\b\d+( layers|\])", r"N\1", re.sub(r"of [A-Z]\w+", "of NAME", reason))
                cell = f"({notes.setdefault(reason, len(notes) + 1)})"
            cells.append(f"`{cell}`" if column == "member" else cell)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{number}. {reason}" for reason, number in notes.items())])


def main(arguments: list[str] | None = None) -> None:
    """Judge networks one by one; write each row to a file as soon as it is known, and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of timm networks; none: those of docs/backbones.md")
    parser.add_argument("--json", type=Path, help="file that gets one row a line")
    given = parser.parse_args(arguments)
    rows, faults = [], []
    for name in given.names or members():
        try:
            rows.append(check_network(name))
        except Exception as error:  # the sweep goes on: a fault is a result
            faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            rows.append({"member": name, "fault": faults[-1]})
        if given.json:
            with given.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        gc.collect()
    print(table([row for row in rows if "fault" not in row]))
    print("\n".join(["", *faults, f"{len(rows)} networks, {len(faults)} faults"]))


if __name__ == "__main__":
    main()
