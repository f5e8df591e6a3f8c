"""Networks and files of other libraries, for the tests of weights; the files are made by the libraries themselves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

SMALL: dict[str, Any] = {"depth": 2, "num_heads": 2, "embed_dim": 32, "mlp_ratio": 2, "patch_size": 8}
VIT = ("vit_tiny_patch16_224", SMALL, 32)
CONVNEXT = ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}, 32)
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    64,
)
RESNET: tuple[str, dict[str, Any], int] = ("resnet18", {}, 32)
Form = tuple[tuple[str, dict[str, Any], int], Callable[[], nn.Module], Callable[[nn.Module, Path], Path]]


def trained(source: nn.Module) -> nn.Module:
    """The module with other values than any initialisation gives, in eval mode."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in source.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * 0.1)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return source.eval()


def logits(source: nn.Module, size: int) -> Tensor:
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        found = source.double()(images)
    return found if isinstance(found, Tensor) else found.logits


def in_torch(content: Callable[[dict[str, Tensor]], Any]) -> Callable[[nn.Module, Path], Path]:
    def write(source: nn.Module, folder: Path) -> Path:
        torch.save(content(source.state_dict()), folder / "weights.pth")
        return folder / "weights.pth"

    return write


def in_folder(source: nn.Module, folder: Path) -> Path:
    source.save_pretrained(folder)  # type: ignore[operator]
    return folder


def hub_folder_of_timm(source: nn.Module, folder: Path) -> Path:
    from timm.models import save_for_hf

    save_for_hf(source, str(folder), safe_serialization=True, model_config={"label_names": ["a", "b", "c"]})
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors"}
    return folder


def tv_vit() -> nn.Module:
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
    network: nn.Module = VisionTransformer(**sizes, num_classes=3)
    return network


def tv_convnext() -> nn.Module:
    sides = (8, 16, 32, 64)
    blocks = [CNBlockConfig(side, after, 1) for side, after in zip(sides, (*sides[1:], None), strict=True)]
    network: nn.Module = ConvNeXt(blocks, num_classes=3)
    return network


def tv_swin() -> nn.Module:
    network: nn.Module = SwinTransformer([4, 4], 16, [1, 1, 1, 1], [1, 2, 2, 4], [2, 2], num_classes=3)
    return network


def tv(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, num_classes=3)


def of_timm(form: tuple[str, dict[str, Any], int]) -> Callable[[], nn.Module]:
    sizes: dict[str, Any] = {"img_size": form[2]} if form[0].startswith(("vit", "swin")) else {}
    return lambda: timm.create_model(form[0], num_classes=3, **form[1], **sizes)


def of_transformers(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{kind}Config")(**settings, num_labels=3)
        network: nn.Module = getattr(transformers, f"{kind}ForImageClassification")(config)
        return network

    return build


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def lightning_file(state: dict[str, Tensor]) -> dict[str, Any]:
    settings = {"out": Path("runs"), "args": argparse.Namespace(lr=0.1)}
    states = {"state_dict": prefixed("backbone.")(state), "hyper_parameters": settings}
    return {**states, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}], "epoch": 4}


HF_VIT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
}  # fmt: skip
