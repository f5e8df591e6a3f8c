"""networks/grad_cam.py: heat compared with class activation maps and with finite differences; side effects and refusals."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.grad_cam import NoMapError, _as_map, grad_cam, scaled_heat
from networks.mlp_head import MLPHead
from networks.resnet import ResNet, build_resnet
from networks.timm_features import TimmFeatures
from networks.timm_network import build_timm_network

CLASSES = torch.tensor([[0, 2], [1, 1]])
SIZE = (48, 32)


def images(channels: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))


def with_other_norms(network: nn.Module) -> nn.Module:
    """The network in eval mode with weights that are nowhere 0 or 1, so that every part of it counts."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval()


def small_resnet() -> ResNet:
    network = ResNet((4, 8), 1, "padding", num_classes=3, in_channels=2, dropout=0.5)
    with_other_norms(network)
    return network


@pytest.mark.parametrize("activation_bits", [32, 8])
def test_mean_and_linear_layer_give_the_class_activation_map(activation_bits: Any) -> None:
    settings: dict[str, Any] = {"num_classes": 3, "in_channels": 2, "activation_bits": activation_bits}
    network = with_other_norms(build_resnet("resnet20", **settings)) if activation_bits == 8 else small_resnet()
    assert isinstance(network, ResNet)
    given = images(2, (12, 8))
    found = grad_cam(network, given, CLASSES)
    with torch.no_grad():
        maps = network.forward_features(given)
    weights = network.classifier.weight.detach()[CLASSES] / maps[0, 0].numel()  # (B, n, D)
    expected = (weights[..., None, None] * maps[:, None]).sum(dim=2).relu()
    assert expected.any()
    torch.testing.assert_close(found, expected)


def by_differences(run: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """Heat (B, n, N) of maps (B, N, D) in float64: every channel is raised and lowered at all places at once."""
    slopes = []
    for k in range(maps.shape[2]):
        step = F.one_hot(torch.tensor(k), maps.shape[2]) * 1e-5
        change = (run(maps + step) - run(maps - step)) / 2e-5  # the sum over the places of dy / dA_k
        slopes.append(change.gather(1, CLASSES) / maps.shape[1])
    return torch.einsum("knb,bpk->bnp", torch.stack([one.T for one in slopes]), maps).relu()


def heads(kind: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], Tensor]:
    """A network in float64, the logits as a function of its map (B, N, D), and that map."""
    settings: dict[str, Any] = {"num_classes": 3, "image_size": SIZE}
    if kind == "avg tokens":
        settings["network_args"] = {"global_pool": "avg"}
    name = "test_mambaout" if kind == "last axis" else "test_vit"
    network: Any = with_other_norms(build_timm_network(name, **settings)).double()
    given = images().double()
    with torch.no_grad():
        features = network.forward_features(given)
    if kind == "last axis":
        return network, lambda maps: network.forward_head(maps.view(features.shape)), features.flatten(1, 2)
    if kind == "avg tokens":
        return network, lambda maps: network.forward_head(torch.cat([features[:, :1], maps], 1)), features[:, 1:]
    kept: list[Tensor] = []
    hook = network.blocks[-1].register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        network(given)
    hook.remove()

    def last_block(maps: Tensor) -> Tensor:
        tokens: Tensor = network.norm(network.blocks[-1](torch.cat([kept[0][:, :1], maps], 1)))
        logits: Tensor = network.head(tokens[:, 0])
        return logits

    return network, last_block, kept[0][:, 1:]


@pytest.mark.parametrize("kind", ["last axis", "avg tokens", "class token"])
def test_heat_equals_finite_differences(kind: str) -> None:
    network, run, maps = heads(kind)
    with torch.no_grad():
        expected = by_differences(run, maps)
    found = grad_cam(network, images().double(), CLASSES)
    assert found.shape[2:] == ((2, 1) if kind == "last axis" else (3, 2))  # in the proportions of the image
    assert expected.any()
    torch.testing.assert_close(found.flatten(2).double(), expected, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_nothing_changes_and_frozen_weights_and_inference_mode_work() -> None:
    network = small_resnet()
    expected = grad_cam(network, images(2, (12, 8)), CLASSES)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert all(parameter.requires_grad for parameter in network.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(network, images(2, (12, 8)), CLASSES.clone()), expected)
    network.requires_grad_(False)
    with torch.no_grad():
        found = grad_cam(network, images(2, (12, 8)), CLASSES)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_scaled_heat() -> None:
    heat = torch.tensor([[[[0.0, 2.0]], [[0.0, 0.0]]]])
    found = scaled_heat(heat, (2, 4))
    assert found[0, 0].tolist() == [[0, 0.25, 0.75, 1]] * 2
    assert not found[0, 1].any()


class Answers(nn.Module):
    """A network whose final features are what it was given."""

    def __init__(self, features: Any) -> None:
        super().__init__()
        self.features = features

    def forward_features(self, given: Tensor) -> Any:
        return self.features

    def forward_head(self, features: Tensor) -> Tensor:
        return features.flatten(1)


def inner() -> nn.Module:
    features = TimmFeatures(build_timm_network("test_vit", num_classes=0, image_size=32), [0, 1], "avg", "test_vit")
    return nn.Sequential(features, MLPHead(128, 3, [], 0.0, 0))


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: nn.Linear(1, 1), "Linear has no forward_features and forward_head, so no map of the image"),
    (
        lambda: Answers([torch.ones(2, 4, 3)] * 2),
        "the final features of Answers are a list, not one map of the image",
    ),
    (lambda: Answers(torch.ones(2, 4)), r"are a tensor of shape \(2, 4\), not one map of the image"),
    (lambda: Answers(torch.ones(2, 5, 3)), "the 5 tokens of Answers are no grid of an image of 48 x 32"),
    (lambda: Answers(torch.ones(2, 3, 1, 1)), "the last map of Answers is one pixel at images of 48 x 32"),
    (inner, r"the head reads the layers \[0, 1\]; heat is of the final features, \[-1\]"),
]


@pytest.mark.parametrize(("network", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_networks_without_a_map_are_refused(network: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(NoMapError, match=message) as caught:
        grad_cam(network().eval(), images(), CLASSES)
    assert "\n" not in str(caught.value)


def test_blocks_with_their_channels_last_give_a_map_of_the_image() -> None:
    body: Any = nn.Identity()
    body.num_features = 5  # as VOLO, whose blocks work on (B, H, W, C) and whose body has no output_fmt
    features = torch.randn(1, 2, 3, 5)
    assert torch.equal(_as_map(body, features, (32, 48), 0), features.permute(0, 3, 1, 2))
    planes = torch.randn(1, 5, 2, 3)
    assert torch.equal(_as_map(body, planes, (32, 48), 0), planes)
