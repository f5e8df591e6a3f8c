"""Tests of the Triton kernels without a GPU: exact in Triton's interpreter, compiled for two GPUs; each in a process of its own."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ternary_gpu
from benchmarks.ternary_gpu_checks import CASES, as_if_trained, small_network
from cli.run_flags import RunFlags, UsageError
from cli.runtimes import evaluator
from lightning_modules import TernaryClassifier
from networks import PackedError, build_resnet, write_packed
from networks.folding import folded_layers
from networks.integer import KernelError, PackedGpuRuntime
from networks.integer.gpu import layers
from networks.integer.gpu.packing import pack_symbols, unpack_symbols

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parent.parent.parent
WHOLE = pytest.mark.skipif("LVR_KERNELS" not in os.environ, reason="takes minutes; LVR_KERNELS=1 runs it")


def python(*arguments: str, **environment: str) -> str:
    """Standard output of a Python process that ends well."""
    command = [sys.executable, "-m", *arguments]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", **environment}
    process = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def interpreted(folder: Path, *arguments: str) -> dict[str, Any]:
    """Results of the benchmark in Triton's interpreter."""
    file = folder / "results.json"
    flags = ["--repeats", "2", "--threads", "1", "--batches", "1", "--json", str(file)]
    printed = python("benchmarks.ternary_gpu", *flags, *arguments, TRITON_INTERPRET="1")
    assert "all checks passed" in printed
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.mark.slow
def test_kernels_equal_the_reference_in_the_interpreter(tmp_path: Path) -> None:
    content = interpreted(tmp_path, "--quick", "--parts", "check", "layers")
    assert {case.name for case in CASES} <= content["checks"].keys()
    assert len(content["checks"]) == len(CASES) + 9
    assert all(content["checks"].values())
    assert [row["name"] for row in content["rows"]] == [f"{case.name}, batch 1" for case in ternary_gpu.TINY]
    for row in content["rows"]:
        assert row["ms"].keys() == row["difference"].keys() == {"int8", "bf16", "torch bf16", "torch fp32"}
        assert 0 < max(row["difference"].values()) < 0.02


@pytest.mark.slow
@WHOLE
def test_whole_networks_equal_the_reference_in_the_interpreter(tmp_path: Path) -> None:
    content = interpreted(tmp_path, "--parts", "check")
    assert {"resnet18", "resnet20"} <= content["checks"].keys()
    rows = interpreted(tmp_path, "--quick", "--parts", "networks")["rows"]
    assert [row["name"] for row in rows] == ["small, batch 1"]


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """What the compiled kernels hold."""
    return [json.loads(line) for line in python("tests.networks.compiled_kernels", *arguments).splitlines()]


