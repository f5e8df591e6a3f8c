"""Sizes, depths and shapes that a file claims are checked before memory is taken; faults are a ValueError of one line."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from foundation.bounded.arrays import read_arrays
from foundation.bounded.messages import one_line
from foundation.bounded.stream import BoundedStream
from foundation.bounded.text import content_of, parse_json, parse_yaml, read_json


def test_json_is_read_up_to_a_depth_and_a_size(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + b"[" * 64 + b'"]]]]]{{{{\\"[[["' + b"]" * 64
    assert parse_json(text) == json.loads(text.decode("utf-8-sig"))
    for depth in (65, 100_000):
        with pytest.raises(ValueError, match="nested more than 64 deep"):
            parse_json(b'{"a":' * depth + b'"]]]"' + b"}" * depth)
    (tmp_path / "a.json").write_bytes(b"[1, 2]")
    assert read_json(tmp_path / "a.json") == [1, 2]
    with pytest.raises(ValueError, match="is longer than 5 bytes"):
        read_json(tmp_path / "a.json", 5)


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="is no regular file"):
            content_of(path)


@pytest.mark.slow
def test_references_of_yaml_are_counted() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: {<<: {d: 3}}") == {"a": [1, 2], "b": [1, 2], "c": {"d": 3}}
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(ValueError, match="stand for more than 100,000 values"):
        parse_yaml("\n".join(["l0: &l0 [1, 1]", *levels]))
    for text in ("a: &a [*a]", "a: 2001-99-99", "[" * 1200, "{a: 1", "!!python/object/apply:os.getcwd []"):
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            parse_yaml(text)


def archive(shape: str, content: bytes, kind: str = "|u1") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    array = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.npy", array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive("(3000000000,)", b"abc"), "a is damaged: its shape does not fit its size"),
        (archive("(-1, -3)", b"abc"), "its shape does not fit"),
        (archive("(4000000000,)", b"", "<U0"), "its shape does not fit"),
        (archive("(80000000,)", bytes(80_000_000)), "would unpack to 80,000,0.., more than 200 times as many"),
        (archive("(1,)", b"abcdefgh", "|O"), "an array of Python objects, which is not read"),
        (archive("(1,)", b"\xff\xff\xff\x7f", "<U1"), "it holds codes of no character"),
        (archive("(1,)", b"\x7f\xff\xff\xff", ">U1"), "it holds codes of no character"),
        (archive("(3,)", b"abc")[:-30], "no whole .npz file"),
        (b"", "no whole .npz file"),
    ],
)
def test_arrays_are_read_if_their_shape_fits(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_arrays(tmp_path / "a.npz")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_arrays_of_numpy_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", b=np.arange(6).reshape(2, 3), a=np.array(["x", "yz"]), c=np.zeros(0))
    found = read_arrays(tmp_path / "a.npz", ("a", "b", "d"))
    assert {name: values.tolist() for name, values in found.items()} == {"b": [[0, 1, 2], [3, 4, 5]], "a": ["x", "yz"]}


def test_a_read_asks_for_no_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcdef")
    with (tmp_path / "a").open("rb") as file:
        stream = BoundedStream(file)
        stream.seek(2)
        tracemalloc.start()
        assert stream.read(1 << 40) == b"cdef"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
        with pytest.raises(ValueError, match="there is no byte"):
            stream.seek(-5)


def test_a_message_is_one_printable_line() -> None:
    assert one_line("a  b") == "a  b"
    assert one_line("a\n  b\x1b[2J\u2028c\ud800") == "a b\\x1b[2J c\\ud800"
    assert len(one_line("x" * 10_000)) < 5010
