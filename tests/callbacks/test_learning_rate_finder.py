"""callbacks/learning_rate_finder.py: the sweep changes only the rate; the run is bit-identical to one configured with it."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import plugin_data_pb2  # type: ignore[import-untyped]

from callbacks import LearningRateFinder, RunFolder, read_metrics
from callbacks.dry_run import DryRun
from callbacks.learning_rate_finder import found_rate
from callbacks.lr_curve import ladder
from cli import main
from datamodules import DigitsDataModule
from lightning_modules import TernaryClassifier, load_run
from tests.runs.killing import TINY, Kill, differences, digest, forked, outcome

SWEEP: dict[str, Any] = {"steps": 80, "lowest": 1e-3, "highest": 2.0}


@pytest.fixture
def with_finder(tmp_path: Path) -> Path:
    """Configuration of a tiny run of two epochs with a LearningRateFinder."""
    config = yaml.safe_load(Path(TINY).read_text())
    config["trainer"]["max_epochs"] = 2
    config["trainer"]["callbacks"].append({"class_path": "LearningRateFinder", "init_args": SWEEP})
    path = tmp_path / "finder.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def fit(config: Path | str, folder: Path, *flags: str, kill: Kill | None = None, code: int = 0) -> str:
    log = folder.with_suffix(".log")
    assert forked(["fit", "--config", str(config), "--run_dir", str(folder), *flags], kill, log) == code, (
        log.read_text()
    )
    return log.read_text()


def logged(folder: Path) -> dict[str, float]:
    """The learning rates among the hyperparameters in the TensorBoard events of a run."""
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: settings[name].number_value for name in ("lr", "lr_configured") if name in settings}


@pytest.mark.slow
@pytest.mark.draws
def test_a_run_with_the_finder_equals_a_run_configured_with_its_rate_and_a_resume_is_exact(
    with_finder: Path, tmp_path: Path
) -> None:
    output = fit(with_finder, tmp_path / "found")
    content = json.loads((tmp_path / "found" / "lr_find.json").read_text())
    lr = content["lr"]
    assert content["lr_configured"] == 0.05
    assert lr != 0.05
    assert lr == content["suggestions"]["bottom"]
    assert f"learning-rate finder: lr {lr:.3g} (bottom; " in output
    assert yaml.safe_load((tmp_path / "found" / "config.yaml").read_text())["model"]["init_args"]["lr"] == lr
    summary = json.loads((tmp_path / "found" / "training_summary.json").read_text())
    assert summary["training_args"]["model"]["init_args"]["lr"] == summary["learning_rate"]["used"] == lr
    assert summary["learning_rate"]["configured"] == 0.05
    assert logged(tmp_path / "found") == {"lr": pytest.approx(lr), "lr_configured": pytest.approx(0.05)}
    assert load_run(tmp_path / "found").hparams["lr"] == lr
    with (tmp_path / "found" / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == content["steps"] >= 20
    assert float(rows[0]["lr"]) == pytest.approx(1e-3)
    assert (tmp_path / "found" / "plots" / "lr_find.png").stat().st_size > 5000

    fit(TINY, tmp_path / "given", "--trainer.max_epochs", "2", "--model.lr", repr(lr))
    found, given = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("found", "given")
    )
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert digest(found[part]) == digest(given[part]), part
    assert found["hyper_parameters"]["lr"] == lr
    ours, theirs = (
        [
            {k: v for k, v in row.items() if not k.startswith(("speed/", "memory/"))}
            for row in read_metrics(tmp_path / name / "metrics.csv")
        ]
        for name in ("found", "given")
    )
    assert ours == theirs

    # killed in the second epoch and resumed: no second sweep, and the same result
    fit(with_finder, tmp_path / "broken", kill=Kill("backward", 11), code=-9)
    log = tmp_path / "resumed.log"
    assert forked(["fit", "--resume", str(tmp_path / "broken")], log=log) == 0, log.read_text()
    assert "learning-rate finder" not in log.read_text()
    assert "changed   model.lr" not in log.read_text()
    assert not differences(outcome(tmp_path / "found"), outcome(tmp_path / "broken"))


@pytest.mark.slow
def test_a_run_of_an_older_version_resumes_with_its_rate(with_finder: Path, tmp_path: Path) -> None:
    # its config.yaml has the configured rate, and neither its checkpoint nor lr_find.json has in_config
    fit(with_finder, tmp_path / "found")
    fit(with_finder, tmp_path / "old", kill=Kill("backward", 11), code=-9)
    lr = json.loads((tmp_path / "found" / "lr_find.json").read_text())["lr"]
    config = yaml.safe_load((tmp_path / "old" / "config.yaml").read_text())
    config["model"]["init_args"]["lr"] = 0.05
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    record = json.loads((tmp_path / "old" / "lr_find.json").read_text())
    (tmp_path / "old" / "lr_find.json").write_text(json.dumps({k: v for k, v in record.items() if k != "in_config"}))
    last = tmp_path / "old" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["callbacks"]["LearningRateFinder"]["in_config"]
    torch.save(content, last)
    assert forked(["fit", "--resume", str(tmp_path / "old")], log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert not differences(outcome(tmp_path / "found"), outcome(tmp_path / "old"))
    resumed = yaml.safe_load((tmp_path / "old" / "config.resume-1.yaml").read_text())
    assert resumed["model"]["init_args"]["lr"] == lr
    assert json.loads((tmp_path / "old" / "lr_find.json").read_text())["in_config"] is True


@pytest.mark.slow
@pytest.mark.parametrize("given", [0.007, 0.05], ids=["another", "the one configured at first"])
def test_a_rate_given_to_a_resumed_run_takes_precedence(with_finder: Path, tmp_path: Path, given: float) -> None:
    folder = tmp_path / "run"
    fit(with_finder, folder)
    arguments = ["fit", "--resume", str(folder), "--trainer.max_epochs", "3", "--model.lr", str(given)]
    assert forked(arguments, log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert f"lr {given} is given and replaces " in (tmp_path / "log").read_text()
    groups = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == [given, given]
    config = yaml.safe_load((folder / "config.resume-1.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == given
    assert found_rate(folder, config) is None
    assert "learning_rate" not in json.loads((folder / "training_summary.json").read_text())


class TwoRates(TernaryClassifier):
    """A module whose classification layer has ten times the learning rate of the other layers."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        head = list(self.network.classifier.parameters())  # type: ignore[union-attr]
        ids = {id(p) for p in head}
        rest = [p for p in self.network.parameters() if id(p) not in ids]
        return [{"params": rest, "name": "rest", "lr": self.lr / 10}, {"params": head, "name": "head"}]


