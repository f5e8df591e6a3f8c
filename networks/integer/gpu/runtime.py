"""`PackedGpuRuntime`: a ternary ResNet that stays packed in GPU memory, 2 bits a weight, and is computed by Triton kernels."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Self, cast, get_args

import torch
from torch import Tensor, nn

from networks.folding import FoldedLayer, folded_layers
from networks.integer.gpu.layers import (
    Activation,
    FloatLayer,
    PackedLayer,
    Residual,
    interpreted,
    kernels,
    pool,
    quantise,
)
from networks.packed import read_layers
from networks.packed_header import PackedError, skeleton
from networks.quantizers import Ternary
from networks.resnet import BasicBlock, PaddingShortcut, ResNet

Activations = Literal["int8", "bf16"]
LARGEST = 1 << 30
"""Most numbers of an activation; larger batches are computed in parts."""


class PackedGpuRuntime(nn.Module):
    """Maps normalised images (B, C, H, W), float, on a CUDA GPU, to logits (B, K), float32. It cannot be trained.

    With int8 activations the logits equal those of `PackedRuntime` on a CPU bit for bit, and those of an image do not depend on the
    other images. An image with a value that is not finite gets logits of NaN.

    Example:
        runtime = PackedGpuRuntime.of(network).cuda()
        logits = runtime(images.cuda())

    Args:
        network: A ResNet; only its structure is used, so it may be on the meta device.
        layers: All its convolutions and linear layers, folded. Those in full precision are computed in float32.
        activations: `int8` rounds the input of each ternary layer to 8 bits, with a step for each image; `bf16` keeps bfloat16.

    Raises:
        PackedError: No layer is ternary, or `bf16` is asked of a network that was trained with 8-bit activations.
        ValueError: `activations` has another value.
        KernelError: Triton is not installed.
    """

    def __init__(
        self, network: ResNet, layers: Mapping[str, FoldedLayer], *, activations: Activations = "int8"
    ) -> None:
        super().__init__()
        if activations not in get_args(Activations):
            raise ValueError(f"activations must be one of int8, bf16, got {activations!r}")
        ternary = [layer for layer in layers.values() if isinstance(layer.weight, Ternary)]
        if not ternary:
            raise PackedError("the network has no ternary layer, so there is nothing to compute from packed weights")
        if activations == "bf16" and any(layer.int8_input for layer in ternary):
            raise PackedError("activations bf16: the network was trained with 8-bit activations; use int8")
        kernels()
        self.activations = activations
        self.in_channels = cast(nn.Conv2d, network.stem.conv).in_channels
        self.num_classes = network.classifier.out_features
        self.stem = _layer(layers["stem.conv"], cast(nn.Conv2d, network.stem.conv))
        self.blocks = nn.ModuleList(
            _Block(cast(BasicBlock, block), f"stages.{number}.{index}", layers)
            for number, stage in enumerate(network.stages)
            for index, block in enumerate(cast(nn.Sequential, stage))
        )
        self.classifier = _layer(layers["classifier"], None)
        self.eval()

    @classmethod
    def of(cls, network: ResNet, *, activations: Activations = "int8") -> Self:
        """The runtime of a trained network, which is not changed; on the CPU, to be moved to a GPU.

        Raises:
            PackedError: See the class.
            ValueError: The network holds values that are not finite.
        """
        return cls(network, folded_layers(network), activations=activations)

    @classmethod
    def read(cls, file: str | Path, *, activations: Activations = "int8") -> Self:
        """The runtime of a packed file; on the CPU, to be moved to a GPU.

        Raises:
            PackedError: The file does not exist, is damaged or is not valid; or see the class.
        """
        description, layers = read_layers(file)
        network = skeleton(description.architecture, description.num_classes, description.in_channels)
        return cls(network, layers, activations=activations)

    @property
    def resident_bytes(self) -> dict[str, int]:
        """Bytes in memory of the packed `symbols`, of `float` weights, and of `scales`, biases and sums."""
        sizes = {"symbols": 0, "float": 0, "scales": 0}
        for name, tensor in self.named_buffers():
            sizes[{"codes": "symbols", "weight": "float"}.get(name.rpartition(".")[2], "scales")] += tensor.nbytes
        return sizes

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W).

        Raises:
            ValueError: The images have another shape or are on another device.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape[1:]:
            raise ValueError(f"images must be (B, {self.in_channels}, H, W), got {tuple(images.shape)}")
        device = self.classifier.bias.device
        if images.device != device:
            raise ValueError(f"the images are on {images.device}, the packed runtime on {device}")
        if device.type != "cuda" and not interpreted():
            raise ValueError("the packed runtime of a GPU computes on CUDA; move it and the images there with .cuda()")
        each = images.shape[2] * images.shape[3] * max(self.in_channels, self.stem.out_channels)
        if each > LARGEST:
            size = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images of {size} pixels are too large for the packed runtime; cut them into tiles")
        if not len(images):
            return torch.empty(0, self.num_classes, device=device)
        with torch.cuda.device_of(images):  # Triton launches on the current device
            return torch.cat([self._logits(part) for part in images.split(max(1, LARGEST // each))])

    def _logits(self, images: Tensor) -> Tensor:
        finite = images.isfinite().flatten(1).all(1)
        kept = torch.where(finite.view(-1, 1, 1, 1), images.float(), 0.0).permute(0, 2, 3, 1).contiguous()
        x = Activation(kept, kept.abs().amax((1, 2, 3)))
        dtype = torch.float32 if self.activations == "int8" else torch.bfloat16
        # the largest values of each rounded activation: of the stem and twice in each block
        notes = iter(torch.zeros(1 + 2 * len(self.blocks), len(images), device=images.device).unbind())
        x = self._run(self.stem, x, relu=True, signed=True, dtype=dtype, largest=next(notes))
        for block in self.blocks:
            x = self._block(cast(_Block, block), x, dtype, notes)
        logits = self._run(self.classifier, pool(x)).values[:, 0, 0]
        return torch.where(finite[:, None], logits, torch.nan)

    def _block(self, block: "_Block", x: Activation, dtype: torch.dtype, notes: Iterator[Tensor]) -> Activation:
        levels = self._levels(block.conv1)
        rounded = quantise(x, levels) if levels else x
        if block.shortcut is None:
            residual = Residual(x.values, block.stride, block.front)
        else:
            same = self._levels(block.shortcut) == levels
            residual = Residual(self._run(block.shortcut, rounded if same else x, dtype=dtype).values)
        inner = self._run(block.conv1, rounded, relu=True, dtype=dtype, largest=next(notes))
        return self._run(block.conv2, inner, relu=True, residual=residual, dtype=dtype, largest=next(notes))

    def _levels(self, layer: nn.Module, signed: bool = False) -> int:
        if self.activations != "int8" or not isinstance(layer, PackedLayer):
            return 0
        return 127 if signed or layer.int8_input else 255

    def _run(
        self,
        layer: PackedLayer | FloatLayer,
        x: Activation,
        *,
        relu: bool = False,
        signed: bool = False,
        residual: Residual | None = None,
        dtype: torch.dtype = torch.float32,
        largest: Tensor | None = None,
    ) -> Activation:
        levels = self._levels(layer, signed)
        if levels and not x.levels:
            x = quantise(x, levels)
        return cast(Activation, layer(x, relu=relu, residual=residual, dtype=dtype, largest=largest))

    def extra_repr(self) -> str:
        """Activations and size, shown in the printed network."""
        return f"activations={self.activations}, bytes={sum(self.resident_bytes.values())}"


class _Block(nn.Module):
    """The layers of a residual block."""

    def __init__(self, block: BasicBlock, name: str, layers: Mapping[str, FoldedLayer]) -> None:
        super().__init__()
        self.conv1 = _layer(layers[f"{name}.conv1"], block.conv1)
        self.conv2 = _layer(layers[f"{name}.conv2"], block.conv2)
        self.shortcut: PackedLayer | FloatLayer | None = None
        self.stride, self.front = 1, 0
        if isinstance(block.shortcut, nn.Sequential):
            self.shortcut = _layer(layers[f"{name}.shortcut.conv"], cast(nn.Conv2d, block.shortcut.conv))
        elif isinstance(block.shortcut, PaddingShortcut):
            self.stride, self.front = block.shortcut.stride, block.shortcut.new_channels // 2


def _layer(folded: FoldedLayer, conv: nn.Conv2d | None) -> PackedLayer | FloatLayer:
    place = (conv.stride[0], int(conv.padding[0])) if conv is not None else (1, 0)
    return (PackedLayer if isinstance(folded.weight, Ternary) else FloatLayer)(folded, *place)
