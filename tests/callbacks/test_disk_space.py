"""Tests of the check of the disk before the first step: refused, said, or silent; nothing is written by a refused fit."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.failures import disk
from cli import main
from foundation.disk import existing, free_space

TINY = str(Path(__file__).resolve().parent.parent / "conf" / "digits_ternary_tiny.yaml")


class Thousand(LightningModule):
    """1,000 numbers, half of them trained."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = torch.nn.Parameter(torch.zeros(500))
        self.frozen = torch.nn.Parameter(torch.zeros(500), requires_grad=False)


def test_space_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One checkpoint: 4,000 bytes of weights, as many of their average, 4,000 of an optimiser like Adam."""
    for averaged, refused, warned in ((False, 3_999, 3 * 8_000 - 1), (True, 7_999, 3 * 12_000 - 1)):
        monkeypatch.setattr(disk, "free_space", lambda _, refused=refused: refused)
        with pytest.raises(
            MisconfigurationException, match=r"disk: a checkpoint takes at least .* or give another --run_dir"
        ):
            disk.check_space(tmp_path, Thousand(), averaged)
        for free, lines in ((refused + 1, 1), (warned, 1), (warned + 1, 0)):
            caplog.clear()
            monkeypatch.setattr(disk, "free_space", lambda _, free=free: free)
            with caplog.at_level(logging.WARNING):
                disk.check_space(tmp_path, Thousand(), averaged)
            assert len(caplog.records) == lines


def test_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert free_space(tmp_path / "a" / "b") > 0


@pytest.mark.slow
def test_refused_fit_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(disk, "free_space", lambda _: 1000)
    assert main(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(
        "error: disk: a checkpoint takes at least 0.00218 GB, but only 1e-06 GB are free"
    )
    assert not list(tmp_path.iterdir())
