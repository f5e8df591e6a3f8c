"""Tests of a resume with another number of processes: which numbers go on, and the messages of those that do not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry

from cli.processes import go_on_with, predict_with_one
from cli.resume import RunCheckpoint
from cli.run_flags import UsageError, split_flags
from cli.trainer.checks import check_trainer


def trainer(now: int, **settings: Any) -> Any:
    defaults = {"limit_train_batches": 1.0, "val_check_interval": 1.0, "overfit_batches": 0.0, "callbacks": []}
    own = {"world_size": now, "accumulate_grad_batches": 1, "strategy": SimpleNamespace(), **defaults, **settings}
    return SimpleNamespace(**own)


def go_on(
    folder: Path,
    was: int,
    now: int,
    batch: int = 64,
    start: tuple[int, int] = (64, 1),
    drop_last: bool = True,
    sync_batchnorm: bool = False,
    **settings: Any,
) -> tuple[Any, Any]:
    config = folder / "config.yaml"
    config.write_text(f"data:\n  init_args:\n    batch_size: {batch}\ntrainer:\n  accumulate_grad_batches: 1\n")
    source = RunCheckpoint(folder, folder / "last.ckpt", config, 0, 0, False, was)
    data, made = SimpleNamespace(batch_size=start[0], turns=1, drop_last=drop_last), trainer(now, **settings)
    made.accumulate_grad_batches = start[1]
    content = {"data": {"batch_size": start[0]}, "trainer": {"accumulate_grad_batches": start[1]}}
    content["trainer"]["sync_batchnorm"] = sync_batchnorm
    go_on_with(made, data, source, content)
    return made, data


@pytest.mark.parametrize(("was", "now", "turns"), [(2, 2, 1), (4, 2, 2), (4, 1, 4), (6, 2, 3)])
def test_fewer_processes_take_turns(tmp_path: Path, was: int, now: int, turns: int) -> None:
    made, data = go_on(tmp_path, was, now, limit_train_batches=10)
    assert (data.turns, made.accumulate_grad_batches, made.limit_train_batches) == (turns, turns, 10 * turns)


@pytest.mark.parametrize(
    ("given", "devices", "said"),
    [
        ([], 1, "devices    predict takes one, with strategy auto (the run: devices 2, strategy ddp)"),
        (["--trainer.devices", "2"], 2, ""),
    ],
)
def test_predict_takes_one_device(
    given: list[str], devices: int, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    config = Namespace(trainer=Namespace(devices=2, strategy="ddp", num_nodes=1, callbacks=None))  # type: ignore[no-untyped-call]
    with caplog.at_level("INFO"):
        predict_with_one(config, split_flags(["predict", *given]))
    assert (config.trainer.devices, config.trainer.strategy) == ((1, "auto") if devices == 1 else (2, "ddp"))
    assert caplog.text.strip().endswith(said)
    assert bool(caplog.text) == bool(said)


@pytest.mark.parametrize(("was", "now", "start"), [(1, 2, (32, 1)), (3, 2, (96, 1)), (3, 2, (48, 2)), (4, 1, (256, 1))])
def test_the_samples_of_a_step_stay(tmp_path: Path, was: int, now: int, start: tuple[int, int]) -> None:
    made, data = go_on(tmp_path, was, now, start=start)
    assert (data.turns, made.accumulate_grad_batches) == (1, start[1])


@pytest.mark.parametrize(
    ("was", "now", "settings", "message"),
    [
        (4, 3, {}, "by 4 processes; it goes on with 1, 2, 4, not with 3: 256 samples are not divisible by 3"),
        (2, 4, {}, r"it goes on with 1, 2, or with 4 and --data.batch_size 32 \(as many samples an optimiser step\)"),
        (
            1,
            2,
            {"start": (64, 1), "batch": 32},
            "2 x 64 x 1 = 128 .* but the run has 1 x 32 x 1 = 32; give --data.batch_size 16",
        ),
        (2, 1, {"limit_train_batches": 0.5}, "trainer.limit_train_batches 0.5 is a share of a process's batches"),
        (2, 1, {"overfit_batches": 4}, "trainer.overfit_batches counts the batches of a process"),
        (2, 1, {"sync_batchnorm": True}, "synchronised batch norm .* give --data.batch_size 128, or keep"),
        (
            1,
            2,
            {"start": (32, 1), "drop_last": False},
            "with --data.drop_last false the last batch of an epoch would have other",
        ),
    ],
)
def test_other_numbers_are_refused(tmp_path: Path, was: int, now: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        go_on(tmp_path, was, now, **settings)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(finished: Path, tmp_path: Path, caplog: Any) -> None:
    """The counters of the loops count the batches of both; the run ends like one of two processes."""
    from cli import main

    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    counted = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
    content["exact_resume"] |= {"processes": 2, "should_stop": False}
    torch.save(content, path)
    epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    command = ["fit", "--resume", str(folder), "--trainer.max_epochs", str(epochs + 1), "--trainer.callbacks", "[]"]
    assert main(command) == 0, caplog.text
    after = torch.load(path, weights_only=True)
    batches = after["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] - 2 * counted
    steps = after["global_step"] - content["global_step"]
    assert after["exact_resume"]["processes"] == 2
    assert after["exact_resume"]["accumulate"] == 2 * content["exact_resume"]["accumulate"]
    assert batches == steps * after["exact_resume"]["accumulate"]
    assert steps == -(-(counted // epochs // 2) // content["exact_resume"]["accumulate"])


def test_strategies_that_split_weights_or_copy_the_program_are_refused() -> None:
    for strategy in [*StrategyRegistry, ModelParallelStrategy(), DDPStrategy(start_method="spawn"), DDPStrategy()]:
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        if "spawn" in name or "fork" in name or "notebook" in name or getattr(strategy, "_start_method", "") == "spawn":
            with pytest.raises(UsageError, match=f"trainer.strategy: {name} copies the running program.*; give ddp"):
                check_trainer({"strategy": strategy})
        elif name.startswith(("fsdp", "deepspeed", "ModelParallel")):
            with pytest.raises(UsageError, match=f"trainer.strategy: {name} splits the weights .*; give ddp"):
                check_trainer({"strategy": strategy})
        else:
            check_trainer({"strategy": strategy})
