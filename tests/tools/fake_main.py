"""A stand-in for main.py that writes the files of a run without training, and helpers that run tools.experiments with it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import __main__ as experiments
from tools.experiments import jobs as experiment_jobs
from tools.experiments.__main__ import main

# replaces main.py: writes the files of two epochs; the overlay {first: ok, warn, fail, kill, refuse or wait} sets its behaviour
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
if todo == "warn":
    print("warning: the loss has exploded\\nepoch 1/2\\nwarning: the loss has exploded\\nwarning: memory")
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


def use_fake_main(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace main.py by ``FAKE`` and return an empty base configuration in ``folder``."""
    (folder / "fake.py").write_text(FAKE)
    monkeypatch.setattr(experiment_jobs, "PROGRAM", (sys.executable, str(folder / "fake.py")))
    monkeypatch.setattr(experiment_jobs, "POLL_S", 0.01)
    monkeypatch.setattr(experiments, "check_base", lambda *_: None)
    (folder / "overlays").mkdir()
    (folder / "base.yaml").write_text("{}")
    return folder / "base.yaml"


def write(base: Path, name: str, header: str = "any experiment", **todo: str) -> Path:
    """Write an overlay for the base configuration; ``first=...`` sets what the first call of ``FAKE`` does."""
    path = base.parent / "overlays" / f"{name}.yaml"
    path.write_text(f"# On {header}: what {name} is for.\n{json.dumps(todo)}\n")
    return path


def run(base: Path, *flags: str) -> int:
    """Run tools.experiments on the overlays, with the output in the folder ``out`` next to the base configuration."""
    folder = base.parent
    return main(
        ["--config", str(base), "--experiments", str(folder / "overlays"), "--output", str(folder / "out"), *flags]
    )


def calls(base: Path) -> list[list[Any]]:
    """Return time and arguments of each call of main.py since the last time, and clear the record."""
    path = base.parent / "out" / "calls"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    path.unlink(missing_ok=True)
    return found


def begun(base: Path) -> dict[str, str]:
    """How each run was started since the last time: `first` or `resume`, by the name of its folder."""
    starts = [words for _, *words in calls(base) if words != ["end"]]
    flags = {"first": "--run_dir", "resume": "--resume"}
    found = {}
    for words in starts:
        how = next(how for how, flag in flags.items() if flag in words)
        found[Path(words[words.index(flags[how]) + 1]).name] = how
        assert words[-1] == "--test_after_fit"
    return found
