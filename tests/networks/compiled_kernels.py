"""Compiles the Triton kernels without a GPU, for a process of its own: `python -m tests.networks.compiled_kernels 80 90 [--all]`.

The launches are those that the layers make: the kernels are replaced by recorders of their arguments. Prints one JSON line for each
kernel: its name, the capability, and the instructions of interest in its PTX.
"""

import json
import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.ternary_gpu_checks import CASES, Case, make_input, make_layer
from networks.integer.gpu import layers
from networks.integer.gpu.layers import Activation, FloatLayer, PackedLayer, Residual, pool, quantise

TYPES = {torch.float32: "*fp32", torch.int8: "*i8", torch.uint8: "*u8", torch.int32: "*i32", torch.bfloat16: "*bf16"}
NUMBERS = {int: "i32", float: "fp32"}
INSTRUCTIONS = ("mma", "fma.rn.f32", "div.rn.f32", "div.full.f32", "atom", "red")
LARGE = tuple(Case("large tiles", 64, 128, images=272, height=8, width=8, two=two) for two in (False, True))


class Recorder:
    """Stands for a kernel: a launch is compiled instead of run."""

    def __init__(self, kernel: Any, capabilities: list[int], machine_code: bool) -> None:
        self.kernel, self.capabilities, self.seen = kernel, capabilities, set[str]()
        self.machine_code = machine_code

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in ("num_warps", "enable_fp_fusion") if name in kwargs}
        names = self.kernel.arg_names
        signature = dict.fromkeys(names, "constexpr")
        attributes = {}
        for index, value in enumerate(args):
            signature[names[index]] = TYPES[value.dtype] if isinstance(value, Tensor) else NUMBERS[type(value)]
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, kwargs, attributes)
        for capability in self.capabilities:
            if (key := f"{capability} {signature} {kwargs}") in self.seen:
                continue
            self.seen.add(key)
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
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
    folded = make_layer(CASES[0])
    x = Activation(make_input(CASES[0]), None)
    FloatLayer(folded, 1, 1)(x, relu=True, largest=torch.zeros(2))
    pool(x)


if __name__ == "__main__":
    main()
