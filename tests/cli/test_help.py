"""Tests of --help: every form in which a configuration or a flag may name a class, the user's own classes, and the examples."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from cli import main

OWN = """
from lightning.pytorch import Callback
from lightning_modules import TernaryClassifier

class OwnNetwork(TernaryClassifier):
    def __init__(self, own_setting: int = 3, **kwargs):
        super().__init__(**kwargs)

class EMA(Callback):
    def __init__(self, own_decay: float = 0.5):
        super().__init__()
"""


@pytest.fixture(autouse=True)
def _own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_classes", raising=False)
    Path("own_classes.py").write_text(OWN)


def settings(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The flags that were printed, and the settings of callbacks as CALLBACK:SETTING."""
    found, callback = set(), ""
    for line in capsys.readouterr().out.splitlines():
        words = line.split()
        found |= {word for word in words if word.startswith("--")}
        callback = (
            words[0].rstrip(",") if ", an entry of the list trainer.callbacks: " in line else callback if words else ""
        )
        if callback and re.match(r"  \w", line):
            found.add(f"{callback}:{words[0]}")
    return found


NAMED = [
    ("model: TernaryClassifier", "--model.quantizer"),
    ("data: {class_path: DigitsDataModule}", "--data.crop_padding"),
    ("trainer: {callbacks: {class_path: EMA}}", "EMA:decay"),
    ("trainer: {callbacks: EMA}", "EMA:decay"),
    ("trainer: {callbacks: [EMA]}", "EMA:decay"),
    ("trainer: {callbacks+: EMA}", "EMA:decay"),
    ("trainer: {callbacks: [EMA, callbacks.EMA, own_classes.EMA]}", "own_classes.EMA:own_decay"),
    ("trainer: {callbacks: null}\nmodel: null", "--trainer.max_epochs"),
    ("model: {class_path: own_classes.OwnNetwork}", "--model.own_setting"),
    ("trainer: {callbacks: [{class_path: own_classes.EMA}]}", "EMA:own_decay"),
]


@pytest.mark.every(4)
@pytest.mark.parametrize(("text", "setting"), NAMED)
def test_settings_of_the_classes_of_a_configuration(
    text: str, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(text)
    assert main(["fit", "--config", "a.yaml", "--help"]) == 0
    assert setting in settings(capsys)


@pytest.mark.slow
def test_the_entry_of_a_callback_works_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(__file__).resolve().parent.parent / "conf" / "segmentation_tiny.yaml")
    assert main(["fit", "--config", config, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--trainer.callbacks.EMA" not in printed
    assert "A flag --trainer.callbacks.NAME VALUE sets the last entry of the list." in printed
    entry = "{class_path: lightning.pytorch.callbacks.early_stopping.EarlyStopping, init_args: {NAME: VALUE}}"
    entries = re.findall(r"entry of the list trainer.callbacks: (.*)", printed)
    assert entries == [
        "{class_path: EMA, init_args: {NAME: VALUE}}",
        entry,
        "{class_path: SegmentationPictures, init_args: {NAME: VALUE}}",
    ]
    given = [
        one.replace("NAME: VALUE", setting)
        for one, setting in zip(entries, ("decay: 0.3", "monitor: val/dice", "count: 3"), strict=True)
    ]
    Path("own.yaml").write_text(f"trainer: {{callbacks: [{', '.join(given)}]}}\n")
    assert main(["fit", "--config", config, "--config", "own.yaml", "--trainer.callbacks.count", "0"]) == 2
    assert "count: 1 mask or more, got 0" in capsys.readouterr().err


def test_settings_of_the_classes_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "own_classes.OwnNetwork", "--data=DigitsDataModule", "--trainer.callbacks+", "EMA"]
    assert main(["fit", *flags, "--help"]) == 0
    assert {"--model.own_setting", "--data.crop_padding", "EMA:decay"} <= settings(capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TernaryClasifier", "model: no class 'TernaryClasifier', did you mean 'TernaryClassifier'?"),
        ("own_classes.Missing", "model: no class 'own_classes.Missing'"),
        ("nowhere.Network", "model: nowhere cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_class_that_does_not_exist(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--model", name, "--help"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {message}\n"
    assert printed.out == ""


def test_examples_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my configs").mkdir()
    Path("my configs/a b.yaml").write_text("trainer: {max_epochs: 2}")
    assert main(["test", "--config", "my configs/a b.yaml", "--help"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last)[-4:] == ["--config", "my configs/a b.yaml", "--ckpt", "PATH"]
