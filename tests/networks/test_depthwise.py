"""Strided depthwise convolutions in float32 under bf16 autocast: values, dtypes, names, copies and the compiled graph."""

import copy

import timm
import torch
from torch import nn

from networks.depthwise import keep_in_float32
from networks.segmenters.light import LightSegmenter
from networks.timm_network import build_timm_network


def networks(stride: int = 2) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, 3, stride=stride, groups=6)
    kept = copy.deepcopy(plain)
    assert keep_in_float32(kept) == (stride > 1)
    return plain, kept


def test_under_autocast_it_computes_in_float32_and_gives_the_dtype_of_its_input() -> None:
    plain, kept = networks()
    x = torch.randn(2, 6, 9, 9).bfloat16()
    expected = plain(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded, result = plain(x), kept(x)
        of_float = kept(x.float())
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected.bfloat16())
    assert torch.equal(of_float, expected)
    # the plain one also rounds its weights, which is what the test would not see if autocast were still on
    assert not torch.equal(rounded, result)


def test_gradients_are_those_of_float32() -> None:
    plain, kept = networks()
    x = torch.randn(2, 6, 9, 9)
    plain(x).square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        kept(x).square().sum().backward()
    gradient = plain.weight.grad
    assert gradient is not None
    assert kept.weight.grad is not None
    assert torch.equal(kept.weight.grad, gradient)


def test_without_autocast_nothing_changes() -> None:
    plain, kept = networks()
    x = torch.randn(2, 6, 9, 9)
    assert torch.equal(kept(x), plain(x))
    assert [*kept.state_dict()] == [*plain.state_dict()]


def test_a_stride_of_1_and_full_convolutions_stay() -> None:
    _, kept = networks(stride=1)
    assert "forward" not in vars(kept)
    assert keep_in_float32(nn.Conv2d(6, 6, 3, stride=2)) == 0
    assert keep_in_float32(nn.Conv2d(6, 6, 3, stride=2, groups=2)) == 0  # wider groups, as in a ResNeXt


def test_a_copy_computes_with_its_own_weights() -> None:
    _, kept = networks()
    x = torch.randn(1, 6, 9, 9)
    copied = copy.deepcopy(kept)
    with torch.no_grad():
        copied.weight.zero_()
    assert torch.equal(copied(x), copied.bias.view(1, -1, 1, 1).expand_as(kept(x)))  # type: ignore[union-attr]
    assert not torch.equal(kept(x), copied(x))


def test_networks_of_timm_have_it() -> None:
    count = keep_in_float32(timm.create_model("mobilenetv2_100"))
    assert count == 4
    classifier = build_timm_network("mobilenetv2_100", num_classes=5, in_channels=3)
    segmenter = LightSegmenter("mobilenetv2_100", network_args={"pad_type": "same"})
    for network in (classifier, segmenter):
        assert sum("forward" in vars(module) for module in network.modules()) == count
