"""Inference of ternary ResNets with integers: weights packed in 2 bits, activations in 8 bits, products in int32.

runtime.py     `PackedRuntime`: from a packed file or a trained network to logits
plan.py        a network as a list of steps, and the packing of its weights
reference.py   the same results computed with plain torch operations: `reference_logits`
build.py       compiles kernel/*.cpp on first use, and finds the paths that the processor has
kernel/        the C++ code: paths for AMX, AVX-512 VNNI, AVX2 and any processor, all with the same results
gpu/           Triton kernels for CUDA, with the same results: `PackedGpuRuntime`
"""

from networks.integer.build import PATHS, KernelError, Path, supported_paths
from networks.integer.gpu.runtime import PackedGpuRuntime
from networks.integer.reference import reference_logits
from networks.integer.runtime import PackedRuntime

__all__ = ["PATHS", "KernelError", "PackedGpuRuntime", "PackedRuntime", "Path", "reference_logits", "supported_paths"]
