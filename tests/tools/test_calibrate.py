"""tools.calibrate: stores temperature, threshold and sets in the checkpoint; predict, test and classify use them; refusals."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cli import main as run_main
from lightning_modules import Classifier, load_run
from metrics import SetRule
from tools.calibrate.__main__ import main


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of the ternary classifier."""
    return shutil.copytree(finished, tmp_path / "run")


def record_of(run: Path, name: str = "best") -> dict[str, object]:
    content = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    found: dict[str, object] = content["calibration"]
    return found


@pytest.mark.slow
def test_sets_are_stored_and_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert main([str(run), "--sets", "raps", "--coverage", "0.8", "--cross_fit"]) == 0
    output = capsys.readouterr().out
    assert "sets raps with 80 % coverage" in output
    assert f"stored in {run / 'checkpoints' / 'best.ckpt'}" in output
    command = f"python main.py test --run {run} --config configs/with/calibration.yaml"
    assert output.endswith(f"test logs it   {command}\n"), "not without the callback"
    after = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert after.keys() == before.keys() | {"calibration"}
    assert all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
    module = load_run(run)
    assert isinstance(module, Classifier)
    assert module.class_names is not None
    rule = SetRule.of_values(after["calibration"]["sets"])
    assert module.set_rule == rule
    assert (rule.kind, rule.coverage) == ("raps", 0.8)
    assert run_main(["predict", "--run", str(run), "--trainer.accelerator", "cpu"]) == 0
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sizes = [len(row["set"].split(";")) if row["set"] else 0 for row in rows]
    assert 0 < sum(sizes) / len(rows) <= 10
    assert all(row["set"].split(";")[0] == row["class"] for row, size in zip(rows, sizes, strict=True) if size)
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits = module.logits(images)
    expected = rule.sets((logits.double() / module.temperature).numpy())
    found = module.classify([image[0].numpy() for image in images])
    assert [set(one.set or ()) for one in found] == [
        {module.class_names[k] for k in range(10) if row[k]} for row in expected
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sets", "lac", "--coverage", "1.5"],
            "--coverage: a share between 0 and 1 (both excluded), such as 0.9, got 1.5",
        ),
        (["--coverage", "0.9"], "--coverage 0.9: is of prediction sets; give --sets raps, aps or lac too"),
        (["--cross_fit", "--holdout", "0.3"], "--holdout: with --cross_fit nothing is held out"),
        (["--cover", "0.9"], "--cover"),
    ],
)
def test_wrong_flags_end_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_too_few_samples_for_the_sets_leave_the_checkpoint(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "checkpoints" / "best.ckpt").read_bytes()
    assert main([str(run), "--sets", "aps", "--coverage", "0.9999"]) == 2
    assert "at least 9,999 are needed; nothing is stored" in capsys.readouterr().err
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == before


def stub_logits(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, label: torch.Tensor, checkpoint: Path) -> None:
    """The logits of the validation split, without computing them, in a run with ``Calibration``."""
    (checkpoint.parents[1] / "config.yaml").write_text("trainer: {callbacks: [{class_path: callbacks.Calibration}]}\n")
    data = SimpleNamespace(seen={}, split_seed=0)
    found = SimpleNamespace(
        data=data, logits=logits, label=label, index=torch.arange(len(label)), checkpoint=checkpoint
    )
    monkeypatch.setattr("tools.run_logits.run_logits", lambda *given: found)


@pytest.mark.parametrize(
    ("flags", "stored", "warns"),
    [([], 1.0, True), (["--temperature", "fit"], 1.278, True), (["--temperature", "none"], 1.0, False)],
)
def test_a_temperature_that_does_harm_is_not_stored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    stored: float,
    warns: bool,
) -> None:
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(16, 4, generator=random)
    label = torch.multinomial((logits / 1.1).softmax(dim=1), 1, generator=random)[:, 0]
    stub_logits(monkeypatch, logits, label, path)
    assert main([str(tmp_path), "--target_exit_accuracy", "0.7", "--cross_fit", *flags]) == 0
    printed = capsys.readouterr().out
    record = record_of(tmp_path)
    assert record["temperature"] == pytest.approx(stored, abs=0.005)
    assert ("raises the NLL of samples that it was not fitted to" in printed) == warns
    assert ("1 is stored in its place" in printed) == (warns and stored == 1)
    assert ("temperature 1, as asked for" in printed) == (not warns)
    assert bool(record["fitted"]) == (stored != 1)


@pytest.mark.parametrize(
    ("flags", "stored", "said"),
    [([], 1.0, "1 is stored in its place"), (["--temperature", "fit"], 0.05, "the probabilities are not calibrated")],
)
def test_a_temperature_at_the_end_of_its_range_is_stored_only_if_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    stored: float,
    said: str,
) -> None:
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    label = torch.arange(30) % 3
    stub_logits(monkeypatch, 2.0 * torch.nn.functional.one_hot(label, 3), label, path)
    assert main([str(tmp_path), "--target_exit_accuracy", "0.7", *flags]) == 0
    printed = capsys.readouterr().out
    assert (
        f"temperature 0.050, fitted to 15 validation samples, is at the end of its range (0.05 to 20): {said}"
        in printed
    )
    assert record_of(tmp_path)["temperature"] == stored


def test_the_record_before_and_what_falls_away_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    torch.save({"state_dict": {}}, path)
    random = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(400, 4, generator=random)
    stub_logits(monkeypatch, logits, torch.multinomial((logits / 2).softmax(dim=1), 1, generator=random)[:, 0], path)
    said, temperatures = [], []
    for flags in (["--sets", "lac", "--coverage", "0.8"], ["--sets", "aps"], [], ["--target_exit_accuracy", "0.7"], []):
        assert main([str(tmp_path), *flags]) == 0
        *lines, stored, last = capsys.readouterr().out.splitlines()
        assert stored == f"stored in {path}; used by predict, load_run and the report"
        assert last == f"test logs it   python main.py test --run {tmp_path}"
        said.append(lines[-1] if "replaced" in lines[-1] else None)
        temperatures.append(f"{record_of(tmp_path)['temperature']:.3f}")
    begins = [f"replaced   the record before (temperature {temperature}" for temperature in temperatures]
    again = "; the sets fall away: to choose them again, give --sets aps --coverage 0.9 too"
    assert said == [
        None,
        f"{begins[0]}, prediction sets lac of coverage 0.8)",
        f"{begins[1]}, prediction sets aps of coverage 0.9){again}",
        f"{begins[2]})",
        f"{begins[3]}, exit threshold {record_of(tmp_path)['threshold']:g})",
    ]
