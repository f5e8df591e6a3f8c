"""callbacks/metrics_log.py: a row has the learning rate and the momentum of its step, as the line of its epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks.metrics_log import MetricsLog, MetricsTable, read_metrics


@pytest.fixture
def fit() -> Any:
    """A trainer after its 7th step, whose schedule has set the rate of the next one."""
    optimizer = SimpleNamespace(param_groups=[{"name": "weights", "lr": 0.1, "momentum": 0.9}])
    return SimpleNamespace(
        optimizers=[optimizer],
        global_step=7,
        log_every_n_steps=1,
        accumulate_grad_batches=1,
        current_epoch=0,
        callbacks=[],
        loggers=[],
        callback_metrics={"train/loss": torch.tensor(0.5)},
        is_global_zero=True,
    )


def test_a_row_has_the_rate_of_its_step_and_not_of_the_next_one(fit: Any, tmp_path: Path) -> None:
    module: Any = SimpleNamespace(log_epoch=lambda stage: None)
    log, groups = MetricsLog(), fit.optimizers[0].param_groups
    log.table = MetricsTable(tmp_path / "metrics.csv")
    log.on_train_batch_start(fit, module, {}, 0)
    groups[0] |= {"lr": 0.05, "momentum": 0.8}
    log.on_train_batch_end(fit, module, {"loss": torch.tensor(2.0)}, {}, 0)
    log.on_train_epoch_end(fit, module)
    assert [(row["lr/weights"], row["momentum/weights"]) for row in read_metrics(log.table.path)] == [(0.1, 0.9)] * 2
    # a resume from the end of the epoch ends it again, without a step
    other = MetricsLog()
    other.load_state_dict({**log.state_dict(), "rows": 1})
    other.on_train_start(fit, module)
    other.table = MetricsTable(tmp_path / "other.csv")
    other.on_train_epoch_end(fit, module)
    assert [row["lr/weights"] for row in read_metrics(other.table.path)] == [0.1]
