"""Tests of packed files: bit-identical logits, a reader written from docs/export.md, file sizes, invalid arguments."""

import copy
import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from networks import (
    PackedError,
    build_resnet,
    effective_state_dict,
    fold,
    read_packed,
    ternary_layers,
    write_packed,
)
from networks.folding import Int8InputConv2d, plain_layers
from networks.packed_header import Coding
from tests.networks.test_symbol_codings import scalar_rans
from tests.networks.trained import images, resnet

CODINGS: tuple[Coding, ...] = get_args(Coding)


def read_by_the_documentation(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Read header and folded weights symbol by symbol, implemented only from docs/export.md."""
    data = path.read_bytes()
    magic, version, length, total = struct.unpack_from("<8sIIQ", data)
    assert (magic, version, total) == (b"LVRPACK\x1a", 1, len(data))
    assert hashlib.sha256(data[:-16]).digest()[:16] == data[-16:]
    header = json.loads(data[24 : 24 + length])
    payload, state, floats_end = data[24 + length : -16], {}, 0
    for layer in header["layers"]:
        count, out = math.prod(layer["shape"]), layer["shape"][0]
        rows = layer.get("scales", 0)
        floats = np.frombuffer(payload, "<f4", (rows * out if rows else count) + out, layer["offset"])
        floats_end = max(floats_end, layer["offset"] + 4 * floats.size)
        layer["values"], state[f"{layer['name']}.bias"] = floats[:-out], floats[-out:]
    ternary = [layer for layer in header["layers"] if layer["coding"] != "float32"]
    if header["coding"] == "entropy":
        groups = scalar_rans(payload[floats_end:], [math.prod(layer["shape"]) for layer in ternary])
    else:
        base, digits = (3, 5) if header["coding"] == "trits" else (4, 4)
        groups = [
            [
                payload[layer["symbols"] + i // digits] // base ** (i % digits) % base - 1
                for i in range(math.prod(layer["shape"]))
            ]
            for layer in ternary
        ]
    for layer, symbols in zip(ternary, groups, strict=True):
        scales = layer["values"].reshape(layer["scales"], -1)
        t = np.array(symbols).reshape(layer["shape"][0], -1)
        layer["values"] = np.where(t > 0, scales[0][:, None], np.where(t < 0, -scales[-1][:, None], np.float32(0)))
    for layer in header["layers"]:
        state[f"{layer['name']}.weight"] = layer["values"].reshape(layer["shape"])
    return header, state


@pytest.mark.slow
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "settings",
    [
        {"quantizer": "twn"},
        {"quantizer": "ttq", "full_precision": []},
        {"quantizer": "absmean", "scale": "layer", "activation_bits": 8, "full_precision": []},
        {"quantizer": "learned_threshold", "full_precision": ["stages.1", "conv2"]},
        {"architecture": "resnet32", "in_channels": 1, "num_classes": 3, "quantizer": "ttq"},
    ],
    ids=str,
)
def test_logits_of_the_file_are_bit_identical_to_the_folded_network(
    tmp_path: Path, settings: dict[str, Any], coding: Any
) -> None:
    network = resnet(**settings).to(memory_format=torch.channels_last)
    architecture, path = settings.get("architecture", "resnet20"), tmp_path / "packed.lvr"
    sizes = write_packed(path, network, architecture=architecture, coding=coding)
    assert path.stat().st_size == sizes.total
    state = torch.get_rng_state()
    packed, folded = read_packed(path), fold(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert packed.activation_bits == settings.get("activation_bits", 32)
    rounded = {name for name, layer in packed.network.named_modules() if isinstance(layer, Int8InputConv2d)}
    assert rounded == {name for name in ternary_layers(network) if packed.activation_bits == 8 and name != "classifier"}
    own = packed.network.state_dict()
    assert list(own) == list(folded.state_dict())
    for key, value in folded.state_dict().items():
        assert own[key].numpy().tobytes() == value.numpy().tobytes()
        assert own[key].stride() == value.stride()
    batch = images(channels=packed.in_channels)
    assert torch.equal(packed.network(batch), folded(batch))


@pytest.mark.every(3)
@pytest.mark.parametrize("coding", CODINGS)
def test_reader_written_from_the_documentation_finds_the_same_weights(tmp_path: Path, coding: Any) -> None:
    network = resnet(quantizer="ttq", full_precision=["stem", "stages.2", "classifier"])
    names = [f"Klasse {index} ü" for index in range(10)]
    about: dict[str, Any] = {"image_size": 32, "mean": [0.5, 0.25, 0], "std": [1, 0.1, 2], "class_names": names}
    write_packed(tmp_path / "x", network, architecture="resnet20", coding=coding, **about)
    header, state = read_by_the_documentation(tmp_path / "x")
    folded = fold(network).state_dict()
    assert {*state} == {*folded}
    assert all(np.array_equal(state[key], folded[key].numpy()) for key in folded)
    packed = read_packed(tmp_path / "x")
    for key, value in {
        **about,
        "architecture": "resnet20",
        "num_classes": 10,
        "in_channels": 3,
        "coding": coding,
    }.items():
        assert header[key] == value
        assert getattr(packed, key) == (tuple(value) if isinstance(value, list) else value)


def test_unknown_metadata_is_none(tmp_path: Path) -> None:
    write_packed(tmp_path / "x", resnet(), architecture="resnet20")
    packed = read_packed(tmp_path / "x")
    assert [packed.image_size, packed.mean, packed.std, packed.class_names] == [None] * 4
    assert packed.coding == "trits"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("full_precision", "trits_ratio", "entropy_ratio"), [(["stem", "classifier"], 19.4, 19.8), ([], 19.65, 20.05)]
)
def test_sizes_of_resnet18(tmp_path: Path, full_precision: list[str], trits_ratio: float, entropy_ratio: float) -> None:
    torch.manual_seed(0)
    network = build_resnet("resnet18", num_classes=10, full_precision=full_precision)
    twin = build_resnet("resnet18", num_classes=10, quantizer="none").state_dict()
    whole = sum(tensor.numel() * tensor.element_size() for tensor in twin.values())
    assert whole == 4 * (11_173_962 + 9_600) + 8 * 20
    assert whole == sum(tensor.numel() * tensor.element_size() for tensor in effective_state_dict(network).values())
    sizes = {
        coding: write_packed(tmp_path / "x", network, architecture="resnet18", coding=coding) for coding in CODINGS
    }
    symbols = 11_157_504 if full_precision else 11_164_352
    channels = 4_736 if full_precision else 4_810
    for size in sizes.values():
        assert size.symbol_count == symbols
        assert size.scales == 4 * channels
        assert size.biases == 4 * 4_810
        assert size.full_precision == 4 * (11_164_352 - symbols)
        assert size.header < 2_600
    assert sizes["trits"].symbols == sum(-(-layer.weight.numel() // 5) for layer in ternary_layers(network).values())
    assert sizes["bits2"].symbols == symbols // 4
    assert sizes["entropy"].entropy <= sizes["entropy"].symbols <= 1.006 * sizes["entropy"].entropy
    assert whole / sizes["trits"].total >= trits_ratio
    assert whole / sizes["entropy"].total >= entropy_ratio


@pytest.mark.every(4)
@pytest.mark.parametrize("architecture", ["resnet20", "resnet56"])
@pytest.mark.parametrize("rule", ["twn", "ttq"])
def test_entropy_coding_of_small_layers(tmp_path: Path, architecture: Any, rule: Any) -> None:
    network = build_resnet(architecture, num_classes=10, quantizer=rule, full_precision=[])
    sizes = write_packed(tmp_path / "x", network, architecture=architecture, coding="entropy")
    counts = [
        torch.bincount(layer.ternary().symbols.flatten() + 1).double() for layer in ternary_layers(network).values()
    ]
    least = sum(-(count * (count / count.sum()).log2()).sum().item() for count in counts) / 8
    assert sizes.entropy == pytest.approx(least, rel=1e-9)
    assert least <= sizes.symbols <= 1.01 * least


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet32"}, "the network is not a resnet32: its layers differ"),
        ({"architecture": "resnet21"}, 'architecture must be one of resnet18, .*, got "resnet21"'),
        ({"coding": "zip"}, 'coding must be one of trits, bits2, entropy, got "zip"'),
        ({"image_size": 0}, "image_size must be from 1 to 65536, got 0"),
        ({"mean": [0.5] * 3}, "mean and std must both be given, or both be null"),
        ({"mean": [0.5] * 2, "std": [1.0] * 3}, "mean must be 3 finite numbers"),
        ({"mean": [math.nan] * 3, "std": [1.0] * 3}, "mean must be 3 finite numbers"),
        ({"mean": [0.5] * 3, "std": [1.0, 0.0, 1.0]}, "std must be above 0"),
        ({"class_names": ["cat"]}, "class_names must be 10 strings, or null"),
        (
            {"class_names": ["x" * 200_000] * 10},
            "the header would take 20[0-9]+ bytes, over 1048576: shorten class_names",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PackedError, match=f"^{message}"):
        write_packed(tmp_path / "x", resnet(), **{"architecture": "resnet20", **settings})
    assert not (tmp_path / "x").exists()


def test_unsupported_networks_raise(tmp_path: Path) -> None:
    with pytest.raises(PackedError, match="the network has no ternary layer, so there are no symbols to pack"):
        write_packed(tmp_path / "x", resnet(quantizer="none"), architecture="resnet20")
    mixed = copy.deepcopy(resnet())
    next(iter(ternary_layers(mixed).values())).activation_bits = 8
    with pytest.raises(PackedError, match="activation_bits must be the same in all ternary layers"):
        write_packed(tmp_path / "x", mixed, architecture="resnet20")
    with torch.no_grad():
        plain_layers(mixed)["stem.conv"].weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"stem\.conv: .* not finite"):
        write_packed(tmp_path / "x", mixed, architecture="resnet20")
