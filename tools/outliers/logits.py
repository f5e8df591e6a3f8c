"""Logits of images that a user names, from a run's network, in memory: nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor

from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from datamodules.images.unlabelled import given_images
from datamodules.signals.base import SignalDataModule
from lightning_modules import Classifier
from lightning_modules.loading import newest_config
from tools.run_data import named_class


class _ImagesCLI(VisionCLI):
    """``main.py predict`` that keeps the logits and writes no file."""

    def run(self) -> None:
        """Run the prediction, without signal handlers: the tool handles signals."""
        try:
            self._run()
        except SystemExit as end:  # Lightning ends an interrupted prediction so
            raise KeyboardInterrupt from end

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        options["enable_progress_bar"] = options["enable_checkpointing"] = options["logger"] = False
        return []

    def predict(self, model: LightningModule, datamodule: Any) -> None:
        """Predict the images and keep their logits and files."""
        if not isinstance(model, Classifier) or model.several_labels:
            kind = "--model.task multilabel" if isinstance(model, Classifier) else type(model).__name__
            raise UsageError(f"tools.outliers: is for classifiers of one label a sample, not for {kind}")
        checkpoint, _ = self._checkpoint()
        channels = 3 if getattr(datamodule, "reads_stacks", False) else datamodule.in_channels
        given_images(datamodule.images, channels)  # a wrong path is refused before the network is loaded
        outputs = self.trainer.predict(model, datamodule=datamodule, ckpt_path=str(checkpoint), weights_only=True) or []
        names = datamodule.predicted_files()
        self.logits = torch.cat([batch["logits"].float().cpu() for batch in outputs])  # type: ignore[call-overload]
        self.files = [names[place] for batch in outputs for place in batch["index"].tolist()]  # type: ignore[call-overload]


def _check_pictures(run: Path) -> None:
    """Refuse a run on signals; the messages of ``main.py predict`` name flags that this tool does not take."""
    data, _ = named_class(newest_config(run))
    if issubclass(data, SignalDataModule):
        raise UsageError(
            f"{run}: its data ({data.__name__}) are signals, and tools.outliers scores pictures only: give the run of an image "
            "or ternary classifier, or of a head on cached features"
        )


def image_logits(
    run: Path, images: str, checkpoint: str = "best", flags: Sequence[str] = ()
) -> tuple[Tensor, list[str]]:
    """Logits (N, K) float32 of the images of a folder, and their files.

    Args:
        run: Run folder of a classifier.
        images: A folder, a file or a pattern, as ``--data.images`` of ``main.py predict``.
        checkpoint: ``best``, ``last`` or the path of a checkpoint.
        flags: Further flags of ``main.py predict``.

    Raises:
        UsageError: The run's data are no images, or a flag is wrong.
        MisconfigurationException: No image can be read.
    """
    _check_pictures(run)
    words = [
        "predict",
        "--run",
        str(run),
        "--ckpt",
        checkpoint,
        *flags,
        "--data.images",
        images,
        "--trainer.devices",
        "1",
    ]
    cli = _ImagesCLI(split_flags(words), ["main.py", *words])
    cli.run()
    return cli.logits, cli.files
