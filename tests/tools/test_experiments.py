"""python -m tools.experiments: only what is missing runs, broken runs go on, one that fails leaves the others alone."""

import csv
import fcntl
import json
import os
import shlex
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs.killing import ROOT, TINY
from tests.tools.test_compare import by_hand, table
from tools.experiments import jobs as experiment_jobs
from tools.experiments.__main__ import FOLDER, main
from tools.experiments.files import choose
from tools.experiments.jobs import Job, environment_of, epochs_of, state_of

# stands for main.py: two epochs as files; what it is to do is in the overlay: {first: ok, fail, kill, refuse or wait}
FAKE = """
import json, os, signal, sys, time
from pathlib import Path
words = sys.argv[1:]
resumed = "--resume" in words
folder = Path(words[words.index("--resume" if resumed else "--run_dir") + 1])
with (folder.parent / "calls").open("a") as file:
    file.write(json.dumps([time.monotonic(), *words]) + "\\n")
configs = [words[i + 1] for i, word in enumerate(words) if word == "--config"]
todo = "ok" if resumed else json.loads(Path(configs[-1]).read_text().splitlines()[-1]).get("first", "ok")
if todo == "refuse":
    print("resuming\\nerror: --model.lrr: no such setting")
    sys.exit(2)
if not resumed and folder.is_dir() and any(folder.iterdir()):
    sys.exit(2)
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
if not resumed:
    content = {"seed_everything": 0, "trainer": {"max_epochs": 2}, "name": folder.name}
    (folder / "config.yaml").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss_step,train/loss,val/acc,speed/images_per_s,memory/gb\\n1,1,9,,,5,1\\n1,2,,0.5,0.25,5,1\\n")
    (folder / "checkpoints" / "last.ckpt").touch()
if todo == "wait":
    def stop(*_):
        (folder / "saved").touch()
        sys.exit(143)
    signal.signal(signal.SIGTERM, stop)
    (folder.parent / "waits").touch()
    time.sleep(60)
if todo == "fail":
    sys.exit(4)
if todo == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.2)
with (folder / "metrics.csv").open("a") as file:
    file.write("2,4,,0.75,0.5,5,1\\n")
(folder / "training_summary.json").write_text(json.dumps({"time": {"seconds": 1}, "environment": {"devices": 1}}))
(folder / "test_metrics.json").write_text(json.dumps({"metrics": {"test/acc": 0.5}}))
with (folder.parent / "calls").open("a") as file:
    file.write(json.dumps([time.monotonic(), "end"]) + "\\n")
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration; main.py is replaced."""
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(experiment_jobs, "PROGRAM", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr(experiment_jobs, "POLL_S", 0.01)
    (tmp_path / "overlays").mkdir()
    (tmp_path / "base.yaml").write_text("{}")
    return tmp_path / "base.yaml"


def write(base: Path, name: str, header: str = "any experiment", **todo: str) -> Path:
    path = base.parent / "overlays" / f"{name}.yaml"
    path.write_text(f"# On {header}: what {name} is for.\n{json.dumps(todo)}\n")
    return path


def run(base: Path, *flags: str) -> int:
    folder = base.parent
    return main(
        ["--config", str(base), "--experiments", str(folder / "overlays"), "--out", str(folder / "out"), *flags]
    )


def calls(base: Path) -> list[list[Any]]:
    """Words of each call of main.py so far; they are forgotten."""
    path = base.parent / "out" / "calls"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    path.unlink(missing_ok=True)
    return found


def begun(base: Path) -> dict[str, str]:
    """How each run was called: `first` or `resume`, by the name of its folder."""
    starts = [words for _, *words in calls(base) if words != ["end"]]
    flags = {"first": "--run_dir", "resume": "--resume"}
    found = {}
    for words in starts:
        how = next(how for how, flag in flags.items() if flag in words)
        found[Path(words[words.index(flags[how]) + 1]).name] = how
        assert words[-1] == "--test_after_fit"
    return found


def test_only_what_is_missing_runs(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six experiments, one that crashes, one that is killed half-way, one that is refused."""
    for name, todo in (("a", "ok"), ("b", "fail"), ("c", "ok"), ("d", "kill"), ("e", "refuse"), ("f", "ok")):
        write(base, name, first=todo)
    out = base.parent / "out"
    assert run(base, "--data.x", "1") == 1
    said = capsys.readouterr().out
    assert begun(base) == dict.fromkeys("abcdef", "first")
    for name, words in (
        ("a", "   2 epochs      0:00  finished"),
        ("b", "   1 epochs      0:00  failed: exit code 4, loss or weights not finite"),
        ("d", "failed: exit code -9, killed by signal 9"),
        ("e", "   0 epochs      0:00  failed: exit code 2, wrong input"),
    ):
        assert any(line.startswith(f"{name}  ") and words in line for line in said.splitlines()), said
    assert "\n    error: --model.lrr: no such setting\n" in said
    assert "6/6  f finished" in said, "what failed did not stop the rest"
    status = {Path(row["run"]).name: row["status"] for row in table(out / "compare.csv")}
    assert status == {"a": "finished", "b": "unfinished", "c": "finished", "d": "unfinished", "f": "finished"}
    write(base, "e", first="ok")
    assert run(base, "--data.x", "1") == 0
    assert begun(base) == {"b": "resume", "d": "resume", "e": "first"}
    said = capsys.readouterr().out
    assert "a     2 epochs      0:00  skipped: finished before" in said
    assert "b goes on after 1 of 2 epochs" in said
    rows = table(out / "compare.csv")
    assert [Path(row["run"]).name for row in rows] == list("abcdef")
    for row in rows:
        expected = by_hand(Path(row["run"]))
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected)
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "compare.md").is_file()
    assert run(base, "--data.x", "1") == 0
    assert not begun(base)


def test_words_are_the_overlay_and_the_flags_after_it(base: Path) -> None:
    overlay = write(base, "a")
    assert run(base, "--trainer.max_epochs", "2", "--model.lr=0.5") == 0
    ((_, *words), _) = calls(base)
    folder = base.parent / "out" / "a"
    flags = ["--trainer.max_epochs", "2", "--model.lr=0.5", "--run_dir", str(folder), "--test_after_fit"]
    assert words == ["fit", "--config", str(base), "--config", str(overlay), *flags]


def test_an_overlay_between(base: Path) -> None:
    overlay, between = write(base, "a"), write(base, "between", header="configs/other.yaml")
    assert run(base, "--config", str(between)) == 0
    ((_, *words), _) = calls(base)
    assert words[1:7] == ["--config", str(base), "--config", str(between), "--config", str(overlay)]


def test_other_words_are_refused(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    assert run(base) == 0
    assert run(base, "--model.lr", "0.5") == 2
    assert "a was begun with other words (--config" in capsys.readouterr().err
    (base.parent / "out" / "experiments.json").write_text("{")
    assert run(base) == 2
    assert "experiments.json: is damaged" in capsys.readouterr().err


def test_some_at_once(base: Path) -> None:
    for name in "abcd":
        write(base, name)
    assert run(base, "--jobs", "2") == 0
    at_once, most = 0, 0
    for _, *words in sorted(calls(base)):
        at_once += -1 if words == ["end"] else 1
        most = max(most, at_once)
    assert most == 2


def test_a_signal_stops_them_and_they_go_on(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a", first="wait")
    write(base, "b", first="ok")
    out = base.parent / "out"

    def stop() -> None:
        while not (out / "waits").exists():
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    assert run(base) == 130
    assert (out / "a" / "saved").exists(), "its process had SIGTERM and the time to write"
    assert begun(base) == {"a": "first"}
    said = capsys.readouterr().err
    assert "stopping a, which write their checkpoints\nstopped; the same command goes on\n" in said
    assert run(base) == 0
    assert begun(base) == {"a": "resume", "b": "first"}


def test_two_calls_never_run_the_same(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(base, "a")
    (base.parent / "out").mkdir()
    with (base.parent / "out" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(base) == 2
    assert "another call of this command, or a run that it began, is at work" in capsys.readouterr().err
    assert not calls(base)


def test_dry_run_prints_what_is_left(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_list_says_how_far_they_are(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    said = capsys.readouterr().out
    assert "other  what other is for. [other]" in said
    assert "all    a list: a and b. [base]" in said


def test_lists_and_files_elsewhere(base: Path) -> None:
    for name in "abc":
        write(base, name)
    folder = base.parent / "overlays"
    (base.parent / "own.yaml").write_text("{}")
    (folder / "some.txt").write_text("# On configs/base.yaml: some.\nc.yaml\n../own.yaml  # mine\na.yaml\n")
    assert [one.name for one in choose(folder, base, ["a", "some"])] == ["a", "c", "own"]
    assert [one.name for one in choose(folder, base, [str(base.parent / "own.yaml")])] == ["own"]
    assert [one.name for one in choose(folder, base, None)] == ["a", "b", "c"], "a list is run by its name alone"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "bas"], "--only bas: no such experiment, did you mean 'base'?; in"),
        (["--only", "other"], "--only other: is for configs/other.yaml, not for"),
        (["--only", "a", "elsewhere/a.yaml"], "and another overlay have one name, and so one folder"),
        (["--only", "broken"], "nowhere.yaml: no such overlay in"),
        (["--only", "empty"], "names no overlay; expected a file of one on each line"),
        (["--job", "2"], "--job: is no flag of this command, nor a setting of each run; see --help"),
        (["--resume", "x"], "--resume: is no flag of this command, nor a setting of each run"),
        (["--jobs", "0"], "--jobs: experiments at once, 1 or more, got 0"),
        (["--experiments", "nowhere"], "--experiments nowhere: no such folder; it holds an overlay for each"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--list", "--dry_run"], "not allowed with argument --list"),
    ],
)
def test_refusals(
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
    assert "--config: which configuration are they overlays of?" in capsys.readouterr().err
    write(base, "a", header="configs/other.yaml")
    assert run(base) == 2
    assert "none of its 1 overlays is for" in capsys.readouterr().err


def test_what_is_there_without_a_checkpoint_is_kept(base: Path) -> None:
    write(base, "a")
    folder = base.parent / "out" / "a"
    (folder / "plots").mkdir(parents=True)
    (folder / "train.log").write_text("began")
    assert run(base) == 0
    assert (folder.parent / "a.broken-1" / "train.log").read_text() == "began"
    assert state_of(folder) == "finished"


def test_states(tmp_path: Path) -> None:
    assert state_of(tmp_path / "none") == "new"
    (tmp_path / "checkpoints").mkdir()
    assert state_of(tmp_path) == "new"
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert state_of(tmp_path) == "broken"
    (tmp_path / "training_summary.json").touch()
    assert state_of(tmp_path) == "broken", "its test figures are missing"
    (tmp_path / "test_metrics.json").touch()
    assert state_of(tmp_path) == "finished"
    assert Job("a", tmp_path, ["fit"]).words() == ["fit", "--resume", str(tmp_path), "--test_after_fit"]


def test_epochs_of_a_table_that_is_being_written(tmp_path: Path) -> None:
    assert epochs_of(tmp_path) == (0, None)
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n1,2,0.5\n2,3,\n")
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 7}\n")
    assert epochs_of(tmp_path) == (1, 7)
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: -1}\n")
    assert epochs_of(tmp_path) == (1, None)


def test_cores_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [environment_of(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["2", "5", "2"]
    assert environment_of(0, 3)["OMP_NUM_THREADS"] == "2"
    assert environment_of(0, 1)["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert "OMP_NUM_THREADS" not in environment_of(0, 1)


def test_those_of_the_project() -> None:
    scenarios = choose(FOLDER, ROOT / "configs" / "cifar_ternary.yaml", ["cifar_scenarios"])
    names = ["baseline", "conservative", "strong_regularisation", "autoaugment", "epochs_100", "fresh_500"]
    assert [one.name for one in scenarios] == names
    for base in ("prompt_segmentation", "prompt_segmentation_light", "digits_ternary"):
        found = {one.name for one in choose(FOLDER, ROOT / "configs" / f"{base}.yaml", None)}
        assert {"baseline", "mixed_precision", "seed_1", "seed_2"} <= found
        assert ("segmentation_cracks_only" in found) == base.startswith("prompt")


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    """Six real trainings, one of which crashes and one of which is killed half-way."""
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
    arguments = ["--config", TINY, "--experiments", str(overlays), "--out", str(out), "--jobs", "2"]
    assert main(arguments) == 1
    record = json.loads((out / "experiments.json").read_text())
    codes = {name: entry["exit_code"] for name, entry in record.items()}
    assert codes == {"baseline": 0, "seed_1": 0, "lr": 0, "shorter": 0, "crash": 1, "kill": -9}
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/training_summary.json")}
    assert len(before) == 4
    assert main(arguments) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items()), "the finished ones were left alone"
    assert {path.parent.name for path in out.glob("*/config.resume-1.yaml")} == {"crash", "kill"}
    for row in table(out / "compare.csv"):
        folder = Path(row["run"])
        expected = by_hand(folder)
        assert {name: float(row[name]) for name in expected} == pytest.approx(expected), folder.name
        assert row["status"] == "finished"
    metrics = {path.parent.name: last_loss(path) for path in out.glob("*/metrics.csv")}
    assert metrics["crash"] == metrics["kill"] == metrics["baseline"] != metrics["seed_1"]


def crash(marker: Path, signum: int) -> dict[str, Any]:
    settings = {"marker": str(marker), "step": 5, "signum": signum}
    return {
        "trainer": {"callbacks+": [{"class_path": "tests.tools.crashing.CrashOnce", "init_args": settings}]},
        "checkpoint": {"last_every_n_steps": 2},
    }


def last_loss(path: Path) -> str:
    with path.open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]][-1]
