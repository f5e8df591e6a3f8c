"""Tests of networks/transfer/: which tensors are loaded, the report, the head by class names, error messages."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from networks.timm_network import build_timm_network
from networks.transfer import percent, transfer

MOBILENET = Path(__file__).resolve().parents[3] / "shared/data/weights/mobilenetv2_100_same_imagenet_fp16.safetensors"


def network(num_classes: int = 5, seed: int = 1, name: str = "test_resnet", **settings: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build_timm_network(name, **{"num_classes": num_classes, "image_size": 64, **settings})


def weights(num_classes: int = 5, **settings: Any) -> dict[str, Tensor]:
    return network(num_classes, seed=2, **settings).state_dict()


def test_all_tensors_fit() -> None:
    tensors, target = weights(), network()
    report = transfer(target, tensors)
    assert all(torch.equal(value, tensors[name]) for name, value in target.state_dict().items())
    assert report.lines() == [
        f"{len(tensors)} of {len(tensors)} tensors loaded (100.0 % of the weights)",
        "head: loaded unchanged, as class names are not known for both the weights and this run",
    ]
    assert (report.share, report.backbone_share) == (1.0, 1.0)


def test_half_precision_is_converted_and_the_memory_format_kept() -> None:
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in weights().items()}
    target = network().to(memory_format=torch.channels_last)
    transfer(target, tensors)
    for name, value in target.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64)
        torch.testing.assert_close(value, tensors[name].to(value.dtype), atol=0, rtol=0)
    assert target.get_parameter("conv1.0.weight").is_contiguous(memory_format=torch.channels_last)


def test_report_of_missing_unfitting_and_unused_tensors() -> None:
    tensors, target = weights(num_classes=7), network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    missing = [name for name in tensors if name.startswith("layer1.") and not name.endswith("num_batches_tracked")]
    for name in missing:
        del tensors[name]
    tensors["layer2.0.conv1.weight"] = torch.zeros(3, 2, 1, 1)
    tensors["extra"] = torch.zeros(1)
    report = transfer(target, tensors)
    shape = tuple(before["layer2.0.conv1.weight"].shape)
    width = before["fc.weight"].shape[1]
    count, lacking = len(before), len(missing) + 3
    lost = sum(before[name].numel() for name in [*missing, "layer2.0.conv1.weight", "fc.weight", "fc.bias"])
    total = sum(value.numel() for value in before.values())
    assert report.share == pytest.approx((total - lost) / total, abs=1e-12)
    assert report.backbone_share == pytest.approx(
        (total - lost) / (total - before["fc.weight"].numel() - before["fc.bias"].numel()), abs=1e-12
    )
    assert report.lines() == [
        f"{count - lacking} of {count} tensors loaded ({percent(report.share)} of the weights)",
        f"missing ({len(missing)}): {', '.join(missing[:5])}, ...",
        f"not fitting (3): layer2.0.conv1.weight (3, 2, 1, 1) there, {shape} here, fc.weight (7, {width}) there, "
        f"(5, {width}) here, fc.bias (7,) there, (5,) here",
        "unused (1): extra",
    ]
    after = target.state_dict()
    assert not after["fc.weight"].any()
    assert not after["fc.bias"].any()
    for name in [*missing, "layer2.0.conv1.weight"]:
        assert torch.equal(after[name], before[name])
    assert torch.equal(after["layer3.0.conv1.weight"], tensors["layer3.0.conv1.weight"])


def test_missing_batch_norm_counters_are_not_reported() -> None:
    tensors = {name: value for name, value in weights().items() if not name.endswith("num_batches_tracked")}
    report = transfer(network(), tensors)
    assert report.missing == []
    assert (len(report.loaded), report.total, report.share) == (len(tensors), len(tensors), 1.0)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_rows_of_the_head_are_matched_by_class_name(name: str) -> None:
    tensors, target = weights(3, name=name), network(5, name=name)
    key = "fc" if name == "test_resnet" else "head.fc"
    before = {part: target.state_dict()[f"{key}.{part}"].clone() for part in ("weight", "bias")}
    report = transfer(target, tensors, source_classes=["c", "a", "x"], classes=["a", "b", "c", "d", "e"])
    for part in ("weight", "bias"):
        there, after = tensors[f"{key}.{part}"], target.state_dict()[f"{key}.{part}"]
        new = torch.zeros_like(there[0])
        expected = torch.stack([there[1], new, there[0], new, new])
        assert torch.equal(after, expected)
    assert report.notes == ["head: 2 of 5 classes loaded by name (a, c); new: b, d, e"]
    assert report.unfitting == {}
    assert set(target.state_dict()) - set(report.loaded) == {f"{key}.weight", f"{key}.bias"}
    total = sum(value.numel() for value in target.state_dict().values())
    head = before["weight"].numel() + before["bias"].numel()
    assert report.share == pytest.approx((total - head + head * 2 / 5) / total, abs=1e-12)


def test_rows_of_the_same_classes_in_another_order() -> None:
    tensors, target = weights(3), network(3)
    report = transfer(target, tensors, source_classes=["a", "b", "c"], classes=["c", "a", "b"])
    assert torch.equal(target.state_dict()["fc.weight"], tensors["fc.weight"][[2, 0, 1]])
    assert report.notes == ["head: 3 of 3 classes loaded by name (c, a, b)"]
    assert report.share == 1.0
    assert len(report.loaded) == report.total


def test_no_class_in_common() -> None:
    tensors, target = weights(3), network(3)
    report = transfer(target, tensors, source_classes=["a", "b", "c"], classes=["d", "e", "f"])
    assert target.state_dict()["fc.weight"].eq(0).all()
    assert report.notes == ["head: starts from scratch, no class of the weights is a class of this run"]
    assert report.backbone_share == 1.0


def test_too_few_weights_raise_and_load_nothing() -> None:
    tensors = {name: value for name, value in weights().items() if name.startswith(("conv1", "layer1", "fc"))}
    target = network()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    kept = [n for n in before if not n.endswith("num_batches_tracked") or n in tensors]
    rest = sum(before[name].numel() for name in kept if not name.startswith("fc"))
    share = sum(value.numel() for name, value in tensors.items() if not name.startswith("fc")) / rest
    message = (
        rf"only {percent(share)} of the network outside its head could be filled, and min_loaded requires 50.0 %; missing "
        r"\(\d+\): bn1.weight, bn1.bias, .*, \.\.\.; the weights hold conv1.0.weight"
    )
    with pytest.raises(ValueError, match=message):
        transfer(target, tensors, min_loaded=0.5)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    transfer(target, tensors, min_loaded=share - 1e-6)


def test_a_frozen_network_accepts_no_missing_tensor() -> None:
    tensors, target = weights(), network()
    del tensors["layer1.0.bn1.weight"]
    message = (
        r"and a frozen backbone needs all of it; missing \(1\): layer1.0.bn1.weight; the weights hold conv1.0.weight"
    )
    with pytest.raises(ValueError, match=message):
        transfer(target, tensors, frozen=True)
    report = transfer(target, tensors, min_loaded=0.9)
    assert report.levels()[-1] == (
        logging.WARNING,
        "outside the head not all is loaded, the rest starts at random: missing (1): layer1.0.bn1.weight",
    )


def meta_names(tensors: dict[str, Tensor], bias: float) -> dict[str, Tensor]:
    """Names of Meta's release of DINOv3; its attention has a bias that the distilled networks do not use."""
    named = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    found = {}
    for name, tensor in tensors.items():
        for ours, theirs in named.items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    for block in range(2):
        found[f"blocks.{block}.attn.qkv.bias"] = torch.full((144,), bias)
        found[f"blocks.{block}.attn.qkv.bias_mask"] = torch.ones(144)
    return {**found, "mask_token": torch.ones(1, 48), "rope_embed.periods": torch.rand(4)}


