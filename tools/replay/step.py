"""`replay`: computes a kept training step again, from its weights, batch and random numbers, and finds what is not finite first."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.exact_resume import seed_generators
from callbacks.failures.failed_step import FILE, FOLDER, bad_inputs
from foundation.checkpoint_files import read_checkpoint
from lightning_modules import BaseModule, load_run

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WHOLE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


@dataclass
class Replay:
    """What a kept step gives when it is computed again.

    Attributes:
        kept: The record of the step, without its batch (callbacks/failures/failed_step.py).
        loss: The loss of the batch.
        sample_losses: The loss of each sample by itself, in the order of the batch; empty if the task does not give them.
        inputs: Inputs that are not finite.
        weights: Names of the weights before the step that are not finite.
        layer: First layer, in the order of computation, with an output that is not finite; None if there is none.
        gradients: Names of the weights whose gradient is not finite, in the order of the network.
    """

    kept: dict[str, Any]
    loss: float
    sample_losses: list[float] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    layer: str | None = None
    gradients: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether the step fails again."""
        return not math.isfinite(self.loss) or bool(self.gradients)


def kept_step(run: Path) -> Path:
    """The file of the failed step of a run.

    Raises:
        ValueError: The run has none.
    """
    path = run if run.is_file() else run / FOLDER / FILE
    if not path.is_file():
        raise ValueError(
            f"{run}: has no failed step ({FOLDER}/{FILE}); one is kept when a loss is not finite, on a GPU with "
            "--non_finite.check_every 1"
        )
    return path


def replay(run: Path, weights: str | None = None) -> Replay:
    """Compute the failed step of a run again, on the device that it failed on if there is one.

    Args:
        run: The run folder, or the file of the step.
        weights: As for `load_run`: frozen weights that no checkpoint holds.

    Raises:
        ValueError: The run has no failed step, or it cannot be loaded.
    """
    path = kept_step(run)
    content = read_checkpoint(path)
    if not isinstance(content, dict) or "failed_step" not in content:
        raise ValueError(f"{path}: is no failed step of a run")
    kept = dict(content["failed_step"])
    module = load_run(path, weights=weights)
    device = torch.device(kept["device"] if kept["device"] == "cuda" and torch.cuda.is_available() else "cpu")
    module.to(device=device, dtype=WHOLE.get(kept["precision"]))
    module.train()
    batch = {name: one.to(device) if isinstance(one, Tensor) else one for name, one in kept.pop("batch").items()}
    found = Replay(kept, math.nan, inputs=bad_inputs(batch, kept["names"]))
    # without batch statistics, which the forward pass of the failed step has changed
    found.weights = [name for name, one in module.named_parameters() if not one.isfinite().all()]
    _compute(module, batch, found)
    return found


def _compute(module: BaseModule, batch: dict[str, Any], found: Replay) -> None:
    """Forward pass, backward pass, and the loss of each sample; fills in what is found."""
    outputs: list[Any] = []
    hooks = []
    output_of, method = getattr(module, _method(module)), _method(module)

    def remember(*inputs: Any) -> Any:
        outputs.append(output_of(*inputs))
        return outputs[-1]

    setattr(module, method, remember)

    def watch(name: str, layer: nn.Module) -> None:
        def look(_: nn.Module, inputs: Any, output: Any) -> None:
            if found.layer is None and not _finite(output):
                of = "finite" if _finite(inputs) else "not finite either"
                found.layer = f"{name} ({type(layer).__name__}): {_share(output)}; its input is {of}"

        hooks.append(layer.register_forward_hook(look))

    for name, layer in module.network.named_modules(prefix="network"):
        watch(name, layer)
    mixed = MIXED.get(found.kept["precision"])
    context: Any = torch.autocast(module.device.type, mixed) if mixed is not None else contextlib.nullcontext()
    seed_generators(found.kept["seed"])
    with context:
        loss = module.training_step(batch, found.kept["batch_number"] - 1)["loss"]
    delattr(module, method)
    for hook in hooks:
        hook.remove()
    found.loss = loss.item()
    loss.backward()
    gradients = ((name, one.grad) for name, one in module.named_parameters())
    found.gradients = [name for name, grad in gradients if grad is not None and not grad.isfinite().all()]
    if len(outputs) == 1 and isinstance(outputs[0], Tensor):
        with context, torch.no_grad():
            found.kept["names"] = _rows(batch, found.kept["names"])
            found.sample_losses = _sample_losses(module, batch, outputs[0].detach(), len(found.kept["names"]))


def _rows(batch: dict[str, Any], names: list[str]) -> list[str]:
    """Names of the samples that have a loss: in segmentation an image has one for each of its prompts."""
    if "image_index" not in batch:
        return names
    pairs = zip(batch["image_index"].tolist(), batch["prompt"], strict=True)
    return [f"{names[image]} {prompt!r}" for image, prompt in pairs]


def _sample_losses(module: BaseModule, batch: dict[str, Any], output: Tensor, count: int) -> list[float]:
    """The training loss of each of `count` samples, from the output of the whole batch: batch statistics stay as they were."""
    if not count or len(output) % count:
        return []
    rows, losses = len(output) // count, []
    for number in range(count):
        part = {
            name: one[number : number + 1] if isinstance(one, Tensor | list) and len(one) == count else one
            for name, one in batch.items()
        }
        of_sample = output[number * rows : (number + 1) * rows]
        setattr(module, _method(module), lambda *_, of_sample=of_sample: of_sample)
        try:
            losses.append(float(module.shared_step(part, "train")["loss"]))
        finally:
            delattr(module, _method(module))
    return losses


def _method(module: BaseModule) -> str:
    """The method that a step of the module gets its logits from: HAR's keeps those of each image of a window."""
    return "each" if hasattr(module, "each") else "forward"


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list | tuple) else ()
    return [tensor for value in inner for tensor in _tensors(value)]


def _finite(values: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(values))


def _share(values: Any) -> str:
    tensors = _tensors(values)
    bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors)
    return f"{bad:,} of {sum(tensor.numel() for tensor in tensors):,} values of its output are not finite"
