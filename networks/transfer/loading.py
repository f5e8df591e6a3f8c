"""Loads weights of another training into a timm network: loads all tensors that fit and reports the others.

A tensor fits if its name and shape are equal. Files that do not fit by themselves go through timm's own conversion for the
architecture (`checkpoint_filter_fn`), which knows the names of the original releases (Meta's DINOv3, CLIP, SAM, ...) and resamples
tables of relative positions. Position embeddings of another grid are resampled. Rows of the head are matched by class name if both
sides have class names; without a common class the head starts from scratch.
"""

import contextlib
import inspect
import io
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from networks.timm_network import classifier_names, input_layer_names, is_inside, resampled_positions
from networks.transfer.published_names import COUNTER, placed, renamed

LISTED = 5  # names in a line of the report
STRANGE = 0.05  # share of the network below which weights are taken for those of another architecture


@dataclass
class Transfer:
    """Report of which tensors were loaded.

    Args:
        loaded: Names of the network's tensors that were loaded completely.
        missing: Names of the network's tensors that are missing in the weights.
        unfitting: Shape in the weights and shape in the network, by name.
        unused: Names of tensors in the weights that the network does not have.
        lacking: Names of the tensors outside the head that stay as they are: missing or unfitting.
        lost: Which biases of the weights the network does not have though they change its output; empty if there are none.
        notes: Conversion of names, changes to the head and to position embeddings.
        total: Number of the network's tensors.
        share: Fraction of the network's weights that were loaded, 0 to 1.
        backbone_share: The same without the head.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfitting: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    lost: str = ""
    notes: list[str] = field(default_factory=list)
    total: int = 0
    share: float = 0.0
    backbone_share: float = 0.0

    def lines(self) -> list[str]:
        """Lines of the report for a log."""
        unfitting = [f"{name} {there} there, {here} here" for name, (there, here) in self.unfitting.items()]
        named = (("missing", self.missing), ("not fitting", unfitting), ("unused", self.unused))
        return [
            f"{len(self.loaded)} of {self.total} tensors loaded ({percent(self.share)} of the weights)",
            *(f"{what} ({len(names)}): {first(names)}" for what, names in named if names),
            *self.notes,
        ]

    def levels(self) -> list[tuple[int, str]]:
        """Lines of the report with their logging level, and a warning of tensors outside the head that stay random."""
        lines = [(logging.INFO, line) for line in self.lines()]
        if self.lacking or self.lost:
            left = "; ".join(text for text in (self.lacks(), self.lost) if text)
            lines.append((logging.WARNING, f"outside the head not all is loaded, the rest starts at random: {left}"))
        return lines

    def lacks(self, listed: int = LISTED) -> str:
        """Which tensors outside the head stay as they are, and why, in one line that names `listed` of each kind; may be empty."""
        missing = [name for name in self.lacking if name not in self.unfitting]
        shaped = [
            f"{name} {self.unfitting[name][0]} there, {self.unfitting[name][1]} here"
            for name in self.lacking
            if name in self.unfitting
        ]
        named = (("missing", missing), ("not fitting", shaped))
        return "; ".join(f"{what} ({len(names)}): {first(names, listed)}" for what, names in named if names)


def transfer(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source_classes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    min_loaded: float = 0.0,
    frozen: bool = False,
    setting: str = "architecture",
) -> Transfer:
    """Load all tensors that fit into a timm network; after an error the network is unchanged.

    Args:
        network: Network made by `build_timm_network`.
        tensors: Weights by timm's names or by those of the architecture's original release, of any floating-point type.
        source_classes: Class names of the head in the weights, in the order of its rows; None if unknown.
        classes: Class names of the network; None if unknown.
        min_loaded: Minimum fraction, 0 to 1, of the network's weights outside the head that must be loaded.
        frozen: The network outside the head will not be trained, so all of it must be loaded.
        setting: The setting of the model that names the network; for messages.

    Raises:
        ValueError: Fewer weights fit, or the weights are for another number of image channels, which is not 3.
    """
    heads = classifier_names(network)
    tensors, converted = by_timm_names(network, tensors)
    lost = _lost_biases(network, tensors)
    tensors, notes = _converted(network, tensors)
    converted += notes
    # whole numbers, if missing, are counters and tables of places that the network has computed itself
    own = {key: value for key, value in network.state_dict().items() if key in tensors or value.is_floating_point()}
    report = Transfer(total=len(own), unused=[name for name in tensors if name not in own], notes=converted)
    values = _fitting(network, own, tensors, report)
    numbers = {name: own[name].numel() for name in values}
    _check_channels(network, report)
    head = [name for name in own if is_inside(name, heads)]
    if source_classes is not None and classes is not None:
        _rows_by_name({name: own[name] for name in head}, tensors, source_classes, classes, values, numbers, report)
    elif head and all(name in values for name in head):
        report.notes.append("head: loaded unchanged, as class names are not known for both the weights and this run")
    backbone = [name for name in own if name not in head]
    report.loaded = [name for name in own if numbers.get(name) == own[name].numel()]
    report.share = sum(numbers.values()) / _numbers(own.values())
    report.backbone_share = sum(numbers.get(name, 0) for name in backbone) / _numbers(own[name] for name in backbone)
    report.lacking = [name for name in backbone if name not in values]
    if report.backbone_share < (1.0 if frozen else min_loaded):
        wanted = "a frozen backbone needs all of it" if frozen else f"min_loaded requires {percent(min_loaded)}"
        there = [name for name in tensors if not name.endswith(COUNTER)]
        strange = report.backbone_share < STRANGE
        other = f"these look like the weights of another architecture; give its name with --model.{setting}"
        lead = f"nearly no tensor fits: {other}: "
        listed = 1 if strange else LISTED
        raise ValueError(
            f"{lead if strange else ''}only {percent(report.backbone_share)} of the network outside its head could be filled, and "
            f"{wanted}; {report.lacks(listed)}; the weights hold {first(there, listed)}"
        )
    if lost:
        line = f"the weights have a bias other than 0 where the network has none ({len(lost)}): {first(lost)}"
        if frozen:
            raise ValueError(f"{line}; its features would be others, take an architecture with these biases")
        report.lost = line
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)  # converts half precision and keeps the memory format
        for name in head:
            if name not in values:
                own[name].zero_()
    return report


def by_timm_names(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors by the names of a timm network, and a note, if they have those of another library.

    Tensors whose names already fit best keep them; see published_names.py.
    """
    own = network.state_dict()
    tensors = placed(own, tensors)
    before = _unfilled(network, tensors)
    found, form = renamed(network, tensors) if before else (tensors, "")
    after = _unfilled(network, found)
    if after >= before and len(found.keys() & own.keys()) <= len(tensors.keys() & own.keys()):
        return tensors, []
    return found, [f"renamed from {form} to timm's names: {sum(name in own for name in found)} tensors"]


