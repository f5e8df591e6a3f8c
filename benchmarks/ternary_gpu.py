"""Benchmark: Triton kernels that read ternary weights of 2 bits against torch on a CUDA GPU, after a check that they are exact.

    python -m benchmarks.ternary_gpu [--parts check networks layers] [--batches 1 32 256] [--seconds 400] [--json FILE]

    check     layers and networks equal plain integer references bit for bit (benchmarks/ternary_gpu_checks.py)
    networks  ResNet-18 and ResNet-20 at 32 px: int8 and bfloat16 activations against torch.compile in bfloat16 and float32, both
              channels_last; the peers compute the folded network, whose weights are the same numbers
    layers    a linear layer, a 1x1 and four 3x3 convolutions: int8 (rounding included) and bfloat16 against compiled torch

All sides are recorded as CUDA graphs, so that times are those of the kernels, not of their launches from Python; what cannot be
recorded is called instead and marked with *. No measurement is started after --seconds. The first run of the peers is checked: they
must compute the same to 5 % of the largest value. Exits with 1 if a check fails, with 2 without a CUDA device.

With TRITON_INTERPRET=1 the kernels run in Triton's interpreter on the CPU; then --quick tests this script with tiny layers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.ternary_gpu_checks import Case, checks, make_input, make_layer, small_network, trained_like
from foundation import measuring
from foundation.measuring import Spread
from networks import fold
from networks.folding import FoldedLayer
from networks.integer import KernelError, PackedGpuRuntime
from networks.integer.gpu.layers import Activation, PackedLayer, interpreted, quantise

PARTS = ("check", "networks", "layers")
OURS, PEERS = ("int8", "bf16"), ("torch bf16", "torch fp32")
NETWORKS = ("resnet18", "resnet20")
LAYERS = (
    Case("linear, 4096 to 4096", 4096, 4096, kernel=0, padding=0),
    Case("1x1, 256 to 512, 8 px", 256, 512, kernel=1, padding=0, height=8, width=8),
    Case("3x3, 64, 32 px", 64, 64, height=32, width=32),
    Case("3x3, 128, 16 px", 128, 128, height=16, width=16),
    Case("3x3, 256, 8 px", 256, 256, height=8, width=8),
    Case("3x3, 512, 4 px", 512, 512, height=4, width=4),
)
TINY = (Case("linear, 40 to 8", 40, 8, kernel=0, padding=0), Case("3x3, 8, 4 px", 8, 8, height=4, width=4))
TOLERANCE = 0.05
"""Largest difference between two sides, relative to the largest value: int8 and bfloat16 round the activations of every layer."""


class Side(NamedTuple):
    """A contender: a function without arguments, and whether it is recorded as a CUDA graph."""

    call: Callable[[], Tensor]
    recorded: bool
    result: Tensor
    """Its first result."""


class Row(NamedTuple):
    """A line of the table: its name, and a function that makes each side and its result in a common order of dimensions."""

    name: str
    sides: dict[str, Callable[[], Tensor]]


def side(call: Callable[[], Tensor], device: torch.device) -> Side:
    """Warm up (compile) and record; a call that cannot be recorded is kept as it is."""
    for _ in range(3 if device.type == "cuda" else 1):
        result = call().float().clone()
    if device.type != "cuda":
        return Side(call, False, result)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return Side(call, False, result)

    def replay() -> Tensor:
        graph.replay()
        return kept

    return Side(replay, True, result)


def milliseconds(call: Callable[[], Tensor], device: torch.device, least: float = 20.0) -> float:
    """Milliseconds of a call: of as many calls, one after another, as take `least` milliseconds."""
    count, passed = 1, 0.0
    while True:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = 1000 * (time.perf_counter() - begin)
        if passed >= least or device.type != "cuda":
            return passed / count
        count *= 2


def compiled(network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The network compiled by torch; as it is in the interpreter."""
    return torch.compile(network, dynamic=False) if device.type == "cuda" else network


def network_rows(batches: list[int], device: torch.device, quick: bool) -> Iterator[Row]:
    """ResNets at 32 px."""
    for name in ("small",) if quick else NETWORKS:
        network = small_network("padding") if quick else trained_like(name)
        folded = {
            dtype: fold(network).to(device, dtype).to(memory_format=torch.channels_last) for dtype in DTYPES.values()
        }
        runtimes = {kind: PackedGpuRuntime.of(network, activations=kind).to(device) for kind in OURS}  # type: ignore[arg-type]
        for batch in batches:
            x = torch.randn(batch, 3, *[4 if quick else 32] * 2, generator=torch.Generator().manual_seed(0)).to(device)
            sides: dict[str, Callable[[], Tensor]] = {kind: partial(runtimes[kind], x) for kind in OURS}
            for peer, dtype in DTYPES.items():
                torch._dynamo.reset()
                given = x.to(dtype, memory_format=torch.channels_last)
                sides[peer] = partial(compiled(folded[dtype], device), given)
            yield Row(f"{name}, batch {batch}", sides)


def layer_rows(batches: list[int], device: torch.device, quick: bool) -> Iterator[Row]:
    """Single layers; a row of a linear layer counts as an image."""
    for case in TINY if quick else LAYERS:
        layer = make_layer(case)
        packed = PackedLayer(layer, case.stride, case.padding).to(device)
        for batch in batches:
            x = make_input(case._replace(images=batch)).to(device)
            given = Activation(x, x.abs().amax((1, 2, 3)))
            half = Activation(x.bfloat16(), None)
            sides: dict[str, Callable[[], Tensor]] = {
                "int8": partial(_int8, packed, given),
                "bf16": partial(_bf16, packed, half),
            }
            for peer, dtype in DTYPES.items():
                torch._dynamo.reset()
                peers = compiled(_Dense(case, layer).to(device, dtype).to(memory_format=torch.channels_last), device)
                sides[peer] = partial(_as_rows, peers, x.to(dtype).permute(0, 3, 1, 2))
            yield Row(f"{case.name}, batch {batch}", sides)


