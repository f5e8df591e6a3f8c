"""Tests of the feature extractor: features of images and of views, identity of the backbone, error messages."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import transforms
from features import hash_tensors
from lightning_modules import CascadeHead, FeatureExtractor, ImageClassifier
from networks.frozen_backbone import FrozenBackbone
from tests.lightning_modules.random_photos import BACKBONE, MEAN, PIXELS, SIZE, STD, photos, quiet, weights_file


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return weights_file(tmp_path_factory.mktemp("weights"))


def extractor(weights: str | None, **settings: Any) -> FeatureExtractor:
    return FeatureExtractor(**{"backbone": BACKBONE, "weights": weights, **PIXELS, **settings})


def test_predict_returns_the_features_of_the_backbone(tmp_path: Path, weights: str) -> None:
    module, data = extractor(weights), photos()
    batches: Any = quiet(tmp_path).predict(module, datamodule=data)
    found = {name: torch.cat([batch[name] for batch in batches]) for name in ("features", "label", "index")}
    backbone = FrozenBackbone(BACKBONE, None, SIZE)
    backbone.load(torch.load(weights, weights_only=True))
    expected = backbone(transforms.normalize(data.splits["test"]["image"], MEAN, STD))
    torch.testing.assert_close(found["features"], expected)
    assert torch.equal(found["label"], data.splits["test"]["label"])
    assert torch.equal(found["index"], torch.arange(96))
    assert module.needs_checkpoint is False
    assert not list(module.parameters())


def test_views_are_processed_one_at_a_time(weights: str) -> None:
    module = extractor(weights)
    module.backbone_identity()
    images = torch.randn(3, 2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    alive: list[int] = []

    def views() -> Iterator[Tensor]:
        for number, image in enumerate(images):
            alive.append(number)
            yield image

    label, index = torch.tensor([0, 1]), torch.tensor([4, 5])
    output = module.predict_step({"views": views(), "label": label, "index": index}, 0)
    assert output["features"].shape == (2, 3, module.network.feature_width)
    assert alive == [0, 1, 2]
    for number, image in enumerate(images):
        torch.testing.assert_close(output["features"][:, number], module(image))
    assert torch.equal(output["label"], label)
    assert torch.equal(output["index"], index)


def test_backbone_identity(weights: str) -> None:
    given = torch.load(weights, weights_only=True)
    module = extractor(weights, layers=[-2, -1], pooling="avg")
    assert module.backbone_identity() == {
        "backbone": BACKBONE,
        "weights_hash": hash_tensors(given),
        "layers": [-2, -1],
        "pooling": "avg",
        "feature_width": 128,
    }
    head = CascadeHead(backbone=BACKBONE, weights=weights, layers=[-2, -1], pooling="avg", **PIXELS)
    found = head.backbone_identity()
    assert {name: found[name] for name in module.backbone_identity()} == module.backbone_identity()
    assert (found["image_size"], found["mean"], found["std"], found["transform"]) == (SIZE, list(MEAN), list(STD), {})


def test_weights_of_a_run(tmp_path: Path) -> None:
    trained = ImageClassifier(architecture="test_resnet", **PIXELS)
    state = {f"network.{name}": tensor for name, tensor in trained.network.state_dict().items()}
    torch.save({"state_dict": state, "hyper_parameters": {}}, tmp_path / "best.ckpt")
    module = extractor(str(tmp_path / "best.ckpt"), backbone="test_resnet")
    module.backbone_identity()
    for name, tensor in module.network.tensors().items():
        assert torch.equal(tensor, trained.network.state_dict()[name])


def test_random_weights_log_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    extractor(None).backbone_identity()
    assert "neither weights nor pretrained is given, the frozen test_vit is random" in caplog.text


def test_pretrained_without_network_access(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, create = extractor(None, pretrained=True), timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> Any:
        if pretrained:
            raise OSError("no route\nto host")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    message = (
        "pretrained: timm's weights of test_vit could not be loaded (OSError: no route to host); the weights of test_vit are "
        "needed; without network access load them from a file: --model.weights FILE --model.pretrained false"
    )
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        quiet(tmp_path).predict(module, datamodule=photos())


def test_errors(tmp_path: Path, weights: str) -> None:
    with pytest.raises(ValueError, match="FeatureExtractor needs images; the data serves features of width 64"):
        extractor(weights, feature_width=64)
    with pytest.raises(ValueError, match="in_channels: needed"):
        extractor(weights, in_channels=None)
    with pytest.raises(
        MisconfigurationException,
        match=r"weights: .*gone.pt: no such file of weights; the weights of test_vit are needed$",
    ):
        quiet(tmp_path).predict(extractor(str(tmp_path / "gone.pt")), datamodule=photos())
    with pytest.raises(MisconfigurationException, match="FeatureExtractor has nothing to train"):
        quiet(tmp_path).fit(extractor(weights), datamodule=photos())
    (tmp_path / "damaged.pt").write_bytes(b"nothing")
    with pytest.raises(
        MisconfigurationException, match=r"weights: .*damaged.pt: cannot be read.*; the weights of test_vit"
    ):
        quiet(tmp_path).predict(extractor(str(tmp_path / "damaged.pt")), datamodule=photos())
    with pytest.raises(MisconfigurationException, match=r"weights: .*: only .* could be filled"):
        quiet(tmp_path).predict(extractor(weights, backbone="test_resnet"), datamodule=photos())