def _converted(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The tensors by timm's names and in the network's shapes, and a note; unchanged if timm's conversion fits no more of them."""
    before = _unfilled(network, tensors)
    convert = _timm_conversion(network) if before else None
    if convert is None:
        return tensors, []
    takes_tensors_only = len(inspect.signature(convert).parameters) == 1
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints what it leaves out
            found = dict(convert(dict(tensors)) if takes_tensors_only else convert(dict(tensors), network))
    except (
        Exception
    ):  # a file of yet another form: each conversion fails in its own way, and the report names what is missing
        return tensors, []
    after = _unfilled(network, found)
    if after >= before:
        return tensors, []
    resized = [name for name, tensor in found.items() if name in tensors and tensor.shape != tensors[name].shape]
    notes = [f"{before - after} tensors fit after timm's own conversion for {type(network).__name__}"]
    return found, notes + ([f"resized by timm ({len(resized)}): {first(resized)}"] if resized else [])


def _lost_biases(network: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of biases in the weights that change the output of a layer whose bias the network does not have."""
    own = network.state_dict().keys()
    there = [n for n in tensors if n.endswith(".bias") and n not in own and f"{n.removesuffix('bias')}weight" in own]
    there = [n for n in there if n.replace("qkv.bias", "q_bias") not in own]  # some networks have it in parts
    # a bias of the keys adds the same to all scores of a query, so attention does not depend on it
    return [
        n
        for n in there
        if any(part.any() for part in (tensors[n].chunk(3)[::2] if n.endswith("qkv.bias") else [tensors[n]]))
    ]


def _unfilled(network: nn.Module, tensors: Mapping[str, Tensor]) -> int:
    """Number of the network's tensors outside its head for which there is no tensor of the same name and shape."""
    heads = classifier_names(network)
    return sum(
        not is_inside(name, heads)
        and here.is_floating_point()
        and not (
            name in tensors
            and (
                tensors[name].shape == here.shape
                or (name == "pos_embed" and resampled_positions(network, tensors[name]) is not None)
            )
        )
        for name, here in network.state_dict().items()
    )


def _timm_conversion(network: nn.Module) -> Callable[..., Mapping[str, Tensor]] | None:
    """Function of timm that converts released weights of the network's architecture; None if it has none."""
    config: Any = getattr(network, "pretrained_cfg", {})
    name, found = config.get("architecture"), []
    if not name or not timm.is_model(name):
        return None
    # timm gives this function only to its own loader of pretrained weights, so the loader is replaced while a network is built
    take = patch("timm.models._builder.load_pretrained", lambda *_, filter_fn=None, **__: found.append(filter_fn))
    with take, torch.device("meta"):
        timm.create_model(name, pretrained=True)
    return found[0] if found else None


def _fitting(
    network: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], report: Transfer
) -> dict[str, Tensor]:
    values = {}
    first_layers = {f"{name}.weight" for name in input_layer_names(network)}
    for name, here in own.items():
        there = tensors.get(name)
        if there is None:
            report.missing.append(name)
        elif there.shape == here.shape:
            values[name] = there
        elif name == "pos_embed" and (resampled := resampled_positions(network, there)) is not None:
            values[name] = resampled
            report.notes.append(f"pos_embed: resampled from {there.shape[1]} to {here.shape[1]} positions")
        elif name in first_layers and _only_channels_differ(there, here) and there.shape[1] == 3:
            values[name] = adapt_input_conv(here.shape[1], there)
            how = "summed" if here.shape[1] == 1 else f"repeated in turn and scaled by 3/{here.shape[1]}"
            report.notes.append(
                f"{name}: its 3 input channels were {how} for the {here.shape[1]} of this run, as timm does"
            )
        else:
            report.unfitting[name] = tuple(there.shape), tuple(here.shape)
    return values


def _only_channels_differ(there: Tensor, here: Tensor) -> bool:
    """Whether kernels (O, C, H, W) have the same shapes but for their C."""
    shapes = [(*tensor.shape[:1], *tensor.shape[2:]) for tensor in (there, here)]
    return there.ndim == here.ndim == 4 and shapes[0] == shapes[1] and there.shape[1] != here.shape[1]


def _check_channels(network: nn.Module, report: Transfer) -> None:
    for name in input_layer_names(network):
        there, here = report.unfitting.get(f"{name}.weight", ((), ()))
        if len(there) > 1 and there[1] != here[1] and there[:1] + there[2:] == here[:1] + here[2:]:
            raise ValueError(
                f"{name}, the first layer, is for images of {there[1]} channels in the weights and of {here[1]} in this run"
            )


def _rows_by_name(
    head: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source_classes: Sequence[str],
    classes: Sequence[str],
    values: dict[str, Tensor],
    numbers: dict[str, int],
    report: Transfer,
) -> None:
    """Set the head's tensors in `values` to zeros with the rows of common classes copied from the weights."""
    places = {name: row for row, name in enumerate(source_classes)}
    rows = {row: places[name] for row, name in enumerate(classes) if name in places}
    for name, here in head.items():
        there = tensors.get(name)
        if there is None or (len(there), len(here)) != (len(places), len(classes)) or there.shape[1:] != here.shape[1:]:
            continue
        report.unfitting.pop(name, None)
        values[name] = torch.zeros_like(here)
        values[name][list(rows)] = there[list(rows.values())].to(here)
        numbers[name] = here.numel() // len(classes) * len(rows)
    known, new = [classes[row] for row in rows], [name for name in classes if name not in places]
    if not known:
        report.notes.append("head: starts from scratch, no class of the weights is a class of this run")
    else:
        rest = f"; new: {first(new)}" if new else ""
        report.notes.append(f"head: {len(known)} of {len(classes)} classes loaded by name ({first(known)}){rest}")


def _numbers(tensors: Iterable[Tensor]) -> int:
    return max(1, sum(tensor.numel() for tensor in tensors))


def percent(share: float) -> str:
    """A fraction in percent, rounded down, so that only 1.0 gives 100.0 %.

    >>> percent(0.99999), percent(1.0)
    ('99.9 %', '100.0 %')
    """
    return f"{math.floor(share * 1000) / 10:.1f} %"


def first(names: Sequence[str], listed: int = LISTED) -> str:
    """The first `listed` names, followed by "..." if there are more."""
    return ", ".join(names[:listed]) + (", ..." if len(names) > listed else "")
