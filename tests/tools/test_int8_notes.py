"""Progress lines of tools.export --int8, and its notes and ways on where accuracy is lost, without an export."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if find_spec("onnx") is None or find_spec("onnxruntime") is None:
    pytest.skip("needs the extra `export`", allow_module_level=True)


from tools.export import int8
from tools.export import static_quantization as quantization
from tools.export.int8 import Int8Settings, Score, evaluate
from tools.export.split_inputs import Splits


def test_a_loss_on_validation_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "evaluate", lambda *_: {"trained": Score(16, 10, 16), "minmax": Score(16, 7, 12)})
    monkeypatch.setattr(int8, "onnx_logits", lambda path: path)
    deployed: Any = SimpleNamespace(logits=None)
    chosen, lines = int8._chosen(deployed, {"minmax": Path("x")}, Splits([], None, None), 0.2)  # type: ignore[arg-type]
    assert chosen == "minmax"
    assert lines[-1] == "note: on validation minmax loses 18.75 points, more than --max_drop 0.2"


def test_a_loss_names_the_settings_that_are_left() -> None:
    found = int8.ways_on(Int8Settings(), 6.25, 16)
    assert found == (
        "give --int8_ends none, --weight_bits 8 (for VNNI), or --max_drop 6.25; one of 16 samples is 6.25 points: "
        "take a larger split"
    )
    assert int8.ways_on(Int8Settings(weight_bits=8), 0.254, 10_000) == "give --int8_ends none, or --max_drop 0.26"


def test_a_split_too_small_for_the_bound_is_noted() -> None:
    assert int8.coarse_split(Int8Settings(max_drop=10), 16) == ""
    assert int8.coarse_split(Int8Settings(), 16).endswith("allows to lose none; --max_drop 6.25 allows one")


def test_each_pass_over_a_split_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tools.command_line.EVERY_S", 0)
    evaluate({"a": torch.eye, "b": torch.eye}, [(2, torch.tensor([0, 1])), (1, torch.tensor([0]))], "test")  # type: ignore
    assert capsys.readouterr().out.splitlines() == [
        "test       2 batches, each through a, b",
        *(f"test       {n} of 4 passes of a batch through one of 2 networks, 0:00 left" for n in (1, 2, 3)),
    ]


def test_calibration_says_its_progress_while_the_quantiser_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.command_line.EVERY_S", 0)
    batches = [np.array([[-1, 0.5], [1, 2]], np.float32)] * 3
    reader = quantization.reader_of("x", batches, "entropy")
    with quantization.quiet():
        while reader.get_next() is not None:
            print("of the quantiser")
    assert capsys.readouterr().out.splitlines() == [
        "int8       1 of 3 batches, entropy, 0:00 left",
        "int8       2 of 3 batches, entropy, 0:00 left",
    ]
