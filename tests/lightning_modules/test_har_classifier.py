"""Tests of the HAR classifier: data modes, metrics, freezing and unfreezing, learning rates, initial weights, classify."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from callbacks import WarnOnMemory
from callbacks.failures.memory import saved_bytes
from datamodules import HARDataModule
from datamodules.signals.har_generator import write_generated
from lightning_modules import HARClassifier

SETTINGS: dict[str, Any] = {
    "num_classes": 6,
    "in_channels": 1,
    "image_size": 16,
    "architecture": "test_resnet",
    "hidden": [8],
    "head_seed": 0,
}
BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"pretrained": True, "weights": "a"},
        "only one of them; add --model.pretrained false to start from a",
    ),
    ({"pretrained": True, "architecture": "signal_resnet"}, "pretrained: timm has no weights of signal_resnet"),
    ({"unfreeze_epoch": 2}, "unfreeze_epoch: an epoch of at least 1, with freeze: backbone, got 2 with freeze: none"),
    ({"unfreeze_epoch": 0, "freeze": "backbone"}, "unfreeze_epoch: an epoch of at least 1, .* got 0"),
    ({"unfreeze_lr": 0.0}, "unfreeze_lr: a factor over 0, got 0.0"),
    ({"backbone_lr": -1.0}, "backbone_lr: a factor over 0, got -1.0"),
    ({"min_loaded": 2.0}, "min_loaded: a share of the encoder, 0 to 1, got 2.0"),
    ({"signals": 0}, "signals: 1 or more, got 0"),
    ({"dropout": 1.0}, "dropout: a probability of at least 0 and under 1, got 1.0"),
    ({"architecture": "resnet10"}, "architecture: timm has no resnet10; the nearest are"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HARClassifier(**{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Data of five people for training and one for testing, with two windows per activity."""
    folder = tmp_path_factory.mktemp("har")
    return str(write_generated(folder, subjects=range(1, 7), test_subjects=(2,), windows=2))


def data_of(root: str, mode: Any = "flatten", **settings: Any) -> HARDataModule:
    return HARDataModule(
        root=root, mode=mode, encoder="segment_stack", image_size=16, batch_size=8, val_subjects=2, **settings
    )


def trainer(epochs: int = 1, *callbacks: Callback, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


# ---- modes ----


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("flatten", {}),
        ("flatten", {"fusion": "features"}),
        ("grid", {}),
        ("channels", {"in_channels": 9}),
        ("signals", {"in_channels": 9, "image_size": 128, "architecture": "signal_resnet"}),
    ],
)
def test_fit_test_and_predict_in_every_mode(root: str, mode: str, settings: dict[str, Any]) -> None:
    module, data = HARClassifier(**{**SETTINGS, **settings}), data_of(root, mode)
    run = trainer(1, WarnOnMemory())
    run.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert ("val/acc_image" in metrics) == (mode == "flatten" and not settings)
    assert {"val/acc", "val/f1", "val/balanced_acc", "val/ece", "val/acc_worst_subject"} <= metrics.keys()
    assert {name for name in metrics if not name.startswith("train")} <= {*module.metric_names}
    (test,) = run.test(module, datamodule=data, verbose=False)
    answers: Any = run.predict(module, datamodule=data)
    index = torch.cat([answer["index"] for answer in answers])
    logits = torch.cat([answer["logits"] for answer in answers])
    assert logits.shape == (12, 6)
    label = data.splits["test"]["label"][index]
    assert test["test/acc"] == pytest.approx(float((logits.argmax(1) == label).float().mean()))
    assert test["test/loss"] == pytest.approx(float(F.cross_entropy(logits, label)), rel=1e-5)


def test_the_memory_of_a_window_is_that_of_all_its_images() -> None:
    kept = {}
    for images in (1, 6):
        module = HARClassifier(**SETTINGS, signals=images)
        module._trainer = SimpleNamespace(datamodule=SimpleNamespace(images_per_window=images))  # type: ignore[assignment]
        kept[images] = saved_bytes(module, 16)
    assert kept[6] == 6 * kept[1] > 0
    joined = saved_bytes(HARClassifier(**SETTINGS, signals=6, fusion="features"), 16)
    assert joined == pytest.approx(kept[6], rel=0.1), "one head in place of six, the same encoder"


