"""Runs every cell of the table in docs/paths.md on tiny data: what leads on ends with 0, else with 2 and the stated line."""

from __future__ import annotations

import csv
import json
import re
import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from cli import main
from datamodules.signals.har_generator import write_generated
from lightning_modules import load_run
from tests.datamodules.pictures import write_classes
from tests.lightning_modules.random_photos import weights_file
from tests.runs.killing import ROOT
from tools.run_data import configured_data

TEXT = (ROOT / "docs" / "paths.md").read_text(encoding="utf-8")
TINY = ROOT / "tests" / "conf"
EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
EXTRACTOR = """
trainer: {{accelerator: cpu, callbacks: [{{class_path: FeatureWriter, init_args: {{dtype: float32}}}}]}}
model: {{class_path: FeatureExtractor, init_args: {{backbone: test_vit, pooling: avg{weights}}}}}
"""
CHEAP = {
    "tools.profile_model": ["--batch_sizes", "2", "--steps", "1", "--device", "cpu", "--output", "profile"],
    "tools.cascade": ["--repeats", "1", "--output", "cascade"],
    "tools.inspect_data": ["--output", "inspected"],
    "tools.probe": ["--k", "3", "--data.image_size", "32", "--data.workers", "0", "--output", "probed"],
    "tools.sweep_heads": ["--config", str(TINY / "cascade_cached_tiny.yaml"), "--epochs", "1", "--output", "SWEEP"],
}
"""Flags that make a tool quick, or its output go into the test's folder."""
OF_SYSTEM = {
    "ternary": ("digits_ternary_tiny.yaml", []),
    "image": ("image_folder_tiny.yaml", ["--data.root", "FOLDER", "--data.workers", "0"]),
    "head": ("cascade_cached_tiny.yaml", ["--data.cache", "CACHE"]),
    "HAR": ("har_tiny.yaml", ["--data.root", "HAR", "--model.unfreeze_epoch", "null", "--data.image_channels", "3"]),
    "segmentation": ("segmentation_tiny.yaml", ["--data.root", "MASKS"]),
}


