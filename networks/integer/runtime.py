"""`PackedRuntime`: a ternary ResNet that stays packed in memory, 2 bits a weight, and is computed with integers on the CPU."""

import ctypes
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Literal, Self

import torch
from torch import Tensor, nn

from networks.folding import FoldedLayer, folded_layers
from networks.integer.build import PATHS, KernelError, Path, choose_path, kernel
from networks.integer.plan import Step, build_plan
from networks.packed import read_layers
from networks.packed_header import PackedError, skeleton
from networks.quantizers import Ternary
from networks.resnet import ResNet

LARGEST = 1 << 30
"""Most numbers of an activation of one image."""


class PackedRuntime(nn.Module):
    """Maps normalised images (B, C, H, W), float, on the CPU, to logits (B, K), float32. It cannot be trained.

    It uses as many threads as `torch.get_num_threads()`. The logits of an image do not depend on the other images, on the number of
    threads or on the path. An image with a value that is not finite gets logits of NaN.

    Example::

        runtime = PackedRuntime.read("packed_trits.lvr")
        logits = runtime(images)

    Args:
        network: A ResNet; only its structure is used, so it may be on the meta device.
        layers: All its convolutions and linear layers, folded. Those in full precision are computed in float32.
        path: `amx`, `vnni`, `avx2` or `portable`; `auto` takes the first of them that the processor has.

    Raises:
        PackedError: No layer is ternary, so there is nothing to compute with integers.
        KernelError: There is no C++ compiler, or the processor does not have the path.
    """

    def __init__(
        self, network: ResNet, layers: Mapping[str, FoldedLayer], *, path: Path | Literal["auto"] = "auto"
    ) -> None:
        super().__init__()
        if not any(isinstance(layer.weight, Ternary) for layer in layers.values()):
            raise PackedError("the network has no ternary layer, so there is nothing to compute with integers")
        self.path = choose_path(path)
        self.steps = build_plan(network, layers)
        self.in_channels, self.num_classes = self.steps[0].cin, self.steps[-1].width
        self._handle = _Handle()
        self.eval()

    @classmethod
    def read(cls, file: str | FilePath, *, path: Path | Literal["auto"] = "auto") -> Self:
        """The runtime of a packed file.

        Raises:
            PackedError: The file does not exist, is damaged or is not valid.
            KernelError: See the class.
        """
        description, layers = read_layers(file)
        network = skeleton(description.architecture, description.num_classes, description.in_channels)
        return cls(network, layers, path=path)

    @classmethod
    def of(cls, network: ResNet, *, path: Path | Literal["auto"] = "auto") -> Self:
        """The runtime of a trained network, which is not changed; same as `read` of its packed file.

        Raises:
            PackedError: No layer is ternary.
            ValueError: The network holds values that are not finite.
            KernelError: See the class.
        """
        return cls(network, folded_layers(network), path=path)

    @property
    def resident_bytes(self) -> dict[str, int]:
        """Bytes in memory of the packed `symbols`, of `float` weights, and of `scales`, biases and offsets."""
        sizes = {"symbols": 0, "float": 0, "scales": 0}
        for step in self.steps:
            for name, array in step.arrays.items():
                sizes[{"symbols": "symbols", "weight": "float"}.get(name, "scales")] += array.nbytes
        return sizes

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of normalised images (B, C, H, W).

        Raises:
            ValueError: The images have another shape or are not on the CPU.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels or 0 in images.shape[1:]:
            raise ValueError(f"images must be (B, {self.in_channels}, H, W), got {tuple(images.shape)}")
        if images.device.type != "cpu":
            raise ValueError(f"the packed runtime computes on the CPU, got images on {images.device}")
        count, _, height, width = images.shape
        if (height + 2) * (width + 2) * max(step.cout for step in self.steps) > LARGEST:
            raise ValueError(
                f"images of {height} x {width} pixels are too large for the packed runtime; cut them into tiles"
            )
        images = images.detach().to(torch.float32).contiguous()
        logits = torch.empty(count, self.num_classes)
        if count:
            handle = self._handle.get(self.steps, self.path)
            threads, path = torch.get_num_threads(), PATHS.index(self.path)
            arguments = (count, height, width, logits.data_ptr(), threads, path)
            if kernel().lvr_run(handle, images.data_ptr(), *arguments):
                raise KernelError("the packed runtime: not enough memory")
        return logits

    def extra_repr(self) -> str:
        """Path and size, shown in the printed network."""
        return f"path={self.path}, bytes={sum(self.resident_bytes.values())}"


class _Handle:
    """The network in C++, made when it is first needed: copies and pickles of a runtime make their own."""

    def __init__(self) -> None:
        self._pointer: int | None = None

    def get(self, steps: list[Step], path: Path) -> int:
        if self._pointer is None:
            choose_path(path)  # in another process or on another machine; also asks the system for the tiles of AMX
            library = kernel()
            pointer = library.lvr_new()
            if not pointer:
                raise KernelError("the packed runtime: not enough memory")
            for step in steps:
                library.lvr_add(pointer, ctypes.byref(step.to_c()))
            self._pointer = pointer
        return self._pointer

    def __getstate__(self) -> dict[str, None]:
        return {"_pointer": None}

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None and kernel is not None:
            kernel().lvr_free(self._pointer)