DTYPES = {"torch bf16": torch.bfloat16, "torch fp32": torch.float32}


def _int8(layer: PackedLayer, x: Activation) -> Tensor:
    return layer(quantise(x, 255)).values  # type: ignore[no-any-return]


def _bf16(layer: PackedLayer, x: Activation) -> Tensor:
    return layer(x, dtype=torch.bfloat16).values  # type: ignore[no-any-return]


def _as_rows(network: Callable[..., Tensor], x: Tensor) -> Tensor:
    return network(x).permute(0, 2, 3, 1)


class _Dense(nn.Module):
    """The same layer for torch: images (B, C, H, W), of one pixel for a linear layer."""

    weight: Tensor
    bias: Tensor

    def __init__(self, case: Case, layer: FoldedLayer) -> None:
        super().__init__()
        self.case = case
        weight = layer.dense() if case.kernel else layer.dense()[:, :, None, None]
        self.register_buffer("weight", weight)
        self.register_buffer("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.case.kernel:
            return F.conv2d(x, self.weight, self.bias, self.case.stride, self.case.padding)
        return F.linear(x[:, :, 0, 0], self.weight[:, :, 0, 0], self.bias)[:, :, None, None]


def measure(row: Row, repeats: int, device: torch.device) -> dict[str, Any]:
    """Times of all sides of a row, and their largest differences from float32, relative to its largest value."""
    sides = {name: side(call, device) for name, call in row.sides.items()}
    wanted = sides["torch fp32"].result
    differences = {name: float((one.result - wanted).abs().max() / wanted.abs().max()) for name, one in sides.items()}
    times = measuring.interleave(
        {name: partial(milliseconds, one.call, device) for name, one in sides.items()}, repeats
    )
    return {
        "name": row.name,
        "ms": {name: Spread.of(values)._asdict() for name, values in times.items()},
        "recorded": {name: one.recorded for name, one in sides.items()},
        "difference": differences,
    }


def line(row: dict[str, Any]) -> list[str]:
    """Cells of the table: medians in milliseconds, and how many times faster the better of ours is than each peer."""
    medians = {name: spread["median"] for name, spread in row["ms"].items()}
    best = min(medians[name] for name in OURS)
    times = [f"{medians[name]:.4f}{'' if row['recorded'][name] else '*'}" for name in (*OURS, *PEERS)]
    most = max(row["difference"].values())
    return [row["name"], *times, *(f"{medians[name] / best:.2f}x" for name in PEERS), f"{100 * most:.1f} %"]


HEADER = ("what", *(f"{name}, ms" for name in (*OURS, *PEERS)), "over bf16", "over fp32", "difference")


def main(args: list[str] | None = None) -> int:
    """Checks, measures and prints the table; ``args`` as on the command line. Returns the exit code."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.set_defaults(repeats=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256], help="batch sizes")
    parser.add_argument("--seconds", type=float, default=400, help="time after which no measurement is started")
    parser.add_argument("--quick", action="store_true", help="tiny layers and networks, to test this script")
    begin = time.perf_counter()
    options, before = measuring.begin(parser, args)
    if min(options.batches) < 1:
        parser.error(f"--batches: 1 or more, got {min(options.batches)}")
    if not (torch.cuda.is_available() or interpreted()):
        print("benchmarks.ternary_gpu: needs a CUDA device, and there is none; nothing was measured", file=sys.stderr)
        return 2
    device = torch.device("cpu" if interpreted() else "cuda")
    content: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "Triton's interpreter"
    }
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    failed = []
    try:
        if "check" in options.parts:
            content["checks"] = dict(_checked(device, not options.quick))
            failed += [name for name, exact in content["checks"].items() if not exact]
        content["rows"], content["skipped"] = [], []
        for part, rows in (("networks", network_rows), ("layers", layer_rows)):
            for row in rows(options.batches, device, options.quick) if part in options.parts else ():
                if time.perf_counter() - begin > options.seconds:
                    content["skipped"].append(row.name)
                    continue
                content["rows"].append(measured := measure(row, options.repeats, device))
                print(" | ".join(line(measured)), flush=True)
                if not max(measured["difference"].values()) <= TOLERANCE:
                    failed.append(f"{row.name}: sides differ")
    except KernelError as error:
        print(f"benchmarks.ternary_gpu: {error}", file=sys.stderr)
        return 2
    if content["rows"]:
        print(f"\n{content['device']}\n" + measuring.table(HEADER, [line(row) for row in content["rows"]]))
    if content["skipped"]:
        print(f"not measured, as --seconds {options.seconds:g} had passed: {'; '.join(content['skipped'])}")
    measuring.report(before, {"benchmark": "ternary_gpu", **content, "failed": failed}, options.json)
    print(f"FAILED: {'; '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


def _checked(device: torch.device, large: bool) -> Iterator[tuple[str, bool]]:
    for name, exact in checks(device, large):
        print(f"{'exact' if exact else 'WRONG'}  {name}", flush=True)
        yield name, exact


if __name__ == "__main__":
    sys.exit(main())
