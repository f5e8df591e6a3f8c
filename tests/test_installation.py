"""The wheel in an environment without the checkout: names, commands from any folder, configurations, Python, moved run folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from lightning_vision_recipes import NAMES
from lightning_vision_recipes.__main__ import tool_names
from tests.test_imports import ALLOWED

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "lightning_vision_recipes"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / "copy" / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path) -> Path:
    """Python of a new environment that holds the wheel; of this environment it sees the other packages, not the checkout."""
    home = wheel.parent / "env"
    venv.create(home, with_pip=True)
    (place,) = home.glob("lib/python*/site-packages")
    (place / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = home / "bin" / "python"
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--ignore-installed",
        wheel,
    ]
    subprocess.run(install, check=True, cwd=home, env=environment())
    return python


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run(command: list[str | Path], folder: Path, code: int = 0) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_names_of_the_packages_are_complete() -> None:
    assert set(NAMES) == set(ALLOWED) - {"main", "benchmarks", PACKAGE}


@pytest.mark.slow
def test_one_name_is_installed_and_everything_is_below_it(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {PACKAGE}
    inside = {name.removeprefix(f"{PACKAGE}/") for name in files}
    code = {str(path.relative_to(ROOT)) for name in NAMES for path in ROOT.glob(f"{name}/**/*.py")}
    assert code <= inside
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/**/*.yaml")} <= inside
    assert "tools/report/page.html.jinja" in inside
    assert not {name for name in inside if name.startswith(("tests", "benchmarks"))}


@pytest.mark.slow
def test_commands_work_from_any_folder(python: Path, tmp_path: Path, finished: Path) -> None:
    command = python.with_name("vision-recipes")
    (tmp_path / "tools").mkdir()  # a folder of the user's own must not hide ours
    (tmp_path / "tools" / "__init__.py").write_text("raise SystemExit('the wrong tools')")
    (tmp_path / "metrics.py").write_text("raise SystemExit('the wrong metrics')")
    assert "vision-recipes fit --config FILE --help" in run([command, "--help"], tmp_path)
    for name in tool_names():
        assert f"usage: vision-recipes {name}" in run([command, name, "--help"], tmp_path)
    flags = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--run_dir", "run"]
    said = run([command, "fit", "--config", "configs/digits_ternary.yaml", *flags, "--test_after_fit"], tmp_path)
    assert "vision-recipes predict --run run" in said
    assert (tmp_path / "run" / "test_metrics.json").is_file()
    assert "report.html" in run([command, "report", "run"], tmp_path)
    assert "vision-recipes fit --config configs/digits" in (tmp_path / "run" / "report" / "report.md").read_text()
    assert "configs/digits_ternary.yaml" in run([command, "fit"], tmp_path, code=2)
    digits = ["--config", "configs/digits_ternary.yaml", "--batch_sizes", "8", "--steps", "1", "--output", "profile"]
    assert "best       batch 8" in run([command, "profile_model", *digits], tmp_path)
    run([python, "-m", PACKAGE, "test", "--run", "run"], tmp_path)
    assert "error: fits:" in run([command, "fits"], tmp_path, code=2)
    before = json.loads((finished / "test_metrics.json").read_text())
    shutil.copytree(finished, moved := tmp_path / "moved")  # of a checkout
    run([command, "test", "--run", "moved"], tmp_path)
    assert json.loads((moved / "test_metrics.json").read_text()) == before


@pytest.mark.slow
def test_in_python(python: Path, tmp_path: Path, finished: Path) -> None:
    code = f"from {PACKAGE} import load_run; print(type(load_run({str(finished)!r})).__name__)"
    assert "TernaryClassifier" in run([python, "-c", code], tmp_path)
    assert str(ROOT) not in run([python, "-c", f"import {PACKAGE}, cli; print(cli.__file__)"], tmp_path)
    (tmp_path / "metrics.py").write_text("")
    message = run([python, "-c", f"import metrics, {PACKAGE}"], tmp_path, code=1)
    assert f"ImportError: {PACKAGE}: a module 'metrics' from" in message


def test_the_command_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"vision-recipes": f"{PACKAGE}.__main__:main"}
