"""Progressive resizing: exact resume within and between image-size stages, changed stages, memory check, two processes."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from callbacks import read_metrics
from cli import main
from tests.datamodules.cifar_layout import write_cifar
from tests.runs.killing import MOMENTS, Kill, differences, forked, outcome
from tests.runs.pooled import PooledClassifier
from tests.runs.test_two_processes import TWO, start

pytestmark = pytest.mark.slow

# 130 training images: 5, 6 and 9 batches, two a step: 3, 3 and 5 steps an epoch
STAGES: list[dict[str, Any]] = [
    {"size": 8, "batch_size": 32, "epochs": 2},
    {"size": 12, "batch_size": 24, "epochs": 2, "lr": 0.5},
    {"size": 16, "batch_size": 16, "epochs": 2, "lr": 0.25, "strength": 0.5},
]


def config(folder: Path, stages: list[dict[str, Any]] = STAGES, batch_statistics: int = 48, **settings: Any) -> Path:
    """A configuration that uses every state that a resume could lose."""
    if not (folder / "data").exists():
        write_cifar(folder / "data" / "cifar-10-batches-py", size=16)
    content: dict[str, Any] = {
        "seed_everything": 5,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": sum(stage["epochs"] for stage in stages),
            "accumulate_grad_batches": 2,
            "log_every_n_steps": 1,
            "callbacks": [
                {"class_path": "EMA", "init_args": {"decay": 0.8, "batch_statistics": batch_statistics}},
                {"class_path": "ProgressiveResizing", "init_args": {"stages": stages, **settings}},
            ],
        },
        "checkpoint": {"last_every_n_steps": 2},
        "model": {
            "class_path": "tests.runs.pooled.PooledClassifier",
            "init_args": {"lr": 0.1, "schedule": "one_cycle"},
        },
        "data": {
            "class_path": "CIFAR10DataModule",
            "init_args": {
                "root": str(folder / "data"),
                "drop_last": False,
                "crop_padding": 2,
                "policy": "randaugment",
                "mixup_prob": 0.5,
            },
        },
    }
    path = folder / f"{len(list(folder.glob('*.yaml')))}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resizing")


@pytest.fixture(scope="module")
def unbroken(place: Path) -> Path:
    """Folder of the uninterrupted run; tests must not write to it."""
    folder, log = place / "unbroken", place / "log"
    assert forked(["fit", "--config", str(config(place)), "--run_dir", str(folder)], log=log) == 0, log.read_text()
    return folder


def broken(settings: Path, folder: Path, kills: list[Kill]) -> dict[str, Any]:
    """Start the run, kill it, resume it and kill it again, then let it end."""
    log = folder.with_suffix(".log")
    arguments = ["fit", "--config", str(settings), "--run_dir", str(folder)]
    for kill in kills:
        assert forked(arguments, kill, log) in (0, -9), log.read_text()
        if not (folder / "checkpoints" / "last.ckpt").exists():
            folder = folder.with_name(folder.name + "x")
            arguments[-1] = str(folder)
        else:
            arguments = ["fit", "--resume", str(folder)]
    assert forked(arguments, log=log) == 0, log.read_text()
    return outcome(folder)


def check(place: Path, unbroken: Path, folder: Path, kills: list[Kill]) -> None:
    found = differences(outcome(unbroken), broken(config(place), folder, kills))
    assert not found, f"after {kills}: {found[:10]}"


# last.ckpt is written at the start, within each epoch at an even step, and at its end: the fifth time at the end of stage 1
INSIDE = [Kill("backward", 15), Kill("val", 2)]
AT_THE_BOUNDARY = [Kill("epoch_end", 2), Kill("between", 2), Kill("after_last", 1)]


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(INSIDE, id="inside stage 2"),
        pytest.param(AT_THE_BOUNDARY, id="at the boundary", marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed_equals_unbroken(place: Path, unbroken: Path, tmp_path: Path, kills: list[Kill]) -> None:
    check(place, unbroken, tmp_path / "run", kills)


@pytest.mark.parametrize("phase", ["between", "after_last"])
@pytest.mark.parametrize("n", range(2, 14))
def test_killed_around_any_save(place: Path, unbroken: Path, tmp_path: Path, phase: str, n: int) -> None:
    check(place, unbroken, tmp_path / "run", [Kill(phase, n)])


@pytest.mark.parametrize("seed", range(12))
def test_killed_at_random_moments(place: Path, unbroken: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    kills = [Kill(draw.choice(MOMENTS), draw.randint(1, 20)) for _ in range(draw.choice([1, 2, 3]))]
    check(place, unbroken, tmp_path / "run", kills)


@pytest.mark.parametrize(
    "settings", [{"reset_momentum": True}, {"schedule": "whole"}, {"try_largest": False}], ids=lambda s: next(iter(s))
)
def test_other_settings_resume_as_exactly(place: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    stages = [{**stage, "lr": 1.0} for stage in STAGES]
    path, log = config(place, stages, **settings), tmp_path / "log"
    assert forked(["fit", "--config", str(path), "--run_dir", str(tmp_path / "whole")], log=log) == 0, log.read_text()
    found = differences(outcome(tmp_path / "whole"), broken(path, tmp_path / "run", [*INSIDE, *AT_THE_BOUNDARY[:1]]))
    assert not found


def test_the_run_prints_its_stages(unbroken: Path) -> None:
    rows = [row for row in read_metrics(unbroken / "metrics.csv") if "train/loss" in row]
    columns = [(row["stage/number"], row["stage/size"], row["stage/batch_size"]) for row in rows]
    assert columns == [(1, 8, 32)] * 2 + [(2, 12, 24)] * 2 + [(3, 16, 16)] * 2
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 17, 22]
    assert all("val/acc" in row and "val_raw/acc" in row for row in rows)
    log = [line.split(" ", 2)[2] for line in (unbroken / "train.log").read_text().splitlines()]
    assert log[0] == "stage 1/3: 8 px, batch 32, 2 epochs, lr x 1"
    assert log[3] == "stage 2/3: 12 px, batch 24, 2 epochs, lr x 0.5"
    assert log[6] == "stage 3/3: 16 px, batch 16, 2 epochs, lr x 0.25, strength x 0.5"
    assert all(log[i].startswith("epoch ") for i in (1, 2, 4, 5, 7, 8))


# ---- changed stages in a resumed run ----


@pytest.fixture(scope="module")
def halfway(place: Path, unbroken: Path) -> Path:
    """Folder of a run that was killed in the second epoch of stage 2; tests must not write to it."""
    folder, log = place / "halfway", place / "log"
    arguments = ["fit", "--config", str(config(place)), "--run_dir", str(folder)]
    assert forked(arguments, Kill("backward", 20), log) == -9, log.read_text()
    return folder


def resumed(halfway: Path, place: Path, folder: Path, changes: dict[int, dict[str, Any]]) -> list[str]:
    """Command line of a resume with changed stages, given by their position from 0."""
    shutil.copytree(halfway, folder)
    stages = [{**stage, **changes.get(i, {})} for i, stage in enumerate(STAGES)]
    return ["fit", "--resume", str(folder), "--config", str(config(place, stages))]


def test_later_stages_may_change(
    halfway: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    changes = {1: {"epochs": 3, "lr": 0.4}, 2: {"batch_size": 20, "lr": 0.2}}
    assert main(resumed(halfway, place, folder, changes)) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "schedule re-annealed: 22 -> 23 steps" in printed  # 2 * 3 + 3 * 3 + 2 * 4
    assert "stage 2/3 continues: 12 px, batch 24, 3 epochs, lr x 0.4" in (folder / "train.log").read_text()
    rows = [row for row in read_metrics(folder / "metrics.csv") if "train/loss" in row]
    assert [row["stage/batch_size"] for row in rows] == [32, 32, 24, 24, 24, 20, 20]
    end = next(row for row in rows if row["epoch"] == 7)
    assert end["lr/weights"] == pytest.approx(0.1 * 0.2 / 25e4, rel=1e-12), "the last step has the end of the schedule"


def test_a_stretched_run_goes_on_in_its_last_stage(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three epochs are 1, 1 and 1; five and seven of the same proportions would be 2, 1, 2 and 2, 3, 2."""
    path, folder = config(place, stretch=True), tmp_path / "run"
    assert main(["fit", "--config", str(path), "--run_dir", str(folder), "--trainer.max_epochs", "3"]) == 0
    for epochs in (5, 7):
        capsys.readouterr()
        assert main(["fit", "--resume", str(folder), "--trainer.max_epochs", str(epochs)]) == 0, capsys.readouterr().err
    rows = [row for row in read_metrics(folder / "metrics.csv") if "train/loss" in row]
    assert [row["stage/size"] for row in rows] == [8, 12, 16, 16, 16, 16, 16]
    others = ["--config", str(config(place, STAGES[1:], stretch=True)), "--trainer.max_epochs", "8"]
    assert main(["fit", "--resume", str(folder), *others]) == 2
    assert "stage 1 of ProgressiveResizing: cannot change" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({0: {"lr": 0.5}}, "stage 1"),
        ({0: {"epochs": 1}, 1: {"epochs": 3}}, "stage 1"),
        ({1: {"batch_size": 12}}, "stage 2"),
        ({1: {"epochs": 1}}, "stage 2"),
    ],
)
def test_stages_that_are_done_or_begun_may_not(
    halfway: Path,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[int, dict[str, Any]],
    stage: str,
) -> None:
    assert main(resumed(halfway, place, tmp_path / "run", changes)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{stage} of ProgressiveResizing: cannot change in a resumed run after 4 epochs have begun" in error


def test_a_run_begun_without_stages_cannot_get_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = config(place), tmp_path / "run"
    flags = ["--trainer.callbacks", "[]", "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", str(path), "--run_dir", str(folder), *flags]) == 0
    assert main(["fit", "--resume", str(folder), "--config", str(path)]) == 2
    assert "this run was started without it and cannot be resumed with it; start a new run" in capsys.readouterr().err


