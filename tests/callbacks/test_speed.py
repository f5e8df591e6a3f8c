"""callbacks/progress/speed.py: exact measurements of a real Trainer loop with a manual clock."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn

from callbacks.progress import speed
from callbacks.progress.speed import Speed, peak_memory_gb

FETCH, STEP, VALIDATION, SAVE, HOOK = 0.25, 0.75, 1000.0, 5000.0, 0.125  # seconds, with exact floating-point sums


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Loader:
    """Batches of 4 images; each takes FETCH seconds, and a new iterator takes ``start`` seconds."""

    def __init__(self, clock: Clock, batches: int, start: float = 0.0) -> None:
        self.clock, self.batches, self.start = clock, batches, start

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.clock.now += self.start
        for _ in range(self.batches):
            self.clock.now += FETCH
            yield {"image": torch.ones(4, 2), "index": torch.arange(4)}


class Module(LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.layer = clock, nn.Linear(2, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        # the first step compiles
        self.clock.now += STEP if self.trainer.global_step else 300.0
        loss: Tensor = self.layer(batch["image"]).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.now += SAVE


class Validated(Module):
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.clock.now += VALIDATION


class Slow(Callback):
    """Another callback that takes HOOK seconds after each step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.clock.now += HOOK


class Watch(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        callback = Speed.of(trainer)
        assert callback is not None
        self.seen.append(callback.snapshot())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(speed, "perf_counter", clock)
    return clock


def trainer_of(tmp_path: Path, callbacks: list[Callback], **settings: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=tmp_path, callbacks=callbacks, **{**quiet, "max_epochs": 1, **settings})


def test_images_per_second_and_data_share_of_a_real_loop(clock: Clock, tmp_path: Path) -> None:
    watch = Watch()
    trainer = trainer_of(tmp_path, [Speed(), watch, Slow(clock)])
    trainer.fit(Module(clock), Loader(clock, 6))
    # the first step compiles and is not counted; each later step takes FETCH + STEP + HOOK
    assert watch.seen[0].keys() == {"memory/gb"}
    for metrics in watch.seen[1:]:
        assert metrics["speed/images_per_s"] == 4 / (FETCH + STEP + HOOK)
        # HOOK does not count as waiting for data, although it lies between batch end and batch start
        assert metrics["speed/data_share"] == FETCH / (FETCH + STEP + HOOK)


def test_measurements_do_not_depend_on_the_order_of_callbacks(clock: Clock, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, [Slow(clock), Speed()])
    trainer.fit(Module(clock), Loader(clock, 4))
    callback = Speed.of(trainer)
    assert callback is not None
    assert callback.snapshot()["speed/images_per_s"] == 4 / (FETCH + STEP + HOOK)
    assert callback.snapshot()["speed/data_share"] == FETCH / (FETCH + STEP + HOOK)


def test_validation_and_checkpoints_are_left_out(clock: Clock, tmp_path: Path) -> None:
    callbacks = [Speed(), ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=3, save_top_k=-1)]
    trainer = trainer_of(tmp_path, callbacks, enable_checkpointing=True, val_check_interval=2, max_epochs=2)
    trainer.fit(Validated(clock), Loader(clock, 8), Loader(clock, 1))
    assert clock.now > 8 * VALIDATION + 5 * SAVE
    metrics = callbacks[0].snapshot()  # type: ignore[attr-defined]
    assert metrics["speed/images_per_s"] == 4 / (FETCH + STEP)
    assert metrics["speed/data_share"] == FETCH / (FETCH + STEP)


def test_starting_the_loader_of_an_epoch_is_waiting_for_data(clock: Clock, tmp_path: Path) -> None:
    callback = Speed()
    trainer = trainer_of(tmp_path, [callback], max_epochs=2)
    trainer.fit(Module(clock), Loader(clock, 3, start=10.0))
    # 2 counted steps in the first epoch, 3 in the second, whose iterator took 10 s; the first iterator is not counted
    total = 5 * (FETCH + STEP) + 10.0
    assert callback.snapshot()["speed/images_per_s"] == pytest.approx(20 / total)
    assert callback.snapshot()["speed/data_share"] == pytest.approx((5 * FETCH + 10.0) / total)


def test_the_window_moves(clock: Clock, tmp_path: Path) -> None:
    callback = Speed(window=3)
    trainer = trainer_of(tmp_path, [callback], max_epochs=2)
    trainer.fit(Module(clock), Loader(clock, 4, start=10.0))
    assert callback.snapshot()["speed/images_per_s"] == 4 / (FETCH + STEP)


def test_a_second_fit_starts_from_zero_and_the_profiler_still_works(clock: Clock, tmp_path: Path) -> None:
    callback = Speed()
    trainer = trainer_of(tmp_path, [callback], profiler=SimpleProfiler(dirpath=tmp_path, filename="profile"))
    module = Module(clock)
    trainer.fit(module, Loader(clock, 3))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, Loader(clock, 2))
    assert callback.snapshot()["speed/images_per_s"] == 4 / (FETCH + STEP)
    fetches = trainer.profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]  # type: ignore[attr-defined]
    assert len(fetches) == 5


def test_all_devices_count(clock: Clock, tmp_path: Path) -> None:
    callback = Speed()
    trainer_of(tmp_path, [callback]).fit(Module(clock), Loader(clock, 3))
    callback._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=8, strategy=SimpleNamespace(root_device=torch.device("cpu"))
    )
    assert callback.snapshot()["speed/images_per_s"] == 8 * 4 / (FETCH + STEP)


def test_memory_of_the_process() -> None:
    peak = peak_memory_gb(torch.device("cpu"))
    assert 0.05 < peak < 100
    if sys.platform == "linux":  # an independent measurement of the same value
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        assert peak == pytest.approx(int(lines["VmHWM"].split()[0]) * 1024 / 1e9, rel=0.02)


def test_memory_of_a_gpu_is_the_peak_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_500_000_000 if device.index == 1 else 0)
    assert peak_memory_gb(torch.device("cuda", 1)) == 2.5


def test_units_of_getrusage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=2_000_000))
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory_gb(torch.device("cpu")) == 2.048
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_gb(torch.device("cpu")) == 0.002


def test_a_trainer_without_speed(tmp_path: Path) -> None:
    assert Speed.of(trainer_of(tmp_path, [])) is None
    assert Speed().snapshot() == {}


@pytest.mark.parametrize("window", [0, -3])
def test_bad_window(window: int) -> None:
    with pytest.raises(ValueError, match=f"window: 1 step or more, got {window}"):
        Speed(window)


def test_a_step_reads_the_clock_twice_and_nothing_else(clock: Clock, tmp_path: Path) -> None:
    class Untouchable:
        """Replaces tensors on a device: only the shape may be read."""

        shape = (4,)

    callback, trainer, batch = Speed(), trainer_of(tmp_path, []), {"index": Untouchable()}
    callback._since, reads = 0.0, []
    clock_call = Clock.__call__

    def count(self: Clock) -> float:
        reads.append(1)
        return clock_call(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "__call__", count)
        callback.on_train_batch_start(trainer, None, batch, 0)  # type: ignore[arg-type]
        callback.on_train_batch_end(trainer, None, Untouchable(), batch, 0)  # type: ignore[arg-type]
    assert len(reads) <= 2
    assert callback._steps[0].images == 4
