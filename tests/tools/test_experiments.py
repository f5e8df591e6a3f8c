"""Tests that tools.experiments runs only unfinished experiments, resumes broken ones, and continues after failures."""

import csv
import fcntl
import json
import os
import re
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from foundation.folder_lock import LOCK, FolderLock
from tests.runs.killing import TINY
from tests.tools.fake_main import begun, calls, run, use_fake_main, write
from tests.tools.test_compare import by_hand, table
from tools.experiments import report
from tools.experiments.__main__ import main
from tools.experiments.jobs import Job, state_of


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty base configuration; main.py is replaced."""
    return use_fake_main(tmp_path, monkeypatch)


@pytest.mark.slow
def test_finished_runs_are_skipped_and_broken_ones_resumed(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six experiments: one fails, one is killed half-way, one has an invalid setting, three finish."""
    for name, todo in (("a", "ok"), ("b", "fail"), ("c", "warn"), ("d", "kill"), ("e", "refuse"), ("f", "ok")):
        write(base, name, first=todo)
    out = base.parent / "out"
    assert run(base, "--data.x", "1") == 1
    output = capsys.readouterr().out
    assert begun(base) == dict.fromkeys("abcdef", "first")
    for name, words in (
        ("a", "   2 epochs      0:00  finished"),
        ("b", "   1 epochs      0:00  failed: exit code 4, loss or weights not finite"),
        ("d", "failed: exit code -9, killed by signal 9"),
        ("e", "   0 epochs      0:00  failed: exit code 2, wrong input"),
    ):
        assert any(line.startswith(f"{name}  ") and words in line for line in output.splitlines()), output
    assert "\n    error: --model.lrr: no such setting\n" in output
    assert re.search(r"c finished.*\n    warning: the loss has exploded\n    warning: memory\n\d\d:", output), output
    assert f"c     2 epochs      0:00  finished, 2 warnings: see {out / 'c.log'}" in output
    assert "6/6  f finished" in output, "failures must not stop the others"
    status = {Path(row["run"]).name: row["status"] for row in table(out / "compare.csv")}
    assert status == {"a": "finished", "b": "unfinished", "c": "finished", "d": "unfinished", "f": "finished"}
    write(base, "e", first="ok")
    assert run(base, "--data.x", "1") == 0
    assert begun(base) == {"b": "resume", "d": "resume", "e": "first"}
    output = capsys.readouterr().out
    assert "a     2 epochs      0:00  skipped: already finished" in output
    assert "b resumes after 1 of 2 epochs" in output
    rows = table(out / "compare.csv")
    assert [Path(row["run"]).name for row in rows] == list("abcdef")
    for row in rows:
        expected = by_hand(Path(row["run"]))
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "compare.md").is_file()
    assert run(base, "--data.x", "1") == 0
    assert not begun(base)


