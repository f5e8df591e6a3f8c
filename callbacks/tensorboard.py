"""TensorBoard in the run folder: one directory for all starts of a run, hyperparameters written once with what they reached."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunTensorBoard(TensorBoardLogger):
    """Writes its events into the run folder itself; a resume purges what lies beyond its step.

    Args:
        folder: The run folder.
        purge_step: Optimiser step that a resume goes on from; later events are superseded. None in a new run.
    """

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False, purge_step=purge_step)

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Only with the metrics reached: Lightning's call at the start would show every run with no result or with -1."""
        if metrics:
            super().log_hyperparams(params, metrics, step)

    def save(self) -> None:
        """Flush; config.yaml holds what hparams.yaml would."""
        self.experiment.flush()
