"""Tests of the frozen backbone: features equal to timm's, unregistered and unchanged tensors, full names, loading weights."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from features import hash_tensors
from networks.frozen_backbone import FrozenBackbone, full_name, parse_name

ROOT = Path(__file__).resolve().parent.parent.parent
WEIGHTS = ROOT.parent / "shared" / "data" / "weights" / "mobilenetv2_100_same_imagenet_fp16.safetensors"
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
TINY_VIT: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3}
VIT = "vit_tiny_patch16_224"


def pair(name: str, image_size: int | None = None, **settings: Any) -> tuple[FrozenBackbone, Any]:
    """A backbone and timm's network with the same weights."""
    given: dict[str, Any] = settings.pop("network_args", {})
    backbone = FrozenBackbone(name, given, image_size, **settings)
    arguments = {"img_size": image_size, **given} if image_size else given
    torch.manual_seed(2)
    network: Any = timm.create_model(name, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)))
    backbone.load(network.state_dict())
    return backbone, network


@pytest.mark.parametrize("pooling", ["cls", "avg", "native", None])
def test_final_features_of_a_vit(pooling: Any) -> None:
    backbone, network = pair(VIT, 64, network_args=TINY_VIT, pooling=pooling)
    with torch.no_grad():
        tokens = network.forward_features(IMAGE)
        expected = {"avg": tokens[:, 1:].mean(1), "cls": tokens[:, 0]}.get(
            pooling or "cls", network.forward_head(tokens, pre_logits=True)
        )
    assert torch.equal(backbone(IMAGE), expected)
    assert backbone.feature_width == 48


def test_several_layers_of_a_vit_in_the_requested_order() -> None:
    backbone, network = pair(VIT, 64, network_args=TINY_VIT, layers=(-1, 0), pooling="cls")
    final, _ = pair(VIT, 64, network_args=TINY_VIT, pooling="cls")
    with torch.no_grad():
        first = network.norm(network.blocks[0](network.norm_pre(network._pos_embed(network.patch_embed(IMAGE)))))[:, 0]
    features = backbone(IMAGE)
    torch.testing.assert_close(features[:, :48], final(IMAGE))
    torch.testing.assert_close(features[:, 48:], first)
    assert backbone.feature_width == 96
    avg = FrozenBackbone(VIT, TINY_VIT, 64, layers=(0, 1), pooling="avg")
    avg.load(network.state_dict())
    maps = network.forward_intermediates(IMAGE, indices=[0, 1], norm=True, intermediates_only=True)
    torch.testing.assert_close(avg(IMAGE), torch.cat([layer.mean((2, 3)) for layer in maps], dim=1))


def test_convolutional_network() -> None:
    native, network = pair("test_convnext")
    with torch.no_grad():
        final = network.forward_features(IMAGE)
        assert torch.equal(native(IMAGE), network.forward_head(final, pre_logits=True))
    assert native.pooling == "native"
    avg, network = pair("test_convnext", pooling="avg")
    mean = network.forward_features(IMAGE).mean((2, 3), keepdim=True)
    torch.testing.assert_close(avg(IMAGE), network.head.norm(mean).flatten(1))
    joined, network = pair("test_convnext", pooling="avg", layers=(1, -1))
    maps = network.forward_intermediates(IMAGE, indices=[1, 3], norm=True, intermediates_only=True)
    torch.testing.assert_close(joined(IMAGE), torch.cat([layer.mean((2, 3)) for layer in maps], dim=1))
    assert joined.feature_width == sum(layer.shape[1] for layer in maps)


def test_norm_after_pooling_and_channels_last_features() -> None:
    small = {"depth": 2, "embed_dim": 48, "num_heads": 3, "global_pool": "avg"}
    backbone, network = pair(VIT, 64, network_args=small, pooling="avg")
    assert isinstance(network.fc_norm, nn.LayerNorm)
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(IMAGE), network.forward_head(network.forward_features(IMAGE), pre_logits=True)
        )
    swin = {"depths": (1, 1, 1, 1), "embed_dim": 12, "num_heads": (1, 1, 1, 1), "window_size": 2}
    backbone, network = pair("swin_tiny_patch4_window7_224", 64, network_args=swin, pooling="avg")
    torch.testing.assert_close(backbone(IMAGE), network.forward_features(IMAGE).mean((1, 2)))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="the weights of MobileNetV2 do not exist")
