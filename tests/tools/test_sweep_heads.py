"""Tests of the command tools.sweep_heads: heads against `main.py fit` on the same cache, written files, wrong input."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cli import main as run
from tests.tools.sweep_cache import TINY, WIDTH, write_cache
from tools.sweep_heads.__main__ import main, parser
from tools.sweep_heads.search import search
from tools.sweep_heads.settings import make_plan

HEADS = ["--hidden", "none", "8", "8-5", "--lr", "3e-3", "3e-2", "--dropout", "0", "0.4", "--seeds", "0", "7"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("caches") / "tiny")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(Path(__file__).resolve().parents[2] / name)
    monkeypatch.chdir(tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def fit_one(cache: Path, folder: Path, *flags: str) -> dict[str, Any]:
    """Train one head with `main.py fit`, and return its last checkpoint."""
    words = ["fit", "--config", TINY, "--data.cache", str(cache), "--run_dir", str(folder), *flags]
    assert run(words) == 0
    loaded: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "compared"),
    [
        ([], (3, 5, 18)),  # one head of each hidden size, with both seeds, learning rates and dropouts
        pytest.param(
            ["--model.schedule", "one_cycle", "--trainer.callbacks", "[]", "--model.class_weights", "none"],
            (9,),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--data.drop_last", "true", "--trainer.gradient_clip_algorithm", "value"], (16,), marks=pytest.mark.slow
        ),
    ],
    ids=["all", "one_cycle", "clipped by value"],
)
def test_each_head_equals_its_own_run(cache: Path, tmp_path: Path, flags: list[str], compared: tuple[int, ...]) -> None:
    options = parser().parse_args(["--cache", str(cache), *HEADS])
    plan = make_plan(options, ["--config", TINY, "--data.cache", str(cache), *flags])
    outcomes = search(plan)[1]
    assert len(outcomes) == 4 + 8 + 8
    for number in compared:
        head = outcomes[number].head
        settings = {"lr": head.lr, "weight_decay": head.weight_decay, "dropout": head.dropout, "head_seed": head.seed}
        own = [word for name, value in settings.items() for word in (f"--model.{name}", str(value))]
        own += ["--model.hidden", str(list(head.hidden))]
        checkpoint = fit_one(cache, tmp_path / str(number), *flags, *own)
        state = checkpoint["ema"]["state_dict"] if "ema" in checkpoint else checkpoint["state_dict"]
        for name, values in outcomes[number].weights.items():
            assert torch.allclose(state[f"network.head.{name}"], values, rtol=0, atol=1e-6), (head, name)


@pytest.mark.draws
@pytest.mark.slow
def test_files_winner_and_metrics(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--lr", "1e-3", "1e-2", "--weight_decay", "0", "0.1", "--hidden", "none", "8", "--seeds", "0", "1"]
    words = ["--cache", str(cache), "--config", TINY, *grid, "--epochs", "3", "--price", "2", "--output", "found"]
    assert main(words) == 0
    output = Path("found")
    rows = rows_of(output / "leaderboard.csv")
    assert len(rows) == 16
    assert [int(row["rank"]) for row in rows] == list(range(1, 17))
    losses = [float(row["best_loss"]) for row in rows]
    assert losses == sorted(losses)
    means: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        means.setdefault((row["lr"], row["weight_decay"], row["hidden"]), []).append(float(row["best_loss"]))
    best = min(means, key=lambda key: sum(means[key]))
    content = json.loads((output / "sweep.json").read_text())
    assert (content["winner"]["lr"], content["winner"]["hidden"]) == (float(best[0]), best[2])
    assert content["winner"]["mean"] == pytest.approx(sum(means[best]) / 2, rel=1e-6)
    assert content["cost"] == pytest.approx(2 * content["device_hours"])
    assert content["device_hours"] == pytest.approx(content["seconds"] / 3600, abs=1e-4)
    # the winner's run has the metrics of its row, and `test` accepts it
    row = next(r for r in rows if (r["lr"], r["weight_decay"], r["hidden"]) == best and r["seed"] == "0")
    found = json.loads((output / "best" / "checkpoints" / "best.json").read_text())
    assert (found["metric"], found["epoch"]) == ("val/loss", int(row["best_epoch"]))
    assert found["value"] == pytest.approx(float(row["best_loss"]), abs=1e-6)
    assert run(["test", "--run", "found/best"]) == 0
    overlay = yaml.safe_load((output / "best.yaml").read_text())
    assert overlay["trainer"]["max_epochs"] == 3
    assert overlay["model"]["init_args"]["lr"] == float(best[0])
    assert "python main.py test --run found/best" in capsys.readouterr().out
    assert (output / "sweep.png").stat().st_size > 10_000


@pytest.mark.slow
def test_metrics_equal_those_of_the_run(cache: Path, tmp_path: Path) -> None:
    plan = make_plan(parser().parse_args(["--cache", str(cache)]), ["--config", TINY, "--data.cache", str(cache)])
    values = search(plan)[1][0].final
    fit_one(cache, tmp_path / "run", "--model.head_seed", "0")
    assert run(["validate", "--run", str(tmp_path / "run"), "--ckpt", "last"]) == 0
    metrics = json.loads((tmp_path / "run" / "validate_metrics.json").read_text())["metrics"]
    for name, value in values.items():
        assert value == pytest.approx(metrics[f"val/{name}"], abs=1e-6), name


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr"], "--lr: one value or more is needed, got none"),
        (["--lr", "0"], "--lr: must be above 0, got 0.0"),
        (["--dropout", "1"], "--dropout: must be at least 0 and under 1, got 1.0"),
        (["--hidden", "big"], "--hidden: none, or the sizes of the layers joined by -, as in --hidden none 256"),
        (["--hidden", "512,256"], "--hidden: none, or the sizes of the layers joined by -, as in --hidden none 256"),
        (["--monitor", "val/f2"], "--monitor: no metric 'val/f2' for 2 classes; available: val/loss, val/acc"),
        (["--price", "-1"], "--price: 0 or more"),
        (["--hiden", "256"], "--hiden: no such flag, did you mean '--hidden'?; see python -m tools.sweep_heads --help"),
        (["--seed_everithing", "1"], "--seed_everithing: no such flag, did you mean 'seed_everything'?"),
        (["--c", "1"], "--c: needs --logistic"),
        (["--logistic", "--lr", "1"], "--lr: cannot be combined with --logistic"),
        (["--logistic", "--c", "0"], "--c: must be above 0"),
        (["--output", "tests"], "--output tests: already exists"),
        (["--model.optimizer", "sgd"], "model.optimizer: a sweep trains with adamw, got sgd"),
        (["--model.schedule", "plateau"], "model.schedule: a sweep does not support plateau"),
        (["--trainer.precision", "bf16-mixed"], "trainer.precision: not supported by a sweep, got bf16-mixed"),
        (["--epochs", "0"], "trainer.max_epochs (or --epochs): 1 or more, got 0"),
        (["--config", "configs/digits_ternary.yaml"], "cache"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str], message: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cache", str(cache), *(() if "--config" in flags else ("--config", TINY))]
    assert main([*words, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("sweeps").exists()


def test_missing_cache(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cache", "nowhere", "--config", TINY]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_diverged_head_is_a_row(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cache", str(cache), "--config", TINY, "--lr", "1e-3", "1e38", "--output", "found"]
    assert main(words) == 0
    rows = rows_of(Path("found/leaderboard.csv"))
    assert [row["status"] for row in rows] == ["ok", "diverged"]
    assert "diverged: 1 of 1 seeds" in capsys.readouterr().out
    assert main([*words[:-4], "1e38", "--output", "all"]) == 2
    assert "every setting diverged" in capsys.readouterr().err


@pytest.mark.draws
def test_logistic_path_over_a_cache(cache: Path) -> None:
    words = ["--cache", str(cache), "--config", TINY, "--logistic", "--c", "0.01", "1", "100", "--output", "path"]
    assert main(words) == 0
    rows = rows_of(Path("path/logistic.csv"))
    assert [float(row["c"]) for row in rows] == [0.01, 1, 100]
    losses = [float(row["loss"]) for row in rows]
    winner = json.loads(Path("path/logistic.json").read_text())["winner"]
    assert winner["c"] == float(rows[losses.index(min(losses))]["c"])
    head = load_file("path/logistic.safetensors")
    assert {name: tuple(values.shape) for name, values in head.items()} == {
        "head.layers.0.weight": (2, WIDTH),
        "head.layers.0.bias": (2,),
    }
    assert Path("path/logistic.png").stat().st_size > 5_000
