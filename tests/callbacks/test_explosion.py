"""Tests of callbacks/failures/explosion.py: which results are absurd, and what is left of a run that has exploded."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import WarnOnCollapse
from callbacks.failures import explosion


@pytest.mark.parametrize(
    ("module", "classes", "guessing"),
    [
        ({}, 4, math.log(4)),
        ({}, 1, None),
        ({"several_labels": True}, 20, math.log(2)),
        ({"collapsed": {}, "pos_weight": 5.0}, 1, math.log(2) * 5 + 1),
    ],
)
def test_the_loss_of_guessing(module: dict[str, Any], classes: int, guessing: float | None) -> None:
    assert explosion.guessing_loss(SimpleNamespace(**module), classes) == guessing
    absurd = explosion.absurd_result("test/loss", 7.3886e18, guessing)
    assert absurd.startswith("test/loss 7.39e+18 is far above the ") or guessing is None
    assert explosion.absurd_result("test/loss", 3.0, guessing) == ""


@pytest.mark.parametrize(
    ("content", "left", "advice"),
    [
        (None, "nothing was saved", "start a new run with a lower --model.lr (now 0.5, try 0.0312), "),
        ({"exploded": None}, "last good checkpoint: ", "try a lower --model.lr (now 0.5, try 0.0312), "),
        ({}, "last good checkpoint: ", "try a lower"),  # of an earlier version
        ({"exploded": 4.428e24}, "{} is no good one: its val/loss 4.43e+24 had exploded", "start a new run with a lower "),
    ],
)  # fmt: skip
def test_what_is_left_and_what_to_try(tmp_path: Path, content: dict[str, Any] | None, left: str, advice: str) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    if content is not None:
        torch.save({"callbacks": {"WarnOnCollapse": content}}, last)
    data = SimpleNamespace(batch_size=16)
    trainer: Any = SimpleNamespace(callbacks=[WarnOnCollapse((0.5, 256))], datamodule=data, world_size=1)
    found = explosion.way_on(trainer, SimpleNamespace(lr=0.5), tmp_path)  # type: ignore[arg-type]
    assert found[0].startswith(left.format(last))
    assert found[1].startswith(advice)
