"""Forms of weights files that other libraries write: the network computes the same as the source's.

fastai is no dependency: its file is laid out by hand, as its `learn.save` does.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lightning_modules import ImageClassifier
from tests.lightning_modules.forms_of_weights import (
    CONVNEXT,
    HF_VIT,
    RESNET,
    SMALL,
    SWIN,
    VIT,
    Form,
    hub_folder_of_timm,
    in_folder,
    in_torch,
    lightning_file,
    logits,
    of_timm,
    of_transformers,
    other,
    prefixed,
    trained,
    tv,
    tv_convnext,
    tv_swin,
    tv_vit,
)  # fmt: skip

FAST: dict[str, Form] = {
    "model_state_dict": (
        VIT,
        of_timm(VIT),
        in_torch(lambda state: {"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {"state": {0: {}}}}),
    ),
    "net, acc, epoch": (
        RESNET,
        of_timm(RESNET),
        in_torch(lambda state: {"net": prefixed("module.")(state), "acc": 91.5, "epoch": 7}),
    ),
    "teacher and student of DINO": (
        VIT,
        of_timm(VIT),
        in_torch(
            lambda state: {
                "student": prefixed("module.backbone.")(other(state)),
                "teacher": {**prefixed("backbone.")(state), "head.mlp.0.weight": torch.zeros(8, 32)},
                "args": argparse.Namespace(arch="vit_tiny"),
            }
        ),
    ),
    "model_ema": (VIT, of_timm(VIT), in_torch(lambda state: {"model": other(state), "model_ema": state})),
    "state_dict_ema of timm": (
        VIT,
        of_timm(VIT),
        in_torch(lambda state: {"arch": "vit", "state_dict": other(state), "state_dict_ema": prefixed("module.")(state)}),
    ),
    "Lightning, pickled settings": (VIT, of_timm(VIT), in_torch(lightning_file)),
    "torchvision ResNet": (RESNET, tv("resnet18"), in_torch(dict)),
    "torchvision ViT": (VIT, tv_vit, in_torch(lambda state: {"model": state, "optimizer": {"state": {}}})),
    "torchvision ConvNeXt, compiled": (CONVNEXT, tv_convnext, in_torch(prefixed("_orig_mod."))),
    "torchvision Swin, in a module": (SWIN, tv_swin, in_torch(lambda state: {"state_dict": prefixed("model.net.")(state)})),
    "torchvision MobileNetV2": (("mobilenetv2_100", {}, 32), tv("mobilenet_v2"), in_torch(dict)),
    "folder of timm": (VIT, of_timm(VIT), hub_folder_of_timm),
}  # fmt: skip
SLOW: dict[str, Form] = {
    "torchvision EfficientNet": (("efficientnet_b0", {}, 32), tv("efficientnet_b0"), in_torch(dict)),
    "torchvision MobileNetV3": (
        ("mobilenetv3_small_100", {"bn_eps": 1e-3}, 32),
        tv("mobilenet_v3_small"),
        in_torch(dict),
    ),
    "torchvision RegNet": (("regnety_004", {}, 32), tv("regnet_y_400mf"), in_torch(dict)),
    "torchvision DenseNet": (("densenet121", {}, 32), tv("densenet121"), in_torch(dict)),
    "transformers ViT": (
        VIT,
        of_transformers("ViT", **HF_VIT, intermediate_size=64, layer_norm_eps=1e-6),
        in_folder,
    ),
    "transformers ViT, state dict in memory": (
        VIT,
        of_transformers("ViT", **HF_VIT, intermediate_size=64, layer_norm_eps=1e-6),
        in_torch(prefixed("module.")),
    ),
    "transformers BEiT": (
        ("beit_base_patch16_224", SMALL, 32),
        of_transformers("Beit", **HF_VIT, intermediate_size=64, layer_norm_eps=1e-6, use_relative_position_bias=True),
        in_folder,
    ),
    "transformers ConvNeXt": (
        CONVNEXT,
        of_transformers("ConvNext", hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], layer_norm_eps=1e-6),
        in_folder,
    ),
    "transformers ResNet": (
        RESNET,
        of_transformers("ResNet", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2] * 4, layer_type="basic"),
        in_folder,
    ),
    "transformers Swin": (
        SWIN,
        of_transformers("Swin", embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 4], image_size=64, window_size=2),
        in_folder,
    ),
    "transformers Swin, in a Lightning module": (
        SWIN,
        of_transformers("Swin", embed_dim=16, depths=[1] * 4, num_heads=[1, 2, 2, 4], image_size=64, window_size=2),
        in_torch(lightning_file),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_network_computes_what_the_source_computes(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (architecture, given, size), build, write = (FAST | SLOW)[name]
    source = trained(build())
    module = ImageClassifier(
        architecture=architecture, network_args=given, num_classes=3, in_channels=3, image_size=size,
        weights=str(write(source, tmp_path)), min_loaded=1.0,
    )  # fmt: skip
    lines = [line for _, line in module.give_weights()]
    assert any("100.0 % of the weights" in line for line in lines), lines
    expected = logits(source, size)
    module.eval()
    torch.testing.assert_close(logits(module.network, size), expected, atol=1e-5, rtol=1e-5)
    assert len(lines) <= 5, "what was taken is said in a few lines"
    if name.startswith(("teacher", "model_ema", "state_dict_ema")):
        assert "is taken of" in caplog.text
    if name.split()[0] in ("torchvision", "transformers") and name.split()[1] not in ("ResNet", "DenseNet", "RegNet"):
        assert any("to timm's names" in line for line in lines)


# ---- fastai, whose body has numbered names ----


def fastai_file(folder: Path) -> tuple[nn.Module, Path]:
    """A file as `learn.save` of fastai's vision_learner writes it: body and head as one `Sequential`, with the optimiser."""
    body = trained(nn.Sequential(*list(tv("resnet18")().children())[:-2]))
    head = nn.Sequential(
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.BatchNorm1d(512), nn.Dropout(), nn.Linear(512, 64, bias=False),
        nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 3, bias=False),
    )  # fmt: skip
    content = {
        "model": nn.Sequential(body, head).state_dict(),
        "opt": {"hypers": [], "state": [{"mom": torch.zeros(3)}]},
    }
    torch.save(content, folder / "fastai.pth")
    return body, folder / "fastai.pth"


