"""Logits of a run's validation or test split, from the run's own data, in memory: nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from lightning_modules import Classifier

COMMANDS = {"val": "validate", "test": "test"}


@dataclass(frozen=True)
class RunLogits:
    """A split as a network sees it, in the order of ``index``.

    Attributes:
        logits: (N, K) float32 on the CPU, not divided by the temperature.
        label: Class ids (N,) int64.
        index: Place of each sample in its data set (N,) int64.
        checkpoint: The checkpoint.
        module: Its module.
        data: The datamodule, set up.
    """

    logits: Tensor
    label: Tensor
    index: Tensor
    checkpoint: Path
    module: Classifier
    data: Any


class _Collector(Callback):
    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **named: Any
    ) -> None:
        logits, label, index = (
            values.detach().cpu() for values in (outputs["logits"], outputs["label"], batch["index"])
        )
        self.parts.append((logits.to(torch.float32, copy=True), label.clone(), index.clone()))

    on_test_batch_end = on_validation_batch_end


class _LogitsCLI(VisionCLI):
    """Evaluates a checkpoint with a collector as its only callback."""

    tool = ""

    def run(self) -> None:
        """Run the evaluation, without signal handlers: the tool handles signals."""
        self._run()

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        self.collector = _Collector()
        options["enable_progress_bar"] = options["enable_checkpointing"] = options["logger"] = False
        return [self.collector]

    def _evaluate(self, command: str, model: LightningModule, datamodule: Any) -> None:
        if not isinstance(model, Classifier):
            raise UsageError(f"{self.tool}: is for classifiers, but this is a run of {type(model).__name__}")
        if model.several_labels:
            raise UsageError(f"{self.tool}: is for one label a sample, and --model.task multilabel has several")
        self.checkpoint, _ = self._checkpoint()
        method = getattr(self.trainer, command)
        method(model, datamodule=datamodule, ckpt_path=str(self.checkpoint), weights_only=True, verbose=False)


def run_logits(tool: str, run: Path, split: str, checkpoint: str = "best", flags: Sequence[str] = ()) -> RunLogits:
    """Compute the logits of a split with one process.

    Args:
        tool: Name of the tool, for messages.
        run: Run folder.
        split: ``val`` or ``test``.
        checkpoint: ``best``, ``last`` or the path of a checkpoint.
        flags: Further flags of ``main.py validate``, such as ``--data.root FOLDER``.

    Raises:
        UsageError: The run is no classifier of one label a sample, or a flag is wrong.
        MisconfigurationException: The data cannot be read or does not fit the checkpoint.
        ValueError: The split has no sample.
    """
    words = [COMMANDS[split], "--run", str(run), "--ckpt", checkpoint, *flags, "--trainer.devices", "1"]
    cli = _LogitsCLI(split_flags(words), ["main.py", *words])
    cli.tool = tool
    cli.run()
    if not cli.collector.parts:
        raise ValueError(f"{run}: the {split} split has no samples")
    logits, label, index = (torch.cat(values) for values in zip(*cli.collector.parts, strict=True))
    order = index.argsort(stable=True)
    return RunLogits(logits[order], label[order], index[order], cli.checkpoint, cli.model, cli.datamodule)
