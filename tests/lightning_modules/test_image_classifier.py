"""Tests of the image classifier: settings, layer-wise learning rates, frozen parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.optim import param_groups_layer_decay
from torch import Tensor

from datamodules import DigitsDataModule
from lightning_modules import ImageClassifier
from networks.timm_network import statistics_modules

MOBILENET = Path(__file__).resolve().parents[3] / "shared/data/weights/mobilenetv2_100_same_imagenet_fp16.safetensors"
SETTINGS: dict[str, Any] = {"num_classes": 5, "in_channels": 3, "image_size": 64, "architecture": "test_resnet"}
DIGITS: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "architecture": "test_resnet"}
BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"pretrained": True, "weights": "a"},
        "only one of them; add --model.pretrained false to start from a",
    ),
    ({"min_loaded": 1.5}, "min_loaded: a share of the network, 0 to 1, got 1.5"),
    ({"backbone_lr": 0.0}, r"backbone_lr: a factor over 0 \(for 0 there is freeze: backbone\), got 0.0"),
    ({"layer_decay": 0.0}, "layer_decay: a factor over 0, at most 1, got 0.0"),
    ({"layer_decay": 1.1}, "layer_decay: a factor over 0, at most 1, got 1.1"),
    (
        {"layer_decay": 0.9, "architecture": "pit_ti_224", "image_size": 224},
        "timm knows no layers of a PoolingVisionTra",
    ),
    ({"freeze": "norm_statistics", "architecture": "test_vit"}, "freeze: norm_statistics: test_vit has no batch norms"),
    ({"architecture": "resnet10", "dropout": 0.1}, "architecture: timm has no resnet10; the nearest are resnet1"),
    ({"architecture": "test_vit2", "pretrained": True}, "timm has no weights of test_vit2; set weights to a file"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_settings(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.models, "is_model_pretrained", lambda name: name != "test_vit2")
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**{**SETTINGS, **settings})


# ---- learning rates ----


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "mobilenetv3_small_050", "test_convnext"])
@pytest.mark.parametrize("backbone_lr", [1.0, 0.1])
def test_layer_decay_equals_timm(architecture: str, backbone_lr: float) -> None:
    module = ImageClassifier(
        **{**SETTINGS, "architecture": architecture}, lr=0.2, layer_decay=0.7, backbone_lr=backbone_lr, weight_decay=0.3
    )
    network: Any = module.network
    head = {id(parameter) for parameter in network.get_classifier().parameters()}
    excepted = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    expected = {
        id(parameter): 0.2 * group["lr_scale"] * (1.0 if id(parameter) in head else backbone_lr)
        for group in param_groups_layer_decay(network, 0.3, excepted, layer_decay=0.7)
        for parameter in group["params"]
    }
    groups = module.parameter_groups()
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert found.keys() == expected.keys() == {id(parameter) for parameter in network.parameters()}
    for key, lr in expected.items():
        assert found[key] == pytest.approx(lr, rel=1e-12)
    names = [group["name"] for group in groups]
    assert len(set(names)) == len(names)
    assert names[:2] == ["head_weights", "head_vectors"]
    assert groups[0]["lr"] == max(group["lr"] for group in groups) == 0.2
    named = {id(parameter): name for name, parameter in network.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            vector = parameter.squeeze().ndim <= 1 or named[id(parameter)] in excepted
            assert group["weight_decay"] == (0.0 if vector else 0.3), named[id(parameter)]
            assert group["name"].endswith("vectors" if vector else "weights")


def test_group_names_and_learning_rates_by_hand() -> None:
    module = ImageClassifier(**SETTINGS, lr=1.0, layer_decay=0.5, backbone_lr=0.5)
    assert [(group["name"], group["lr"]) for group in module.parameter_groups()[:6:2]] == [
        ("head_weights", 1.0),
        ("layer04_weights", 0.25),
        ("layer03_weights", 0.125),
    ]
    module = ImageClassifier(**SETTINGS, lr=1.0, backbone_lr=0.1)
    assert {group["name"]: group["lr"] for group in module.parameter_groups()} == {
        "head_weights": 1.0,
        "head_vectors": 1.0,
        "backbone_weights": 0.1,
        "backbone_vectors": 0.1,
    }
    plain = ImageClassifier(**SETTINGS, lr=1.0).parameter_groups()
    assert [group["name"] for group in plain] == ["weights", "vectors"]
    assert sum(len(group["params"]) for group in plain) == len(list(module.network.parameters()))
    frozen = ImageClassifier(**SETTINGS, freeze="backbone")
    assert [parameter.shape for group in frozen.parameter_groups() for parameter in group["params"]] == [
        frozen.network.fc.weight.shape,  # type: ignore[union-attr]
        frozen.network.fc.bias.shape,  # type: ignore[union-attr]
    ]


class RecordRates(Callback):
    """Records the learning rate of every group at each step."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append({group["name"]: float(group["lr"]) for group in optimizer.param_groups})


