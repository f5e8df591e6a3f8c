"""Tests of benchmarks/adapters.py on the smallest sizes: what is trained, and which images test it."""

from pathlib import Path

import pytest

from benchmarks.adapters import _write_weights as write_weights
from benchmarks.adapters import digits, on_digits, step


@pytest.mark.slow
def test_the_ways_train_different_shares(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.safetensors")
    write_weights("test_vit", 32, path)
    rows = {way: step(way, "test_vit", 32, 2, 1, path) for way in ("head", "lora", "full")}
    assert rows["head"]["trained"] == 650 < rows["lora"]["trained"] < rows["full"]["trained"]
    assert all(len(row["ms"]) == 1 for row in rows.values())


def test_new_digits_are_divided() -> None:
    first, new, rest = digits(seed=0, few=3)
    assert (len(first.label), len(new.label), len(rest.label)) == (901, 15, 881)
    assert new.label.bincount().tolist() == [3] * 5


@pytest.mark.slow
def test_every_way_has_a_row() -> None:
    rows = on_digits(3, 1, {"first": 1, "adapting": 1})
    assert [row["way"] for row in rows] == ["head", "lora", "full", "from scratch"]
    assert all(0 < row["acc"][0] < 1 and row["images"] == 881 for row in rows)
