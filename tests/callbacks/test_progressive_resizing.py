"""callbacks/progressive_resizing.py: image size, batch size, learning rate and remaining time of each stage in a fit."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import (
    EMA,
    LearningRateFinder,
    Progress,
    ProgressiveResizing,
    ResizingStage,
)
from callbacks.progress import progress
from callbacks.progress.eta import Pace
from foundation.durations import clock_time
from tests.callbacks.resizing_fit import BATCHES, STAGES, run, write_images
from tests.callbacks.stages import sized
from tests.runs.killing import digest


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def one_cycles(lr: float, rows: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """(lr, momentum) of each step from torch's OneCycleLR, restarted for every stage."""
    values = []
    for steps, factor in rows:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=lr * factor, total_steps=steps, base_momentum=0.85, max_momentum=0.9
        )
        for step in range(steps):
            values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            if step < steps - 1:
                schedule.step()
    return values


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_stage_runs_a_full_one_cycle(root: Path, accumulate: int) -> None:
    trainer, _, watch = run(root, [ProgressiveResizing(STAGES), EMA(0.9)], accumulate_grad_batches=accumulate)
    steps = [2 * math.ceil(count / accumulate) for count in BATCHES]
    assert trainer.global_step == sum(steps) == len(watch.rates)
    expected = one_cycles(0.1, list(zip(steps, (1.0, 0.5, 0.25), strict=True)))
    for i, (lr, momentum) in enumerate(expected):
        assert watch.rates[i] == pytest.approx(lr, rel=1e-12), i
        assert watch.momenta[i] == pytest.approx(momentum, rel=1e-12), i
    for end, factor in zip(np.cumsum(steps) - 1, (1.0, 0.5, 0.25), strict=True):
        assert abs(watch.rates[end] - 0.1 * factor / 25e4) < 1e-12

    assert [sum(e == epoch for e, *_ in watch.sizes) for epoch in range(6)] == [5, 5, 6, 6, 9, 9]
    for epoch, size, samples in watch.sizes:
        stage = STAGES[epoch // 2]
        assert size == stage.size
        assert samples in (stage.batch_size, 130 % stage.batch_size)
    assert sorted(set(watch.validated)) == [(epoch, 16) for epoch in range(6)], (
        "validation in every epoch, at full size"
    )
    assert watch.strengths == [1.0] * 22 + [0.5] * 18
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert (data.train_size, data.batch_size, data.strength) == (16, 50, 1.0), (
        "the datamodule has its own settings again"
    )
    assert trainer.reload_dataloaders_every_n_epochs == 0  # type: ignore[attr-defined]


def test_cosine_warms_up_in_the_first_stage_only(root: Path) -> None:
    module = {"schedule": "cosine", "warmup_epochs": 1, "lr_end": 0.01}
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], module)
    expected = [0.1 * (i + 1) / 5 for i in range(5)]
    expected += [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * i / 4)) / 2) for i in range(5)]
    for steps, factor in ((12, 0.5), (18, 0.25)):
        expected += [0.1 * factor * (0.01 + 0.99 * (1 + math.cos(math.pi * i / (steps - 1))) / 2) for i in range(steps)]
    assert watch.rates == pytest.approx(expected, rel=1e-12)
    assert watch.rates[9] == 0.1 * 0.01


@pytest.mark.slow
def test_one_schedule_over_the_whole_run(root: Path) -> None:
    stages = [sized(cast(int, stage.size), stage.batch_size, 2) for stage in STAGES]
    _, _, watch = run(root, [ProgressiveResizing(stages, schedule="whole")])
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, [(40, 1.0)])], rel=1e-12)


@pytest.mark.parametrize("schedule", ["none", "plateau"])
def test_factors_without_a_curve(root: Path, schedule: str) -> None:
    module = {"schedule": schedule, "plateau_patience": 100}
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], module)
    assert watch.rates == pytest.approx([0.1] * 10 + [0.05] * 12 + [0.025] * 18)


def test_limits_and_drop_last_are_counted(root: Path) -> None:
    """130 images give 4, 5 and 8 full batches; half of them are 2, 2 and 4."""
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], data={"drop_last": True}, limit_train_batches=0.5)
    assert [sum(e == epoch for e, *_ in watch.sizes) for epoch in range(6)] == [2, 2, 2, 2, 4, 4]
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, [(4, 1.0), (4, 0.5), (8, 0.25)])], rel=1e-12)


def test_stretched_stages_share_the_epochs_of_the_trainer(root: Path) -> None:
    _, _, watch = run(root, [ProgressiveResizing(STAGES, stretch=True)], max_epochs=4)
    # the first two stages end at 1.3 and 2.7 epochs, rounded
    assert [size for _, size, _ in watch.sizes] == [8] * 5 + [12] * 12 + [16] * 9
    rows = [(5, 1.0), (12, 0.5), (9, 0.25)]
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, rows)], rel=1e-12)


