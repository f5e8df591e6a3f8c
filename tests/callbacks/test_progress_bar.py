"""callbacks/progress/progress.py on a terminal: the bar and what the terminal shows, with a manual clock."""

from __future__ import annotations

import io
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from callbacks.progress import progress
from callbacks.progress.progress import Progress
from foundation.durations import clock_time
from tests.callbacks.progress_fit import (
    STEP,
    VALIDATION,
    Clock,
    Loader,
    Module,
    Train,
    manual_clock,
    printed,
    trainer_of,
)

WIDTH = 80


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return manual_clock(monkeypatch)


@pytest.fixture
def terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> io.StringIO:
    """Everything that is sent to a terminal of WIDTH columns."""
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
    """Rows that a terminal shows, without empty rows at the end; handles line feed, return, cursor up and erase line."""
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


class Screens(Callback):
    """Records what the terminal shows after each batch."""

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
    assert re.fullmatch("epoch 1/2 [━╸╺ ]+ batch 3/4 eta epoch 0:01, run 0:05", first)
    assert len(first) == WIDTH
    assert second == "train/loss 2 lr 0.25"
    *above, first, second = screens.seen["validation 8"]
    assert above == ["epoch 1/2 train/loss 2.5 val/acc 0.5 lr 0.125"]
    assert re.fullmatch("epoch 2/2 [━╸╺ ]+ validation 2/2 eta epoch 0:00, run 0:00", first)
    assert second == "train/loss 4.5 lr 0.00781"
    assert screen(terminal.getvalue()) == [
        "epoch 1/2 train/loss 2.5 val/acc 0.5 lr 0.125",
        "epoch 2/2 train/loss 6.5 val/acc 0.75 lr 0.00781",
    ]
    assert terminal.getvalue().endswith("\x1b[?25h") or terminal.getvalue().rindex("?25h") > terminal.getvalue().rindex(
        "?25l"
    )


def test_the_bar_covers_the_whole_run(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    """Without colour, rich draws only the completed part as heavy lines."""
    screens = Screens(terminal)
    trainer_of(tmp_path, Progress(), screens, max_epochs=4).fit(Train(clock), Loader(10))
    shares = {}
    for step in (10, 20, 39):
        bar = next(line for line in screens.seen[f"step {step}"] if "batch" in line)
        shares[step] = bar.count("━") / (WIDTH - len(re.sub("[━╸╺]|  +", "", bar)))
    assert shares == {step: pytest.approx(step / 40, abs=0.05) for step in (10, 20, 39)}


def test_other_output_appears_above_the_bar(
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
    lines = ["a module speaks", "a print speaks", "a logger speaks"]
    assert screens.seen["step 3"][:3] == lines
    assert "batch 3/3" in screens.seen["step 3"][3]
    assert screen(terminal.getvalue()) == [*lines, "epoch 1/1 train/loss 2 lr 0.25"]
    assert handler.stream is terminal


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_a_bar_for_an_evaluation(terminal: io.StringIO, clock: Clock, tmp_path: Path, verb: str) -> None:
    seconds = VALIDATION if verb == "validate" else STEP
    trainer = trainer_of(tmp_path, Progress())
    keywords: dict[str, Any] = {"return_predictions": False} if verb == "predict" else {"verbose": False}
    getattr(trainer, verb)(Module(clock), Loader(5), **keywords)
    assert re.search(f"{verb} [━╸╺ ]+ batch 4/5 eta {clock_time(seconds)}", terminal.getvalue())
    assert screen(terminal.getvalue()) == [""]


def test_an_exception_leaves_a_clean_terminal(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    module = Train(clock)
    module.fails_at = 7
    callback = Progress()
    with pytest.raises(RuntimeError, match="broken"):
        trainer_of(tmp_path, callback, max_epochs=2).fit(module, Loader(4))
    assert screen(terminal.getvalue()) == ["epoch 1/2 train/loss 2.5 lr 0.125"]
    assert callback._bar is None


def test_the_cursor_stays_visible_while_the_bar_is_shown(terminal: io.StringIO, clock: Clock, tmp_path: Path) -> None:
    trainer_of(tmp_path, Progress()).fit(Train(clock), Loader(4))
    hidden, shown = (terminal.getvalue().index(f"\x1b[?25{code}") for code in "lh")
    assert hidden < shown < terminal.getvalue().index("batch 1/4")  # visible before the bar is first drawn


def test_a_dumb_terminal_gets_plain_lines(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"force_terminal": True, "_environ": {"TERM": "dumb"}}
    monkeypatch.setattr(progress, "Console", partial(Console, **settings))
    trainer_of(tmp_path, Progress(every_s=2.0)).fit(Train(clock), Loader(2))
    assert printed(capsys)[0] == "epoch 1/1 batch 2/2 train/loss 1.5 lr 0.5 eta epoch 0:00, run 0:00"
