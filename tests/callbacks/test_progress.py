"""callbacks/progress/progress.py without a terminal: the exact lines that a Trainer prints, with a manual clock."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from torch import Tensor

from callbacks.checkpoints import Checkpoints
from callbacks.exact_resume import ExactResume
from callbacks.progress.progress import Progress
from callbacks.run_folder import RunFolder
from tests.callbacks.progress_fit import (
    STEP,
    VALIDATION,
    Clock,
    Endless,
    Loader,
    Module,
    Train,
    manual_clock,
    printed,
    trainer_of,
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return manual_clock(monkeypatch)


def smoothed(steps: int) -> float:
    """Moving average of the losses 1, 2, 3, ...: the mean of the first 20, then each new loss has weight 5 %."""
    average = sum(range(1, min(steps, 20) + 1)) / min(steps, 20)
    for loss in range(21, steps + 1):
        average = 0.95 * average + 0.05 * loss
    return average


def test_exact_plain_lines(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, Progress(every_s=10.0), max_epochs=2, val_check_interval=1.0)
    assert len([c for c in trainer.callbacks if "Progress" in type(c).__name__]) == 1  # type: ignore[attr-defined]
    trainer.fit(Module(clock), Loader(24), Loader(8))
    # a step takes 1 s, a validation 8 x 0.5 s; the next line is printed 10 s after the last
    assert printed(capsys) == [
        "epoch 1/2 batch 10/24 train/loss 5.5 lr 0.00195 eta epoch 0:14, run 0:38",
        "epoch 1/2 batch 20/24 train/loss 10.5 lr 1.91e-06 eta epoch 0:04, run 0:28",
        # the validation ends at 28 s; its duration is unknown before
        "epoch 1/2 train/loss 12.5 val/acc 0.5 lr 1.19e-07",
        f"epoch 2/2 batch 2/24 train/loss {smoothed(26):.4g} lr 2.98e-08 eta epoch 0:26, run 0:26",
        f"epoch 2/2 batch 12/24 train/loss {smoothed(36):.4g} lr 2.91e-11 eta epoch 0:16, run 0:16",
        f"epoch 2/2 batch 22/24 train/loss {smoothed(46):.4g} lr 2.84e-14 eta epoch 0:06, run 0:06",
        "epoch 2/2 train/loss 36.5 val/acc 0.75 lr 7.11e-15",
    ]


def test_lines_of_a_long_validation(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer_of(tmp_path, Progress(every_s=3.0), max_epochs=2).fit(Module(clock), Loader(2), Loader(8))
    assert [line for line in printed(capsys) if "validation" in line] == [
        # 1 s of the first validation is over, for 2 of 8 batches: 3 s left, and 2 s + 4 s for the second epoch
        "epoch 1/2 validation 2/8 train/loss 1.5 lr 0.5 eta epoch 0:03, run 0:09",
        "epoch 1/2 validation 8/8 train/loss 1.5 lr 0.5 eta epoch 0:00, run 0:06",
        # 4 s of validation per epoch, as measured in the first; 1 s of it is over
        "epoch 2/2 validation 2/8 train/loss 2.5 lr 0.125 eta epoch 0:03, run 0:03",
        "epoch 2/2 validation 8/8 train/loss 2.5 lr 0.125 eta epoch 0:00, run 0:00",
    ]


def test_validation_and_other_callbacks_count_as_pauses(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Callback):
        def on_train_epoch_end(self, *arguments: Any) -> None:
            clock.now += 20.0

    trainer_of(tmp_path, Progress(every_s=1.0), Slow(), max_epochs=3).fit(Module(clock), Loader(4), Loader(8))
    lines = printed(capsys)
    # each epoch has 4 s of validation and 20 s of the other callback, which do not count as step time
    assert "epoch 2/3 batch 1/4 train/loss 3 lr 0.0625 eta epoch 0:27, run 0:55" in lines
    assert "epoch 3/3 batch 4/4 train/loss 6.5 lr 0.000488 eta epoch 0:24, run 0:24" in lines


def test_epoch_lines_show_the_updated_best_score_and_patience(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    callbacks = Progress(every_s=1e9), Checkpoints(), EarlyStopping("val/acc", patience=2, mode="max"), RunFolder(run)
    trainer_of(tmp_path, *callbacks, max_epochs=50).fit(Module(clock), Loader(1), Loader(1))
    lines = [
        "epoch 1/50 train/loss 1 val/acc 0.5 lr 1 best val/acc 0.5 (epoch 1) patience 0/2",
        "epoch 2/50 train/loss 2 val/acc 0.75 lr 0.5 best val/acc 0.75 (epoch 2) patience 0/2",
        "epoch 3/50 train/loss 3 val/acc 0.625 lr 0.25 best val/acc 0.75 (epoch 2) patience 1/2",
        "epoch 4/50 train/loss 4 val/acc 0.625 lr 0.125 best val/acc 0.75 (epoch 2) patience 2/2",
    ]
    lines.append("stopped early after epoch 4 of 50: val/acc has not improved in 2 validations (patience)")
    assert printed(capsys) == lines
    log = (run / "train.log").read_text().splitlines()
    assert [line[20:] for line in log] == lines
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line[:20]) for line in log)


def test_an_epoch_without_validation_shows_no_old_metrics(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tmp_path, Progress(every_s=1e9), max_epochs=3, check_val_every_n_epoch=2)
    trainer.fit(Module(clock), Loader(1), Loader(1))
    assert printed(capsys) == [
        "epoch 1/3 train/loss 1 lr 1",
        "epoch 2/3 train/loss 2 val/acc 0.75 lr 0.5",
        "epoch 3/3 train/loss 3 lr 0.25",
    ]


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("saved", "broken", "step", "lines"),
    [
        ("epoch end", "batch end", 3, [1, 2, 3, 4]),  # in the middle of epoch 2
        ("epoch end", "batch end", 4, [1, 2, 3, 4]),
        ("epoch end", "batch end", 7, [1, 2, 3, 4]),
        ("epoch end", "validation end", 4, [1, 2, 3, 4]),
        ("epoch end", "validation end", 8, [1, 2, 3, 4]),
        # the epoch is done and saved: its line must be printed although the next epoch does not start
        ("epoch end", "epoch end", 4, [1, 2, 3, 4]),
        ("epoch end", "epoch end", 8, [1, 2, 3, 4]),
        # the resumed run ends epoch 2 again, without a batch
        ("validation end", "batch end", 5, [1, 2, 3, 4]),
        # the resumed run validates epoch 2, without a training batch
        ("validation batch", "validation end", 4, [1, 2, 3, 4]),
        # nothing was saved at the end of epoch 2: it is trained again
        ("batch end", "epoch end", 4, [1, 2, 2, 3, 4]),
    ],
)
def test_every_epoch_has_one_line_after_an_interruption(
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    saved: str,
    broken: str,
    step: int,
    lines: list[int],
) -> None:
    """Two batches per epoch; the run fails in a hook at a step, and resumes from the last checkpoint."""

    class Break(Checkpoint):
        def __init__(self, breaks: bool) -> None:
            self.breaks = breaks

        def at(self, trainer: Trainer, hook: str) -> None:
            if hook == saved and not (hook == "batch end" and trainer.is_last_batch):
                trainer.save_checkpoint(tmp_path / "last.ckpt")
            if self.breaks and (hook, trainer.global_step) == (broken, step):
                raise RuntimeError("broken")

        def on_train_batch_end(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
            self.at(trainer, "batch end")

        def on_validation_batch_start(self, trainer: Trainer, *arguments: Any, **named: Any) -> None:
            self.at(trainer, "validation batch")

        def on_validation_end(self, trainer: Trainer, *arguments: Any) -> None:
            self.at(trainer, "validation end")

        def on_train_epoch_end(self, trainer: Trainer, *arguments: Any) -> None:
            self.at(trainer, "epoch end")

    def fit(breaks: bool) -> None:
        folder = RunFolder(tmp_path / "run", resumed=not breaks)
        exact = [ExactResume()] if saved == "validation batch" else []  # Lightning cannot resume within a validation
        trainer = trainer_of(tmp_path, *exact, Progress(every_s=1e9), folder, Break(breaks), max_epochs=4)
        checkpoint = None if breaks else tmp_path / "last.ckpt"
        trainer.fit(Module(clock), Loader(2), Loader(1), ckpt_path=checkpoint, weights_only=True)

    with pytest.raises(RuntimeError, match="broken"):
        fit(breaks=True)
    fit(breaks=False)
    expected = [f"{epoch}/4" for epoch in lines]
    assert [line.split()[1] for line in printed(capsys)] == expected
    assert [line.split()[3] for line in (tmp_path / "run" / "train.log").read_text().splitlines()] == expected


def test_the_loss_is_averaged_and_not_divided_by_accumulation(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(tmp_path, Progress(every_s=119.0), accumulate_grad_batches=4).fit(Train(clock), Loader(120))
    assert f"batch 119/120 train/loss {smoothed(119):.4g} " in printed(capsys)[0]


def test_values_are_read_from_the_device_only_when_shown(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = Progress(every_s=10.0)
    trainer = trainer_of(tmp_path, callback)
    callback._open("step")

    def refuse(self: Tensor) -> float:
        raise AssertionError("read from the device")

    for name in ("item", "__float__", "__bool__", "__int__", "cpu", "tolist"):
        monkeypatch.setattr(Tensor, name, refuse)
    for number in range(5):
        callback.on_train_batch_start(trainer, None, None, number)  # type: ignore[arg-type]
        callback.on_train_batch_end(trainer, None, {"loss": torch.ones(())}, None, number)  # type: ignore[arg-type]
    clock.now = 10.0
    with pytest.raises(AssertionError, match="read from the device"):
        callback._metrics(trainer)


@pytest.mark.parametrize(
    ("settings", "loader", "line"),
    [
        ({"max_epochs": 3}, Endless, "epoch 1/3 batch 4 train/loss 2.5 lr 0.125 eta epoch --:--, run --:--"),
        (
            {"max_epochs": -1, "max_steps": 16},
            Loader,
            "epoch 1 batch 4/8 train/loss 2.5 lr 0.125 eta epoch 0:04, run 0:12",
        ),
        (
            {"max_epochs": 3, "max_steps": 6},
            Loader,
            "epoch 1/3 batch 4/8 train/loss 2.5 lr 0.125 eta epoch 0:02, run 0:02",
        ),
        (
            {"max_epochs": 2, "limit_train_batches": 5},
            Loader,
            "epoch 1/2 batch 4/5 train/loss 2.5 lr 0.125 eta epoch 0:01, run 0:06",
        ),
        (
            {"max_epochs": 1, "overfit_batches": 5},
            Loader,
            "epoch 1/1 batch 4/5 train/loss 2.5 lr 0.125 eta epoch 0:01, run 0:01",
        ),
    ],
)
def test_limits_and_unknown_lengths(
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    loader: type[Loader],
    line: str,
) -> None:
    trainer_of(tmp_path, Progress(every_s=4.0), **settings).fit(Train(clock), loader(8))
    assert printed(capsys)[0] == line


def test_the_first_step_gives_no_estimate(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer_of(tmp_path, Progress(every_s=1.0)).fit(Train(clock), Loader(3))
    assert printed(capsys)[0] == "epoch 1/1 batch 1/3 train/loss 1 lr 1 eta epoch --:--, run --:--"


@pytest.mark.parametrize(("epochs", "count"), [(1000, 0), (1_000_000, 1)])
def test_a_run_of_days_on_a_cpu_is_said_once(
    epochs: int, count: int, clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = Train(clock)
    module.fails_at = 12
    with pytest.raises(RuntimeError, match="broken"):
        trainer_of(tmp_path, Progress(every_s=1.0), max_epochs=epochs).fit(module, Loader(8))
    assert sum(line.startswith("long run ") for line in printed(capsys)) == count


@pytest.mark.parametrize(("fast", "count"), [(False, 1), (True, 0), (None, 0)])
def test_bfloat16_on_a_processor_without_it_is_said(
    fast: bool | None,
    count: int,
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("callbacks.progress.eta.computes_bfloat16", lambda: fast)
    trainer_of(tmp_path, Progress(every_s=1.0), precision="bf16-mixed").fit(Train(clock), Loader(3))
    lines = [line for line in printed(capsys) if line.startswith("precision ")]
    assert len(lines) == count
    assert all("faster: --trainer.precision 32-true" in line for line in lines)
    trainer_of(tmp_path, Progress(every_s=1.0)).fit(Train(clock), Loader(3))
    assert not [line for line in printed(capsys) if line.startswith("precision ")]


def test_fast_dev_run_writes_no_file(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, Progress(), RunFolder(None), fast_dev_run=True)
    trainer.fit(Module(clock), Loader(3), Loader(3))
    assert printed(capsys) == ["epoch 1/1 train/loss 1 val/acc 0.5 lr 1"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "seconds", "lines"),
    [
        (
            "validate",
            VALIDATION,
            ["validate batch 4/10 8.00 img/s eta 0:03", "validate batch 8/10 8.00 img/s eta 0:01"],
        ),
        (
            "test",
            STEP,
            [
                "test batch 2/10 4.00 img/s eta 0:08",
                "test batch 4/10 4.00 img/s eta 0:06",
                "test batch 6/10 4.00 img/s eta 0:04",
            ],
        ),
        ("predict", STEP, ["predict batch 2/10 4.00 img/s eta 0:08", "predict batch 4/10 4.00 img/s eta 0:06"]),
    ],
)
def test_evaluation_outside_of_a_fit(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, seconds: float, lines: list[str]
) -> None:
    trainer = trainer_of(tmp_path, Progress(every_s=2.0))
    loaders: dict[str, Any] = {"dataloaders": [Loader(6), Loader(4)]}
    if verb == "predict":
        loaders["return_predictions"] = False
    getattr(trainer, verb)(Module(clock), **loaders)
    shown = [line for line in printed(capsys) if line.startswith(verb)]
    assert shown[: len(lines)] == lines
    assert len(shown) == 10 * seconds / 2.0 // 1


def test_only_rank_zero_prints(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    trainer_of(tmp_path, Progress(every_s=1.0), run, max_epochs=2).fit(Module(clock), Loader(4), Loader(2))
    assert printed(capsys) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_disable_and_enable(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = Progress(every_s=1.0)
    callback.disable()
    assert not callback.is_enabled
    trainer = trainer_of(tmp_path, callback)
    trainer.fit(Train(clock), Loader(4))
    assert printed(capsys) == []
    callback.enable()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Train(clock), Loader(4))
    assert printed(capsys)[-1].startswith("epoch 2/2 train/loss")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_s": 0.0}, "every_s: more than 0 seconds, got 0.0"),
        ({"refresh_s": -1.0}, "refresh_s: more than 0 seconds, got -1.0"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Progress(**settings)
