"""callbacks/progress/progress.py: what a real Trainer shows, on a clock that only moves when the test says so."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from rich.console import Console
from torch import Tensor, nn

from callbacks.checkpoints import Checkpoints
from callbacks.exact_resume import ExactResume
from callbacks.progress import progress
from callbacks.progress.progress import Progress
from callbacks.run_folder import RunFolder
from foundation.durations import clock_time

STEP, VALIDATION = 1.0, 0.5  # seconds a batch
ACCURACY = [0.5, 0.75, 0.625, 0.625, 0.875, 0.8]  # of the epochs
WIDTH = 80


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Batches of 4 images; goes on where it was when a checkpoint is resumed."""

    def __init__(self, batches: int) -> None:
        self.batches, self.done = batches, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.done %= self.batches
        while self.done < self.batches:
            self.done += 1
            yield {"image": torch.ones(4, 2), "index": torch.arange(4)}

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.done = state_dict["done"]


class Endless(Loader):
    """A loader that does not know its length."""

    __len__ = None  # type: ignore[assignment]


class Train(LightningModule):
    """Its loss is 1, 2, 3, ... in training step 1, 2, 3, ...; its learning rate is 0.5 ** step."""

    metric_names = ("train/loss", "val/acc")

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.layer, self.fails_at = clock, nn.Linear(2, 1), -1

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        self.clock.now += STEP
        number = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if number == self.fails_at:
            raise RuntimeError("broken")
        loss = 0 * self.layer(batch["image"]).mean() + number
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=4)
        return {"loss": loss}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Module(Train):
    """The same with evaluation."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += VALIDATION
        if self.trainer.state.fn == "fit":
            self.log("val/acc", ACCURACY[self.current_epoch], batch_size=4)
            self.log("ternary/layer/zero", 0.5, batch_size=4)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self.clock.now += STEP

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        self.clock.now += STEP
        return batch["index"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "perf_counter", clock)
    monkeypatch.setattr(progress, "Console", partial(Console, force_terminal=False))
    return clock


@pytest.fixture
def terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> io.StringIO:
    """All that is sent to a terminal of WIDTH columns."""
    caplog.set_level(logging.WARNING, logger="lightning.pytorch")  # "`Trainer.fit` stopped", and the like
    stream = io.StringIO()
    settings: dict[str, Any] = {
        "force_terminal": True,
        "color_system": None,
        "width": WIDTH,
        "_environ": {"TERM": "xterm"},
    }
    monkeypatch.setattr(progress, "Console", partial(Console, file=stream, **settings))
    return stream


def screen(sent: str) -> list[str]:
    """What a terminal shows, but for empty lines at its end: knows line feed, return, cursor up, erase line."""
    rows, row, column = [""], 0, 0
    for match in re.finditer(r"\x1b\[\??(\d*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])", sent):
        count, code, back, feed, letter = match.groups()
        if code == "A":
            row -= int(count or 1)
        elif code == "K":
            rows[row] = ""
        elif back:
            column = 0
        elif feed or (letter and column == WIDTH):
            row, column = row + 1, 0
            rows += [""] * (row == len(rows))
        if letter:
            rows[row] = rows[row][:column].ljust(column) + letter + rows[row][column + 1 :]
            column += 1
    return "\n".join(text.rstrip() for text in rows).rstrip().split("\n")


def trainer_of(tmp_path: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "logger": False, "max_epochs": 1}
    quiet |= {"enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks)}
    return Trainer(
        default_root_dir=tmp_path, callbacks=list(callbacks), **{**quiet, "num_sanity_val_steps": 0, **settings}
    )


def smoothed(steps: int) -> float:
    """Losses 1, 2, 3, ...: the mean of the first 20, from there on 5 % of each new one."""
    average = sum(range(1, min(steps, 20) + 1)) / min(steps, 20)
    for loss in range(21, steps + 1):
        average = 0.95 * average + 0.05 * loss
    return average


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line]


# ---- without a terminal ------------------------------------------------------------------------------------------------------


def test_plain_lines_exactly(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, Progress(every_s=10.0), max_epochs=2, val_check_interval=1.0)
    assert len([c for c in trainer.callbacks if "Progress" in type(c).__name__]) == 1  # type: ignore[attr-defined]
    trainer.fit(Module(clock), Loader(24), Loader(8))
    # a step takes 1 s, a validation 8 x 0.5 s; after a line the next comes 10 s later
    assert printed(capsys) == [
        "epoch 1/2 step 10/24 train/loss 5.5 lr 0.00195 eta 0:14 (run 0:38)",
        "epoch 1/2 step 20/24 train/loss 10.5 lr 1.91e-06 eta 0:04 (run 0:28)",
        # the validation ends at 28 s; what it takes is not known before it has ended
        "epoch 1/2 train/loss 12.5 val/acc 0.5 lr 1.19e-07",
        f"epoch 2/2 step 2/24 train/loss {smoothed(26):.4g} lr 2.98e-08 eta 0:26 (run 0:26)",
        f"epoch 2/2 step 12/24 train/loss {smoothed(36):.4g} lr 2.91e-11 eta 0:16 (run 0:16)",
        f"epoch 2/2 step 22/24 train/loss {smoothed(46):.4g} lr 2.84e-14 eta 0:06 (run 0:06)",
        "epoch 2/2 train/loss 36.5 val/acc 0.75 lr 7.11e-15",
    ]


def test_lines_of_a_long_validation(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer_of(tmp_path, Progress(every_s=3.0), max_epochs=2).fit(Module(clock), Loader(2), Loader(8))
    assert [line for line in printed(capsys) if "validation" in line] == [
        # 1 s of the first validation is over, for 2 of 8 batches: 3 s left, and 2 s + 4 s for the second epoch
        "epoch 1/2 validation 2/8 train/loss 1.5 lr 0.5 eta 0:03 (run 0:09)",
        "epoch 1/2 validation 8/8 train/loss 1.5 lr 0.5 eta 0:00 (run 0:06)",
        # 4 s of validation an epoch, as measured in the first; 1 s of it is over
        "epoch 2/2 validation 2/8 train/loss 2.5 lr 0.125 eta 0:03 (run 0:03)",
        "epoch 2/2 validation 8/8 train/loss 2.5 lr 0.125 eta 0:00 (run 0:00)",
    ]


def test_validation_pictures_and_checkpoints_count_as_pauses(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Callback):
        def on_train_epoch_end(self, *arguments: Any) -> None:
            clock.now += 20.0

    trainer_of(tmp_path, Progress(every_s=1.0), Slow(), max_epochs=3).fit(Module(clock), Loader(4), Loader(8))
    lines = printed(capsys)
    # 4 s of validation and 20 s of the other callback in each epoch; nothing of it is in the steps' pace
    assert "epoch 2/3 step 1/4 train/loss 3 lr 0.0625 eta 0:27 (run 0:55)" in lines
    assert "epoch 3/3 step 4/4 train/loss 6.5 lr 0.000488 eta 0:24 (run 0:24)" in lines


def test_epoch_lines_know_the_new_best_and_the_new_patience(
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
    assert printed(capsys) == lines
    log = (run / "train.log").read_text().splitlines()
    assert [line[20:] for line in log] == lines
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line[:20]) for line in log)


def test_an_epoch_without_validation_shows_no_old_figures(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = trainer_of(tmp_path, Progress(every_s=1e9), max_epochs=3, check_val_every_n_epoch=2)
    trainer.fit(Module(clock), Loader(1), Loader(1))
    assert printed(capsys) == [
        "epoch 1/3 train/loss 1 lr 1",
        "epoch 2/3 train/loss 2 val/acc 0.75 lr 0.5",
        "epoch 3/3 train/loss 3 lr 0.25",
    ]


@pytest.mark.parametrize(
    ("saved", "broken", "step", "lines"),
    [
        ("epoch end", "batch end", 3, [1, 2, 3, 4]),  # in the midst of epoch 2
        ("epoch end", "batch end", 4, [1, 2, 3, 4]),
        ("epoch end", "batch end", 7, [1, 2, 3, 4]),
        ("epoch end", "validation end", 4, [1, 2, 3, 4]),
        ("epoch end", "validation end", 8, [1, 2, 3, 4]),
        # the epoch is done and saved: its line must not wait for an epoch that does not start
        ("epoch end", "epoch end", 4, [1, 2, 3, 4]),
        ("epoch end", "epoch end", 8, [1, 2, 3, 4]),
        # the resumed run ends epoch 2 once more, without a batch
        ("validation end", "batch end", 5, [1, 2, 3, 4]),
        # the resumed run validates epoch 2, without a training batch
        ("validation batch", "validation end", 4, [1, 2, 3, 4]),
        # nothing was saved at the end of epoch 2: it is done a second time
        ("batch end", "epoch end", 4, [1, 2, 2, 3, 4]),
    ],
)
def test_every_epoch_has_one_line_over_an_interruption(
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    saved: str,
    broken: str,
    step: int,
    lines: list[int],
) -> None:
    """Two batches an epoch; the run breaks in some hook at some step, and goes on from the last checkpoint there is."""

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
        exact = [ExactResume()] if saved == "validation batch" else []  # Lightning does not go on with a validation
        trainer = trainer_of(tmp_path, *exact, Progress(every_s=1e9), folder, Break(breaks), max_epochs=4)
        checkpoint = None if breaks else tmp_path / "last.ckpt"
        trainer.fit(Module(clock), Loader(2), Loader(1), ckpt_path=checkpoint, weights_only=True)

    with pytest.raises(RuntimeError, match="broken"):
        fit(breaks=True)
    fit(breaks=False)
    expected = [f"{epoch}/4" for epoch in lines]
    assert [line.split()[1] for line in printed(capsys)] == expected
    assert [line.split()[3] for line in (tmp_path / "run" / "train.log").read_text().splitlines()] == expected


def test_the_loss_is_averaged_and_freed_of_accumulation(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer_of(tmp_path, Progress(every_s=119.0), accumulate_grad_batches=4).fit(Train(clock), Loader(120))
    assert f"step 119/120 train/loss {smoothed(119):.4g} " in printed(capsys)[0]


def test_nothing_is_read_from_the_device_unless_something_is_shown(
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
        ({"max_epochs": 3}, Endless, "epoch 1/3 step 4 train/loss 2.5 lr 0.125 eta --:-- (run --:--)"),
        ({"max_epochs": -1, "max_steps": 16}, Loader, "epoch 1 step 4/8 train/loss 2.5 lr 0.125 eta 0:04 (run 0:12)"),
        ({"max_epochs": 3, "max_steps": 6}, Loader, "epoch 1/3 step 4/8 train/loss 2.5 lr 0.125 eta 0:02 (run 0:02)"),
        (
            {"max_epochs": 2, "limit_train_batches": 5},
            Loader,
            "epoch 1/2 step 4/5 train/loss 2.5 lr 0.125 eta 0:01 (run 0:06)",
        ),
        (
            {"max_epochs": 1, "overfit_batches": 5},
            Loader,
            "epoch 1/1 step 4/5 train/loss 2.5 lr 0.125 eta 0:01 (run 0:01)",
        ),
    ],
)
def test_lengths(
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
    assert printed(capsys)[0] == "epoch 1/1 step 1/3 train/loss 1 lr 1 eta --:-- (run --:--)"


def test_fast_dev_run_writes_no_file(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, Progress(), RunFolder(None), fast_dev_run=True)
    trainer.fit(Module(clock), Loader(3), Loader(3))
    assert printed(capsys) == ["epoch 1/1 train/loss 1 val/acc 0.5 lr 1"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "seconds", "lines"),
    [
        ("validate", VALIDATION, ["validate step 4/10 8.00 img/s eta 0:03", "validate step 8/10 8.00 img/s eta 0:01"]),
        (
            "test",
            STEP,
            [
                "test step 2/10 4.00 img/s eta 0:08",
                "test step 4/10 4.00 img/s eta 0:06",
                "test step 6/10 4.00 img/s eta 0:04",
            ],
        ),
        ("predict", STEP, ["predict step 2/10 4.00 img/s eta 0:08", "predict step 4/10 4.00 img/s eta 0:06"]),
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


def test_only_rank_zero_speaks(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda self: False))
    trainer_of(tmp_path, Progress(every_s=1.0), run, max_epochs=2).fit(Module(clock), Loader(4), Loader(2))
    assert printed(capsys) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_disabled_for_a_while(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


# ---- on a terminal -----------------------------------------------------------------------------------------------------------


class Screens(Callback):
    """Keeps what the terminal shows after each batch."""

    def __init__(self, sent: io.StringIO) -> None:
        self.sent, self.seen = sent, dict[str, list[str]]()

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self.seen[f"step {trainer.global_step}"] = screen(self.sent.getvalue())

    def on_validation_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        self.seen[f"validation {trainer.global_step}"] = screen(self.sent.getvalue())


def test_one_bar_that_leaves_nothing_behind(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    screens = Screens(terminal)
    trainer = trainer_of(tmp_path, Progress(refresh_s=0.5), screens, max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(Module(clock), Loader(4), Loader(2))
    first, second = screens.seen["step 3"]
    assert re.fullmatch("epoch 1/2 [━╸╺ ]+ step 3/4 eta 0:01 \\(run 0:05\\)", first)
    assert len(first) == WIDTH
    assert second == "train/loss 2 lr 0.25"
    *above, first, second = screens.seen["validation 8"]
    assert above == ["epoch 1/2 train/loss 2.5 val/acc 0.5 lr 0.125"]
    assert re.fullmatch("epoch 2/2 [━╸╺ ]+ validation 2/2 eta 0:00 \\(run 0:00\\)", first)
    assert second == "train/loss 4.5 lr 0.00781"
    assert screen(terminal.getvalue()) == [
        "epoch 1/2 train/loss 2.5 val/acc 0.5 lr 0.125",
        "epoch 2/2 train/loss 6.5 val/acc 0.75 lr 0.00781",
    ]
    assert terminal.getvalue().endswith("\x1b[?25h") or terminal.getvalue().rindex("?25h") > terminal.getvalue().rindex(
        "?25l"
    )


def test_the_bar_is_that_of_the_whole_run(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    """Without colour, rich draws only the done part as heavy lines."""
    screens = Screens(terminal)
    trainer_of(tmp_path, Progress(), screens, max_epochs=4).fit(Train(clock), Loader(10))
    shares = {}
    for step in (10, 20, 39):
        bar = next(line for line in screens.seen[f"step {step}"] if "step" in line)
        shares[step] = bar.count("━") / (WIDTH - len(re.sub("[━╸╺]|  +", "", bar)))
    assert shares == {step: pytest.approx(step / 40, abs=0.05) for step in (10, 20, 39)}


def test_what_others_say_appears_above_the_bar(
    terminal: io.StringIO, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Talk(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
            if trainer.global_step == 2:
                pl_module.print("a module speaks")
                print("a print speaks")
                log.warning("a logger speaks")

    log, screens = logging.getLogger("tests.progress"), Screens(terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    handler = logging.StreamHandler(terminal)
    log.addHandler(handler)
    trainer_of(tmp_path, Progress(), Talk(), screens).fit(Train(clock), Loader(3))
    log.removeHandler(handler)
    said = ["a module speaks", "a print speaks", "a logger speaks"]
    assert screens.seen["step 3"][:3] == said
    assert "step 3/3" in screens.seen["step 3"][3]
    assert screen(terminal.getvalue()) == [*said, "epoch 1/1 train/loss 2 lr 0.25"]
    assert handler.stream is terminal


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_bar_for_an_evaluation(terminal: io.StringIO, clock: Clock, tmp_path: Path, verb: str) -> None:
    seconds = VALIDATION if verb == "validate" else STEP
    trainer = trainer_of(tmp_path, Progress())
    keywords: dict[str, Any] = {"return_predictions": False} if verb == "predict" else {"verbose": False}
    getattr(trainer, verb)(Module(clock), Loader(5), **keywords)
    assert re.search(f"{verb} [━╸╺ ]+ step 4/5 eta {clock_time(seconds)}", terminal.getvalue())
    assert screen(terminal.getvalue()) == [""]


def test_an_exception_finds_a_clean_terminal(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    module = Train(clock)
    module.fails_at = 7
    callback = Progress()
    with pytest.raises(RuntimeError, match="broken"):
        trainer_of(tmp_path, callback, max_epochs=2).fit(module, Loader(4))
    assert screen(terminal.getvalue()) == ["epoch 1/2 train/loss 2.5 lr 0.125"]
    assert callback._bar is None


def test_a_killed_process_leaves_a_cursor(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    trainer_of(tmp_path, Progress()).fit(Train(clock), Loader(4))
    hidden, shown = (terminal.getvalue().index(f"\x1b[?25{code}") for code in "lh")
    assert hidden < shown < terminal.getvalue().index("step 1/4")  # it is visible while the bar is


def test_a_dumb_terminal_gets_plain_lines(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"force_terminal": True, "_environ": {"TERM": "dumb"}}
    monkeypatch.setattr(progress, "Console", partial(Console, **settings))
    trainer_of(tmp_path, Progress(every_s=2.0)).fit(Train(clock), Loader(2))
    assert printed(capsys)[0] == "epoch 1/1 step 2/2 train/loss 1.5 lr 0.5 eta 0:00 (run 0:00)"