# ---- memory ----

STAGE = "out of memory: stage 3/3 (16 px, batch 100, 2 epochs, lr x 0.25, strength x 0.5), tried with one step before the run: "
HINT = "give stage 3 of ProgressiveResizing (16 px, batch 100) a batch_size of 50 or less, or a smaller size; --data.batch_size"


def too_large(place: Path) -> Path:
    return config(place, [*STAGES[:2], {**STAGES[2], "batch_size": 100}])


def test_a_stage_that_does_not_fit_ends_the_run_before_it_begins(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = PooledClassifier.training_step

    def exhausted(self: PooledClassifier, batch: Any, batch_idx: int) -> Any:
        if batch["image"].shape[-1] == 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PooledClassifier, "training_step", exhausted)
    assert main(["fit", "--config", str(too_large(place)), "--run_dir", str(tmp_path / "run")]) == 3
    message = capsys.readouterr().err
    assert STAGE + "CUDA out of memory. Tried to allocate 2.00 GiB." in message
    assert HINT in message
    assert len(message.splitlines()) <= 3
    assert not (tmp_path / "run").exists(), "nothing stays behind"


def test_out_of_memory_within_a_stage_names_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = PooledClassifier.training_step

    def exhausted(self: PooledClassifier, batch: Any, batch_idx: int) -> Any:
        if batch["image"].shape[-1] == 12:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PooledClassifier, "training_step", exhausted)
    assert main(["fit", "--config", str(config(place)), "--run_dir", str(tmp_path / "run")]) == 3
    message = capsys.readouterr().err
    assert "give stage 2 of ProgressiveResizing (12 px, batch 24) a batch_size of 12 or less" in message
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(("batch_size", "code"), [pytest.param(4, 0, marks=pytest.mark.slow), (100, 3)])
def test_a_memory_limit_is_met_before_stage_one_begins(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, code: int
) -> None:
    """A process limited to 150 MB more: 4 images with 4096 channels of 16x16 pixels take 17 MB, 100 take 420 MB."""
    configure = PooledClassifier.configure_network

    def wide(self: PooledClassifier) -> None:
        configure(self)
        channels = 4096
        self.network = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 1), *list(self.network.children())[2:-1], torch.nn.Linear(channels, 10)
        )

    start = PooledClassifier.setup

    def limited(self: PooledClassifier, stage: str) -> None:
        start(self, stage)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 150 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    monkeypatch.setattr(PooledClassifier, "configure_network", wide)
    monkeypatch.setattr(PooledClassifier, "setup", limited)
    log = tmp_path / "log"
    stages = [{**STAGES[0], "batch_size": 4}, {**STAGES[2], "batch_size": batch_size}]
    path = config(place, stages, batch_statistics=0)  # that network has no batch norm
    arguments = ["fit", "--config", str(path), "--run_dir", str(tmp_path / "run")]
    short = ["--data.eval_batch_size", "4", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    assert forked([*arguments, *short], log=log) == code, log.read_text()
    assert ("out of memory: stage 2/2 (16 px, batch 100" in log.read_text()) == (code == 3)
    assert ("stage 2/2 (16 px, batch 4, 2 epochs, lr x 0.25, strength x 0.5) was tried" in log.read_text()) == (
        code == 0
    )
    assert (tmp_path / "run").exists() == (code == 0)


# ---- the command line ----


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{**STAGES[0], "size": 0}], "size of stage 1: 1 pixel or more, or [HEIGHT, WIDTH], got 0"),
        ([{"batch_size": 16, "epochs": 2}], "size"),
        ([{**STAGES[2], "pixels": 8}], "pixels"),
        (
            [{**STAGES[2], "batch_size": 200}],
            "stage 1 of ProgressiveResizing: batch_size 200 is larger than the training set",
        ),
    ],
)
def test_wrong_stages_end_in_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stages: list[dict[str, Any]], message: str
) -> None:
    flags = ["--run_dir", str(tmp_path / "run"), "--data.drop_last", "true"]
    assert main(["fit", "--config", str(config(place, stages)), *flags]) == 2
    error = capsys.readouterr().err
    print(error)
    assert message in error
    assert not (tmp_path / "run").exists()