def fit(module: ImageClassifier, batches: int = 3, epochs: int = 1, callback: Callback | None = None) -> None:
    Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        limit_train_batches=batches,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback] if callback else [],
    ).fit(module, datamodule=DigitsDataModule(batch_size=8))


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_schedule_keeps_learning_rate_ratios(schedule: Any) -> None:
    rates = RecordRates()
    torch.manual_seed(0)
    fit(ImageClassifier(**DIGITS, lr=0.01, schedule=schedule, layer_decay=0.5, lr_end=0.1), batches=5, callback=rates)
    assert len(rates.rates) == 5
    for step in rates.rates:
        for name, lr in step.items():
            layer = 5 if name.startswith("head") else int(name[5:7])
            assert lr == pytest.approx(step["head_weights"] * 0.5 ** (5 - layer), rel=1e-12)
    assert len({step["head_weights"] for step in rates.rates}) > 2


# ---- frozen parts ----


def trained(**settings: Any) -> tuple[ImageClassifier, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = ImageClassifier(**DIGITS, lr=0.1, weight_decay=0.1, **settings)
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    fit(module)
    return module, before


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_backbone_and_its_statistics_stay_bit_identical(optimizer: Any) -> None:
    module, before = trained(freeze="backbone", optimizer=optimizer)
    for name, tensor in module.network.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith("fc."), name
    assert all(p.grad is None for name, p in module.network.named_parameters() if not name.startswith("fc."))
    network: Any = module.train().network
    assert not network.forward_features(torch.randn(2, 1, 8, 8)).requires_grad, "no graph is built"
    assert module(torch.randn(2, 1, 8, 8)).requires_grad


def test_frozen_statistics_and_trained_weights() -> None:
    module, before = trained(freeze="norm_statistics")
    for name, tensor in module.network.state_dict().items():
        frozen = name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
        if (
            frozen or tensor.ndim > 1
        ):  # in a residual branch initialised to zero, the weight of a norm hardly changes in three steps
            assert torch.equal(tensor, before[name]) == frozen, name
    assert module.training
    assert module.network.fc.training  # type: ignore[union-attr]
    assert not any(norm.training for norm in statistics_modules(module.network))


def test_nothing_is_frozen_by_default() -> None:
    module, before = trained()
    state = module.network.state_dict()
    assert not any(torch.equal(tensor, before[name]) for name, tensor in state.items())


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "test_convnext"])
def test_dropout_before_the_head_stays_active_with_a_frozen_backbone(architecture: str) -> None:
    torch.manual_seed(0)
    settings = {**SETTINGS, "architecture": architecture}
    module = ImageClassifier(**settings, freeze="backbone", dropout=0.5, drop_path=0.5)
    network: Any = module.network
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network.forward_features(images), network.forward_features(images))
    assert not torch.equal(module(images), module(images))
    module.eval()
    assert torch.equal(module(images), module(images))
