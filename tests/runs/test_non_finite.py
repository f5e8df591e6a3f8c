"""A NaN loss ends the run with exit code 4, a helpful message, a valid checkpoint, and the failed step, which can be replayed."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import NonFiniteError, StopOnNonFinite
from callbacks.failures.failed_step import bad_inputs, names_of
from cli import main
from datamodules import DataModule
from foundation.checkpoint_files import read_checkpoint
from tests.runs import pairs
from tests.runs.killing import TINY
from tools.replay.__main__ import main as replay_command
from tools.replay.step import replay


def test_nan_stops_the_run_and_its_step_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    clip = ["--trainer.gradient_clip_val", "null", "--model.weight_decay", "0"]
    assert main(["fit", "--config", TINY, "--run_dir", str(folder), "--model.lr", "1e30", *clip]) == 4
    message = capsys.readouterr().err
    for part in (
        "loss is not finite at step",
        "lr ",
        "first samples [",
        "last good checkpoint",
        "the step is kept: python",
    ):
        assert part in message
    assert len(message.splitlines()) <= 5
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    for state in (checkpoint["state_dict"], checkpoint["ema"]["state_dict"]):
        assert all(torch.isfinite(tensor).all() for tensor in state.values() if tensor.is_floating_point())
    assert replay_command([str(folder)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\nsample ") == 16
    assert "\nweights    finite before the step\n" in printed  # they are only very large
    assert "\nlayer      network." in printed


def test_nothing_to_replay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay_command([str(tmp_path)]) == 2
    assert f"error: {tmp_path}: has no failed step (failed_step/step.ckpt)" in capsys.readouterr().err


def poisoned(self: DataModule, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
    """The batch with a NaN in the input of its second sample, from the second training step on."""
    batch = self.unpoisoned(batch, dataloader_idx)  # type: ignore[attr-defined]
    if self.trainer is not None and self.trainer.training and self.trainer.global_step >= 1:
        key = next(name for name in ("image", "signal", "features") if name in batch)
        batch[key] = batch[key].clone()
        batch[key][(1, *[0] * (batch[key].ndim - 1))] = math.nan
    return batch


@pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor")
@pytest.mark.parametrize(
    "system", [pytest.param(name, marks=() if name == "cached" else pytest.mark.slow) for name in pairs.BASES]
)
def test_the_sample_of_a_nan_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    config = pairs.write_base(system, tmp_path, **pairs.data_of(system, tmp_path))
    import datamodules

    kind = getattr(datamodules, pairs.BASES[system]["data"][0])
    monkeypatch.setattr(kind, "unpoisoned", kind.on_after_batch_transfer, raising=False)
    monkeypatch.setattr(kind, "on_after_batch_transfer", poisoned)
    folder = tmp_path / "run"
    assert main(["fit", "--config", str(config), "--run_dir", str(folder)]) == 4
    error = capsys.readouterr().err
    found = replay(folder)
    kept = read_checkpoint(folder / "failed_step" / "step.ckpt")["failed_step"]
    name = kept["names"][1]
    key = found.inputs[0].partition(" ")[0]
    assert found.inputs == [f"{key} of {'sample ' if name.isdigit() else ''}{name}"]
    assert f"\nits input is not finite: {found.inputs[0]}\n" in error
    assert "--model.lr" not in error  # no setting helps
    assert ("." in name) == (system in ("image", "segmentation")), name  # files have names
    assert (
        len(found.sample_losses) == len(found.kept["names"]) == len(kept["batch"].get("image_index", kept["names"])) > 1
    )
    bad = [one for one, loss in zip(found.kept["names"], found.sample_losses, strict=True) if not math.isfinite(loss)]
    assert bad == found.kept["names"] or bad == [name]  # batch statistics spread it over the batch
    assert "its input is not finite either" in str(found.layer)


def test_inputs_that_are_not_finite() -> None:
    image = torch.zeros(3, 1, 2, 2)
    image[0, 0, 1, 1], image[2, 0, 0, 0] = math.inf, math.nan
    batch = {"image": image, "label": torch.arange(3), "prompt": ["a", "b", "c"], "index": torch.tensor([5, 6, 7])}
    assert bad_inputs(batch, ["a/1.png", "b/2.png", "12"]) == ["image of a/1.png", "image of sample 12"]
    assert bad_inputs({"image": image}, []) == ["image of row 0 of the batch", "image of row 2 of the batch"]
    files = {"train": ["x.png"] * 6 + ["y.png", "z.png"]}
    trainer: Any = SimpleNamespace(datamodule=SimpleNamespace(files=files.__getitem__))
    assert names_of(trainer, batch) == ["x.png", "y.png", "z.png"]
    trainer.datamodule = SimpleNamespace()
    assert names_of(trainer, batch) == ["5", "6", "7"]


def test_a_gradient_that_stays_infinite_with_fp16_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler skips such steps, so the weights stay as they are, and the run would go on without learning."""
    scale, kept = [2.0**16], []
    scaler = SimpleNamespace(get_scale=lambda: scale[0])
    progress = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=20)))
    )
    trainer: Any = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        precision="16-mixed",
        is_last_batch=False,
        max_steps=-1,
        global_step=20,
        current_epoch=0,
        callbacks=[],
        datamodule=None,
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
        fit_loop=progress,
    )
    monkeypatch.setattr("callbacks.failures.non_finite.keep_step", lambda *given: kept.append(given[3]))
    callback, module = StopOnNonFinite(), torch.nn.Linear(1, 1)
    outputs, batch = {"loss": torch.tensor(1.0)}, {"index": torch.tensor([4, 9])}
    callback.on_train_batch_end(trainer, module, outputs, batch, 19)  # type: ignore[arg-type]
    scale[0] = 2.0**-17
    callback.on_train_batch_end(trainer, module, outputs, batch, 20)  # type: ignore[arg-type]  # not looked at
    with pytest.raises(NonFiniteError, match=r"gradient is not finite even with a loss scale of 7.63e-06 at step 20"):
        callback.on_train_batch_end(trainer, module, outputs, batch, 39)  # type: ignore[arg-type]
    trainer.max_steps = 20  # reached within an epoch: there is no later step at which to look
    with pytest.raises(NonFiniteError, match="gradient is not finite"):
        callback.on_train_batch_end(trainer, module, outputs, batch, 40)  # type: ignore[arg-type]
    assert kept == ["gradient"] * 2