def table(head: str) -> list[list[str]]:
    """Rows of the table of the document whose first line starts with `head`."""
    lines = TEXT[TEXT.index(head) :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")]
    return rows[: next((n for n, line in enumerate(lines[2:]) if not line.startswith("|")), len(rows))]


STEPS = table("| step |")
LINES = {row[0]: row[1] for row in table("| | the line says |")}
QUICK = ("main.py predict --run RUN_DIR --data.images", "tools.export RUN_DIR`", "tools.cascade")
"""Steps of a head that run in the default tests: they were missing once, and take a second or two."""
CELLS = [
    pytest.param(
        step.strip("`"),
        system,
        cell,
        id=f"{system}: {step.strip('`')}",
        marks=() if system == "head" and any(part in step for part in QUICK) else (pytest.mark.slow, pytest.mark.draws),
    )
    for step, *cells in STEPS
    for system, cell in zip(OF_SYSTEM, cells, strict=True)
    if cell
]


def run(words: list[str]) -> int:
    """Run a command as typed, in this process."""
    if words[:2] == ["python", "main.py"]:
        random = ["--model.pretrained", "false"] if any(word.endswith("EXTRACTOR.yaml") for word in words) else []
        return main([*words[2:], *random])
    tool = words[2]
    command: int = import_module(f"{tool}.__main__").main([*words[3:], *CHEAP.get(tool, [])])
    return command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data of all systems, and the cache."""
    folder = tmp_path_factory.mktemp("paths")
    for name in ("FOLDER", "HAR", "weights"):
        (folder / name).mkdir()
    (folder / "configs").symlink_to(ROOT / "configs")
    write_classes(folder / "FOLDER", {"cat": 31, "dog": 31, "owl": 31}, suffix=".jpg")
    write_generated(folder / "HAR", subjects=range(1, 7), test_subjects=(2,), windows=2)
    shards = ["--data.root", str(folder / "FOLDER"), "--output", str(folder / "SHARDS")]
    assert import_module("tools.write_shards.__main__").main(shards) == 0
    file = weights_file(folder / "weights", "test_vit")
    (folder / "EXTRACTOR.yaml").write_text(EXTRACTOR.format(weights=""))
    data = {"root": str(folder / "FOLDER"), "image_size": 32, "batch_size": 8, "workers": 0}
    with_data = {"data": {"class_path": "ImageFolderDataModule", "init_args": data}}
    own = EXTRACTOR.format(weights=f", weights: {file}")
    (folder / "EXTRACTION.yaml").write_text(own + yaml.safe_dump(with_data))
    assert main(["predict", "--config", str(folder / "EXTRACTION.yaml"), "--cache", str(folder / "CACHE")]) == 0
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> dict[str, Path]:
    """A run of each system that is made when it is first needed; a test may add to it, as a user would."""
    made: dict[str, Path] = {}

    class Runs(dict[str, Path]):
        def __missing__(self, system: str) -> Path:
            made[system] = self[system] = place / f"run of {system}"
            assert main([*fit(place, system), "--run_dir", str(made[system])]) == 0
            return made[system]

    return Runs()


def fit(place: Path, system: str) -> list[str]:
    """The command of a fit of one epoch."""
    name, given = OF_SYSTEM[system]
    words = [str(place / word) if word.isupper() else word for word in given]
    return ["fit", "--config", str(TINY / name), *words, "--trainer.max_epochs", "1"]


def typed(step: str, place: Path, system: str, folder: Path) -> list[str]:
    """The words of a step, with the placeholders replaced."""
    words: list[str] = []
    for word in step.split():
        if "RUN_DIR" in word:
            words.append(word.replace("RUN_DIR", str(folder)))
        elif word == "CONFIG":
            words += fit(place, system)[2:]
        elif word == "CACHE" and "main.py" in step:
            words.append("NEW_CACHE")
        else:
            words.append(
                {"PHOTOS": str(place / "FOLDER" / "cat")}.get(word, str(place / word) if word[:1].isupper() else word)
            )
    if "--resume" in words:
        words += ["--trainer.max_epochs", "2"]
    elif "fit" in words:
        words += ["--run_dir", "new_run"]
    if "configs/cascade_train.yaml" in words:
        words += ["--trainer.accelerator", "cpu", "--data.workers", "0"]
    if "configs/with/shards.yaml" in words:
        at = words.index("--data.root")
        words[at : at + 2] = []  # shards are given in its place
    if "--int8" in words:
        words += ["--method", "minmax", "--max_drop", "100"]  # a tiny run may lose any accuracy
    if system == "ternary" and "--cache" in words:
        words += ["--model.backbone", "test_resnet"]  # the digits are smaller than a patch
    return words


@pytest.mark.parametrize(("step", "system", "cell"), CELLS)
def test_step(
    step: str,
    system: str,
    cell: str,
    place: Path,
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if ("--onnx" in step or "--int8" in step) and not EXPORT:
        pytest.skip("needs the extra `export`")
    folder = runs[system]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    if "SWEEP/" in step:
        sweep = ["python", "-m", "tools.sweep_heads", "--cache", str(place / "CACHE"), "--batch_size", "8"]
        assert run(sweep) == 0
        step = step.replace("SWEEP/", f"{tmp_path}/SWEEP/").replace("FOLDER", str(place / "FOLDER"))
    words = typed(step, place, system, folder)
    capsys.readouterr()
    code = run(words)
    error = capsys.readouterr().err
    if cell == "yes":
        assert code == 0, error
        if "tools.cascade" in step:  # the same stage twice; only the first builds a backbone
            measured = json.loads(Path("cascade/cascade.json").read_text())["measured"]
            assert measured["stage 1"]["flops"] == measured["stage 2"]["flops"] > 0
        return
    assert code == 2, error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert LINES[cell] in line
    assert not (tmp_path / "new_run").exists()


def test_the_document_names_every_reason_once_and_every_tool() -> None:
    cells = {cell for _, *row in STEPS for cell in row} - {"yes", ""}
    assert cells == set(LINES)
    assert all(len(row) == 1 + len(OF_SYSTEM) for row in STEPS)
    named = set(re.findall(r"tools\.(\w+)", TEXT))
    of_runs = {"report", "compare", "export", "cascade", "profile_model", "inspect_data", "check", "sweep_heads"}
    assert of_runs <= named


@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=() if name == "head" else pytest.mark.slow) for name in OF_SYSTEM]
)
def test_every_run_answers_in_python_as_predict_does(
    system: str, runs: dict[str, Path], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = load_run(runs[system])
    copied = Path(shutil.copytree(runs[system], tmp_path / "run", ignore=shutil.ignore_patterns("predictions*")))
    monkeypatch.chdir(tmp_path)
    photos = place / "FOLDER" / "cat"
    assert main(["predict", "--run", str(copied), *([] if system == "HAR" else ["--data.images", str(photos)])]) == 0
    with (copied / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if system == "segmentation":
        for one, row in zip(module.masks(photos), rows[:: len(module.class_names)], strict=True):
            mask = one.masks[one.prompts.index(row["prompt"])]
            assert torch.equal(mask, torch.from_numpy(np.asarray(Image.open(copied / row["mask"])) > 0))
    else:
        given: Any = photos
        if system == "HAR":
            given = configured_data(runs[system] / "config.yaml").read_part("test")["signal"].numpy()
        found = module.classify(given)
        assert [one.class_name for one in found] == [row["class"] for row in rows]
        assert [one.probability for one in found] == pytest.approx(
            [float(row["probability"]) for row in rows], abs=1e-6
        )
        assert [one.probability for one in found] == pytest.approx(found.probabilities.amax(dim=1).tolist())
    image = torch.rand(1, module.in_channels, module.image_size, module.image_size)
    if system == "HAR":
        image = image[:, None].expand(-1, 9, -1, -1, -1)  # `flatten`: an image for each signal
    if system == "segmentation":
        assert module.masks(image).shape[1] == len(module.class_names)
    else:
        assert float(module.classify(image).sum()) == pytest.approx(1)
