"""With EMA, metrics reported by fit equal, to the bit, those in its files and those computed later in a new process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from callbacks import read_metrics
from callbacks.exact_resume import stable_seed
from datamodules import DigitsDataModule
from lightning_modules import TernaryClassifier
from networks import build_resnet, ternary_layers
from tests.runs.killing import TINY, digest, forked


def metrics_of(folder: Path, command: str, tmp_path: Path) -> dict[str, float]:
    """Metrics computed in a new process."""
    log = tmp_path / "log"
    assert forked([command, "--run", str(folder)], log=log) == 0, log.read_text()
    content: dict[str, Any] = json.loads((folder / f"{command}_metrics.json").read_text())
    metrics: dict[str, float] = content["metrics"]
    return metrics


def test_a_fresh_process_tests_what_fit_tested(finished: Path, tmp_path: Path) -> None:
    in_process = json.loads((finished / "test_metrics.json").read_text())["metrics"]
    assert metrics_of(finished, "test", tmp_path) == in_process


def test_validate_gives_the_metrics_of_the_best_epoch(finished: Path, tmp_path: Path) -> None:
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    rows = read_metrics(finished / "metrics.csv")
    row = next(row for row in rows if row["epoch"] == best["epoch"] and "val/acc" in row)
    metrics = metrics_of(finished, "validate", tmp_path)
    assert set(metrics) == {"val/loss", "val/acc", "val_raw/loss", "val_raw/acc"}
    assert metrics == {name: row[name] for name in metrics}
    assert metrics["val/loss"] != metrics["val_raw/loss"]
    assert best["value"] == metrics["val/acc"]
    assert best["weights"] == "ema"


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = DigitsDataModule(batch_size=16)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    return data._normalize(batch)["image"]


def test_the_average_has_batch_statistics_of_training_images(finished: Path) -> None:
    """Checked on the first layer, whose input depends on no other layer: four batches of augmented images of that epoch."""
    data = DigitsDataModule(batch_size=16, train_fraction=0.1, mixup_prob=0.5)
    data.seed = 3
    data.setup("fit")
    epoch = json.loads((finished / "checkpoints" / "best.json").read_text())["epoch"] - 1
    generator = torch.Generator().manual_seed(stable_seed("batch statistics", 3, epoch))
    order = torch.randperm(len(data.splits["train"]["index"]), generator=generator)[:64]
    module = TernaryClassifier.load_from_checkpoint(finished / "checkpoints" / "best.ckpt", weights_only=True).eval()
    norm = next(layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for chosen in order.split(16):
            batch = {name: values[chosen] for name, values in data.splits["train"].items()}
            module(data.augment(batch, epoch)["image"])
    means = torch.stack([values.mean((0, 2, 3)) for values in seen]).mean(0)
    variances = torch.stack([values.transpose(0, 1).flatten(1).var(1) for values in seen]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)


def test_weights_file_is_the_averaged_network_in_plain_torch(finished: Path, images: torch.Tensor) -> None:
    plain = build_resnet("resnet20", num_classes=10, in_channels=1, quantizer="ttq", dropout=0.3)
    plain.load_state_dict(load_file(finished / "weights.safetensors"))
    module = TernaryClassifier.load_from_checkpoint(finished / "checkpoints" / "best.ckpt", weights_only=True)
    checkpoint = torch.load(finished / "checkpoints" / "best.ckpt", weights_only=True)
    with torch.no_grad():
        expected = module.eval()(images)
        assert torch.equal(plain.eval().to(memory_format=torch.channels_last)(images), expected)
        plain.load_state_dict(
            {k.removeprefix("network."): v for k, v in checkpoint["state_dict"].items() if "network." in k}
        )
        assert not torch.equal(plain(images), expected), "the raw weights must differ, or the test shows nothing"


def test_every_checkpoint_is_plain_and_ternary(finished: Path) -> None:
    for path in (finished / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        net = build_resnet("resnet20", num_classes=10, in_channels=1, quantizer="ttq", dropout=0.3)
        for state in (content["state_dict"], content["ema"]["state_dict"]):
            net.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
            layers = ternary_layers(net)
            assert len(layers) == 18
            for name, layer in layers.items():
                _, positive, negative = layer.ternary()
                weight = layer.effective_weight().detach()
                ratio = weight / torch.where(weight > 0, positive, negative)
                assert set(ratio.unique().tolist()) <= {-1.0, 0.0, 1.0}, f"{path} {name}"
                assert ratio.count_nonzero() > 0


SHORT = ["--trainer.max_epochs", "2", "--model.dropout", "0.1"]


@pytest.mark.slow
def test_averaging_does_not_touch_training_and_decay_zero_is_none(tmp_path: Path) -> None:
    """Training with EMA, with EMA of decay 0 and without gives the same raw weights; decay 0 gives the same metrics as without."""
    callbacks: dict[str, str] = {
        "ema": '[{"class_path": "EMA", "init_args": {"decay": 0.9}}]',
        "zero": '[{"class_path": "EMA", "init_args": {"decay": 0.0}}]',
        "none": "[]",
    }
    raw, metrics = {}, {}
    for name, value in callbacks.items():
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        arguments = ["fit", "--config", TINY, "--run_dir", str(folder), *SHORT, "--trainer.callbacks", value]
        assert forked(arguments, log=log) == 0, log.read_text()
        raw[name] = digest(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
        rows = [row for row in read_metrics(folder / "metrics.csv") if "val/loss" in row]
        metrics[name] = [(row["val/loss"], row["val/acc"]) for row in rows]
    assert raw["ema"] == raw["zero"] == raw["none"]
    assert metrics["zero"] == metrics["none"] != metrics["ema"]
