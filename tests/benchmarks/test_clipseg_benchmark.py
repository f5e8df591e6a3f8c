"""Benchmark clipseg: both sides compute the same, and the reported values are correct; speed is not tested."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.segmentation import clipseg


def test_sides_compute_the_same() -> None:
    both = clipseg.sides("random_tiny", ["crack", "taping area", "a"], batch=2, size=32, device=torch.device("cpu"))
    with torch.inference_mode():
        mine, each, batched = both.ours(), both.each(), both.batched()
    assert mine.shape == (2, 3, 32, 32)
    assert torch.allclose(mine, each, atol=1e-3)
    assert torch.allclose(mine, batched, atol=1e-3)
    assert not torch.allclose(mine[:, 0], mine[:, 1], atol=1e-2), "otherwise the prompts make no difference"
    found = clipseg.differences(both)
    assert found.relative == pytest.approx(float((mine - each).abs().max() / each.std()))
    assert found.relative < 1e-4
    assert found.probability < 1e-3


def test_prints_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "clipseg.json"
    arguments = ["--repeats", "2", "--threads", "1", "--size", "32", "--weights", "random_tiny", "--json", str(file)]
    clipseg.main(arguments)
    printed = capsys.readouterr().out
    content = json.loads(file.read_text())
    names = [clipseg.OURS, clipseg.EACH, clipseg.BATCHED]
    assert list(content["ms"]) == names
    assert all(f"| {name}" in printed for name in names)
    assert content["ratio"][clipseg.OURS]["median"] == 1
    assert content["differences"]["relative"] < 1e-4
    assert "2 prompts, random_tiny, on cpu" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--size", "40"], "--size: a multiple of 16 is needed, got 40"), (["--batch", "0"], "--batch: 1 or more, got 0")],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        clipseg.main([*flags, "--threads", "1"])
    assert message in capsys.readouterr().err
