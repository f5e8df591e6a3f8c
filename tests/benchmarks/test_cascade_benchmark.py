"""Benchmark cascade: thresholds are chosen on one half and evaluated on the other; the command runs with small networks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import cascade
from networks import build_resnet
from tests.datamodules.cifar_layout import write_cifar
from tools.cascade.measures import Evaluated, choose_within, halves


def test_what_is_chosen_on_one_half_is_measured_on_the_other() -> None:
    random = np.random.default_rng(0)
    confidence = random.random(400).astype(np.float32)
    evaluated = Evaluated(confidence, random.random(400) < confidence, random.random(400) < 0.8)
    found = cascade.outcomes(evaluated, lambda swept: choose_within(swept, 0.0), splits=2)
    assert len(found) == 4
    for seed in range(2):
        for way, measured in enumerate(halves(400, seed)[::-1]):
            threshold, gain, forwarded = found[2 * seed + way]
            leaves = confidence[measured] >= np.float32(threshold)
            right = np.where(leaves, evaluated.right1[measured], evaluated.right2[measured])
            assert gain == pytest.approx(100 * (right.mean() - evaluated.right2[measured].mean()))
            assert forwarded == pytest.approx(1 - leaves.mean())


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", names=[f"class {i}" for i in range(10)], size=32)
    for name in cascade.NETWORKS:
        torch.manual_seed(len(name))
        network = build_resnet(name.removeprefix("cifar10_"), num_classes=10, quantizer="none")  # type: ignore[arg-type]
        save_file(network.state_dict(), tmp_path / f"{name}_fp32.safetensors")
    monkeypatch.setattr(cascade, "TIME", 1e9)
    monkeypatch.setattr(cascade, "LOSS", -100.0)
    flags = ["--weights", str(tmp_path), "--root", str(tmp_path), "--splits", "2", "--repeats", "2", "--timed", "8"]
    cascade.main([*flags, "--threads", "1", "--json", str(tmp_path / "figures.json")])
    metrics = json.loads((tmp_path / "figures.json").read_text())
    assert metrics["flops"] == {"cifar10_resnet20": 81_102_080, "cifar10_resnet56": 250_971_392}
    assert metrics["held"]
    assert {len(rule) for rule in metrics["rules"].values()} == {4}
    assert "target: -100.0 points" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cascade.main([*flags, "--weights", str(tmp_path / "none")])
    assert "no such" in capsys.readouterr().err