def test_metrics_of_windows_images_and_people_by_hand() -> None:
    module = HARClassifier(**{**SETTINGS, "num_classes": 2}, class_names=["a", "b"], signals=3)
    each = torch.tensor(
        [
            [[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]],  # mean (1, 2/3): class a, although two of the three images predict b
            [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]],
            [[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]],
        ]
    )
    module.each = lambda inputs: each  # type: ignore[method-assign]
    batch = {
        "image": torch.zeros(3, 3, 1, 16, 16),
        "label": torch.tensor([0, 1, 0]),
        "subject": torch.tensor([7, 7, 9]),
    }
    logged: dict[str, float] = {}
    module.log = lambda name, value: logged.update([(name, float(value))])  # type: ignore[method-assign, misc]
    module.log_dict = logged.update  # type: ignore[method-assign, assignment]
    output = module.shared_step(batch, "val")
    torch.testing.assert_close(output["logits"], torch.tensor([[1.0, 2 / 3], [0.0, 1.0], [2 / 3, 5 / 3]]))
    module.log_epoch("val")
    assert logged["val/acc"] == pytest.approx(2 / 3)
    assert logged["val/acc_image"] == pytest.approx((1 + 3 + 2) / 9)
    assert logged["val/acc_worst_subject"] == 0.0
    logged.clear()
    module.shared_step({**batch, "subject": torch.tensor([-1, -1, -1])}, "val")
    module.log_epoch("val")
    assert "val/acc_worst_subject" not in logged, "of nobody"
    assert logged["val/acc"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("image_loss", ["window", "images"])
def test_training_loss(image_loss: Any) -> None:
    module = HARClassifier(**SETTINGS, image_loss=image_loss, label_smoothing=0.1, dropout=0.0)
    batch = {"image": torch.randn(4, 9, 1, 16, 16), "label": torch.tensor([0, 5, 2, 1])}
    module.eval()
    each = torch.stack([module(batch["image"][:, s]) for s in range(9)], dim=1)
    loss = module.shared_step(batch, "train")["loss"]
    mean = F.cross_entropy(each.mean(1), batch["label"], label_smoothing=0.1)
    single = torch.stack([F.cross_entropy(each[:, s], batch["label"], label_smoothing=0.1) for s in range(9)]).mean()
    torch.testing.assert_close(loss, mean if image_loss == "window" else single)
    assert not torch.isclose(mean, single)
    torch.testing.assert_close(module.deployed_network(batch["image"]), each.mean(1))


@pytest.mark.parametrize(
    ("mode", "settings", "message"),
    [
        ("signals", {"in_channels": 9}, "test_resnet, but the data serves no images; take --data.mode channels"),
        (
            "channels",
            {"in_channels": 9, "architecture": "signal_resnet"},
            "the data serves images; take --data.mode sig",
        ),
        ("flatten", {"signals": 6}, "signals: 6, but a window has 9 images"),
        ("grid", {"fusion": "features"}, "fusion: features joins the images of a window; take --data.mode flatten"),
    ],
)
def test_data_of_another_mode_raises(root: str, mode: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        trainer().fit(HARClassifier(**{**SETTINGS, **settings}), datamodule=data_of(root, mode))


# ---- frozen, then trained ----


class RecordFrozenAndRates(Callback):
    """Records, for each optimiser step, whether the encoder's tensors are unchanged, and the learning rates."""

    def __init__(self) -> None:
        self.same: list[bool] = []
        self.rates: list[dict[str, float]] = []
        self.before: dict[str, Tensor] = {}

    def state(self, module: LightningModule) -> dict[str, Tensor]:
        network: Any = module.network
        return {name: tensor.clone() for name, tensor in network.encoder.state_dict().items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = self.state(pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append({group["name"]: float(group["lr"]) for group in optimizer.param_groups})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        now = self.state(pl_module)
        self.same.append(all(torch.equal(tensor, self.before[name]) for name, tensor in now.items()))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_encoder_stays_bit_identical(root: str, optimizer: Any) -> None:
    module, watch = (
        HARClassifier(**SETTINGS, freeze="backbone", optimizer=optimizer, weight_decay=0.5, lr=0.1),
        RecordFrozenAndRates(),
    )
    trainer(2, watch).fit(module, datamodule=data_of(root))
    assert all(watch.same)
    assert {name for rates in watch.rates for name in rates} == {"head_weights", "head_vectors"}


def test_unfreezing_restarts_the_schedule(root: str) -> None:
    module, watch = (
        HARClassifier(
            **SETTINGS,
            freeze="backbone",
            unfreeze_epoch=2,
            unfreeze_lr=0.1,
            backbone_lr=0.5,
            weight_decay=0.5,
            lr=0.01,
            warmup_epochs=0,
        ),
        RecordFrozenAndRates(),
    )
    trainer(3, watch).fit(module, datamodule=data_of(root))
    steps = len(watch.same) // 3
    assert watch.same[: 2 * steps] == [True] * (2 * steps), "weights and batch statistics, despite weight decay"
    assert not any(watch.same[2 * steps :])
    first, last, restart = watch.rates[0], watch.rates[2 * steps - 1], watch.rates[2 * steps]
    assert first == {"head_weights": 0.01, "head_vectors": 0.01, "backbone_weights": 0.005, "backbone_vectors": 0.005}
    assert last["head_weights"] == pytest.approx(0.0, abs=1e-12)
    assert restart == {name: pytest.approx(value * 0.1) for name, value in first.items()}
    module.eval()
    assert not module.training


@pytest.mark.parametrize("epochs", [2, 1])
def test_unfreeze_epoch_must_be_before_the_end(root: str, epochs: int) -> None:
    module = HARClassifier(**SETTINGS, freeze="backbone", unfreeze_epoch=2)
    message = f"model.unfreeze_epoch: it must be before the end of the run, --trainer.max_epochs {epochs}, got 2"
    with pytest.raises(MisconfigurationException, match=message):
        trainer(epochs).fit(module, datamodule=data_of(root))


class Divides(Callback):
    """Divides the run into stages like progressive resizing."""

    def schedule_stages(self, steps: Any) -> list[tuple[int, int, float]]:
        return [(3, 9, 1.0)]


def test_unfreezing_raises_with_other_stages_and_in_plain_ddp(root: str) -> None:
    settings: dict[str, Any] = {**SETTINGS, "freeze": "backbone", "unfreeze_epoch": 1, "warmup_epochs": 0}
    with pytest.raises(
        MisconfigurationException, match="unfreeze_epoch: a callback divides the run into stages already"
    ):
        trainer(3, Divides()).fit(HARClassifier(**settings), datamodule=data_of(root))
    module: Any = HARClassifier(**settings)
    module._trainer = SimpleNamespace(world_size=2, current_epoch=0, strategy=SimpleNamespace(_ddp_kwargs={}))
    with pytest.raises(MisconfigurationException, match=r"add --trainer.strategy ddp_find_unused_parameters_true"):
        module.on_fit_start()
    module._trainer.strategy._ddp_kwargs["find_unused_parameters"] = True
    module.on_fit_start()


def test_groups_hold_every_parameter_once_and_exclude_decay_as_timm_does() -> None:
    module = HARClassifier(**{**SETTINGS, "architecture": "test_vit", "image_size": 32}, weight_decay=0.3)
    groups = module.parameter_groups()
    found = {id(parameter): group["name"] for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(module.network.parameters()))
    backbone: Any = module.network.encoder.network
    assert found[id(backbone.pos_embed)] == found[id(backbone.cls_token)] == "backbone_vectors"
    assert found[id(backbone.blocks[0].mlp.fc1.weight)] == "backbone_weights"
    decay = {group["name"]: group["weight_decay"] for group in groups}
    assert decay == {"head_weights": 0.3, "head_vectors": 0.0, "backbone_weights": 0.3, "backbone_vectors": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "freeze"), [("flatten", "backbone"), ("grid", "none")])
def test_training_step_of_the_full_vit_b8(root: str, mode: Any, freeze: Any) -> None:
    module = HARClassifier(
        **{**SETTINGS, "hidden": [512], "in_channels": 3, "image_size": 224, "architecture": "vit_base_patch8_224"},
        network_args={"class_token": False, "global_pool": "avg", "fc_norm": False},
        freeze=freeze,
        warmup_epochs=0,
    )
    data = HARDataModule(root=root, mode=mode, image_size=224, image_channels=3, batch_size=1, val_subjects=2)
    watch, before = RecordFrozenAndRates(), module.network.head.state_dict()["1.layers.0.weight"].clone()
    trainer(1, watch, limit_train_batches=1, limit_val_batches=0).fit(module, datamodule=data)
    assert watch.same == [freeze == "backbone"]
    assert not torch.equal(before, module.network.head.state_dict()["1.layers.0.weight"])


# ---- initial weights ----


def given(module: HARClassifier) -> str:
    return "\n".join(line for _, line in module.give_weights())


def test_rgb_weights_of_timm_are_adapted_to_nine_channels(tmp_path: Path) -> None:
    torch.manual_seed(1)
    rgb: Any = timm.create_model("test_resnet", num_classes=5)
    save_file(rgb.state_dict(), str(tmp_path / "rgb.safetensors"))
    module = HARClassifier(**{**SETTINGS, "in_channels": 9}, weights=str(tmp_path / "rgb.safetensors"))
    lines = given(module)
    assert "conv1.0: from 3 to 9 channels" in lines
    own: Any = module.network.encoder.network
    torch.testing.assert_close(own.conv1[0].weight[:, 3:6], rgb.conv1[0].weight / 3)
    assert torch.equal(own.layer1[0].conv1.weight, rgb.layer1[0].conv1.weight)


def test_weights_of_a_har_run_load_encoder_and_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = HARClassifier(**{**SETTINGS, "head_seed": 9})
    torch.save(first.network.state_dict(), tmp_path / "run.pt")
    module = HARClassifier(**SETTINGS, weights=str(tmp_path / "run.pt"))
    assert "head: loaded" in given(module)
    state = first.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.network.state_dict().items())


@pytest.mark.parametrize(
    ("names", "refused"), [(["x", "y", "z"], False), (["y", "x", "z"], True), (["x", "y", "w"], False)]
)
def test_weights_of_a_run_on_the_same_signals_in_another_order_are_refused(
    tmp_path: Path, names: list[str], refused: bool
) -> None:
    settings = {**SETTINGS, "architecture": "signal_resnet", "in_channels": 3}
    state = HARClassifier(**settings).state_dict()
    content = {"state_dict": state, "hyper_parameters": {}, "trained_on": {"own": {"signal_names": ["x", "y", "z"]}}}
    torch.save(content, tmp_path / "best.ckpt")
    module: Any = HARClassifier(**settings, weights=str(tmp_path / "best.ckpt"))
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(signal_names=names))
    if refused:
        with pytest.raises(
            ValueError, match="of a run on the signals x, y, z, but the data has them in the order y, x, z"
        ):
            module.give_weights()
    else:
        assert "tensors loaded" in given(module)


def test_weights_that_do_not_fit_and_no_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, str(tmp_path / "a.safetensors"))
    module = HARClassifier(**SETTINGS, weights=str(tmp_path / "a.safetensors"))
    with pytest.raises(
        ValueError, match=r"weights: .*a.safetensors: nearly no tensor fits: .* only 0.0 % of the network"
    ):
        module.give_weights()
    assert "is random; give --model.weights FILE, or --model.pretrained true, or --model.freeze none" in given(
        HARClassifier(**SETTINGS, freeze="backbone")
    )


