"""Fuzz tests of the packed reader: damaged and forged files raise a PackedError, quickly and without allocating claimed memory.

The checksum detects damaged files. Forged files have a corrected checksum, so that only the checks after it apply. A forged
value can be valid; the file is then read.
"""

import json
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from networks import PackedError, fold, read_packed, write_packed
from networks.packed import PREFIX, checksum
from networks.packed_header import MOST_CHANNELS, MOST_CLASSES, Coding
from tests.networks.trained import images, resnet

ROOT = Path(__file__).resolve().parent.parent.parent
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10,
        2**16,
        2**31,
        2**63,
        -(2**64),
        10**300,
        1.0,
        0.5,
        -0.0,
        1e308,
        float("nan"),
    ),
    *(
        "",
        "trits",
        "entropy",
        "resnet18",
        "resnet56",
        "\ud800",
        "\0",
        [],
        [[]],
        {},
        [1, 2],
        [0.5] * 3,
        ["a"] * 10,
        [None] * 20,
    ),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same network in all three codings."""
    network, path = resnet(), tmp_path_factory.mktemp("x") / "x"
    about: dict[str, Any] = {"image_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "class_names": list("abcdefghij")}
    found: dict[str, bytes] = {}
    codings: tuple[Coding, ...] = ("trits", "bits2", "entropy")
    for coding in codings:
        write_packed(path, network, architecture="resnet20", coding=coding, **about)
        found[coding] = path.read_bytes()
    return found


def repaired(header: bytes, payload: bytes) -> bytes:
    """A file made of these parts with correct lengths and checksum."""
    data = PREFIX.pack(b"LVRPACK\x1a", 1, len(header), PREFIX.size + len(header) + len(payload) + 16) + header + payload
    return data + checksum(data)


def parts(data: bytes) -> tuple[bytes, bytes]:
    start = PREFIX.size + PREFIX.unpack_from(data)[2]
    return data[PREFIX.size : start], data[start:-16]


def flip(data: bytes, draw: random.Random, first: int = 0, last: int | None = None) -> bytes:
    place = draw.randrange(first, len(data) if last is None else last)
    return data[:place] + bytes([data[place] ^ draw.randrange(1, 256)]) + data[place + 1 :]


def damage(data: bytes, draw: random.Random) -> bytes:
    """Apply one random kind of damage to a file."""
    place, other = sorted(draw.sample(range(len(data)), 2))
    noise = draw.randbytes(draw.randrange(1, 64))
    actions: list[Callable[[], bytes]] = [
        lambda: flip(data, draw),
        lambda: flip(data, draw, last=600),
        lambda: data[:place],
        lambda: data + noise,
        lambda: data[:place] + noise + data[place:],
        lambda: data[:place] + data[other:],
        lambda: data[:place] + bytes(other - place) + data[other:] if any(data[place:other]) else data[1:],
        lambda: data[:other] + data[place:],
        lambda: data[:place] + noise + data[place + len(noise) :] if data[place : place + len(noise)] != noise else b"",
    ]
    return draw.choice(actions)()


def forge(data: bytes, draw: random.Random) -> bytes:
    """Apply one random manipulation and correct the checksum."""
    header, payload = parts(data)
    content: Any = json.loads(header)
    kind = draw.randrange(20)
    if kind < 7:
        holder: Any = content if draw.random() < 0.5 else draw.choice(content["layers"])
        holder[draw.choice([*holder, "new"])] = draw.choice(ODD)
    elif kind < 9:
        holder = draw.choice([content["mean"], content["std"], content["class_names"], content["layers"]])
        holder[draw.randrange(len(holder))] = draw.choice(ODD)
    elif kind == 9:
        layers = content["layers"]
        edits: list[Callable[[list[Any]], object]] = [draw.shuffle, list.pop, lambda x: x.append(x[0]), list.clear]
        draw.choice(edits)(layers)
    elif kind == 10:
        del content[draw.choice([*content])]
    elif kind == 11:
        name, most = draw.choice([("num_classes", MOST_CLASSES), ("in_channels", MOST_CHANNELS)])
        content[name] = draw.choice([most, most - 1, draw.randrange(1, most)])
        content |= {"class_names": None, "mean": None, "std": None}
    elif kind < 15:
        return repaired(flip(header, draw), payload)
    elif kind == 15:
        text = draw.choice(
            [b"[" * 90_000, b'{"a":' * 90_000, b"9" * 9_000, b"\xff", b"", header + header, b'"' + b"a" * 10**6]
        )
        return repaired(text, payload)
    elif kind == 16:
        lengths = [draw.choice([0, 1, 2**20, 2**20 + 1, 2**32 - 1, len(header) + draw.randrange(-9, 9)])]
        body = (
            PREFIX.pack(b"LVRPACK\x1a", draw.choice([0, 1, 2]), *lengths, draw.choice([len(data), 0, 2**64 - 1]))
            + data[24:-16]
        )
        return body + checksum(body)
    else:
        return repaired(header, damage(payload, draw) if kind < 18 else payload[: draw.randrange(len(payload))])
    return repaired(json.dumps(content).encode(), payload)


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Limit this process to `more` additional bytes of memory."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(path: Path, data: bytes) -> str:
    """The message of the PackedError, or an empty string; any other exception fails the test."""
    path.write_bytes(data)
    begin = time.perf_counter()
    try:
        read_packed(path)
    except PackedError as error:
        message = str(error)
        assert "\n" not in message
        assert message.startswith(f"{path}: ")
        assert len(message) < len(str(path)) + 400
        return message
    finally:
        assert time.perf_counter() - begin < 5
    return ""


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_raise(files: dict[str, bytes], tmp_path: Path, count: int) -> None:
    draw = random.Random(count)
    with memory_limit(50_000_000):
        for index in range(count):
            data = files[("trits", "bits2", "entropy")[index % 3]]
            mutated = damage(data, draw)
            assert mutated != data
            assert outcome(tmp_path / "x", mutated), f"mutation {index} was read"


@pytest.mark.parametrize("count", [200, pytest.param(4_000, marks=pytest.mark.slow)])
def test_forged_files_raise_packed_error_or_are_read(files: dict[str, bytes], tmp_path: Path, count: int) -> None:
    draw, messages = random.Random(count), []
    read_packed_once(files, tmp_path)  # fill the cache of shapes first, so that its memory is not counted
    with memory_limit(50_000_000):
        for index in range(count):
            messages.append(outcome(tmp_path / "x", forge(files[("trits", "bits2", "entropy")[index % 3]], draw)))
    assert sum(map(bool, messages)) > 0.8 * count
    kinds = {message.removeprefix(f"{tmp_path / 'x'}: ")[:14] for message in messages}
    assert len(kinds) > 15  # many checks were reached
    assert not any("checksum" in message for message in messages)


def read_packed_once(files: dict[str, bytes], tmp_path: Path) -> None:
    for data in files.values():
        assert outcome(tmp_path / "x", data) == ""


def edited(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    """A function that returns a file with a changed header."""

    def edit(data: bytes) -> bytes:
        header, payload = parts(data)
        content = json.loads(header)
        change(content)
        return repaired(json.dumps(content).encode(), payload)

    return edit


def payload_with(place: int, value: bytes) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        header, payload = parts(data)
        begin = place % len(payload)
        return repaired(header, payload[:begin] + value + payload[begin + len(value) :])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: b"", r"not a packed network \(python -m tools.export RUN_DIR writes one\)"),
        (lambda data: b"PK\3\4" + data, "not a packed network"),
        (lambda data: data[:8] + struct.pack("<I", 2) + data[12:], "version 2 of the format; this reader knows 1"),
        (lambda data: data[:-1], "it is [0-9]+ bytes long, but should be [0-9]+: cut off or not copied whole"),
        (lambda data: data + b"x", "it is [0-9]+ bytes long, but should be"),
        (lambda data: data[:1000] + bytes(4) + data[1004:], "its checksum is wrong: the file is damaged"),
        (lambda data: data[:12] + struct.pack("<I", 1 << 31) + data[16:], "a header of 2147483648 bytes in a file of"),
        (lambda data: repaired(b"{", b""), "the header is not JSON in UTF-8"),
        (lambda data: repaired(b"[]", b""), "the header must be an object of architecture, num_classes, .* and layers"),
        (edited(lambda c: c.pop("std")), "the header must be an object of"),
        (edited(lambda c: c.update(architecture="resnet18")), "layers must be the 21 of a resnet18"),
        (edited(lambda c: c.update(architecture="vgg")), 'architecture must be one of resnet18, .*, got "vgg"'),
        (edited(lambda c: c.update(num_classes=10**9)), "num_classes must be from 1 to 65536, got 1000000000"),
        (edited(lambda c: c.update(num_classes=True)), "num_classes must be from 1 to 65536, got true"),
        (edited(lambda c: c.update(in_channels=1025)), "in_channels must be from 1 to 1024, got 1025"),
        (edited(lambda c: c.update(activation_bits=32.0)), "activation_bits must be one of 32, 8, got 32.0"),
        (
            edited(lambda c: c["layers"][1].update(scales=3)),
            "layers: scales must be 1 or 2, and absent in full precision",
        ),
        (edited(lambda c: c["layers"][1].update(offset=0)), r"layers: stages.0.0.conv1 must be \{.*\}, got \{.*"),
        (edited(lambda c: c["layers"][1].update(shape=[16, 16, 3, 2])), "layers: stages.0.0.conv1 must be"),
        (edited(lambda c: c["layers"][1].update(shape=[16, 16, 3, 3.0])), "layers: stages.0.0.conv1 must be"),
        (edited(lambda c: c.update(coding="bits2")), "layers: stages.0.0.conv1 must be"),
        (payload_with(0, b"\0\0\xc0\x7f"), "stem.conv holds a number that is not finite"),
        (payload_with(-2, b"\xff"), "the symbols of stages.2.2.conv2: byte 7371 is 255, which encodes no symbols"),
        (payload_with(-1, b"\x51"), "the symbols of stages.2.2.conv2: the last byte is 81, but"),
        (
            lambda data: repaired(*[part[: len(part) - 8 * i] for i, part in enumerate(parts(data))]),
            "its layers take [0-9]+ bytes or more, but",
        ),
    ],
)
def test_error_messages(files: dict[str, bytes], tmp_path: Path, edit: Callable[[bytes], bytes], message: str) -> None:
    (tmp_path / "x").write_bytes(edit(files["trits"]))
    with pytest.raises(PackedError, match=f": {message}"):
        read_packed(tmp_path / "x")


def test_errors_for_no_ternary_layer_broken_stream_folder_and_missing_file(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    def plain(content: Any) -> None:
        for layer in content["layers"]:
            layer.pop("scales", None)

    header, payload = parts(files["entropy"])
    cases = {
        "layers: at least one must be ternary": edited(plain)(files["trits"]),
        "the stream of symbols: it does not end where its last symbol does": repaired(header, payload + bytes(2)),
        "the stream of symbols: it ends too early": repaired(header, payload[:-2]),
    }
    for message, data in cases.items():
        assert outcome(tmp_path / "x", data) == f"{tmp_path / 'x'}: {message}"
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        with pytest.raises(PackedError, match=f"{path}: {message}"):
            read_packed(path)


@pytest.mark.slow
def test_reader_imports_neither_lightning_nor_slow_modules(tmp_path: Path) -> None:
    network = resnet()
    write_packed(tmp_path / "x.lvr", network, architecture="resnet20")
    code = """if True:
        import sys, torch
        from networks import read_packed
        logits = read_packed(sys.argv[1]).network(torch.load(sys.argv[2], weights_only=True))
        torch.save(logits, sys.argv[2])
        print({"lightning", "sympy", "yaml", "callbacks"} & {*sys.modules})
    """
    torch.save(images(), tmp_path / "batch")
    arguments = [sys.executable, "-c", code, str(tmp_path / "x.lvr"), str(tmp_path / "batch")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert torch.equal(torch.load(tmp_path / "batch", weights_only=True), fold(network)(images()))
