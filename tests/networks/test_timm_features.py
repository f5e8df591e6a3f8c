"""Tests of the poolings of timm networks: family by family against an independent statement, refusals, names, the first form."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from benchmarks.timm_families import _shake_finite, check_network, family, features_of, members
from networks.frozen_backbone import FrozenBackbone
from networks.signal_encoder import build_encoder
from networks.timm_features import TimmFeatures, refused_size

TOKEN = {"depth": 2, "embed_dim": 48, "num_heads": 3}
SMALL: dict[str, dict[str, Any]] = {
    "test_convnext": {},
    "beit_base_patch16_224": TOKEN,
    "pit_ti_224": {"base_dims": (8, 8, 8), "depth": (1, 1, 1), "heads": (2, 4, 8)},
    "tiny_vit_5m_224": {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
    "davit_tiny": {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
    "cait_xxs24_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    # the last norm lies before the pooling under another name, in a neck, or after the pooling and without parameters
    "convnext_tiny_hnf": {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)},
    "samvit_base_patch16_224": TOKEN,
    "qwen3_vit_88m": {**TOKEN, "num_heads": 4, "embed_dim": 64},
    "gemma4_vit_167m": {"depth": 1, "embed_dim": 48, "num_heads": 3, "head_dim": 16, "intermediate_size": 64},
}
"""A few families in small; all of them are in the slow tests."""
IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_small_members_of_families(name: str) -> None:
    row = features_of(name, 64, SMALL[name])
    assert row["inner"].endswith("layers")
    assert row["native"].isdigit()


class Exploding(torch.nn.Module):
    """Gives e^(100000 times the mean of its weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(20, 20))

    def forward_features(self, image: Tensor) -> Tensor:
        return (1e5 * self.weight.mean()).exp() * image


def test_the_sweep_compares_finite_features() -> None:
    network = Exploding()
    _shake_finite(network, IMAGE)  # noise of mean 0.005 gives e^500, a tenth of it e^50
    assert network.weight.detach().mean().item() == pytest.approx(5e-4, rel=0.1)
    assert network.forward_features(IMAGE).isfinite().all()


def test_line_of_an_error_without_words_and_of_other_channels() -> None:
    line = (
        "image_size: x cannot take images of 8 x 8 pixels and 2 channels (AssertionError); take the size that timm gives "
        "for it, or another architecture"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"), refused_size("x", 8, 2):
        raise AssertionError


def drawn() -> list[str]:
    """A tenth of the members, the same in every run of the tests; `LVR_TIMM=1` takes all, which need 40 minutes and 24 GB."""
    names = [name for name in members() if "gigantic" not in name]
    return names if "LVR_TIMM" in os.environ else sorted(random.Random(0).sample(names, len(names) // 10))


@pytest.mark.slow
@pytest.mark.parametrize("name", drawn())
def test_smallest_member_of_every_kind(name: str) -> None:
    check_network(name)  # raises where something is wrong without a word


def test_members_of_every_family_that_timm_lists() -> None:
    assert {family(name) for name in timm.list_models()} == {family(name) for name in members()}


def mean_with(network: Any) -> Tensor:
    """The mean after the norm of the head, by hand."""
    mean = network.forward_features(IMAGE).mean((2, 3))
    norm = network.head.norm
    return torch.nn.functional.layer_norm(mean, mean.shape[1:], norm.weight, norm.bias, norm.eps)


def test_avg_of_convnext_is_after_the_norm_in_its_head() -> None:
    backbone = FrozenBackbone("test_convnext", image_size=64, pooling="avg")
    features = backbone(IMAGE)
    torch.testing.assert_close(features, mean_with(backbone.features.network))
    assert features.std(dim=1).min() > 0.9


def test_class_token_is_put_through_its_own_norm_only() -> None:
    backbone = FrozenBackbone("beit_base_patch16_224", TOKEN, 64)
    assert (backbone.features.pooling, backbone.pooling) == ("native", "native")  # the norm is for the mean
    cls = FrozenBackbone("beit_base_patch16_224", TOKEN, 64, pooling="cls")
    tokens = cls.features.network.forward_features(IMAGE)  # type: ignore[operator]
    assert torch.equal(cls(IMAGE), tokens[:, 0])
    assert cls.pooling == "cls (2)"
    assert FrozenBackbone("vit_tiny_patch16_224", TOKEN, 64).pooling == "cls"


def test_networks_without_classes_that_lose_the_name_of_their_classifier() -> None:
    for name in ("levit_128s", "efficientvit_m0"):
        with torch.device("meta"):
            assert build_encoder(name, in_channels=2, image_size=64)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pit_ti_224", {"pooling": "avg"}, "only its class token; give cls, or avg with layers [2]"),
        (
            "cait_xxs24_224",
            {"pooling": "cls", "layers": (0,)},
            "pooling: timm gives no class token of the inner layers of",
        ),
        ("crossvit_tiny_240", {"image_size": 64}, "image_size: crossvit_tiny_240 cannot take images of 64 x 64 pixels"),
    ],
)
def test_refusals_say_what_works(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        FrozenBackbone(name, SMALL.get(name), **{"image_size": 64, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_head_of_the_first_form_keeps_it(tmp_path: Path) -> None:
    first = build_encoder("test_convnext", in_channels=3, image_size=64, pooling="avg")
    assert isinstance(first, TimmFeatures)
    state = first.state_dict()
    now = first.eval()(IMAGE)
    state._metadata[""]["version"] = 1  # type: ignore[attr-defined]
    again = build_encoder("test_convnext", in_channels=3, image_size=64, pooling="avg")
    again.load_state_dict(state)
    before = again.eval()(IMAGE)
    torch.testing.assert_close(before, first.network.forward_features(IMAGE).mean((2, 3)))  # type: ignore[operator]
    assert not torch.allclose(before, now)
    assert [str(one.recorded) for one in (again, first)] == ["avg", "avg (2)"]
    file = tmp_path / "resumed.ckpt"  # of a run that was resumed
    torch.save({"state_dict": again.state_dict()}, file)
    third = build_encoder("test_convnext", in_channels=3, image_size=64, pooling="avg")
    third.load_state_dict(torch.load(file, weights_only=True)["state_dict"])
    assert torch.equal(third.eval()(IMAGE), before)