def test_failed_download_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, pretrained: bool = False, **__: Any) -> Any:
        raise OSError("no route\nto host")

    module = HARClassifier(**SETTINGS, pretrained=True)
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(
        ValueError, match=r"pretrained: timm's test_resnet: the weights could not be loaded \(OSError: no route to"
    ):
        module.give_weights()


# ---- single windows ----


def test_classify_windows_from_their_images() -> None:
    module = HARClassifier(**SETTINGS, mean=[0.5], std=[0.25]).eval()
    images = torch.rand(2, 9, 1, 16, 16)
    torch.testing.assert_close(module.classify(images), module((images - 0.5) / 0.25).softmax(1))
    with pytest.raises(ValueError, match=r"images: got \(2, 9, 128\), which are signals; this run classifies images"):
        module.classify(torch.randn(2, 9, 128))
    settings = {**SETTINGS, "architecture": "signal_resnet", "in_channels": 9, "image_size": 128}
    own = HARClassifier(**settings, mean=[0.0] * 9, std=[1.0] * 9).eval()
    signal = torch.randn(2, 9, 128)
    torch.testing.assert_close(own.classify(signal), own(signal).softmax(1))
    with pytest.raises(ValueError, match=r"signals: a tensor of shape \(B, 9, T\), floating point.*got \(2, 6, 128\)"):
        own.classify(torch.randn(2, 6, 128))
