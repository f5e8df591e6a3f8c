"""Benchmark ternary_inference: contenders compute the same, a wrong one is found, ratios and table are right; no speed."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from networks.integer.build import PATHS, supported_paths

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `export`: {', '.join(MISSING)} missing")
if not MISSING:
    from benchmarks import ternary_inference
    from benchmarks.inference_peers import CONTENDERS, Contender, Task


def task_of(network: nn.Module) -> "Task":
    return Task(network, Path(), Path(), 1)


def test_a_contender_that_computes_something_else_is_refused() -> None:
    network, images = nn.Linear(3, 2), [torch.rand(1, 3), torch.rand(4, 3)]
    one = Contender("wrong", lambda task: task.network, 0.01, "torch")

    def wrong(inputs: Tensor) -> Tensor:
        answer: Tensor = network(inputs) * (1.05 if len(inputs) == 4 else 1)
        return answer.detach()

    assert ternary_inference.checked(one, lambda x: network(x).detach(), task_of(network), images) == 0
    with pytest.raises(
        ValueError, match=r"wrong: its logits differ by 0\.05 of the largest logit, more than its tolerance"
    ):
        ternary_inference.checked(one, wrong, task_of(network), images)
    with pytest.raises(ValueError, match="does not compute the same"):
        ternary_inference.checked(one, lambda x: x[:, :2] * torch.nan, task_of(network), images)


def test_ratios_are_medians_within_each_repeat() -> None:
    base, own = ternary_inference.BASELINES[0], "int8 ONNX (ours)"
    common = {"threads": 1, "batch": 1, "difference": 0.0}
    rows = [{**common, "side": base, "s": [2.0, 8.0, 9.0]}, {**common, "side": own, "s": [1.0, 2.0, 3.0]}]
    assert ternary_inference.ratio(rows, rows[1], base) == "3.00"
    assert ternary_inference.ratio(rows, {**rows[1], "batch": 32}, base) == "-"
    assert "| 2,000.00 (1,000.00 .. 3,000.00) | 3.00" in ternary_inference.shown(rows)


def test_names_of_contenders(capsys: pytest.CaptureFixture[str]) -> None:
    names = [one.name for one in CONTENDERS]
    assert len(set(names)) == len(names)
    assert [one.name for one in ternary_inference.chosen(["onnxruntime fp32"], False)] == ["onnxruntime fp32"]
    with pytest.raises(SystemExit):
        ternary_inference.main(["--only", "fastest"])
    assert "--only fastest: no such contender; there are torch eager fp32, " in capsys.readouterr().err


@pytest.mark.slow
def test_quick_run_prints_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "inference.json"
    ternary_inference.main(["--quick", "--json", str(file)])
    printed, rows = capsys.readouterr().out, json.loads(file.read_text())["results"]["resnet20"]
    absent = [f"packed, {path.upper()} (ours)" for path in PATHS if path not in supported_paths()]
    names = [one.name for one in CONTENDERS if one.available and "compiled" not in one.name and one.name not in absent]
    assert [(row["batch"], row["side"]) for row in rows] == [(batch, name) for batch in (1, 4) for name in names]
    assert all(f"| {name} " in printed for name in names)
    assert all(len(row["s"]) == 2 and min(row["s"]) > 0 for row in rows)
    own = [row["difference"] for row in rows if row["side"] == "int8 ONNX (ours)"]
    assert 1e-4 < own[0] < 0.1
