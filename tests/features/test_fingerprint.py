"""Hashes of weights, tensors and lists of files: which changes alter the hash and which do not."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from features import data_of_files, data_of_tensors, hash_tensors, list_files
from features.fingerprint import file_changes, file_lines, read_files

NET: dict[str, Tensor] = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.count": torch.tensor(7)}


def test_hash_is_that_of_names_types_shapes_and_bytes() -> None:
    digest = hashlib.sha256(b'["a.weight", "torch.float32", [2, 3]]')
    digest.update(NET["a.weight"].numpy().tobytes())
    digest.update(b'["b.count", "torch.int64", []]' + (7).to_bytes(8, "little"))
    assert hash_tensors(NET) == digest.hexdigest()
    assert data_of_tensors(NET) == f"tensors:{digest.hexdigest()}"


@pytest.mark.parametrize(
    "same",
    [
        {"b.count": NET["b.count"], "a.weight": NET["a.weight"]},
        {**NET, "a.weight": NET["a.weight"].t().contiguous().t()},
        {**NET, "a.weight": torch.nn.Parameter(NET["a.weight"])},
        {**NET, "a.weight": torch.arange(12.0)[:6].view(2, 3)},
    ],
    ids=["order", "strides", "parameter", "part of a storage"],
)
def test_hash_does_not_depend_on_memory_layout(same: dict[str, Tensor]) -> None:
    assert hash_tensors(same) == hash_tensors(NET)


@pytest.mark.parametrize(
    "other",
    [
        {"a.weight": NET["a.weight"]},
        {"c.weight": NET["a.weight"], "b.count": NET["b.count"]},
        {**NET, "a.weight": NET["a.weight"].reshape(3, 2)},
        {**NET, "a.weight": NET["a.weight"].int()},
        {**NET, "a.weight": NET["a.weight"].view(torch.int32)},
        {**NET, "a.weight": NET["a.weight"].nextafter(torch.tensor(9.0))},
        {**NET, "a.weight": torch.where(NET["a.weight"] == 0, -0.0, NET["a.weight"])},
        {**NET, "empty": torch.zeros(0, 5)},
    ],
    ids=["fewer", "name", "shape", "values of int", "type alone", "a bit", "sign of zero", "an empty one"],
)
def test_hash_depends_on_everything_else(other: dict[str, Tensor]) -> None:
    assert hash_tensors(other) != hash_tensors(NET)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.float64])
def test_any_type_is_hashed(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    assert hash_tensors({"x": values}) == hash_tensors({"x": values.clone()}) != hash_tensors({"x": values.flip(0)})


def test_other_values_than_tensors_are_refused() -> None:
    state: Any = {"x": torch.zeros(1), "_extra_state": {"a": 1}}
    with pytest.raises(ValueError, match="_extra_state is a dict, but only tensors can be hashed"):
        hash_tensors(state)


def test_hash_of_a_network_is_that_of_its_copy_until_it_is_trained() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    before = hash_tensors(net.state_dict())
    assert hash_tensors(net.eval().state_dict()) == before
    net.train()(torch.randn(5, 3))  # the statistics of the batch norm
    assert hash_tensors(net.state_dict()) != before


def test_files_are_listed_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name, size in (("cat/b.jpg", 20), ("cat/a\u2028.jpg", 10)):
        (tmp_path / name).write_bytes(bytes(size))
    files = list_files(tmp_path, ["cat/b.jpg", "cat/a\u2028.jpg"])
    assert files == {"cat/b.jpg": 20, "cat/a\u2028.jpg": 10}
    assert list_files(tmp_path, ["cat/b.jpg"], part="val") == {"val/cat/b.jpg": 20}
    text = json.dumps(["cat/a\u2028.jpg", 10]) + "\n" + json.dumps(["cat/b.jpg", 20]) + "\n"
    assert data_of_files(files) == f"files:{hashlib.sha256(text.encode()).hexdigest()}"
    (tmp_path / "list").write_bytes(file_lines(files))
    assert read_files(tmp_path / "list") == files
    with pytest.raises(FileNotFoundError, match=r"cat/c\.jpg"):
        list_files(tmp_path, ["cat/c.jpg"])


@pytest.mark.parametrize("content", [b"\xff", b"[1]\n", b"{}\n", b'["a", "b"]\n', b"[" * 100_000])
def test_damaged_list_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    assert read_files(tmp_path / "list") is None
    assert read_files(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("now", "summary"),
    [
        ({"a": 1, "b": 2}, "no file differs"),
        ({"a": 1}, "1 file removed, the first is 'b' (removed)"),
        ({"a": 1, "b": 2, "c": 3, "0": 4}, "2 files added, the first is '0' (added)"),
        ({"a": 3, "b": 4}, "2 files changed, the first is 'a' (changed from 1 to 3 bytes)"),
        ({"a": 3, "c": 4}, "1 file added, 1 removed, 1 changed, the first is 'a' (changed from 1 to 3 bytes)"),
    ],
)
def test_file_changes_are_counted_and_the_first_is_named(now: dict[str, int], summary: str) -> None:
    assert file_changes({"a": 1, "b": 2}, now) == summary
