"""Weights of other libraries in the cascade, HAR, segmentation and ternary systems; folders as on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules import TernaryClassifier
from lightning_modules.pretrained import read_weights
from lightning_modules.pretrained.har import fill
from networks import own_names
from networks.frozen_backbone import FrozenBackbone
from networks.segmenters.light import LightSegmenter
from networks.signal_encoder import WindowNetwork, build_encoder
from tests.lightning_modules.forms_of_weights import (
    CONVNEXT,
    HF_VIT,
    SMALL,
    VIT,
    in_folder,
    in_torch,
    prefixed,
    trained,
    tv,
    tv_convnext,
    tv_vit,
)  # fmt: skip


@pytest.fixture
def vit_file(tmp_path: Path) -> tuple[nn.Module, Path]:
    source = trained(tv_vit())
    torch.save({"state_dict": prefixed("encoder.")(source.state_dict())}, tmp_path / "vit.pth")
    return source, tmp_path / "vit.pth"


def features_of(source: Any, images: Tensor) -> Tensor:
    """The class token after the last norm of torchvision's vision transformer."""
    tokens = torch.cat([source.class_token.expand(len(images), -1, -1), source._process_input(images)], dim=1)
    return source.encoder(tokens)[:, 0]  # type: ignore[no-any-return]


def test_frozen_backbone(vit_file: tuple[nn.Module, Path]) -> None:
    source, file = vit_file
    backbone = FrozenBackbone(VIT[0], SMALL, 32)
    backbone.load(read_weights(str(file), backbone.tensors().keys()).tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), features_of(source, images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("kind", "architecture", "settings"),
    [
        ("Dinov2", "vit_small_patch14_dinov2", {"mlp_ratio": 2}),
        ("Dinov2WithRegisters", "vit_small_patch14_reg4_dinov2", {"mlp_ratio": 2}),
        ("DINOv3ViT", "vit_small_patch16_dinov3_qkvb", {"num_register_tokens": 4, "intermediate_size": 64}),
    ],
)
def test_features_of_dino_from_transformers(
    kind: str, architecture: str, settings: dict[str, Any], in_memory: bool, tmp_path: Path
) -> None:
    import transformers

    source: Any = trained(
        getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**HF_VIT, **settings))
    )
    file = in_torch(prefixed("backbone."))(source, tmp_path) if in_memory else in_folder(source, tmp_path)
    backbone = FrozenBackbone(architecture, SMALL, 32, pooling="cls")
    backbone.load(read_weights(str(file), backbone.tensors().keys()).tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = source(images).last_hidden_state[:, 0]
        torch.testing.assert_close(backbone(images), expected, atol=1e-5, rtol=1e-5)


def test_har_encoder_also_on_nine_channels(vit_file: tuple[nn.Module, Path]) -> None:
    source, file = vit_file
    for channels in (3, 9):
        encoder = build_encoder(VIT[0], in_channels=channels, image_size=32, network_args=SMALL)
        network = WindowNetwork(encoder, 32, 3, [], 0.0, 0).eval()
        inner: Any = encoder.network
        saved = read_weights(str(file), {*network.state_dict(), *inner.state_dict()})
        lines = fill(network, saved, None, 1.0, trains=True)
        assert any("torchvision's vision transformer" in line for _, line in lines)
        images = torch.randn(2, 1, 32, 32)  # a grey image repeated gives the same on any number of channels
        with torch.no_grad():
            found, expected = (
                network.encoder(images.repeat(1, channels, 1, 1)),
                features_of(source, images.repeat(1, 3, 1, 1)),
            )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "given", "build"),
    [("mobilenetv2_100", {}, tv("mobilenet_v2")), (CONVNEXT[0], CONVNEXT[1], tv_convnext)],
)
def test_segmenter_encoder(encoder: str, given: dict[str, Any], build: Callable[[], nn.Module], tmp_path: Path) -> None:
    source: Any = trained(build())
    torch.save(prefixed("backbone.")(source.state_dict()), tmp_path / "w.pth")
    network = LightSegmenter(encoder, network_args=given).eval()
    read = read_weights(str(tmp_path / "w.pth"), network.encoder_network.state_dict().keys())
    assert network.fill_encoder(read.tensors).backbone_share == 1.0
    images = torch.randn(2, 3, 64, 64)
    stages = {tuple(feature.shape): feature for feature in network.features(images)}
    with torch.no_grad():
        compared = 0
        for layer in source.features:
            images = layer(images)
            compared += (
                1
                if (like := stages.get(tuple(images.shape))) is not None and torch.allclose(images, like, atol=1e-5)
                else 0
            )
    assert compared >= 4