def test_the_time_left_goes_down_between_two_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of one epoch: the first epoch ends at 90 s, so 90 s are left, and 30 s later 60 s."""
    clock, shares = SimpleNamespace(now=0.0), {"a": 0.0, "b": 0.0}
    monkeypatch.setattr("tools.experiments.report.time.monotonic", lambda: clock.now)
    monkeypatch.setattr(report, "done_share", lambda folder: shares[folder.name])
    jobs = [Job(name, tmp_path / name, []) for name in shares]
    told = report.Report(tmp_path, jobs)
    for clock.now, shares["a"] in ((60.0, 0.0), (90.0, 1.0), (120.0, 1.0), (200.0, 1.0)):
        told.tell(jobs[:1])
    assert re.findall(r"a(?:  ETA (\S+))?\n", capsys.readouterr().out) == ["", "1:30", "1:00", ""]


def test_the_flags_come_after_the_overlay(base: Path) -> None:
    overlay = write(base, "a")
    assert run(base, "--trainer.max_epochs", "2", "--model.lr=0.5") == 0
    ((_, *words), _) = calls(base)
    folder = base.parent / "out" / "a"
    flags = ["--trainer.max_epochs", "2", "--model.lr=0.5", "--run_dir", str(folder), "--test_after_fit"]
    assert words == ["fit", "--config", str(base), "--config", str(overlay), *flags]


def test_an_overlay_before_that_of_the_experiment(base: Path) -> None:
    overlay, between = write(base, "a"), write(base, "between", header="configs/other.yaml")
    assert run(base, "--config", str(between)) == 0
    ((_, *words), _) = calls(base)
    assert words[1:7] == ["--config", str(base), "--config", str(between), "--config", str(overlay)]


def test_other_arguments_for_an_existing_run_are_an_error(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    assert run(base) == 0
    assert run(base, "--model.lr", "0.5") == 2
    assert "a was started with other arguments (--config" in capsys.readouterr().err
    (base.parent / "out" / "experiments.json").write_text("{")
    assert run(base) == 2
    assert "experiments.json: is damaged" in capsys.readouterr().err


def test_several_at_a_time(base: Path) -> None:
    for name in "abcd":
        write(base, name)
    assert run(base, "--jobs", "2") == 0
    at_once, most = 0, 0
    for _, *words in sorted(calls(base)):
        at_once += -1 if words == ["end"] else 1
        most = max(most, at_once)
    assert most == 2


def test_interrupted_experiments_are_resumed(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a", first="wait")
    write(base, "b", first="ok")
    out = base.parent / "out"

    def stop() -> None:
        while not (out / "waits").exists():
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert run(base) == 130
    assert (out / "a" / "saved").exists(), "its process must get SIGTERM and the time to write"
    assert begun(base) == {"a": "first"}
    output = capsys.readouterr().err
    assert "stopping a; each writes a checkpoint\nstopped; run the same command to resume\n" in output
    assert run(base) == 0
    assert begun(base) == {"a": "resume", "b": "first"}


def test_a_second_call_at_the_same_time_is_an_error(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    (base.parent / "out").mkdir()
    with (base.parent / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(base) == 2
    assert "another call of this command, or a run that it started, is still running" in capsys.readouterr().err
    assert not calls(base)


def test_a_run_that_has_just_begun_elsewhere_keeps_its_folder(base: Path) -> None:
    write(base, "a")
    folder = base.parent / "out" / "a"
    lock = FolderLock(folder)
    assert run(base) == 1  # main.py refuses the folder
    assert [path.name for path in folder.iterdir()] == [LOCK]
    lock.release()
    assert run(base) == 0


def test_a_run_folder_without_a_checkpoint_is_renamed(base: Path) -> None:
    write(base, "a")
    folder = base.parent / "out" / "a"
    (folder / "plots").mkdir(parents=True)
    (folder / "train.log").write_text("began")
    assert run(base) == 0
    assert (folder.parent / "a.broken-1" / "train.log").read_text() == "began"
    assert state_of(folder) == "finished"


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    """Six real trainings: one crashes and one is killed half-way."""
    overlays, out = tmp_path / "overlays", tmp_path / "out"
    overlays.mkdir()
    for name, content in {
        "baseline": {},
        "seed_1": {"seed_everything": 1},
        "lr": {"model": {"init_args": {"lr": 0.02}}},
        "shorter": {"trainer": {"max_epochs": 1}},
        "crash": crash(tmp_path / "crashed", 0),
        "kill": crash(tmp_path / "killed", int(signal.SIGKILL)),
    }.items():
        (overlays / f"{name}.yaml").write_text(f"# On any experiment: {name}.\n{yaml.safe_dump(content)}")
    arguments = ["--config", TINY, "--experiments", str(overlays), "--output", str(out), "--jobs", "2"]
    assert main(arguments) == 1
    record = json.loads((out / "experiments.json").read_text())
    codes = {name: entry["exit_code"] for name, entry in record.items()}
    assert codes == {"baseline": 0, "seed_1": 0, "lr": 0, "shorter": 0, "crash": 1, "kill": -9}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/training_summary.json")}
    assert len(before) == 4
    assert main(arguments) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "finished runs must not change"
    assert {path.parent.name for path in out.glob("*/config.resume-1.yaml")} == {"crash", "kill"}
    for row in table(out / "compare.csv"):
        folder = Path(row["run"])
        expected = by_hand(folder)
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected), folder.name
        assert row["status"] == "finished"
    metrics = {path.parent.name: last_loss(path) for path in out.glob("*/metrics.csv")}
    assert metrics["crash"] == metrics["kill"] == metrics["baseline"] != metrics["seed_1"]


def crash(marker: Path, signum: int) -> dict[str, Any]:
    """Settings of an overlay whose run crashes once, see ``CrashOnce``."""
    settings = {"marker": str(marker), "step": 5, "signum": signum}
    return {
        "trainer": {"callbacks+": [{"class_path": "tests.tools.crashing.CrashOnce", "init_args": settings}]},
        "checkpoint": {"last_every_n_steps": 2},
    }


def last_loss(path: Path) -> str:
    with path.open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]][-1]