@pytest.mark.slow
def test_names_of_the_original_release_fit_by_timms_own_conversion(capsys: pytest.CaptureFixture[str]) -> None:
    tiny: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    name = "vit_small_patch16_dinov3"
    tensors = {key: tensor + 0.1 for key, tensor in network(0, 2, name, network_args=tiny).state_dict().items()}
    target = network(0, 1, name, network_args=tiny)
    report = transfer(target, meta_names(tensors, 0.0), frozen=True)
    assert report.lines()[0] == f"{len(tensors)} of {len(tensors)} tensors loaded (100.0 % of the weights)"
    assert report.notes == ["5 tensors fit after timm's own conversion for Eva"]
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in target.state_dict().items())
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"bias other than 0 where the network has none \(2\): blocks.0.attn.qkv.bias"):
        transfer(target, meta_names(tensors, 0.1), frozen=True)
    with_bias = network(0, 1, f"{name}_qkvb", network_args=tiny)
    assert transfer(with_bias, meta_names(tensors, 0.1), frozen=True).share == 1


def test_error_for_other_channels() -> None:
    with pytest.raises(
        ValueError, match=r"conv1.0, the first layer, is for images of 2 channels in the weights and of 3 in this run"
    ):
        transfer(network(), weights(in_channels=2))


@pytest.mark.parametrize(("channels", "how"), [(1, "summed"), (5, "repeated in turn and scaled by 3/5")])
def test_three_channels_are_adapted_and_it_is_said(channels: int, how: str) -> None:
    target, tensors = network(in_channels=channels), weights()
    report = transfer(target, tensors, frozen=True)
    line = f"conv1.0.weight: its 3 input channels were {how} for the {channels} of this run, as timm does"
    assert line in report.notes
    there, here = tensors["conv1.0.weight"], target.state_dict()["conv1.0.weight"]
    wanted = there.sum(1, keepdim=True) if channels == 1 else there[:, [0, 1, 2, 0, 1]] * 3 / 5
    torch.testing.assert_close(here, wanted)


def test_positions_of_another_grid() -> None:
    tensors, target = weights(name="test_vit", image_size=96), network(name="test_vit")
    report = transfer(target, tensors)
    assert report.notes[0] == "pos_embed: resampled from 37 to 17 positions"
    assert report.share == 1.0
    torch.testing.assert_close(target.state_dict()["pos_embed"][:, 0], tensors["pos_embed"][:, 0])


@pytest.mark.skipif(not MOBILENET.is_file(), reason=f"{MOBILENET} does not exist")
def test_real_weights_of_mobilenet() -> None:
    target = network(name="mobilenetv2_100", network_args={"pad_type": "same"})
    tensors = load_file(MOBILENET)
    report = transfer(target, tensors, min_loaded=1.0)
    assert report.lines()[0] == "312 of 314 tensors loaded (99.7 % of the weights)"
    assert set(report.unfitting) == {"classifier.weight", "classifier.bias"}
    assert not report.missing
    assert not report.unused
    state = target.state_dict()
    for name in report.loaded:
        assert torch.equal(state[name], tensors[name].to(state[name].dtype))


def test_shares_are_rounded_down() -> None:
    assert [percent(share) for share in (0.0, 0.5, 0.99999, 1.0)] == ["0.0 %", "50.0 %", "99.9 %", "100.0 %"]
