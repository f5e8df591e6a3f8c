"""Writes a ternary ResNet with folded batch norms to a packed file; see networks/packed.py and docs/export.md for the format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from networks.codings import entropy, trits
from networks.folding import FoldedLayer, folded_layers, plain_layers
from networks.packed import CHECKSUM_BYTES, MAGIC, PREFIX, VERSION, checksum
from networks.packed_header import HEADER_LIMIT, Coding, Description, PackedError, header_bytes, lay_out, weight_shapes
from networks.quantizers import Ternary
from networks.resnet import Architecture, ResNet


@dataclass(frozen=True, kw_only=True)
class PackedSizes:
    """Number of bytes of each part of a packed file, and the number of symbols."""

    symbols: int
    symbol_count: int
    entropy: float
    """Minimum number of bytes for the symbols if each is coded by its frequency in its layer."""
    scales: int
    biases: int
    full_precision: int
    """Weights of the full-precision layers."""
    header: int
    """Header including the prefix and the checksum."""

    @property
    def total(self) -> int:
        """Number of bytes of the file."""
        return self.symbols + self.scales + self.biases + self.full_precision + self.header


def write_packed(
    path: str | Path,
    network: ResNet,
    *,
    architecture: Architecture,
    coding: Coding = "trits",
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
) -> PackedSizes:
    """Fold a ternary network and write it to a file; `read_packed` returns a network bit-identical to `fold(network)`.

    Args:
        path: File to write; written directly, without a temporary file.
        network: Ternary ResNet made by `build_resnet`.
        architecture: The architecture that was passed to `build_resnet`.
        coding: `trits` (1.6 bits per symbol), `bits2` (2 bits, the simplest to read) or `entropy` (the smallest file).
        image_size: Height and width in pixels of the training images.
        mean: Mean of each channel in the normalisation, for images in units of 0..1; requires `std`.
        std: Standard deviation of each channel; requires `mean`.
        class_names: A name for each class.

    Raises:
        PackedError: No layer is ternary, the network is not of that architecture, or another argument is out of range.
        ValueError: The network holds values that are not finite.
    """
    layers = folded_layers(network)
    ternary = [layer for layer in layers.values() if isinstance(layer.weight, Ternary)]
    if not ternary:
        raise PackedError("the network has no ternary layer, so there are no symbols to pack")
    if len({layer.int8_input for layer in ternary}) > 1:
        raise PackedError("activation_bits must be the same in all ternary layers")
    plain = plain_layers(network)
    description = Description(
        architecture=architecture,
        num_classes=list(plain.values())[-1].weight.shape[0],
        in_channels=next(iter(plain.values())).weight.shape[1],
        image_size=image_size,
        mean=None if mean is None else tuple(map(float, mean)),
        std=None if std is None else tuple(map(float, std)),
        class_names=None if class_names is None else tuple(class_names),
        activation_bits=8 if ternary[0].int8_input else 32,
        coding=coding,
    )
    description.check()
    shapes = {name: tuple(layer.weight.shape) for name, layer in plain.items()}
    if shapes != weight_shapes(architecture, description.num_classes, description.in_channels):
        raise PackedError(f"the network is not a {architecture}: its layers differ")
    layout = lay_out(shapes, [_scales(layer) for layer in layers.values()], coding)
    header = header_bytes(description, layout.places)
    if len(header) > HEADER_LIMIT:
        raise PackedError(f"the header would take {len(header)} bytes, over {HEADER_LIMIT}: shorten class_names")
    groups = [layer.weight.symbols.numpy().ravel() for layer in ternary if isinstance(layer.weight, Ternary)]
    symbols = entropy.encode(groups) if coding == "entropy" else b"".join(trits.pack(coding, g) for g in groups)
    floats = b"".join(_floats(layer) for layer in layers.values())
    total = PREFIX.size + len(header) + len(floats) + len(symbols) + CHECKSUM_BYTES
    data = PREFIX.pack(MAGIC, VERSION, len(header), total) + header + floats + symbols
    Path(path).write_bytes(data + checksum(data))
    return PackedSizes(
        symbols=len(symbols),
        symbol_count=sum(group.size for group in groups),
        entropy=sum(map(entropy.entropy_bits, groups)) / 8,
        scales=sum(4 * place.scales * place.shape[0] for place in layout.places),
        biases=sum(4 * place.shape[0] for place in layout.places),
        full_precision=sum(4 * place.weights for place in layout.places if not place.scales),
        header=PREFIX.size + len(header) + CHECKSUM_BYTES,
    )


def _scales(layer: FoldedLayer) -> int:
    if not isinstance(layer.weight, Ternary):
        return 0
    # bytes are compared because 0 == -0, but the logits must be bit-identical
    return 1 if _bytes(layer.weight.positive) == _bytes(layer.weight.negative) else 2


def _floats(layer: FoldedLayer) -> bytes:
    weight = layer.weight
    values = [*weight[1 : 1 + _scales(layer)]] if isinstance(weight, Ternary) else [weight]
    return b"".join(map(_bytes, [*values, layer.bias]))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().astype("<f4").tobytes()
