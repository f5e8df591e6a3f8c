"""Reads a ternary ResNet from a packed file (a small file with coded ternary weights); needs neither Lightning nor a checkpoint.

    prefix     24 bytes: magic, version, lengths of header and file
    header     JSON: network settings and byte offsets of the layers (networks/packed_header.py)
    floats     float32: scales and biases, with the batch norms folded in; weights of the full-precision layers
    symbols    -1, 0, 1 in one of three codings (networks/codings/)
    checksum   16 bytes: truncated SHA-256 of everything before

docs/export.md documents every field, networks/packed_writer.py writes the file. The reader trusts nothing in a file: lengths
are checked before they are used, the checksum detects damaged files, and further checks reject forged ones. All errors are
raised as `PackedError`.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from foundation.project import TOOL
from networks.codings import entropy, trits
from networks.codings.trits import FixedCoding, Symbols
from networks.folding import FoldedLayer, assemble
from networks.packed_header import (
    HEADER_LIMIT,
    Coding,
    Description,
    Layout,
    PackedError,
    Place,
    read_header,
    skeleton,
)
from networks.quantizers import Ternary
from networks.resnet import ResNet

MAGIC = b"LVRPACK\x1a"
VERSION = 1
FILE_LIMIT = 1 << 28
"""Maximum size of a packed file in bytes; the largest network that a header can describe is smaller."""
PREFIX = struct.Struct("<8sIIQ")
CHECKSUM_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class PackedNetwork(Description):
    """A network read from a packed file, with its metadata.

    Example, with float `images` (B, in_channels, H, W) in units of 0..1:

        packed = read_packed("packed_trits.lvr")
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (packed.mean, packed.std))
        logits = packed.network((images - mean) / std)  # (B, num_classes)
        names = [packed.class_names[index] for index in logits.argmax(dim=1)]
    """

    network: ResNet
    """Folded, in eval mode, on the CPU, in float32."""


def read_packed(path: str | Path) -> PackedNetwork:
    """Read a packed file; see `PackedNetwork` for an example. Draws no random numbers.

    Raises:
        PackedError: The file does not exist, is damaged or is not valid.
    """
    description, layers = read_layers(path)
    network = skeleton(description.architecture, description.num_classes, description.in_channels)
    return PackedNetwork(**asdict(description), network=assemble(network, layers))


def read_layers(path: str | Path) -> tuple[Description, dict[str, FoldedLayer]]:
    """Read the metadata and the folded layers of a packed file, without a network.

    Raises:
        PackedError: The file does not exist, is damaged or is not valid.
    """
    try:
        return _read(_file(Path(path)))
    except PackedError as error:
        raise PackedError(f"{path}: {error}") from None
    except OSError as error:
        raise PackedError(f"{path}: {error.strerror}") from None


def _file(path: Path) -> bytes:
    """Read the bytes of a file and check its prefix and checksum."""
    with path.open("rb") as file:
        prefix = file.read(PREFIX.size)
        if len(prefix) < PREFIX.size or not prefix.startswith(MAGIC):
            raise PackedError(f"not a packed network ({TOOL}export RUN_DIR writes one)")
        _, version, header, total = PREFIX.unpack(prefix)
        if version != VERSION:
            raise PackedError(f"version {version} of the format; this reader knows {VERSION}")
        size = file.seek(0, 2)
        if size != total:
            raise PackedError(f"it is {size} bytes long, but should be {total}: cut off or not copied whole")
        if total > FILE_LIMIT or header > HEADER_LIMIT or total < PREFIX.size + header + CHECKSUM_BYTES:
            raise PackedError(f"a header of {header} bytes in a file of {total} is not possible")
        file.seek(0)
        data = file.read(total)
    if checksum(memoryview(data)[:-CHECKSUM_BYTES]) != data[-CHECKSUM_BYTES:]:
        raise PackedError("its checksum is wrong: the file is damaged")
    return data


def _read(data: bytes) -> tuple[Description, dict[str, FoldedLayer]]:
    start = PREFIX.size + PREFIX.unpack_from(data)[2]
    description, layout = read_header(data[PREFIX.size : start])
    payload = memoryview(data)[start:-CHECKSUM_BYTES]
    ternary = [place for place in layout.places if place.scales]
    low, high = _symbol_bounds(layout, [place.weights for place in ternary])
    if not layout.float_bytes + low <= len(payload) <= layout.float_bytes + high:
        raise PackedError(f"its layers take {layout.float_bytes + low} bytes or more, but {len(payload)} are there")
    symbols = _read_symbols(payload, layout, description.coding)
    int8 = description.activation_bits == 8
    return description, {place.name: _read_layer(payload, place, symbols, int8) for place in layout.places}


def _symbol_bounds(layout: Layout, counts: list[int]) -> tuple[int, int]:
    if layout.symbol_bytes is not None:
        return layout.symbol_bytes, layout.symbol_bytes
    return entropy.encoded_bounds(counts)


def _read_symbols(payload: memoryview, layout: Layout, coding: Coding) -> Mapping[str, Symbols]:
    ternary = [place for place in layout.places if place.scales]
    if coding == "entropy":
        try:
            groups = entropy.decode(bytes(payload[layout.float_bytes :]), [place.weights for place in ternary])
        except ValueError as error:
            raise PackedError(f"the stream of symbols: {error}") from None
        return {place.name: group for place, group in zip(ternary, groups, strict=True)}
    return {place.name: _unpack(payload, place, coding) for place in ternary}


def _unpack(payload: memoryview, place: Place, coding: FixedCoding) -> Symbols:
    begin = cast(int, place.symbols)
    try:
        return trits.unpack(
            coding, bytes(payload[begin : begin + trits.packed_bytes(coding, place.weights)]), place.weights
        )
    except ValueError as error:
        raise PackedError(f"the symbols of {place.name}: {error}") from None


def _read_layer(payload: memoryview, place: Place, symbols: Mapping[str, Symbols], int8: bool) -> FoldedLayer:
    # a copy that is writable and in the byte order of this machine
    floats = np.frombuffer(payload, "<f4", place.floats, place.offset).astype(np.float32)
    if not np.isfinite(floats).all():
        raise PackedError(f"{place.name} holds a number that is not finite")
    out = place.shape[0]
    values, bias = torch.from_numpy(floats[:-out].copy()), torch.from_numpy(floats[-out:].copy())
    if not place.scales:
        return FoldedLayer(values.view(place.shape), bias)
    rows = values.view(place.scales, out, *[1] * (len(place.shape) - 1))
    return FoldedLayer(
        Ternary(torch.from_numpy(symbols[place.name]).view(place.shape), rows[0], rows[-1]), bias, int8_input=int8
    )


def checksum(data: bytes | memoryview) -> bytes:
    """Checksum at the end of a file that starts with these bytes."""
    return hashlib.sha256(data).digest()[:CHECKSUM_BYTES]
