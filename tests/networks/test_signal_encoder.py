"""Tests of the networks for signal windows: ViT-B/8 of Pix2Seq, flattened windows, adapted weights, frozen encoder, 1-D network."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from networks.mlp_head import MLPHead
from networks.signal_encoder import WindowAnswer, WindowNetwork, adapted, build_encoder, feature_width
from networks.signal_network import SignalResNet
from networks.timm_features import TimmFeatures

PIX2SEQ: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "signal_resnet", "layers": [0]}, "layers: is only for timm networks, signal_resnet"),
    ({"architecture": "signal_resnet", "drop_path": 0.1}, "drop_path: is only for timm networks"),
    ({"architecture": "signal_resnet", "network_args": {"depth": 3}}, "network_args: signal_resnet takes width and"),
    ({"architecture": "signal_resnet", "network_args": {"width": 0}}, "width: 1 or more, got 0"),
    ({"architecture": "test_vit", "network_args": PIX2SEQ, "pooling": "cls"}, "pooling: test_vit has no class token"),
    ({"architecture": "test_vit", "layers": [7]}, r"layers: test_vit has \d+ layers, .* got \[7\]"),
    ({"architecture": "dla46x_c", "grad_checkpointing": True}, "grad_checkpointing: timm has"),
]


@pytest.mark.every(3)
@pytest.mark.parametrize(("settings", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder(**{"in_channels": 3, "image_size": 32, **settings})


def small(network_args: dict[str, Any] | None = None, **settings: Any) -> TimmFeatures:
    settings = {"architecture": "test_vit", "in_channels": 1, "image_size": 32, **settings}
    encoder = build_encoder(network_args=PIX2SEQ if network_args is None else network_args, **settings)
    assert isinstance(encoder, TimmFeatures)
    return encoder.eval()


# ---- the layout of Pix2Seq ----


@pytest.mark.slow
def test_parameter_count_of_vit_b8() -> None:
    encoder = build_encoder("vit_base_patch8_224", in_channels=3, image_size=224, network_args=PIX2SEQ)
    assert isinstance(encoder, TimmFeatures)
    network: Any = encoder.network
    stem = network.patch_embed.proj
    assert (tuple(stem.kernel_size), tuple(stem.stride), stem.out_channels) == ((8, 8), (8, 8), 768)
    assert network.cls_token is None
    assert tuple(network.pos_embed.shape) == (1, 784, 768)
    assert len(network.blocks) == 12
    assert {(block.attn.num_heads, block.mlp.fc1.out_features) for block in network.blocks} == {(12, 3072)}
    assert all(block.attn.fused_attn for block in network.blocks)
    # by hand: stem and positions, twelve blocks (qkv and projection, MLP, two norms), the last norm
    width, hidden = 768, 3072
    block = (width * 3 * width + 3 * width) + (width * width + width) + 2 * width * hidden + hidden + width + 4 * width
    expected = (8 * 8 * 3 * width + width) + 784 * width + 12 * block + 2 * width
    assert sum(p.numel() for p in encoder.parameters()) == expected == 85_806_336
    assert feature_width(encoder, (3, 224, 224)) == 768
    head = WindowNetwork(nn.Identity(), 768, 6, [512], 0.1, seed=0).head
    assert sum(p.numel() for p in head.parameters()) == 2 * 768 + 768 * 512 + 512 + 512 * 6 + 6 == 398_342


@pytest.mark.slow
def test_vit_b8_has_784_tokens_at_224_pixels() -> None:
    encoder = build_encoder("vit_base_patch8_224", in_channels=3, image_size=224, network_args={**PIX2SEQ, "depth": 1})
    assert isinstance(encoder, TimmFeatures)
    network: Any = encoder.network
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = network.forward_features(image)
        assert tuple(tokens.shape) == (1, 784, 768)
        torch.testing.assert_close(encoder.eval()(image), tokens.mean(dim=1))
        assert tuple(network.forward_features(torch.randn(1, 3, 64, 96)).shape) == (1, 96, 768), "other sizes"


def test_gradients_are_the_same_with_checkpointing() -> None:
    image, found = torch.randn(2, 1, 32, 32), []
    encoder = small()
    for checkpointing in (False, True):
        network: Any = encoder.network
        network.set_grad_checkpointing(checkpointing)
        encoder.train().zero_grad()
        encoder(image).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    built: Any = small(grad_checkpointing=True).network
    assert built.grad_checkpointing


def test_inner_layers_are_means_of_their_tokens() -> None:
    encoder = small(layers=[1, -1])
    image = torch.randn(2, 1, 32, 32)
    network: Any = encoder.network
    tokens, found = network.patch_embed(image), []
    tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(image))))
    for block in network.blocks:
        tokens = block(tokens)
        found.append(network.norm(tokens).mean(dim=1))
    torch.testing.assert_close(encoder(image), torch.cat([found[1], found[-1]], dim=1))
    assert feature_width(encoder, (1, 32, 32)) == 2 * found[1].shape[1]


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "signal_resnet"])
def test_feature_width(architecture: str) -> None:
    encoder = build_encoder(architecture, in_channels=9, image_size=32)
    shape = (9, 128) if architecture == "signal_resnet" else (9, 32, 32)
    before = [tensor.clone() for tensor in encoder.state_dict().values()]
    width = feature_width(encoder, shape)
    assert encoder.training
    assert all(torch.equal(*pair) for pair in zip(before, encoder.state_dict().values(), strict=True))
    assert encoder(torch.randn(2, *shape)).shape == (2, width)


@pytest.mark.parametrize(
    ("architecture", "network_args", "layers"),
    [
        # a module in several places
        ("coat_tiny", {"serial_depths": (1, 1, 1, 1), "embed_dims": (32, 32, 32, 32), "parallel_depth": 1}, [-1]),
        ("beit_base_patch16_224", {"depth": 1, "embed_dim": 48, "num_heads": 3}, [-1]),  # a buffer outside of the state
        ("gemma4_vit_167m", {"depth": 1, "embed_dim": 48, "num_heads": 3, "head_dim": 16}, [0]),  # needs values
    ],
)
def test_feature_width_where_the_meta_device_needs_care(
    architecture: str, network_args: dict[str, Any], layers: list[int]
) -> None:
    encoder = build_encoder(architecture, in_channels=2, image_size=64, network_args=network_args, layers=layers)
    width = feature_width(encoder, (2, 64, 64))
    assert encoder.training
    assert encoder(torch.randn(2, 2, 64, 64)).shape == (2, width)


# ---- weights of other shapes ----


@pytest.mark.parametrize("channels", [1, 9])
@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_grey_image_has_the_same_activations_as_with_three_channels(architecture: str, channels: int) -> None:
    rgb: Any = timm.create_model(architecture, num_classes=0).eval()
    with torch.no_grad():
        for parameter in rgb.parameters():  # residual branches are initialised to zero, which would hide differences
            parameter.add_(torch.randn_like(parameter) * 0.05)
    own: Any = timm.create_model(architecture, num_classes=0, in_chans=channels).eval()
    tensors, notes = adapted(own, rgb.state_dict())
    own.load_state_dict(tensors)
    grey = torch.randn(2, 1, 160, 160)
    torch.testing.assert_close(
        own(grey.expand(-1, channels, -1, -1)), rgb(grey.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
    )
    assert notes == [f"{rgb.pretrained_cfg['first_conv']}: from 3 to {channels} channels"]


def test_class_token_and_its_position_are_dropped() -> None:
    with_token: Any = timm.create_model("test_vit", num_classes=0)
    without = small(in_channels=3, image_size=160).network
    tensors, notes = adapted(without, with_token.state_dict())
    assert torch.equal(tensors["pos_embed"], with_token.pos_embed[:, 1:])
    assert notes == ["cls_token: dropped with its position, as the network has no class token"]
    without.load_state_dict(tensors)
    same, _ = adapted(with_token, with_token.state_dict())
    assert all(torch.equal(tensor, same[name]) for name, tensor in with_token.state_dict().items())


# ---- windows ----


class Brightness(nn.Module):
    """Features that can be computed by hand: the mean and twice the mean."""

    def forward(self, image: Tensor) -> Tensor:
        mean = image.mean(dim=(1, 2, 3))
        return torch.stack([mean, 2 * mean], dim=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_flattened_windows_are_classified_image_by_image(channels: int) -> None:
    network = WindowNetwork(Brightness(), 2, 3, [], 0.0, seed=0)
    network.head = head = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    values = torch.arange(18.0).view(2, 9)  # brightness of image s of window b is 9 b + s
    image = values[:, :, None, None, None].expand(2, 9, channels, 4, 4)
    each = network(image)
    torch.testing.assert_close(each, torch.stack([values, 2 * values, 3 * values], dim=2))
    # the mean of 0..8 is 4, of 9..17 it is 13
    answer = WindowAnswer(network)(image)
    torch.testing.assert_close(answer, torch.tensor([[4.0, 8.0, 12.0], [13.0, 26.0, 39.0]]))
    torch.testing.assert_close(WindowAnswer(network)(image[:, 0]), each[:, 0])


def test_concatenated_features_are_in_the_order_of_the_signals() -> None:
    network = WindowNetwork(Brightness(), 2, 3, [], 0.0, seed=0, fusion="features", images=9)
    assert isinstance(network.head, nn.Sequential)
    seen: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    values = torch.arange(18.0).view(2, 9)
    assert network(values[:, :, None, None, None].expand(2, 9, 1, 4, 4)).shape == (2, 3)
    assert torch.equal(seen[0], torch.stack([values, 2 * values], dim=2).flatten(1))


def test_frozen_encoder_builds_no_graph_and_keeps_its_statistics() -> None:
    encoder = build_encoder("test_resnet", in_channels=1, image_size=32)
    network = WindowNetwork(encoder, feature_width(encoder, (1, 32, 32)), 3, [4], 0.5, seed=0)
    network.frozen = True
    network.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    network(torch.randn(4, 1, 32, 32)).sum().backward()
    assert not encoder.training
    assert network.head.training
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    network.frozen = False
    network.train()
    network(torch.randn(4, 1, 32, 32)).sum().backward()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert any(parameter.grad is not None for parameter in encoder.parameters())


def test_signal_network_takes_any_length_and_keeps_windows_independent() -> None:
    torch.manual_seed(0)
    network = SignalResNet(9, width=8).eval()
    signal = torch.randn(3, 9, 128)
    features = network(signal)
    assert features.shape == (3, 64)
    torch.testing.assert_close(features[1:2], network(signal[1:2]))
    assert network(torch.randn(1, 9, 100)).shape == (1, 64)
    # mean and maximum of the last stage
    values = network.stages(network.stem(signal))
    torch.testing.assert_close(features, torch.cat([values.mean(2), values.amax(2)], 1))
    assert sum(p.numel() for p in SignalResNet(9).parameters()) == 398_400


def test_head_uses_the_dropout_of_mlp_head() -> None:
    network = WindowNetwork(Brightness(), 2, 3, [16], 0.5, seed=5)
    assert isinstance(network.head, nn.Sequential)
    assert isinstance(network.head[1], MLPHead)
    image = torch.rand(2, 9, 1, 4, 4)
    first, second = network(image), network(image)
    assert not torch.equal(first, second)
    again = WindowNetwork(Brightness(), 2, 3, [16], 0.5, seed=5)
    assert torch.equal(again(image), first)


@pytest.mark.parametrize("fusion", ["logits", "features"])
def test_half_precision_weights(fusion: Any) -> None:
    encoder = build_encoder("test_resnet", in_channels=1, image_size=32)
    width = feature_width(encoder, (1, 32, 32))
    network = WindowNetwork(encoder, width, 4, [8], 0.0, 0, fusion, images=3).eval()
    inputs = torch.randn(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    full = network(inputs)
    half = network.bfloat16()(inputs.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)
