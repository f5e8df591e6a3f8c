"""Compiles the Triton kernels without a GPU, for a process of its own: `python -m tests.networks.compiled_kernels 80 90 [--all]`.

The launches are those that the layers make, with all that Triton derives from their arguments. Prints one JSON line for each
kernel: its name, the capability, and the instructions of interest in its PTX.
"""

import functools
import json
import re
import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from benchmarks.ternary_gpu_checks import CASES, Case, make_input, make_layer
from networks.integer.gpu import layers
from networks.integer.gpu.layers import Activation, FloatLayer, PackedLayer, Residual, pool, quantise

INSTRUCTIONS = ("mma", "fma.rn.f32", "div.rn.f32", "div.full.f32", "atom", "red")
LARGE = tuple(Case("large tiles", 64, 128, images=272, height=8, width=8, two=two) for two in (False, True))
ONE_ROW = next(case for case in CASES if case.name == "linear, one row")


class Gpu:
    """Stands for the driver of a GPU that is not there; its number is its capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


class Recorder:
    """Stands for a kernel: a launch is compiled by Triton as for a GPU, but not run."""

    def __init__(self, kernel: Any, capabilities: list[int], machine_code: bool) -> None:
        self.kernel, self.capabilities, self.seen = kernel, capabilities, set[str]()
        self.machine_code = machine_code

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return functools.partial(self.compile, grid)

    def compile(self, grid: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        for capability in self.capabilities:
            driver.set_active(Gpu(capability))
            compiled = self.kernel.run(*args, grid=grid, warmup=True, **kwargs)
            if compiled.hash in self.seen:
                continue
            self.seen.add(compiled.hash)
            ptx = compiled.asm["ptx"]
            counts = {name: len(re.findall(rf"^\s*(?:@\S+\s+)?\S*{name}", ptx, re.M)) for name in INSTRUCTIONS}
            row = {
                "kernel": self.kernel.__name__,
                "capability": capability,
                "target": re.findall(r"^\.target (\w+)", ptx, re.M)[0],
                "levels": kwargs.get("LEVELS"),
                "two": kwargs.get("TWO"),
                "int8_products": len(re.findall(r"mma\S*\.(?:s32\.)?s8\.s8", ptx)),
                "bf16_products": len(re.findall(r"mma\S*\.bf16\.bf16", ptx)),
                "cubin": len(compiled.asm["cubin"]),
                "products": sorted(set(re.findall(r"^\s*(mma|wgmma)\S*\.s8", ptx, re.M))),
                "shared": compiled.metadata.shared,
                **counts,
            }
            if (
                self.machine_code
            ):  # takes a second: registers that are spilled, and multiply-adds that ptxas would have fused
                row["spilled"] = len(re.findall(r"\bSTL\b", compiled.asm["sass"]))
                row["fused"] = len(re.findall(r"\bFFMA\b", compiled.asm["sass"]))
            print(json.dumps(row), flush=True)


def launch(case: Case, kinds: tuple[str, ...] = ("int8", "bf16")) -> None:
    """Launch the layers of a case with integers, or with bfloat16, or both."""
    folded, x = make_layer(case), make_input(case)
    layer = PackedLayer(folded, case.stride, case.padding)
    largest = torch.zeros(len(x))
    rounded = quantise(Activation(x, largest), case.levels)
    added = Residual(torch.zeros(len(x), 2 * case.height, 2 * case.width, max(1, case.out // 2)), 2, case.out // 4)
    if "int8" in kinds:
        layer(rounded, relu=True, residual=added, largest=largest)
    if "bf16" in kinds:
        layer(Activation(x.bfloat16(), None), relu=True, dtype=torch.bfloat16)


def main() -> None:
    """Compile for the capabilities on the command line; with --all every case of the checks and large tiles."""
    everything = "--all" in sys.argv
    capabilities = [int(word) for word in sys.argv[1:] if word.isdigit()]
    module = layers.kernels()
    for name in ("ternary_kernel", "quantise_kernel", "float_kernel", "pool_kernel"):
        setattr(module, name, Recorder(getattr(module, name), capabilities, everything))
    for case in (*LARGE, *CASES) if everything else ():
        launch(case)
    launch(CASES[0], ("int8",))
    launch(CASES[3], ("bf16",))
    for case in (CASES[0], ONE_ROW) if everything else (ONE_ROW,):
        x = Activation(make_input(case), None)
        FloatLayer(make_layer(case), case.stride, case.padding)(x, relu=True, largest=torch.zeros(len(x.values)))
        pool(x)


if __name__ == "__main__":
    main()
