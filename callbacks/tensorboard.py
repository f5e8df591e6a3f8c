"""TensorBoard logger that writes into the run folder: one directory for all starts of a run, hyperparameters logged once."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunTensorBoard(TensorBoardLogger):
    """TensorBoard logger that writes its event files directly into the run folder; a resume purges events after its step.

    Args:
        folder: The run folder.
        purge_step: Optimiser step of the resumed checkpoint; later events are superseded. None in a new run.
    """

    def __init__(self, folder: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir=folder, name="", version="", default_hp_metric=False, purge_step=purge_step)

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Log only together with the final metrics: Lightning's call at the start would show runs without a result, or with -1."""
        if metrics:
            super().log_hyperparams(params, metrics, step)

    def save(self) -> None:
        """Flush the events; hparams.yaml is not written, because config.yaml holds the same."""
        self.experiment.flush()
