"""callbacks/progressive_resizing.py: the step on a copy that checks the memory of the largest stage before a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from callbacks import (
    ProgressiveResizing,
    StageOutOfMemoryError,
    dry_run,
)
from callbacks.resizing_stages import PlannedStage
from tests.callbacks.resizing_fit import STAGES, run, write_images
from tests.callbacks.stages import sized
from tests.runs.killing import digest
from tests.runs.pooled import PooledClassifier


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def state(trainer: Any, module: Any) -> Any:
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]  # type: ignore[index]
    metrics = [getattr(metric, name) for metric in module.sums.values() for name in metric._defaults]
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    data = trainer.datamodule
    order = [batch["index"] for batch in data.train_dataloader()]
    settings = [data.train_size, data.batch_size, data.strength, trainer.global_step, module.training]
    return digest(
        [module.state_dict(), trainer.optimizers[0].state_dict(), generators, metrics, gradients, order, settings]
    )


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}])
def test_the_trial_uses_the_largest_stage_and_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    seen: list[Any] = []
    tried: list[Any] = []
    on_fit_start, training_step = ProgressiveResizing.on_fit_start, PooledClassifier.training_step

    def watched(self: Any, trainer: Any, module: Any) -> None:
        seen.append(state(trainer, module))
        on_fit_start(self, trainer, module)
        seen.append(state(trainer, module))
        monkeypatch.setattr(PooledClassifier, "training_step", training_step)

    def noted(self: Any, batch: Any, batch_idx: int) -> Any:
        tried.append(tuple(batch["image"].shape))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(ProgressiveResizing, "on_fit_start", watched)
    monkeypatch.setattr(PooledClassifier, "training_step", noted)
    # 8 * 8 * 100 and 16 * 16 * 20 pixels are less than 12 * 12 * 50
    stages = [sized(8, 100, 1), sized(12, 50, 1), sized(16, 20, 1)]
    run(root, [ProgressiveResizing(stages)], max_epochs=3, limit_val_batches=0, **settings)
    assert seen[0] == seen[1]
    assert tried == [(50, 3, 12, 12)] * settings.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize(
    ("stages", "settings"),
    [
        ([sized(16, 100, 1), sized(16, 20, 1)], {}),  # the first step of the run tests it
        (STAGES[::2], {"try_largest": False}),
    ],
)
def test_no_trial_if_none_is_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch, stages: list[PlannedStage], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(dry_run.DryRun, "step", lambda self: pytest.fail("a trial"))
    run(root, [ProgressiveResizing(stages, **settings)], max_epochs=sum(stage.epochs for stage in stages))


def test_no_trial_with_fast_dev_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run.DryRun, "step", lambda self: pytest.fail("a trial"))
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], fast_dev_run=True)
    assert watch.sizes == [(0, 8, 32)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_stage_that_does_not_fit_is_reported_before_the_first_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(self: Any, batch: Any, batch_idx: int) -> Any:
        raise error

    monkeypatch.setattr(PooledClassifier, "training_step", exhausted)
    resizing = ProgressiveResizing(STAGES)
    with pytest.raises(
        StageOutOfMemoryError, match=r"stage 3/3 \(16 px, batch 16, 2 epochs, lr x 0.25, strength x 0.5\), tried"
    ) as raised:
        run(root, [resizing])
    assert len(str(raised.value).splitlines()) == 1
    assert resizing.memory_hint().startswith(
        "give stage 3 of ProgressiveResizing (16 px, batch 16) a batch_size of 8 or less, or a smaller size"
    )


def test_another_error_in_the_trial_is_not_reported_as_out_of_memory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("kernel size can't be greater than input size")

    monkeypatch.setattr(PooledClassifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="kernel size"):
        run(root, [ProgressiveResizing(STAGES)])