def test_a_stage_without_a_batch_size_uses_that_of_the_data_also_in_a_resumed_run(root: Path, tmp_path: Path) -> None:
    stages = [ResizingStage(size=8, epochs=1), ResizingStage(size=16, epochs=1, batch_size=48)]
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=False)
    callbacks = [ProgressiveResizing(stages, stretch=True), saver]
    _, _, watch = run(root, callbacks, data={"batch_size": 40}, max_epochs=2, enable_checkpointing=True)
    assert [samples for *_, samples in watch.sizes] == [40, 40, 40, 10, 48, 48, 34]
    again: dict[str, Any] = {"max_epochs": 3, "ckpt_path": tmp_path / "epoch=1.ckpt"}
    _, _, rest = run(root, [ProgressiveResizing(stages, stretch=True)], data={"batch_size": 40}, **again)
    assert [samples for *_, samples in rest.sizes] == [48, 48, 34]
    message = (
        r"stage 1 of .*: cannot change .* \(was 8 px, batch 40, 1 epoch, lr x 1; now 8 px, batch 32, 2 epochs, lr x 1\)"
    )
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(stages, stretch=True)], data={"batch_size": 32}, **again)


@pytest.mark.parametrize("reset", [False, True])
def test_momentum_is_kept_unless_reset_momentum_is_set(root: Path, reset: bool) -> None:
    _, _, watch = run(root, [ProgressiveResizing(STAGES, reset_momentum=reset)])
    empty = [i for i, entries in enumerate(watch.states) if not entries]
    assert empty == ([0, 10, 22] if reset else [0])


@pytest.mark.slow
def test_a_run_with_one_stage_equals_a_run_without_stages(root: Path) -> None:
    _, plain, _ = run(root, [], data={"batch_size": 24})
    _, staged, _ = run(root, [ProgressiveResizing([sized(16, 24, 6)])])
    assert digest(plain.state_dict()) == digest(staged.state_dict())


@pytest.mark.slow
def test_the_found_learning_rate_is_the_peak_of_all_stages(root: Path) -> None:
    finder = LearningRateFinder(steps=40, lowest=1e-3, highest=5.0)
    _, module, watch = run(root, [finder, ProgressiveResizing(STAGES)])
    lr = finder.state_dict()["lr"]
    assert module.lr == lr
    expected = [value for value, _ in one_cycles(lr, [(10, 1.0), (12, 0.5), (18, 0.25)])]
    assert watch.rates == pytest.approx(expected, rel=1e-12)


def test_the_time_left_counts_the_pixels_of_later_stages(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Second(Pace):
        def measure(self, now: float) -> None:
            self.step_s, self._pauses = 1.0, [0.0]

    monkeypatch.setattr(progress, "Pace", Second)
    run(root, [ProgressiveResizing(STAGES), Progress(every_s=1e-9)], limit_val_batches=0, enable_progress_bar=True)
    times = re.findall(r"epoch (\d)/6 batch (\d)/(\d) .*, run (\S+)", capsys.readouterr().out)
    # 4 batches left, 5 in the next epoch, 12 at 24 * 144 / (32 * 64) times the cost, and 18 at twice the cost
    assert times[0] == ("1", "1", "5", clock_time(4 + 5 + 12 * 1.6875 + 18 * 2))
    assert times[12] == ("3", "3", "6", clock_time(3 + 6 + 18 * 2 / 1.6875))
    assert times[-1] == ("6", "9", "9", "0:00")


@pytest.mark.slow
def test_a_compiled_network_is_recompiled_in_each_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run does not know earlier shapes, so an uninterrupted run must drop them too."""
    original, reset, resets = torch.nn.Module.compile, torch._dynamo.reset, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: original(self, backend="eager"))

    def counted() -> None:
        resets.append(1)
        reset()

    monkeypatch.setattr(torch._dynamo, "reset", counted)
    _, compiled, watch = run(root, [ProgressiveResizing(STAGES)], {"compile": True})
    _, plain, other = run(root, [ProgressiveResizing(STAGES)])
    assert len(resets) == 2
    assert watch.sizes == other.sizes
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor)


def test_a_checkpoint_after_the_last_batch_of_a_stage_resumes_with_the_next(root: Path, tmp_path: Path) -> None:
    """ModelCheckpoint can save after the last batch of an epoch; Lightning would then begin stage 2 at its sixth batch."""
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=10, save_weights_only=False)
    _, _, watch = run(root, [ProgressiveResizing(STAGES), saver], enable_checkpointing=True)
    _, _, rest = run(root, [ProgressiveResizing(STAGES)], ckpt_path=tmp_path / "step=10.ckpt")
    assert rest.sizes == watch.sizes[10:]
    assert rest.rates == watch.rates[10:]
