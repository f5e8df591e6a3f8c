"""Tests of the cascade head: equal results on images and on cached features, frozen backbone, identity of the backbone, resume."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import EMA
from callbacks.summary import best_weights
from datamodules import CachedFeaturesDataModule
from features import hash_tensors
from lightning_modules import CascadeHead, ImageClassifier
from lightning_modules.pretrained.backbone import check_same
from tests.lightning_modules.random_photos import (
    BACKBONE,
    PIXELS,
    cached_head,
    live_head,
    photos,
    quiet,
    weights_file,
    write_cache,
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, weights: str) -> CachedFeaturesDataModule:
    return write_cache(tmp_path_factory.mktemp("cache") / "cache", weights)


def fresh(cache: CachedFeaturesDataModule) -> CachedFeaturesDataModule:
    return CachedFeaturesDataModule(cache=str(cache.cache), batch_size=16)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, weights: str, cache: CachedFeaturesDataModule) -> dict[str, Any]:
    """The same head after 200 steps on images and on cached features, with checkpoints; tests must not train these modules."""
    folder = tmp_path_factory.mktemp("runs")
    found: dict[str, Any] = {}
    for name, module, data in (
        ("live", live_head(weights), photos()),
        ("cached", cached_head(cache.feature_width, weights=weights), fresh(cache)),
    ):
        trainer = quiet(folder, max_steps=200, max_epochs=-1, limit_val_batches=0, callbacks=[EMA(decay=0.9)])
        trainer.fit(module, datamodule=data)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
        assert (module.network.backbone is None) == (name == "cached")
        found[name] = (module, folder / f"{name}.ckpt")
    return found


def test_head_on_cached_features_equals_head_on_images(runs: dict[str, Any], cache: CachedFeaturesDataModule) -> None:
    (live, _), (cached, _) = runs["live"], runs["cached"]
    data = photos()
    data.setup("test")
    expected = live.logits(data.splits["test"]["image"])
    data_of_features = fresh(cache)
    data_of_features.setup("test")
    features = next(iter(data_of_features.test_dataloader()))["features"]
    assert expected.std() > 0.1
    torch.testing.assert_close(cached.eval()(features), expected[: len(features)], atol=1e-4, rtol=0)


def test_backbone_does_not_change(runs: dict[str, Any], weights: str) -> None:
    module, path = runs["live"]
    backbone = module.network.backbone
    given = torch.load(weights, weights_only=True)
    assert hash_tensors(backbone.tensors()) == hash_tensors(given)
    assert not any(part.training for part in backbone.features.modules())
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["backbone"]["weights_hash"] == hash_tensors(given)


@pytest.mark.parametrize("name", ["live", "cached"])
def test_checkpoint_holds_only_the_head(runs: dict[str, Any], name: str) -> None:
    module, path = runs[name]
    head = sum(parameter.numel() for parameter in module.network.head.parameters())
    assert path.stat().st_size <= 4 * 4 * head + 64_000
    checkpoint = torch.load(path, weights_only=True)
    kept = {"class_weight", *(f"network.head.{key}" for key in module.network.head.state_dict())}
    assert checkpoint["state_dict"].keys() == checkpoint["ema"]["state_dict"].keys() == kept
    assert best_weights(checkpoint).keys() == {f"head.{key}" for key in module.network.head.state_dict()}


class Save(Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "mid.ckpt")


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["live", "cached"])
def test_resume_is_exact(tmp_path: Path, weights: str, cache: CachedFeaturesDataModule, name: str) -> None:
    def parts() -> tuple[CascadeHead, Any]:
        live = name == "live"
        return (live_head(weights), photos()) if live else (cached_head(cache.feature_width), fresh(cache))

    module, data = parts()
    assert module.network.head.dropout > 0
    quiet(tmp_path, callbacks=[EMA(), Save()]).fit(module, datamodule=data)
    resumed, data = parts()
    trainer = quiet(tmp_path, callbacks=[EMA()])
    trainer.fit(resumed, datamodule=data, ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    expected, found = module.state_dict(), resumed.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert int(found["network.head.forwards"]) == 16


def evaluate(folder: Path, module: CascadeHead, data: Any, path: Path) -> Any:
    return quiet(folder).test(module, datamodule=data, ckpt_path=path, weights_only=True, verbose=False)[0]


def test_evaluation_is_the_same_on_images_and_on_features(
    tmp_path: Path, runs: dict[str, Any], weights: str, cache: CachedFeaturesDataModule
) -> None:
    metrics = [
        evaluate(tmp_path, live_head(weights), photos(), runs["cached"][1]),
        evaluate(tmp_path, cached_head(cache.feature_width), fresh(cache), runs["live"][1]),
        evaluate(tmp_path, live_head(weights), photos(), runs["live"][1]),
    ]
    assert metrics[0] == pytest.approx(metrics[2], abs=1e-4)
    assert metrics[1] == pytest.approx(metrics[2], abs=1e-4)
    assert {"test/auroc", "test/ap", "test/f1", "test/balanced_acc", "test/ece", "test/exit_coverage_0.9"} <= metrics[
        0
    ].keys()
    assert metrics[0].keys() <= set(live_head(weights).metric_names)


def test_other_weights_raise_in_both_directions(tmp_path: Path, runs: dict[str, Any]) -> None:
    other = weights_file(tmp_path, seed=6)
    message = r"backbone: weights_hash is \w{12} in this run, but the head was trained on \w{12}"
    for name in ("live", "cached"):
        with pytest.raises(MisconfigurationException, match=message):
            evaluate(tmp_path, live_head(other), photos(), runs[name][1])
    of_others = write_cache(tmp_path / "cache", other)
    for name in ("live", "cached"):
        with pytest.raises(MisconfigurationException, match="weights_hash is"):
            evaluate(tmp_path, cached_head(of_others.feature_width), fresh(of_others), runs[name][1])


def test_another_network_raises_before_its_weights_are_read(tmp_path: Path, runs: dict[str, Any]) -> None:
    module = live_head("nowhere.pt", backbone="test_resnet")
    with pytest.raises(
        MisconfigurationException, match='backbone is "test_resnet" in this run, but the head was trained on "test_vit"'
    ):
        evaluate(tmp_path, module, photos(), runs["live"][1])


IDENTITY: dict[str, Any] = {
    "backbone": "test_vit",
    "weights_hash": "ab" * 32,
    "layers": [-1],
    "pooling": "cls",
    "image_size": 32,
    "mean": [0.5],
    "std": [0.2],
}


@pytest.mark.parametrize("name", IDENTITY)
def test_the_first_difference_is_named(name: str) -> None:
    other = {
        "backbone": "b",
        "weights_hash": "cd" * 32,
        "layers": [0],
        "pooling": "avg",
        "image_size": 64,
        "mean": [0.1],
    }
    other["std"] = [0.1]
    names = list(IDENTITY)
    found = {key: (other if names.index(key) >= names.index(name) else IDENTITY)[key] for key in names}
    check_same(IDENTITY, IDENTITY, "this run")
    with pytest.raises(ValueError, match=rf"^backbone: {name} is .* in this run, but the head was trained on "):
        check_same(found, IDENTITY, "this run")


def test_missing_weights_file(tmp_path: Path, runs: dict[str, Any]) -> None:
    needed = r"weights: gone.pt: no such file of weights; the weights of test_vit with hash \w{12} are needed"
    with pytest.raises(MisconfigurationException, match=needed):
        evaluate(tmp_path, live_head("gone.pt"), photos(), runs["live"][1])


@pytest.mark.parametrize("name", ["live", "cached"])
@pytest.mark.slow
def test_use_without_a_trainer(runs: dict[str, Any], weights: str, name: str) -> None:
    module, path = runs[name]
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loaded = CascadeHead.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    raw = CascadeHead.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert torch.equal(loaded.classify(images), raw.classify(images))
    live = runs["live"][0]
    live_raw = live.logits(images)
    torch.testing.assert_close(runs["cached"][0].logits(images), live_raw, atol=1e-4, rtol=0)  # right after its fit
    loaded.network.head.load_state_dict(
        module.network.head.state_dict()
    )  # the raw weights, as loading uses the averaged ones
    torch.testing.assert_close(loaded.logits(images), live_raw, atol=1e-4, rtol=0)
    lost = CascadeHead.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    lost.weights = "gone.pt"
    with pytest.raises(
        ValueError, match=r"weights: gone.pt: no such file of weights; the weights of test_vit with hash"
    ):
        lost.classify(images)
    lost.weights = None
    if name == "live":  # random weights
        with pytest.raises(ValueError, match="weights_hash is"):
            lost.classify(images)
    lost.weights = weights
    assert torch.equal(lost.classify(images), raw.classify(images))


@pytest.mark.slow
def test_a_head_on_features_knows_where_the_weights_of_its_backbone_were(
    tmp_path: Path, runs: dict[str, Any], weights: str
) -> None:
    """The file of the extraction is read if no other is given; without either, or if it is gone, a line says what to do."""
    path, images = runs["cached"][1], torch.zeros(1, 3, 32, 32)
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["backbone"]["weights_from"] == {"file": str(Path(weights).resolve())}
    wanted = load_head(path).classify(images)
    for place, message in (
        (None, "weights: not set; images need the backbone test_vit with hash"),
        ({"pretrained": "hf-hub:someone/else"}, "weights_from: is no place of weights of test_vit"),
        ({"pretrained": "resnet50.a1_in1k"}, "weights_from: is no place of weights of test_vit"),
        ("w.pt", "weights_from: is no place of weights of test_vit, got w.pt; name their file"),
        (
            {"file": "gone.pt"},
            r"weights: gone.pt: no such file of weights; .* name their file: --model.weights FILE of main.py, --weights",
        ),
    ):
        moved = tmp_path / "moved.ckpt"
        checkpoint["hyper_parameters"]["weights"], checkpoint["backbone"]["weights_from"] = None, place
        torch.save(checkpoint, moved)
        with pytest.raises(ValueError, match=message):
            load_head(moved).classify(images)
        found = load_head(moved, weights=weights).classify(images)
        assert torch.equal(found, wanted)


def load_head(path: Path, **settings: Any) -> CascadeHead:
    return CascadeHead.load_from_checkpoint(path, map_location="cpu", weights_only=True, **settings)


def test_settings_must_match_the_cache(tmp_path: Path, cache: CachedFeaturesDataModule) -> None:
    for settings, message in (
        ({"backbone": "resnet18"}, "backbone: resnet18 is given, but the data's features were computed with test_vit"),
        ({"layers": [0]}, "layers: [0] is given, but the data's features were computed with [-1]"),
        ({"pooling": "avg"}, "pooling: avg is given, but the data's features were computed with cls"),
    ):
        with pytest.raises(MisconfigurationException, match=re.escape(message)):
            quiet(tmp_path).fit(cached_head(cache.feature_width, **settings), datamodule=fresh(cache))
    agreeing = cached_head(cache.feature_width, backbone=BACKBONE, layers=[-1], pooling="cls")
    quiet(tmp_path, max_steps=1).fit(agreeing, datamodule=fresh(cache))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_threshold": 1.5}, "exit_threshold: a confidence, 0 to 1, or never, got 1.5"),
        ({"hidden": [0]}, "hidden: widths of at least 1"),
        ({"dropout": 1.0}, "dropout: a probability of at least 0 and under 1, got 1.0"),
        (
            {"pretrained": True},
            "pretrained and weights: only one of them; add --model.pretrained false to start from w.pt",
        ),
        (
            {"backbone": None, "network_args": {"a": 1}},
            "network_args: require the setting backbone, which is not set, got {'a': 1}",
        ),
        ({"pooling": "max"}, "pooling: one of cls, avg, native, got max"),
        ({"backbone": "test_vitt"}, "architecture: timm has no test_vitt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        live_head("w.pt", **settings)


def test_other_modules_need_images() -> None:
    with pytest.raises(ValueError, match="ImageClassifier needs images; the data serves features of width 64"):
        ImageClassifier(architecture=BACKBONE, feature_width=64, **PIXELS)


def test_exit_metrics_by_hand() -> None:
    module = cached_head(2, exit_threshold=0.9)
    assert module.exit_table("test") == []
    # confidences: 0.5, 0.95, 0.99, 0.95; the last one is wrong
    margins = torch.logit(torch.tensor([0.5, 0.951, 0.991, 0.951]))
    logits, label = torch.stack([margins, torch.zeros(4)], dim=1), torch.tensor([0, 0, 0, 1])
    logged: dict[str, float] = {}
    module.log_dict = logged.update  # type: ignore[assignment, method-assign]
    # the stored temperature halves the margins: 0.951 becomes 0.815, 0.991 becomes 0.913
    for stage, threshold, coverage, accuracy in (
        ("val", None, None, None),
        ("test", None, None, None),
        ("test", 0.9, 0.25, 1.0),
        ("test", 0.8, 0.75, 2 / 3),
        ("test", float("inf"), 0.0, None),
        ("val", 0.9, 0.25, 1.0),
        ("val_raw", 0.9, None, None),
    ):
        module.chosen_threshold, module.temperature = threshold, 2.0
        logged.clear()
        module.evaluated(logits, {"label": label}, stage)  # type: ignore[arg-type]
        module.log_epoch(stage)  # type: ignore[arg-type]
        # validation and test can be compared, whatever the checkpoint holds
        assert logged[f"{stage}/exit_coverage_0.9"] == 0.75
        assert logged[f"{stage}/exit_acc_0.9"] == pytest.approx(2 / 3)
        assert logged.get(f"{stage}/exit_coverage_stored") == coverage
        assert logged.get(f"{stage}/exit_acc_stored") == (accuracy if accuracy is None else pytest.approx(accuracy))
        assert not {f"{stage}/exit_coverage", f"{stage}/exit_acc"} & logged.keys(), "a name says its threshold"
        assert logged.keys() <= {*module.metric_names}
        assert next(row["coverage"] for row in module.exit_table(stage)) == (0.75 if coverage is None else coverage)  # type: ignore[arg-type]
    rows = module.exit_table("val_raw")
    assert [(row["class"], row["samples"], row["exits"], row["accuracy"]) for row in rows] == [
        ("all", 4, 3, pytest.approx(2 / 3)),
        ("road", 3, 2, 1.0),
        ("pothole", 1, 1, 0.0),
    ]
    assert cached_head(2, exit_threshold="never").threshold("val") == float("inf")


def test_checkpoint_without_a_backbone_entry(tmp_path: Path, runs: dict[str, Any], weights: str) -> None:
    checkpoint = torch.load(runs["live"][1], weights_only=True)
    del checkpoint["backbone"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    message = "the checkpoint has no entry backbone"
    with pytest.raises(MisconfigurationException, match=message):
        evaluate(tmp_path, live_head(weights), photos(), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=message):
        CascadeHead.load_from_checkpoint(tmp_path / "other.ckpt", weights_only=True)


def test_head_seed_defaults_to_the_run_seed() -> None:
    torch.manual_seed(11)
    one, other = cached_head(6, head_seed=None), cached_head(6, head_seed=11)
    for ours, theirs in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
