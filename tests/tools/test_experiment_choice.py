"""Tests tools.experiments apart from the runs: choice and listing of experiments, --dry_run, run states, error messages."""

import os
import shlex
from pathlib import Path

import pytest

from tests.runs.killing import ROOT, TINY
from tests.tools.fake_main import run, use_fake_main, write
from tools.experiments import jobs as experiment_jobs
from tools.experiments.__main__ import main
from tools.experiments.files import choose
from tools.experiments.jobs import Job, environment_of, epochs_of, state_of


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty base configuration; main.py is replaced."""
    return use_fake_main(tmp_path, monkeypatch)


def test_dry_run_prints_the_commands_of_unfinished_experiments(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c d"):
        write(base, name, first="fail" if name == "b" else "ok")
    assert run(base, "--dry_run", "--data.root", "my data") == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert not (base.parent / "out").exists()
    assert [line[2:4] for line in lines] == [["fit", "--config"]] * 3
    assert lines[2][line_place(lines[2], "--data.root")] == "my data"
    assert run(base, "--only", "a", "b") == 1
    capsys.readouterr()
    assert run(base, "--dry_run", "--only", "a", "b") == 0
    folder = base.parent / "out" / "b"
    assert capsys.readouterr().out == f"{shlex.join(experiment_jobs.PROGRAM)} fit --resume {folder} --test_after_fit\n"


def line_place(words: list[str], flag: str) -> int:
    return words.index(flag) + 1


def test_list_shows_the_progress(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    write(base, "b", first="fail")
    write(base, "c", first="refuse")
    write(base, "other", header="configs/other.yaml")
    assert run(base) == 1
    capsys.readouterr()
    assert run(base, "--list") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "a finished what a is for.",
        "b failed (4) 1 of 2 epochs what b is for.",
        "c failed (2) what c is for.",
    ]
    (base.parent / "overlays" / "all.txt").write_text("# On configs/base.yaml: a and b.\na.yaml\nb.yaml\n")
    assert main(["--list", "--experiments", str(base.parent / "overlays")]) == 0
    output = capsys.readouterr().out
    assert "other  what other is for. [other]" in output
    assert "all    a list: a and b. [base]" in output


def test_choose_by_list_and_by_file(base: Path) -> None:
    for name in "abc":
        write(base, name)
    folder = base.parent / "overlays"
    (base.parent / "own.yaml").write_text("{}")
    (folder / "some.txt").write_text("# On configs/base.yaml: some.\nc.yaml\n../own.yaml  # mine\na.yaml\n")
    assert [one.name for one in choose(folder, base, ["a", "some"])] == ["a", "c", "own"]
    assert [one.name for one in choose(folder, base, [str(base.parent / "own.yaml")])] == ["own"]
    assert [one.name for one in choose(folder, base, None)] == ["a", "b", "c"], "a list is only chosen by its name"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "bas"], "--only bas: no such experiment, did you mean 'base'?; "),
        (["--only", "other"], "--only other: fits configs/other.yaml, not"),
        (["--only", "a", "elsewhere/a.yaml"], "and another overlay share a name, and so a run folder"),
        (["--only", "broken"], "nowhere.yaml: no such overlay in"),
        (["--only", "empty"], "names no overlay; expected one overlay file per line"),
        (["--job", "2"], "--job: is neither a flag of this command nor a setting of the runs; see --help"),
        (["--resume", "x"], "--resume: is neither a flag of this command nor a setting of the runs"),
        (["--jobs", "0"], "--jobs: must be 1 or more, got 0"),
        (["--experiments", "nowhere"], "--experiments nowhere: no such folder, did you mean"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--list", "--dry_run"], "not allowed with argument --list"),
    ],
)
def test_invalid_flags_end_in_one_line(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    monkeypatch.chdir(base.parent)
    write(base, "a")
    write(base, "base")
    write(base, "other", header="configs/other.yaml")
    (base.parent / "elsewhere").mkdir()
    (base.parent / "elsewhere" / "a.yaml").write_text("{}")
    (base.parent / "overlays" / "broken.txt").write_text("nowhere.yaml\n")
    (base.parent / "overlays" / "empty.txt").write_text("# nothing\n")
    assert run(base, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (base.parent / "out").exists()


def test_a_configuration_is_needed(capsys: pytest.CaptureFixture[str], base: Path) -> None:
    assert main([]) == 2
    assert "--config: missing; give the base configuration of the experiments, or --list" in capsys.readouterr().err
    write(base, "a", header="configs/other.yaml")
    assert run(base) == 2
    assert "none of its 1 overlays fits" in capsys.readouterr().err


def test_states_of_a_run_folder(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none") == "new"
    (tmp_path / "checkpoints").mkdir()
    assert state_of(tmp_path) == "new"
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert state_of(tmp_path) == "broken"
    (tmp_path / "training_summary.json").touch()
    assert state_of(tmp_path) == "broken", "test_metrics.json is missing"
    (tmp_path / "test_metrics.json").touch()
    assert state_of(tmp_path) == "finished"
    assert Job("a", tmp_path, ["fit"]).words() == ["fit", "--resume", str(tmp_path), "--test_after_fit"]


def test_epochs_of_an_incomplete_run_folder(tmp_path: Path) -> None:
    assert epochs_of(tmp_path) == (0, None)
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n1,2,0.5\n2,3,\n")
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 7}\n")
    assert epochs_of(tmp_path) == (1, 7)
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: -1}\n")
    assert epochs_of(tmp_path) == (1, None)


def test_cores_and_gpus_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment_of(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["2", "5", "2"]
    assert environment_of(0, 3)["OMP_NUM_THREADS"] == "2"
    assert environment_of(0, 1)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert "OMP_NUM_THREADS" not in environment_of(0, 1)


def test_experiments_of_the_project() -> None:
    scenarios = choose(None, ROOT / "configs" / "cifar_ternary.yaml", ["cifar_scenarios"])
    names = ["baseline", "conservative", "strong_regularisation", "autoaugment", "epochs_100", "fresh_500"]
    assert [one.name for one in scenarios] == names
    for base in ("prompt_segmentation", "prompt_segmentation_light", "digits_ternary"):
        found = {one.name for one in choose(None, ROOT / "configs" / f"{base}.yaml", None)}
        assert {"baseline", "mixed_precision", "seed_1", "seed_2"} <= found
        assert ("segmentation_cracks_only" in found) == base.startswith("prompt")


def test_experiments_of_the_working_directory_are_found_beside_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("configs", "experiments")
    folder.mkdir(parents=True)
    (folder / "loader_mine.yaml").write_text("# On any experiment: my loader.\ndata:\n  init_args:\n    workers: 1\n")
    (folder / "seed_1.yaml").write_text("# On any experiment: my own seed.\nseed_everything: 7\n")
    assert main(["--list"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "loader_mine my loader." in lines
    assert "seed_1 my own seed." in lines
    assert any(line.startswith("seed_2 ") for line in lines)
    command = ["--config", "configs/digits_ternary.yaml", "--dry_run", "--only", "loader_mine", "seed_1", "seed_2"]
    assert main(command) == 0
    overlays = [shlex.split(line)[6] for line in capsys.readouterr().out.splitlines()]
    assert overlays == [
        *map(str, (folder / "loader_mine.yaml", folder / "seed_1.yaml")),
        str(ROOT / folder / "seed_2.yaml"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.lrr", "0.1"], "model.lrr: no such setting, did you mean 'lr'?"),
        (["--data.batch_size", "many"], "data.batch_size"),
    ],
)
def test_a_mistake_in_what_all_share_ends_the_command(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["--config", TINY, "--only", "seed_1", "seed_2", "--output", str(out), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()
