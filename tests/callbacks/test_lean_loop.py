"""callbacks/lean_loop.py: hooks that were written are called as ever, those that were not are passed over."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks import NoProfiler, skip_empty_hooks
from callbacks.lean_loop import STEP_HOOKS


class Heard(Callback):
    """Notes two of its calls, one of them by inheritance."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_train_batch_end")


class HeardMore(Heard):
    def on_before_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_before_zero_grad")

    def on_fit_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append("on_fit_end")


def test_written_hooks_are_called_and_the_rest_passed_over(tmp_path: Any) -> None:
    heard = HeardMore()
    skip_empty_hooks([heard])
    empty = {name for name in STEP_HOOKS if getattr(heard, name) is None}
    assert empty == set(STEP_HOOKS) - {"on_train_batch_end", "on_before_zero_grad"}
    options: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"accelerator": "cpu", "enable_model_summary": False, "profiler": NoProfiler()}
    trainer = Trainer(max_steps=2, limit_val_batches=0, callbacks=[heard], default_root_dir=tmp_path, **options)
    trainer.fit(BoringModel())
    assert heard.calls == ["on_before_zero_grad", "on_train_batch_end"] * 2 + ["on_fit_end"]