def test_ternary_starts_from_a_lightning_module_of_a_public_resnet(tmp_path: Path) -> None:
    module = TernaryClassifier(architecture="resnet20", quantizer="none", num_classes=3, in_channels=3, image_size=32)
    state = {
        name: torch.rand_like(t) if t.is_floating_point() else t for name, t in module.network.state_dict().items()
    }
    public = {
        name.replace("stem.conv", "conv1").replace("stem.bn", "bn1").replace("classifier", "linear"): tensor
        for name, tensor in state.items()
    }
    for stage in (0, 1, 2):
        public = {name.replace(f"stages.{stage}.", f"layer{stage + 1}."): tensor for name, tensor in public.items()}
    assert own_names(public).keys() == state.keys()
    for content in ({"net": prefixed("module.")(public), "acc": 9}, {"state_dict": prefixed("backbone.")(public)}):
        torch.save(content, tmp_path / "public.pth")
        module.init_from = str(tmp_path / "public.pth")
        with torch.no_grad():
            for parameter in module.network.parameters():
                parameter.zero_()
        module.give_weights()
        assert all(torch.equal(state[name], tensor) for name, tensor in module.network.state_dict().items())


# ---- folders ----


def folder_of(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_folder_gives_class_names_and_normalisation(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2)}
    of_timm_ = {"label_names": ["x", "y"], "pretrained_cfg": {"mean": [0.5], "std": [0.25]}}
    found = read_weights(str(folder_of(tmp_path, of_timm_, tensors)), ["a"])
    assert (found.class_names, found.mean, found.std) == (["x", "y"], [0.5], [0.25])
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1], "image_std": [0.2]}))
    found = read_weights(str(folder_of(tmp_path, {"id2label": {"1": "y", "0": "x"}}, tensors)), ["a"])
    assert (found.class_names, found.mean, found.std) == (["x", "y"], [0.1], [0.2])
    found = read_weights(str(folder_of(tmp_path, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, tensors)), ["a"])
    assert found.class_names is None, "numbered labels are no names"


def test_folder_of_several_files_and_of_torch_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "part-1.bin", "b": "part-2.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    torch.save({"a": torch.ones(1)}, tmp_path / "part-1.bin")
    torch.save({"b": torch.zeros(1)}, tmp_path / "part-2.bin")
    assert read_weights(str(tmp_path), ["a", "b"]).tensors.keys() == {"a", "b"}
    for names, message in (
        ({"a": "../part-1.bin"}, "names no files of weights in its folder"),
        ({"a": "part-3.bin"}, "names part-3.bin, which is not in its folder"),
    ):
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
        with pytest.raises(ValueError, match=message):
            read_weights(str(tmp_path), ["a"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{}"}, r"has a config\.json, but no weights \(model\.safetensors or pytorch_model\.bin\)"),
        ({"config.json": "{", "model.safetensors": ""}, r"model\.safetensors: cannot be read as safetensors"),
        (
            {"config.json": "[" * 100_000, "pytorch_model.bin": ""},
            r"pytorch_model\.bin: cannot be read: it is truncated",
        ),
    ],
)
def test_broken_folders(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(str(tmp_path), ["a"])
    assert len(str(caught.value).splitlines()) == 1


def test_broken_table_beside_whole_weights(tmp_path: Path) -> None:
    folder_of(tmp_path, {}, {"a": torch.ones(1)})
    for text in ("{", "[" * 100_000, "\udcff"):
        (tmp_path / "config.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"config\.json: cannot be read as JSON"):
            read_weights(str(tmp_path), ["a"])


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.warns((FutureWarning, DeprecationWarning), match="deprecated"):
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "model.pt"))
    with pytest.raises(ValueError, match="is a TorchScript program, which is never run"):
        read_weights(str(tmp_path / "model.pt"), ["weight"])