def test_fastai_body_is_matched_by_shape_and_order(tmp_path: Path) -> None:
    body, file = fastai_file(tmp_path)
    module = ImageClassifier(architecture="resnet18", num_classes=3, in_channels=3, image_size=32, weights=str(file))
    lines = [line for _, line in module.give_weights()]
    assert any("matched by shape and order" in line for line in lines)
    assert any("missing (2): fc.weight, fc.bias" in line for line in lines), "the head is another one, and said to be"
    network: Any = module.eval().network.double()
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
        body.double()
        torch.testing.assert_close(network.forward_features(images), body(images), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_numbered_names_of_another_network_are_refused(tmp_path: Path) -> None:
    _, file = fastai_file(tmp_path)
    for architecture in ("resnet34", "resnet50"):
        module = ImageClassifier(
            architecture=architecture, num_classes=3, in_channels=3, image_size=32, weights=str(file)
        )
        before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
        with pytest.raises(ValueError, match=r"only 0\.0 % of the network outside its head could be filled") as caught:
            module.give_weights()
        text = str(caught.value)
        assert (
            "nearly no tensor fits: these look like the weights of another architecture; give its name with --model.arch"
            in text
        )
        assert len(text.splitlines()) == 1
        assert len(text.partition("nearly")[2]) < 500, "five lines of names hide the cause"
        assert all(torch.equal(before[name], tensor) for name, tensor in module.network.state_dict().items())


def test_layers_in_another_order_are_not_matched() -> None:
    """Two layers of one shape that the file lists the other way round, by the names that the network has, too."""
    from networks.transfer.published_names import in_order

    network = timm.create_model("resnet18", num_classes=3)
    state = network.state_dict()
    assert in_order(network, {f"0.{name}": tensor for name, tensor in state.items()})
    crossed = {"conv1": "conv2", "conv2": "conv1", "bn1": "bn2", "bn2": "bn1"}
    swapped = {".".join(["0", *(crossed.get(part, part) for part in name.split("."))]): t for name, t in state.items()}
    assert in_order(network, swapped) == {}
    turned = {"weight": "bias", "bias": "weight"}
    kinds = {
        f"0.{n.rpartition('.')[0]}.{turned.get(n.rpartition('.')[2], n.rpartition('.')[2])}": t
        for n, t in state.items()
    }
    assert in_order(network, kinds) == {}