def test_real_weights_in_half_precision() -> None:
    backbone = FrozenBackbone("mobilenetv2_100", {"pad_type": "same"})
    report = backbone.load(load_file(WEIGHTS))
    assert report.backbone_share == 1
    network = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}, strict=False)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(IMAGE), pre_logits=True)  # type: ignore[operator]
    torch.testing.assert_close(backbone(IMAGE), expected)
    assert backbone.feature_width == 1280
    assert backbone.name == "mobilenetv2_100 pad_type=same"


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = FrozenBackbone("test_resnet"), nn.Linear(2, 2)


def test_tensors_are_not_registered_and_stay_in_eval_mode() -> None:
    holder = Holder()
    assert [name for name, _ in holder.named_parameters()] == ["head.weight", "head.bias"]
    assert list(holder.state_dict()) == ["head.weight", "head.bias"]
    assert not list(holder.buffers())
    before = hash_tensors(holder.backbone.tensors())
    holder.train()
    assert not any(module.training for module in holder.backbone.features.modules())
    features = holder.backbone(IMAGE.clone().requires_grad_())
    assert not features.requires_grad
    assert hash_tensors(holder.backbone.tensors()) == before
    torch.testing.assert_close(features[:1], holder.backbone(IMAGE[:1]))  # independent of the other images of the batch


def test_moves_with_its_parent_module() -> None:
    holder = Holder().to(torch.bfloat16)
    network = holder.backbone.features.network
    assert {tensor.dtype for tensor in holder.backbone.tensors().values()} == {torch.bfloat16}
    assert holder.backbone(IMAGE.bfloat16()).dtype == torch.float32
    holder.to(memory_format=torch.channels_last)
    assert network.get_parameter("layer1.0.conv1.weight").is_contiguous(memory_format=torch.channels_last)
    assert {tensor.device.type for tensor in holder.to("meta").backbone.tensors().values()} == {"meta"}


def test_random_weights_are_independent_of_the_global_random_state() -> None:
    state = torch.get_rng_state()
    one = FrozenBackbone("test_resnet")
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert hash_tensors(one.tensors()) == hash_tensors(FrozenBackbone("test_resnet").tensors())


def test_head_in_the_weights_is_ignored() -> None:
    backbone, network = pair("test_resnet")
    assert not any(name.startswith("fc.") for name in backbone.tensors())
    before = hash_tensors(backbone.tensors())
    network.fc.weight.data.zero_()
    backbone.load(network.state_dict())
    assert hash_tensors(backbone.tensors()) == before


def test_incomplete_weights_raise_and_change_nothing() -> None:
    backbone, network = pair("test_resnet")
    before = hash_tensors(backbone.tensors())
    state = {name: tensor + 1 for name, tensor in network.state_dict().items() if not name.startswith("layer4")}
    with pytest.raises(ValueError, match=r"only .* of the network outside its head could be filled.*layer4"):
        backbone.load(state)
    assert hash_tensors(backbone.tensors()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pad_type": "same"},
        {"a": 1, "b": 0.5, "c": True, "d": None, "e": "1", "f": "", "g": "two words", "h": "true", "i": "x=y"},
    ],
)
def test_full_names_round_trip(arguments: dict[str, Any]) -> None:
    assert parse_name(full_name("resnet18.tv_in1k", arguments)) == ("resnet18", arguments)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("test_resnet", {"pooling": "cls"}, "pooling: test_resnet has no class token; give avg or native"),
        ("test_resnet", {"pooling": "max"}, "pooling: one of cls, avg, native, got max"),
        (
            "test_resnet",
            {"layers": (1, 2), "pooling": "native"},
            "pooling: native is for the final features, layers [-1], got layers [1, 2]; give avg",
        ),
        ("test_resnet", {"layers": (5,), "pooling": "avg"}, "layers: test_resnet has 5 layers, -5 to 4, got [5]"),
        ("test_resnet", {"layers": (), "pooling": "avg"}, "layers: test_resnet has 5 layers, -5 to 4, got []"),
        ("test_resnet", {"layers": (4, -1), "pooling": "avg"}, "layers: each at most once, got [4, -1]"),
        ("resnet_none", {}, "architecture: timm has no resnet_none"),
    ],
)
def test_bad_settings(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FrozenBackbone(name, **settings)
