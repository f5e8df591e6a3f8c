"""Tests of low-rank adapters: the formula, merging, which layers get one, what is refused."""

import pytest
import torch
from torch import Tensor, nn

from networks.adapters import AdaptedLinear, adapt, adapted_layers, is_adapter, merged
from networks.timm_network import build_timm_network

SHAPE = (3, 32, 32)


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_timm_network("test_vit", num_classes=5, image_size=32).eval()


def with_random_adapters(network: nn.Module) -> nn.Module:
    for layer in adapted_layers(network).values():
        nn.init.normal_(layer.lora_B, std=0.05)
    return network


def images() -> Tensor:
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("rank", "alpha", "bias"), [(4, 8.0, True), (1, 3.0, False)])
def test_the_formula_of_peft(rank: int, alpha: float, bias: bool) -> None:
    """As in `peft.tuners.lora.Linear`: y = x W^T + b + (x A^T) B^T alpha / r, merged W + B A alpha / r; A starts as there."""
    torch.manual_seed(0)
    plain = nn.Linear(6, 10, bias=bias)
    layer = AdaptedLinear(plain, rank, alpha)
    x = torch.randn(2, 7, 6)
    assert torch.equal(layer(x), plain(x)), "an adapter starts without effect"
    assert 0.5 * 6**-0.5 < layer.lora_A.abs().max() <= 6**-0.5, "uniform, up to 1 / sqrt(in)"
    nn.init.normal_(layer.lora_B)
    expected = plain(x) + (x @ layer.lora_A.T @ layer.lora_B.T) * (alpha / rank)
    torch.testing.assert_close(layer(x), expected)
    weight = plain.weight + (alpha / rank) * layer.lora_B @ layer.lora_A
    torch.testing.assert_close(layer.merged().weight, nn.Parameter(weight))
    torch.testing.assert_close(layer.merged()(x), expected, atol=1e-5, rtol=1e-5)


def test_only_adapters_and_head_are_trained() -> None:
    network, plain = vit(), vit()
    adapt(network, None, 2, 4.0, SHAPE)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    kinds = {name.partition(".")[2].partition(".")[2] for name in trained if name.startswith("blocks.0.")}
    assert kinds == {
        f"{layer}.lora_{part}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for part in "AB"
    }
    assert {name for name in trained if not is_adapter(name)} == {"head.weight", "head.bias"}
    assert {*network.state_dict()} - {name for name in trained if is_adapter(name)} == {*plain.state_dict()}
    assert torch.equal(network(images()), plain(images()))


def test_merged_weights_give_the_same_logits_in_the_plain_network() -> None:
    network, plain = vit(), vit(seed=2)
    adapt(network, ["qkv", "mlp.fc1"], 2, 4.0, SHAPE)
    assert {name.rpartition(".")[2] for name in adapted_layers(network)} == {"qkv", "fc1"}
    before = network(images())
    with_random_adapters(network)
    assert (network(images()) - before).abs().max() > 1e-3
    plain.load_state_dict(merged(network).state_dict())
    torch.testing.assert_close(plain(images()), network(images()), atol=1e-5, rtol=1e-5)
    assert not adapted_layers(merged(network))
    assert adapted_layers(network), "the network itself keeps its adapters"


@pytest.mark.parametrize(
    ("architecture", "targets", "message"),
    [
        ("test_resnet", None, "adapter: lora adapts linear layers, and ResNet has none outside its head"),
        (
            "test_vit",
            ["qvk"],
            r"lora_targets: no linear layer 'qvk' in VisionTransformer; there are fc1, fc2, proj, qkv$",
        ),
        (
            "test_vit",
            ["qkv", "patch_embed.proj"],
            "lora_targets: patch_embed.proj is a convolution in VisionTransformer;",
        ),
        ("test_vit", ["head"], "lora_targets: no linear layer 'head'"),
    ],
)
def test_what_cannot_be_adapted(architecture: str, targets: list[str] | None, message: str) -> None:
    network = build_timm_network(architecture, num_classes=5, image_size=32)
    with pytest.raises(ValueError, match=message) as caught:
        adapt(network, targets, 2, 4.0, SHAPE)
    assert len(str(caught.value).splitlines()) == 1
    assert all(parameter.requires_grad for parameter in network.parameters())


class Reads(nn.Module):
    """Reads the weight of `qkv` without calling it, as BEiT does, and uses `fc` in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.fc, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.again = self.fc
        self.pretrained_cfg = {"classifier": "head"}

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.fc(nn.functional.linear(image.mean((2, 3)), self.qkv.weight))
        found: Tensor = self.head(self.again(x))
        return found


def test_a_layer_that_is_not_called_gets_no_adapter() -> None:
    network = Reads()
    with pytest.raises(
        ValueError, match="Reads reads the weight of qkv without calling the layer, so an adapter would"
    ):
        adapt(network, ["qkv"], 2, 4.0, SHAPE)
    adapt(network, None, 2, 4.0, SHAPE)
    assert {*adapted_layers(network)} == {"fc"}
    assert network.again is network.fc, "a layer in two places stays one layer"
    assert network.training
    with_random_adapters(network)
    torch.testing.assert_close(merged(network)(images()), network(images()))
