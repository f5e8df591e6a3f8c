"""Input is checked before the first step: refused input leaves nothing behind, and what breaks later ends in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from callbacks import RunFolder
from cli import main
from datamodules.segmentation.generator import write_generated
from tests.datamodules.pictures import write_classes
from tests.runs.killing import ROOT

CONF = ROOT / "tests" / "conf"


def masks(root: Path, change: Callable[[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]], Image.Image]) -> list[str]:
    write_generated(root / "segmentation_generated_14", 14)
    for path in root.rglob("masks/*.png"):
        change(np.array(Image.open(path))).save(path)
    return ["--config", str(CONF / "segmentation_tiny.yaml"), "--data.root", str(root)]


def torn_images(root: Path) -> list[str]:
    write_classes(root, {"train/cat": 8, "train/dog": 8, "val/cat": 2, "val/dog": 2}, suffix=".jpg")
    path = root / "train" / "dog" / "003.jpg"
    path.write_bytes(path.read_bytes()[:-20])  # the header is intact
    tiny = ["--config", str(CONF / "image_folder_tiny.yaml"), "--data.root", str(root), "--data.workers", "0"]
    return [*tiny, "--data.unreadable", "refuse"]


def without_test(root: Path) -> list[str]:
    flags = torn_images(root)[:-2]
    return [*flags, "--test_after_fit"]


def signals_without_labels(root: Path) -> list[str]:
    root.mkdir()
    label = np.array(["sit", "walk", ""])[np.arange(36) % 3]
    signal = np.random.default_rng(0).normal(size=(36, 3, 16)).astype(np.float32)
    np.savez(root / "a.npz", signal=signal, label=label, subject=np.arange(36) // 6)
    tiny = [
        "--config",
        str(CONF / "har_tiny.yaml"),
        "--data",
        "SignalFileDataModule",
        "--data.file",
        str(root / "a.npz"),
    ]
    return [*tiny, "--data.mode", "flatten"]


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: masks(root, lambda mask: Image.fromarray(mask // 255)), "masks are refused"),
        (torn_images, "1 of the 16 files in"),
        (without_test, "has train/ but no test/, so there is nothing to test on"),
        (signals_without_labels, "12 of the 36 windows have no label"),
    ],
    ids=["masks of 0 and 1", "torn image", "no test split", "blank labels"],
)
def test_refused_input_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[Path], list[str]], message: str
) -> None:
    flags = prepare(tmp_path / "data")
    assert main(["fit", *flags, "--run_dir", str(tmp_path / "runs" / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_file_damaged_within_training_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = masks(tmp_path / "data", Image.fromarray)
    started = RunFolder.on_train_start

    def damage(self: RunFolder, *arguments: object) -> None:
        started(self, *arguments)  # type: ignore[arg-type]
        for path in (tmp_path / "data").rglob("images/*"):
            path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(RunFolder, "on_train_start", damage)
    folder = tmp_path / "run"
    assert main(["fit", *flags, "--run_dir", str(folder)]) == 1
    error = capsys.readouterr().err.splitlines()
    assert "cannot be read as images: " in error[0]
    assert "(the image or its mask is damaged)" in error[0]
    assert error[1] == f"RESUME: python main.py fit --resume {folder}"
    assert len(error) == 2
    assert (folder / "checkpoints" / "last.ckpt").is_file()