def check_compiled(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row["target"] in ("sm_80", "sm_90a")
        assert row["cubin"] > 0
        assert row.get("spilled", 0) < 20  # 8 in one kernel of two sums on sm_80
        if row["kernel"] == "ternary_kernel":  # tensor cores; floats are not fused, and divided exactly
            assert (row["int8_products"] > 0) == (row["levels"] > 0)
            assert (row["bf16_products"] > 0) == (row["levels"] == 0)
            assert row["fma.rn.f32"] == row["div.full.f32"] == 0
            assert row["levels"] > 0 or row.get("fused", 0) == 0  # a division is made of them
        if row["kernel"] == "float_kernel":
            assert row["fma.rn.f32"] > 0


@pytest.mark.slow
def test_kernels_compile_without_a_gpu() -> None:
    rows = compiled("80", "90")
    check_compiled(rows)
    assert {row["kernel"] for row in rows} == {"ternary_kernel", "quantise_kernel", "float_kernel", "pool_kernel"}
    assert {(row["levels"], row["two"]) for row in rows if row["two"] is not None} == {(255, False), (0, True)}


@pytest.mark.slow
@WHOLE
def test_kernels_of_all_cases_compile_for_both_gpus() -> None:
    rows = compiled("80", "90", "--all")
    check_compiled(rows)
    assert len(rows) > 50
    assert any("wgmma" in row["products"] for row in rows)


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (1, 130, 1, 1), (7, 257), (2, 1, 5, 5)])
def test_packed_symbols_are_read_back(shape: tuple[int, ...]) -> None:
    symbols = torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    packed = pack_symbols(symbols)
    assert packed.shape == (shape[0], 32 * -(-symbols[0].numel() // 128))
    assert torch.equal(unpack_symbols(packed, shape), symbols)


def test_a_packed_file_gives_the_same_weights_as_the_network(tmp_path: Path) -> None:
    network = as_if_trained(build_resnet("resnet20", num_classes=4, quantizer="ttq"))
    write_packed(tmp_path / "packed.lvr", network, architecture="resnet20", coding="bits2")
    read, made = PackedGpuRuntime.read(tmp_path / "packed.lvr"), PackedGpuRuntime.of(network)
    one, other = dict(read.named_buffers()), dict(made.named_buffers())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    symbols = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    assert (
        read.resident_bytes["symbols"] < 1.25 * symbols / 4
    )  # 2 bits, and windows of 144 filled up to 256, 288 to 384
    first = made.blocks[0].conv1
    assert isinstance(first, layers.PackedLayer)
    weight = folded_layers(network)["stages.0.0.conv1"].weight
    assert torch.equal(first.symbols(), weight[0])


def test_wrong_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small_network("padding")
    runtime = PackedGpuRuntime.of(network)
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(1, 1, 8, 8\)"):
        runtime(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"the images are on meta, the packed runtime on cpu"):
        runtime(torch.zeros(1, 3, 8, 8, device="meta"))
    with pytest.raises(ValueError, match=r"computes on CUDA; move it and the images there with \.cuda\(\)"):
        runtime(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="activations must be one of int8, bf16, got 'fp8'"):
        PackedGpuRuntime.of(network, activations="fp8")  # type: ignore[arg-type]
    with pytest.raises(PackedError, match="no ternary layer"):
        PackedGpuRuntime.of(build_resnet("resnet20", num_classes=2, quantizer="none").eval())
    with pytest.raises(PackedError, match="trained with 8-bit activations; use int8"):
        PackedGpuRuntime.of(small_network("padding", activation_bits=8), activations="bf16")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "triton":
            raise ImportError("No module named 'triton'")
        return original(name, *arguments, **named)

    layers.kernels.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(KernelError, match="needs triton, which is not installed: pip install triton"):
        PackedGpuRuntime.of(small_network("padding"))


def test_runtime_is_chosen_by_the_device_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TernaryClassifier(num_classes=2, image_size=8, in_channels=3)
    moved: list[Any] = []

    def move(runtime: PackedGpuRuntime, device: torch.device) -> PackedGpuRuntime:
        moved.append(device)
        return runtime

    monkeypatch.setattr(TernaryClassifier, "device", torch.device("cuda", 1))
    monkeypatch.setattr(PackedGpuRuntime, "to", move)
    module.use_runtime("packed")
    assert isinstance(module.network, PackedGpuRuntime)
    assert moved == [torch.device("cuda", 1)]


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_runtime_flag_of_a_device(device: str) -> None:
    class Strategy:
        root_device = torch.device(device)

    class Trainer:
        strategy, callbacks, test = Strategy(), list[Any](), "test"

    flags = RunFlags("test", values={"runtime": "packed"})
    if device == "mps":
        with pytest.raises(UsageError, match="--runtime packed: computes on a CPU or a CUDA GPU, not on mps"):
            evaluator(Trainer(), "test", flags)  # type: ignore[arg-type]
    else:
        assert evaluator(Trainer(), "test", flags) == "test"  # type: ignore[arg-type, comparison-overlap]


def test_benchmark_without_a_gpu_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ternary_gpu.main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "benchmarks.ternary_gpu: needs a CUDA device, and there is none; nothing was measured\n"


@pytest.mark.parametrize(
    ("rows", "columns", "most", "wanted"),
    [(1, 10, 128, (16, 16)), (262_144, 64, 128, (128, 64)), (16_384, 64, 128, (64, 64)), (10**6, 16, 64, (64, 16))],
)
def test_tiles_leave_a_program_for_each_multiprocessor(
    rows: int, columns: int, most: int, wanted: tuple[int, int]
) -> None:
    assert layers.tile(rows, columns, most) == wanted
