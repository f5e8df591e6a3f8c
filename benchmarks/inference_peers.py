"""The contenders of benchmarks/ternary_inference.py: one line in `CONTENDERS` each, and the functions that make them.

A contender is made from a `Task` (network, fp32 file, int8 file, number of threads) and maps images in 0..1 to logits. To add one,
write a function like `torch_compiled` and append it to `CONTENDERS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from networks import ResNet
from networks.integer import PackedRuntime, supported_paths
from tools.export.int8 import Logits, onnx_logits
from tools.export.int8_timing import compiled, eager

EXACT, BF16, INT8 = 1e-3, 5e-2, 2e-1
"""Largest allowed difference of a logit to torch in float32, as a share of the largest logit: rounding, bfloat16, int8."""


class Task(NamedTuple):
    """What every contender computes.

    Attributes:
        network: Normalisation and network, float32.
        fp32: Its ONNX file.
        int8: Its int8 ONNX file.
        threads: Number of threads.
        before: The normalisation by itself.
        ternary: The ternary network as it was trained; None if it is no ternary ResNet.
    """

    network: nn.Module
    fp32: Path
    int8: Path
    threads: int
    before: nn.Module = nn.Identity()
    ternary: nn.Module | None = None


class Contender(NamedTuple):
    """A way to run the network.

    Attributes:
        name: Name in the table.
        make: Prepares it for a task; None if it cannot take part.
        tolerance: Largest allowed difference of a logit, as a share of the largest logit.
        package: Package that it needs; it is left out where that is not installed.
    """

    name: str
    make: Callable[[Task], Logits | None]
    tolerance: float
    package: str

    @property
    def available(self) -> bool:
        """Whether its package is installed."""
        return find_spec(self.package) is not None


def torch_eager(task: Task) -> Logits:
    """Torch without compilation."""
    return eager(task.network)


def torch_compiled(task: Task, dtype: torch.dtype = torch.float32) -> Logits:
    """Torch compiled with frozen weights, channels last; all threads of the process."""
    torch._dynamo.reset()
    return compiled(task.network, dtype)


def onnxruntime(task: Task, file: Literal["fp32", "int8"]) -> Logits:
    """A file in onnxruntime."""
    return onnx_logits(getattr(task, file), task.threads)


def openvino(task: Task, file: Literal["fp32", "int8"], bf16: bool = False) -> Logits:
    """A file in OpenVINO.

    Without bf16 the execution mode is ACCURACY: otherwise OpenVINO runs float32 in bfloat16, silently, where the processor has it.
    """
    import openvino as ov

    core = ov.Core()
    hints: dict[str, Any] = {"INFERENCE_NUM_THREADS": task.threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    hints |= {"INFERENCE_PRECISION_HINT": "bf16"} if bf16 else {"EXECUTION_MODE_HINT": "ACCURACY"}
    request = core.compile_model(core.read_model(getattr(task, file)), "CPU", hints).create_infer_request()

    def logits(inputs: Tensor) -> Tensor:
        request.infer({0: inputs.numpy()}, share_inputs=True)
        return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return logits


def packed(task: Task, path: str) -> Logits | None:
    """The packed kernel of this project (networks/integer) on a path; None if the network or the processor has no such path."""
    if not isinstance(task.ternary, ResNet) or (path != "auto" and path not in supported_paths()):
        return None
    runtime = PackedRuntime.of(task.ternary, path=path)  # type: ignore[arg-type]
    return lambda images: runtime(task.before(images))


CONTENDERS: tuple[Contender, ...] = (
    Contender("torch eager fp32", torch_eager, EXACT, "torch"),
    Contender("torch compiled fp32", torch_compiled, EXACT, "torch"),
    Contender("torch compiled bf16", partial(torch_compiled, dtype=torch.bfloat16), BF16, "torch"),
    Contender("onnxruntime fp32", partial(onnxruntime, file="fp32"), EXACT, "onnxruntime"),
    Contender("openvino fp32", partial(openvino, file="fp32"), EXACT, "openvino"),
    Contender("openvino bf16", partial(openvino, file="fp32", bf16=True), BF16, "openvino"),
    Contender("openvino int8", partial(openvino, file="int8"), INT8, "openvino"),
    Contender("int8 ONNX (ours)", partial(onnxruntime, file="int8"), INT8, "onnxruntime"),
    Contender("packed (ours)", partial(packed, path="auto"), INT8, "torch"),
    Contender("packed, VNNI (ours)", partial(packed, path="vnni"), INT8, "torch"),
    Contender("packed, AVX2 (ours)", partial(packed, path="avx2"), INT8, "torch"),
)
