"""Loads weights of another training into a timm network: loads all tensors that fit and reports the others.

A tensor fits if its name and shape are equal. Two kinds of tensors are adapted. Position embeddings of another grid are resampled.
Rows of the head are matched by class name if both sides have class names; without a common class the head starts from scratch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from networks.timm_network import classifier_names, input_layer_names, is_inside, resampled_positions

LISTED = 5  # names in a line of the report
COUNTER = "num_batches_tracked"  # counter of a batch norm: missing in older files, and nothing depends on it


@dataclass
class Transfer:
    """Report of which tensors were loaded.

    Args:
        loaded: Names of the network's tensors that were loaded completely.
        missing: Names of the network's tensors that are missing in the weights.
        unfitting: Shape in the weights and shape in the network, by name.
        unused: Names of tensors in the weights that the network does not have.
        notes: Changes to the head and to position embeddings.
        total: Number of the network's tensors.
        share: Fraction of the network's weights that were loaded, 0 to 1.
        backbone_share: The same without the head.
    """

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfitting: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
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


def transfer(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source_classes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    min_loaded: float = 0.0,
) -> Transfer:
    """Load all tensors that fit into a timm network; after an error the network is unchanged.

    Args:
        network: Network made by `build_timm_network`.
        tensors: Weights by timm's names, of any floating-point type.
        source_classes: Class names of the head in the weights, in the order of its rows; None if unknown.
        classes: Class names of the network; None if unknown.
        min_loaded: Minimum fraction, 0 to 1, of the network's weights outside the head that must be loaded.

    Raises:
        ValueError: Fewer weights fit, or the weights are for another number of image channels.
    """
    heads = classifier_names(network)
    own = {key: value for key, value in network.state_dict().items() if key in tensors or not key.endswith(COUNTER)}
    report = Transfer(total=len(own), unused=[name for name in tensors if name not in own])
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
    if report.backbone_share < min_loaded:
        lacking = [name for name in backbone if name not in values]
        there = [name for name in tensors if not name.endswith(COUNTER)]
        raise ValueError(
            f"only {percent(report.backbone_share)} of the network outside its head could be filled, and min_loaded requires "
            f"{percent(min_loaded)}; lacking {first(lacking)}; the weights hold {first(there)}"
        )
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)  # converts half precision and keeps the memory format
        for name in head:
            if name not in values:
                own[name].zero_()
    return report


def _fitting(
    network: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], report: Transfer
) -> dict[str, Tensor]:
    values = {}
    for name, here in own.items():
        there = tensors.get(name)
        if there is None:
            report.missing.append(name)
        elif there.shape == here.shape:
            values[name] = there
        elif name == "pos_embed" and (resampled := resampled_positions(network, there)) is not None:
            values[name] = resampled
            report.notes.append(f"pos_embed: resampled from {there.shape[1]} to {here.shape[1]} positions")
        else:
            report.unfitting[name] = tuple(there.shape), tuple(here.shape)
    return values


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


def first(names: Sequence[str]) -> str:
    """The first few names, followed by "..." if there are more."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
