"""The WarnOnMemory callback: says before the first step of a fit that its batch will not fit into memory, and what would.

    activations of one sample (one forward pass) x samples of a batch x 1.25 + gradients and optimiser state --> compared with free

A CPU run that takes more memory than there is gets killed by the system without a word. The estimate is the tensors that autograd
keeps of one sample; for eight networks the growth of a real step's memory by sample was 0.9 to 1.7 times that, median 1.2
(docs/gpu_memory.md). It is therefore a warning and never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from foundation.memory import free_memory
from foundation.sizes import Size, size_text

log = logging.getLogger(__name__)

BEYOND_SAVED = 1.25  # memory of a step by sample, as a multiple of the tensors that autograd keeps
STATE = 3  # gradients and two values of the optimiser for each trained weight


def saved_bytes(module: Any, size: Size) -> int:
    """Bytes of the tensors that autograd keeps for one sample, apart from weights; no weight and no statistic changes.

    Args:
        module: Has ``of_one_sample`` and ``evaluating``, as `BaseModule`.
        size: Side of the sample in pixels, or its height and width.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), _as_is(module), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.of_one_sample(size)
    return sum(saved.values())


@contextmanager
def _as_is(module: Any) -> Iterator[None]:
    """Eval mode, and no compilation for a batch of one."""
    with module.evaluating(), torch.compiler.set_stance("force_eager"):
        yield


class MemoryNeed(NamedTuple):
    """Memory of the largest step of a run, in bytes.

    Args:
        batch: Samples of its batch.
        size: Side of an image in pixels, or its height and width.
        sample: Bytes for each sample.
        state: Bytes of gradients and optimiser.
        needed: Bytes of the step in all.
        free: Bytes that are free for this process; 0 if unknown.
        stages: Whether the run has stages of several sizes.
    """

    batch: int
    size: Size
    sample: float
    state: int
    needed: float
    free: int
    stages: bool


def memory_need(trainer: Trainer, pl_module: LightningModule) -> MemoryNeed | None:
    """Estimate the memory of the largest step of a run, in `on_fit_start`; None if module or device gives no estimate."""
    data: Any = getattr(trainer, "datamodule", None)
    device = trainer.strategy.root_device
    known = hasattr(pl_module, "of_one_sample") and hasattr(data, "batch_size")
    if not known or device.type not in ("cpu", "cuda"):
        return None
    processes = max(1, trainer.world_size // trainer.num_nodes) if device.type == "cpu" else 1
    free = (free_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]) // processes
    shapes = _shapes(trainer, data)
    with trainer.precision_plugin.forward_context():
        by_size = {size: BEYOND_SAVED * saved_bytes(pl_module, size) for size in {s for _, s in shapes}}
    state = STATE * sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
    batch, size = max(shapes, key=lambda shape: shape[0] * by_size[shape[1]])
    return MemoryNeed(batch, size, by_size[size], state, state + batch * by_size[size], free, len(shapes) > 1)


class WarnOnMemory(Callback):
    """Logs one warning at the start of a fit whose first step needs more memory than is free; see the top of the file."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimate the memory, and warn."""
        need = memory_need(trainer, pl_module)
        if need is not None and 0 < need.free < need.needed and trainer.is_global_zero:
            log.warning(_text(need, trainer.strategy.root_device.type))


def _shapes(trainer: Trainer, data: Any) -> list[tuple[int, Size]]:
    """Batch size and image size of each stage of the run."""
    of_stages = (getattr(callback, "batch_shapes", None) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    found = next((of() for of in of_stages if of is not None), [("", data.batch_size, data.train_size)])
    return [(batch, size) for _, batch, size in found]


def _text(need: MemoryNeed, device: str) -> str:
    batch, size, sample, state, needed, free, stages = need
    end = "the system will end the run without a word" if device == "cpu" else "the run will be out of memory"
    fits = int((0.9 * free - state) / sample) if sample else 0
    needs = f"a step of {batch} samples of {size_text(size)} px needs about {needed / 1e9:.1f} GB"
    text = f"memory: {needs}, and {free / 1e9:.1f} GB are free: {end}"
    if fits >= 1 and not stages:
        parts = -(-batch // fits)
        return (
            f"{text}; give --data.batch_size {batch // parts} --trainer.accumulate_grad_batches {parts} (as many samples an "
            "optimiser step), a smaller --data.image_size or another --model.architecture"
        )
    if stages:
        return f"{text}; give smaller batch sizes to the stages of ProgressiveResizing, or smaller images"
    return f"{text}; give a smaller --data.image_size or another --model.architecture"