def test_image_files_and_their_workers_follow_the_stages(tmp_path: Path) -> None:
    """Workers of a stage decode at its image size; workers of earlier stages no longer exist after a kill and a resume."""
    draw, root = np.random.default_rng(0), tmp_path / "pictures"
    for name in ("cat", "dog", "fox"):
        (root / name).mkdir(parents=True)
        for i in range(36):
            Image.fromarray(draw.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    content = yaml.safe_load(config(tmp_path, batch_statistics=0).read_text())  # of files
    settings = {"root": str(root), "image_size": 16, "workers": 1, "drop_last": False, "erasing_prob": 0.5}
    content["data"] = {"class_path": "ImageFolderDataModule", "init_args": settings}
    path, whole, log = tmp_path / "folder.yaml", tmp_path / "whole", tmp_path / "log"
    path.write_text(yaml.safe_dump(content))
    assert forked(["fit", "--config", str(path), "--run_dir", str(whole)], log=log) == 0, log.read_text()
    assert not differences(outcome(whole), broken(path, tmp_path / "run", [Kill("backward", 11), Kill("epoch_end", 1)]))


# ---- two processes ----


def test_two_processes_end_every_stage_and_go_on_exactly(place: Path, tmp_path: Path) -> None:
    """Half of the images each, 65: 3, 3 and 5 batches, two a step."""
    sizes = (31, 24, 15)  # no last batch of one sample
    stages = [{**stage, "epochs": 20, "batch_size": size} for stage, size in zip(STAGES, sizes, strict=True)]
    whole, stopped, log = tmp_path / "whole", tmp_path / "stopped", tmp_path / "log"
    arguments = ["fit", "--config", str(config(place, stages)), *TWO, "--run_dir"]
    assert start([*arguments, str(whole)], log).wait() == 0, log.read_text()
    rows = [row for row in read_metrics(whole / "metrics.csv") if "train/loss" in row]
    assert [row["step"] for row in rows[19::20]] == [40, 80, 140]
    steps = {row["step"]: row["lr/weights"] for row in read_metrics(whole / "metrics.csv") if "train/loss_step" in row}
    for end, factor in ((40, 1.0), (80, 0.5), (140, 0.25)):
        assert abs(steps[end] - 0.1 * factor / 25e4) < 1e-12  # a row has the rate of its step

    process = start([*arguments, str(stopped)], log)
    table = stopped / "metrics.csv"
    while process.poll() is None and (not table.exists() or len(table.read_text().splitlines()) < 75):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 143, log.read_text()
    assert 40 < torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] < 140
    assert start(["fit", "--resume", str(stopped)], log).wait() == 0, log.read_text()
    assert not differences(outcome(whole), outcome(stopped))
