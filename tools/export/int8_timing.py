"""Times an int8 ONNX file against torch in float32: milliseconds per batch, interleaved repeats, medians."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from foundation.measuring import Spread, interleave, table
from tools.export.deployed import Deployed
from tools.export.int8 import Logits, onnx_logits

BATCHES = (1, 32)
REPEATS = 7
LEAST_S = 0.1  # a measurement repeats the call for at least this time


def seconds(call: Callable[[], object], least: float = LEAST_S) -> float:
    """Mean time of a call in seconds, over as many calls as take ``least`` seconds (one at least).

    Args:
        call: What is timed; it has been called before.
        least: Shortest time of the measurement in seconds.
    """
    calls, begun = 0, time.perf_counter()
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= least:
            return elapsed / calls


def warm(call: Callable[[], object]) -> Callable[[], float]:
    """Call once, and return a function that measures the seconds of a call."""
    call()
    return partial(seconds, call)


def eager(network: nn.Module) -> Logits:
    """A network in torch without compilation, channels last where its input has four dimensions."""
    network = network.eval().to(memory_format=torch.channels_last)

    def logits(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            answer: Tensor = network(_channels_last(inputs))
        return answer

    return logits


def compiled(network: nn.Module, dtype: torch.dtype = torch.float32) -> Logits:
    """A network compiled by torch.compile with frozen weights, channels last; compiled at the first call of each batch size.

    Args:
        network: The network.
        dtype: Type of the products: float32, or bfloat16 with autocast.
    """
    network = network.eval().to(memory_format=torch.channels_last)
    fast = torch.compile(network, dynamic=False, options={"freezing": True})

    def logits(inputs: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            answer: Tensor = fast(_channels_last(inputs))
        return answer.float()

    return logits


def _channels_last(inputs: Tensor) -> Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def time_int8(deployed: Deployed, path: Path) -> list[str]:
    """Compare the time of an int8 file with torch in float32, eager and compiled, with as many threads as torch uses.

    Args:
        deployed: What the file computes.
        path: The int8 file.

    Returns:
        Lines of a table.
    """
    network = nn.Sequential(OrderedDict(before=deployed.before, network=deployed.network))
    sides: dict[str, Logits] = {"int8 ONNX": onnx_logits(path), "torch eager": eager(network)}
    notes, rows = [], []
    try:
        fast = compiled(network)
        fast(deployed.examples[0])
        sides["torch compiled"] = fast
    except Exception as error:  # torch raises its own errors where there is no C++ compiler
        notes.append(f"torch compiled: not timed, {' '.join(str(error).split())[:120]}")
    for batch in BATCHES:
        example = deployed.examples[0]
        inputs = example[:1].repeat(batch, *[1] * (example.ndim - 1))
        measured = interleave({name: warm(partial(logits, inputs)) for name, logits in sides.items()}, REPEATS)
        own = measured["int8 ONNX"]
        for name, values in measured.items():
            ratio = Spread.of([value / mine for value, mine in zip(values, own, strict=True)])
            rows.append(
                [str(batch), name, Spread.of([1000 * value for value in values]).text(2), f"{ratio.median:.2f}"]
            )
    lines = table(["batch", "side", "ms per batch: median (range)", "times int8"], rows).splitlines()
    return [f"time with {torch.get_num_threads()} threads, {REPEATS} repeats", *lines, *notes]
