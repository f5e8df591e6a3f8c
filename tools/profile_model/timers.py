"""Measures parts of a training step, floating-point operations, peak memory, and the machine's peak FLOP/s.

    on_train_batch_start |-- forward --| zero_grad |-- backward --|-- optimiser --| on_train_batch_end

On a CUDA device the timer synchronises after each part of a step, but only once at the end of a whole block, as in training.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

PARTS = ("forward", "backward", "optimizer")
GEMM_S, GEMM_SIZES = 0.6, {"cuda": (8192,), "cpu": (128, 256, 512, 1024)}
QUICK_S = 0.05  # a larger product is tried while one takes less: bf16 without instructions for it is 100 times slower
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Block(NamedTuple):
    """A block of steps that are measured in the same way.

    Attributes:
        size: Samples per step.
        steps: Number of steps.
        kind: ``flops``: operations are counted; ``warm``: warm-up, not measured; ``parts``: the parts of each step are timed;
            ``whole``: the block is timed from end to end.
    """

    size: int
    steps: int
    kind: Literal["flops", "warm", "parts", "whole"]


class Clock(Callback):
    """The callback that times the steps of a fit; it must be the last callback, so that the time of the others is included.

    Args:
        plan: Blocks of steps, in their order.

    Attributes:
        parts: Seconds of each part of each step, by batch size.
        whole: Mean seconds per step of each whole block, by batch size.
        flops: Floating-point operations per sample, forward and backward.
    """

    def __init__(self, plan: list[Block]) -> None:
        self.plan = plan
        self._steps = [(block, number) for block in plan for number in range(block.steps)]
        self.parts: dict[int, dict[str, list[float]]] = {}
        self.whole: dict[int, list[float]] = {}
        self.flops: dict[str, float] = {}
        self._at: list[float] = []
        self._began = 0.0
        self._counter: FlopCounterMode | None = None
        self._device = torch.device("cpu")

    @property
    def sizes(self) -> list[int]:
        """Number of samples of each step."""
        return [block.size for block, _ in self._steps]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the device; make compilation errors raise instead of falling back to eager mode."""
        self._device = trainer.strategy.root_device
        if getattr(pl_module, "compile_network", False):
            torch._dynamo.config.suppress_errors = False
            torch._dynamo.config.automatic_dynamic_shapes = False  # compile separate kernels for each batch size

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the measurement of a step."""
        block, number = self._steps[batch_idx]
        if block.kind == "flops":
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()
        elif block.kind == "parts" or number == 0:
            self._began = self._now()
        self._at = [self._began]

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """End of the forward pass."""
        if self._counter is not None:
            self.flops["forward"] = self._counter.get_total_flops()
        self._mark(trainer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        """Start of the backward pass, after the gradients were zeroed."""
        self._mark(trainer)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End of the backward pass."""
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            size = self.plan[0].size
            both = self._counter.get_total_flops()
            self.flops = {"forward": self.flops["forward"] / size, "backward": (both - self.flops["forward"]) / size}
            self._counter = None
        self._mark(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End the measurement of a step or of a whole block."""
        block, number = self._steps[batch_idx]
        if block.kind == "parts":
            self._mark(trainer)
            start, forward, zeroed, backward, end = self._at
            taken = (forward - start, backward - zeroed, end - backward + zeroed - forward)
            kept = self.parts.setdefault(block.size, {name: [] for name in PARTS})
            for name, seconds in zip(PARTS, taken, strict=True):
                kept[name].append(seconds)
        elif block.kind == "whole" and number == block.steps - 1:
            self.whole.setdefault(block.size, []).append((self._now() - self._began) / block.steps)

    def _mark(self, trainer: Trainer) -> None:
        block = self._steps[min(trainer.fit_loop.batch_idx, len(self._steps) - 1)][0]
        if block.kind == "parts":
            self._at.append(self._now())

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return perf_counter()


class Memory:
    """Measures peak memory since its creation: of tensors on a CUDA device, or of the process on the CPU.

    On the CPU, memory that the process held before is subtracted.

    Args:
        device: cpu or cuda.
        limit: Bytes that may be allocated from now on; what needs more fails, as on a smaller machine. None sets no limit. On the
            CPU this limits the address space of the process, on CUDA the memory of the device.
    """

    def __init__(self, device: str, limit: int | None = None) -> None:
        self.device = device
        torch.ones(256, 256) @ torch.ones(256, 256)  # start the threads now, so that their stacks are not counted
        if device == "cuda":
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()
            if limit is not None:
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
            return
        with suppress(OSError):
            CLEAR_REFS.write_text("5")  # resets the recorded peak
        self.base = resident("VmRSS")
        if limit is not None:
            most = resident("VmSize") + limit
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))

    def peak(self) -> int:
        """Return the peak memory in bytes."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated()
        return max(0, resident("VmHWM") - self.base)


def resident(name: str) -> int:
    """Return a memory value of this process in bytes.

    With /proc, the peak of getrusage is not used: it starts at the peak of the parent process.

    Args:
        name: ``VmRSS`` for the current resident memory, ``VmHWM`` for its peak, ``VmSize`` for the address space.
    """
    if STATUS.is_file():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gemm_peak(arithmetic: str, device: str, seconds: float = GEMM_S) -> float:
    """Measure the peak FLOP/s of the machine: the fastest of repeated matrix products.

    Their size is the first of `GEMM_SIZES` of which one takes more than 0.05 s, or else the largest.

    Args:
        arithmetic: fp32, tf32, bf16 or fp16.
        device: cpu or cuda.
        seconds: Length of the measurement.
    """
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    size, best, end = 0, float("inf"), perf_counter() + seconds
    for size in GEMM_SIZES[device]:
        product = _product(size, arithmetic, device)
        product()
        if (best := product()) > QUICK_S:
            break
    while perf_counter() < end:
        best = min(best, product())
    return float(2 * size**3 / best)


def _product(size: int, arithmetic: str, device: str) -> Callable[[], float]:
    """A matrix product that returns its seconds."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(arithmetic, torch.float32)
    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))

    def seconds() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = perf_counter()
        torch.mm(a, b, out=out)
        if device == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - began

    return seconds
