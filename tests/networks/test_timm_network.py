"""Tests of networks/timm_network.py: building networks, invalid settings, head, layers, batch norms, position embeddings."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from networks.timm_network import (
    backbone_modules,
    build_timm_network,
    classifier_names,
    folded_norms,
    input_layer_names,
    layer_numbers,
    resampled_positions,
    statistics_modules,
)

SETTINGS: dict[str, Any] = {"num_classes": 5, "image_size": 64}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("resnet51", {}, r"architecture: timm has no resnet51; the nearest are .*resnet50.* \(all: timm.list_models\(\)\)"),
    ("resnet1O", {}, r"timm has no resnet1O; the nearest are resnet10t, resnet101, "),
    ("x" * 40, {}, r"timm has no x{40} \(all: timm"),
    ("resnet18.foo", {}, r"architecture: timm has no weights foo of resnet18 \(there: a1_in1k, "),
    (
        "hf-hub:timm/resnet18",
        {},
        "a name of timm.list_models.. is needed, no address or path, got hf-hub:timm/resnet18",
    ),
    ("test_resnet", {"network_args": {"foo": 1}}, "network_args: test_resnet takes no foo"),
    ("test_resnet", {"network_args": {"drop_rate": 0.1}}, "drop_rate cannot be given here, it is the setting dropout"),
    (
        "test_resnet",
        {"network_args": {"img_size": 9}},
        "img_size cannot be given here, it is the image size of the data",
    ),
    ("test_vit", {"network_args": {"depth": "x"}}, r"timm cannot build test_vit with network_args \{'depth': 'x'\}: "),
    ("vgg11", {"drop_path": 0.1}, "drop_path: vgg11 has no residual branches that timm could drop; leave it at 0"),
    ("test_resnet", {"dropout": 1.0}, "dropout: a probability of at least 0 and under 1, got 1.0"),
    ("test_resnet", {"drop_path": -0.1}, "drop_path: a probability of at least 0 and under 1, got -0.1"),
    ("test_vit", {"image_size": 60}, "image_size: 60 pixels cannot be cut into patches of 16; 48 or 64 can"),
    ("deepseek_vit_412m_enc", {}, "deepseek_vit_412m_enc has no classifier in timm, it only gives features"),
]


@pytest.mark.every(4)
@pytest.mark.parametrize(("name", "settings", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    if name.endswith("_enc") and not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"), pytest.raises(ValueError, match=message) as caught:
        build_timm_network(name, **{**SETTINGS, **settings})
    assert len(str(caught.value).splitlines()) == 1


def test_an_encoder_without_any_dropout() -> None:
    name = "gemma4_vit_167m_enc"
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):
        network = build_timm_network(name, num_classes=0, image_size=96, network_args={"depth": 1})
        assert len(network.blocks) == 1  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^dropout: {name} has none in timm; leave it at 0$"):
            build_timm_network(name, num_classes=0, image_size=96, dropout=0.1)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
def test_network_is_bit_identical_to_timm(name: str) -> None:
    torch.manual_seed(0)
    ours = build_timm_network(name, num_classes=5, in_channels=1, image_size=64)
    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 64} if name == "test_vit" else {}
    theirs = timm.create_model(name, num_classes=5, in_chans=1, drop_rate=0.0, **size)
    images = torch.randn(2, 1, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_settings_are_passed_to_timm() -> None:
    network = build_timm_network("test_resnet", **SETTINGS, dropout=0.3, drop_path=0.2)
    assert network.drop_rate == 0.3
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.2)
    same = build_timm_network("mobilenetv2_100", **SETTINGS, network_args={"pad_type": "same"})
    assert type(same.conv_stem).__name__ == "Conv2dSame"


@pytest.mark.parametrize(
    ("name", "head", "first"),
    [
        ("test_resnet", ("fc",), ("conv1.0",)),
        ("test_vit", ("head",), ("patch_embed.proj",)),
        ("test_convnext", ("head.fc",), ("stem.0",)),
        ("test_efficientnet", ("classifier",), ("conv_stem",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), ("patch_embed.proj",)),
    ],
)
def test_head_and_first_layer(name: str, head: tuple[str, ...], first: tuple[str, ...]) -> None:
    with torch.device("meta"):
        network = build_timm_network(name, **SETTINGS)
    assert (classifier_names(network), input_layer_names(network)) == (head, first)
    for part in head:
        layer = network.get_submodule(part)
        assert isinstance(layer, nn.Linear)
        assert layer.out_features == 5
    for part in first:
        assert network.get_submodule(part).in_channels == 3


def test_layers_by_hand() -> None:
    network = build_timm_network("test_resnet", **SETTINGS)  # a stem, four stages of one block, the head
    layers = layer_numbers(network)
    assert layers.keys() == dict(network.named_parameters()).keys()
    for name, layer in layers.items():
        part = name.split(".")[0]
        expected = {"conv1": 0, "bn1": 0, "fc": 5}.get(part)
        assert layer == (int(part.removeprefix("layer")) if expected is None else expected), name


def test_network_without_layers_raises() -> None:
    with torch.device("meta"):
        network = build_timm_network("caformer_s18", **SETTINGS)
    with pytest.raises(ValueError, match=r"layer_decay: timm knows no layers of a MetaFormer; leave it at 1.0"):
        layer_numbers(network)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("test_resnet", {"", "fc"}),
        ("test_vit", {"", "head", "head_drop"}),
        ("test_convnext", {"", "head", "head.fc", "head.drop"}),
        ("deit_tiny_distilled_patch16_224", {"", "head", "head_dist", "head_drop"}),
    ],
)
def test_modules_in_training_mode_with_a_frozen_backbone(name: str, trained: set[str]) -> None:
    with torch.device("meta"):
        network = build_timm_network(name, **SETTINGS, dropout=0.1)
    frozen = {id(module) for module in backbone_modules(network)}
    assert {part for part, module in network.named_modules() if id(module) not in frozen} == trained


def test_statistics_modules_are_the_batch_norms() -> None:
    network = build_timm_network("test_resnet", **SETTINGS)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {id(module) for module in statistics_modules(network)} == {id(module) for module in norms}
    assert norms
    assert not statistics_modules(build_timm_network("test_vit", **SETTINGS))


def test_positions_are_resampled_by_hand_and_the_network_accepts_other_sizes() -> None:
    torch.manual_seed(0)
    small, large = (build_timm_network("test_vit", num_classes=5, image_size=size).eval() for size in (64, 96))
    positions = torch.randn(1, 17, 64)  # a class token and a grid of 4 x 4
    small.load_state_dict({**small.state_dict(), "pos_embed": positions})
    grid = positions[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grown = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    expected = torch.cat([positions[:, :1], grown], dim=1)
    found = resampled_positions(large, positions.half())
    assert found is not None
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)  # half precision
    found = resampled_positions(large, positions)
    assert found is not None
    torch.testing.assert_close(found, expected)
    large.load_state_dict({**small.state_dict(), "pos_embed": expected})
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(small(images), large(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 16, 64), (1, 18, 64), (1, 17, 32), (17, 64), (1, 0, 64)])
def test_positions_without_a_square_grid_are_not_resampled(shape: tuple[int, ...]) -> None:
    network = build_timm_network("test_vit", **SETTINGS)
    assert network.pos_embed.shape == (1, 17, 64)
    assert resampled_positions(network, torch.zeros(shape)) is None
    assert resampled_positions(build_timm_network("test_resnet", **SETTINGS), torch.zeros(1, 17, 64)) is None


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_families_that_accept_other_sizes(name: str) -> None:
    patch = 14 if "14" in name else 16
    with torch.device("meta"):
        network = build_timm_network(name, num_classes=5, image_size=patch * 8).eval()
        for side in (4, 8, 12):
            assert network(torch.zeros(2, 3, patch * side, patch * side)).shape == (2, 5)


def test_folded_batch_norms_are_found() -> None:
    network = build_timm_network("test_resnet", **SETTINGS)
    assert folded_norms(network) == []  # new: mean 0, variance 1, no bias
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.bias)
    norms[0].running_mean.fill_(0.5)  # type: ignore[union-attr]  # as after training
    found = [network.get_submodule(name) for name in folded_norms(network)]
    assert found == norms[1:]
    assert folded_norms(build_timm_network("test_vit", **SETTINGS)) == []