def started(finder: LearningRateFinder, tmp_path: Path, **settings: Any) -> tuple[Trainer, TwoRates]:
    """Fit a small module with the finder; return Trainer and module."""
    torch.manual_seed(0)
    module = TwoRates(
        architecture="resnet20",
        num_classes=10,
        in_channels=1,
        image_size=8,
        schedule="one_cycle",
        quantizer="ttq",
        lr=0.05,
    )
    data = DigitsDataModule(batch_size=16, train_fraction=0.2)
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "max_epochs": 2, "default_root_dir": tmp_path}
    settings["callbacks"] = [finder, *settings.get("callbacks", [])]
    trainer = Trainer(**{**options, **settings})
    trainer.fit(module, datamodule=data)
    return trainer, module


class Rates(Callback):
    """Records the learning rates and momenta of each step."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[float, float]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])


@pytest.mark.slow
def test_the_rate_is_the_peak_of_one_cycle_and_groups_keep_their_ratio(tmp_path: Path) -> None:
    finder, rates = LearningRateFinder(**SWEEP), Rates()
    text = "model: {class_path: TwoRates, init_args: {lr: 0.05}}"
    trainer, module = started(finder, tmp_path, callbacks=[RunFolder(tmp_path / "run", text), rates])
    lr = finder.state_dict()["lr"]
    assert module.lr == lr != 0.05
    # the configuration of the run has the rate used, and says where it comes from
    recorded = (tmp_path / "run" / "config.yaml").read_text()
    assert recorded.startswith(
        f"# model.lr: {lr:.4g}, found by LearningRateFinder (bottom) in place of the configured 0.05"
    )
    found = found_rate(tmp_path / "run", yaml.safe_load(recorded))
    assert found == (lr, 0.05, "bottom", "", True)
    assert yaml.safe_load(recorded)["model"]["init_args"]["lr"] == lr
    # an epoch has fewer batches than the sweep has steps, and the sweep goes on all the same
    steps = json.loads((tmp_path / "run" / "lr_find.json").read_text())["steps"]
    assert steps > 2 * trainer.num_training_batches
    steps = len(rates.seen)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9),
        max_lr=lr,
        total_steps=steps,
        base_momentum=0.85,
        max_momentum=0.9,
    )
    expected = []
    for _ in range(steps):
        group = reference.optimizer.param_groups[0]
        expected.append((group["lr"], group["momentum"]))
        reference.optimizer.step()
        if len(expected) < steps:
            reference.step()
    for step in (0, 1, steps - 1):
        (rest, momentum), (head, _) = rates.seen[step]
        assert head == pytest.approx(expected[step][0], rel=1e-9)
        assert momentum == pytest.approx(expected[step][1], rel=1e-9)
        assert rest == pytest.approx(head / 10, rel=1e-12)
    assert max(pair[1][0] for pair in rates.seen) == pytest.approx(lr, rel=1e-2)


def state(trainer: Any, module: Any) -> Any:
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]  # type: ignore[index]
    metrics = [getattr(metric, name) for metric in module.sums.values() for name in metric._defaults]
    order = [batch["index"] for batch in trainer.datamodule.train_dataloader()]
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    return digest(
        [
            module.state_dict(),
            trainer.optimizers[0].state_dict(),
            generators,
            metrics,
            order,
            gradients,
            module.training,
        ]
    )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5},
        pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_sweep_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    seen: list[Any] = []
    sweep = LearningRateFinder._sweep

    def watched(self: Any, trainer: Any, module: Any, configured: float) -> Any:
        seen.append(state(trainer, module))
        found = sweep(self, trainer, module, configured)
        seen.append(state(trainer, module))
        assert len(found[0]) >= 20
        return found

    monkeypatch.setattr(LearningRateFinder, "_sweep", watched)
    started(LearningRateFinder(steps=25), tmp_path, **settings)
    assert seen[0] == seen[1]


@pytest.mark.slow
def test_a_crash_in_the_sweep_leaves_nothing(
    with_finder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DryRun.step

    def failing(self: Any, factor: float) -> float | None:
        if self._taken >= 10:
            raise RuntimeError("no luck")
        return step(self, factor)

    monkeypatch.setattr(DryRun, "step", failing)
    folder = tmp_path / "run"
    assert forked(["fit", "--config", str(with_finder), "--run_dir", str(folder)], log=tmp_path / "log") == 1
    assert "no luck" in (tmp_path / "log").read_text()
    assert not [path for path in folder.rglob("*") if path.name.startswith("lr_find")]
    assert not list(folder.rglob("*.ckpt"))


def swept(losses: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[float, str]:
    """Rate after a sweep with these losses, and the text of the record for people."""
    finder = LearningRateFinder(lowest=1e-4, highest=1.0, steps=len(losses), **settings)
    monkeypatch.setattr(finder, "_sweep", lambda *_: (ladder(1e-4, 1.0, len(losses)), losses))
    text = "model: {class_path: TwoRates, init_args: {lr: 0.05}}"
    trainer, module = started(
        finder, folder, callbacks=[RunFolder(folder / "run", text)], max_steps=1, limit_val_batches=0
    )
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    found = found_rate(folder / "run", config)
    assert config["model"]["init_args"]["lr"] == module.lr == trainer.optimizers[0].defaults["lr"]
    assert finder.state_dict() == {"lr_configured": 0.05, "lr": module.lr, "in_config": True}
    return float(module.lr), str(found)


FALL = [2.0] * 7 + [2.0 - 0.2 * i for i in range(6)] + [1.0] * 4 + [3.0] * 23


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("losses", "settings", "reason"),
    [
        ([2.0] * 40, {}, "the loss never falls by more than its noise"),
        ([2.0] * 37 + [1.9, 1.5, 1.0], {}, "the loss falls only at the last rates of the sweep; raise `highest`"),
        (
            [2.0] * 6 + [2.0 - 0.2 * i for i in range(6)] + [1.0 + 0.2 * i for i in range(28)],
            {"rule": "minimum"},
            "the rule minimum ends at lr 0.000134, the border of the sweep; change `lowest` and `highest`",
        ),
    ],
    ids=["flat", "falls at the end", "ends at the border"],
)
def test_a_curve_without_an_answer_keeps_the_configured_rate(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    losses: list[float],
    settings: dict[str, Any],
    reason: str,
) -> None:
    rate, record = swept(losses, tmp_path, monkeypatch, **settings)
    assert rate == 0.05
    assert record == f"0.05, as configured; the learning-rate finder found none: {reason}"
    assert (
        f"no answer between lr 0.0001 and 1 (40 steps): {reason}; training uses the configured lr 0.05" in caplog.text
    )
    assert json.loads((tmp_path / "run" / "lr_find.json").read_text())["reason"] == reason


def test_a_rate_far_from_the_configured_one_is_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rate, record = swept(FALL, tmp_path, monkeypatch)
    assert rate == pytest.approx(7e-4, rel=0.4)  # between the places 10 and 13 of 40, where the fall ends
    assert record == f"{rate:.4g}, found by LearningRateFinder (bottom) in place of the configured 0.05"
    assert (
        f"{rate:.3g} is {0.05 / rate:.3g} times lower than the configured 0.05; look at plots/lr_find.png"
        in caplog.text
    )


def test_the_record_of_an_older_run_puts_the_rate_used_into_its_configuration(tmp_path: Path) -> None:
    record = {"lr": 0.2, "lr_configured": 0.1, "rule": "steepest", "suggestions": {"steepest": 0.2}, "steps": 100}
    (tmp_path / "lr_find.json").write_text(json.dumps(record))
    config: dict[str, Any] = {"model": {"class_path": "A", "init_args": {"lr": 0.1}}}
    assert found_rate(tmp_path, config) == (0.2, 0.1, "steepest", "", False)
    assert config["model"]["init_args"]["lr"] == 0.2
    assert found_rate(tmp_path, {"model": {"init_args": {"lr": 0.3}}}) is None
    (tmp_path / "lr_find.json").write_text("{}")
    with pytest.raises(ValueError, match=r"lr_find\.json: is not the record of a learning-rate finder"):
        found_rate(tmp_path, config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lowest": 0.0}, "lowest: over 0 and under highest, got 0.0"),
        ({"lowest": 1.0, "highest": 0.5}, "lowest: over 0 and under highest, got 1.0"),
        ({"steps": 5}, "steps: 20 or more, got 5"),
        ({"rule": "best"}, "rule: one of bottom, steepest, valley, minimum, got best"),
        ({"stop_at": 1.0}, "stop_at: over 1, got 1.0"),
        ({"smoothing": 1.0}, "smoothing: at least 0 and under 1, got 1.0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRateFinder(**settings)


def test_wrong_settings_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    overlay = '[{"class_path": "LearningRateFinder", "init_args": {"steps": 3}}]'
    assert main(["fit", "--config", TINY, "--trainer.callbacks", overlay]) == 2
    assert "steps: 20 or more, got 3" in capsys.readouterr().err
