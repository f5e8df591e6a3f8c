"""Writes the network of a ternary run as a packed file, says what it costs beside fp32, and reads it back to verify it.

    python -m tools.export RUN_DIR [--ckpt best|last] [--output FILE] [--coding trits|bits2|entropy]
                           [--verify test [--root DIR]] [--onnx FILE]

The file is written to a temporary name and takes its own only when it holds up: docs/export.md says what is verified.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from datamodules import DataModule
from foundation.atomic_files import replace_file
from lightning_modules import Classifier, HARClassifier, TernaryClassifier, load_run
from lightning_modules.loading import newest_config
from networks import (
    PackedNetwork,
    PackedSizes,
    ResNet,
    effective_state_dict,
    fold,
    read_packed,
    ternary_layers,
    write_packed,
)
from tools.command_line import FAILED, OK, Parser, run_command, start
from tools.run_data import configured_data
from transforms import normalize

TOLERANCE = {32: 1e-4, 8: 0.1}
"""Largest difference to the trained network's logits, as a share of their largest or of 1; an int8 rounding may fall otherwise."""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images as the trained network takes them, and as the packed one does."""


class VerificationError(Exception):
    """What was written does not compute what it should."""


class Comparison(NamedTuple):
    """The packed network beside the trained one."""

    images: int
    same_class: int
    difference: float
    """The largest between two logits."""

    def __str__(self) -> str:
        return f"same class on {self.same_class:,} of {self.images:,}, largest difference {self.difference:.2g}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; ``argv`` as on the command line, None takes the process's own. Returns the exit code."""

    def command() -> int:
        try:
            _export(_parser().parse_args(argv))
        except VerificationError as error:
            print(f"verification failed: {error}; nothing is written", file=sys.stderr)
            return FAILED
        return OK

    return run_command(command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser("export", "Write a ternary run's network as a packed file.")
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="run folder of a ternary network")
    parser.add_argument("--ckpt", default="best", help="best or last checkpoint (averaged weights where there are any)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN_DIR/packed_<coding>.lvr")
    parser.add_argument("--coding", choices=("trits", "bits2", "entropy"), default="trits", help="of the symbols")
    parser.add_argument("--verify", choices=("test",), help="also compare both networks on the run's test split")
    parser.add_argument("--root", metavar="DIR", help="where that data is, if not where the run had it")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="also write the network as ONNX")
    return parser


def _export(options: argparse.Namespace) -> None:
    if options.root is not None and options.verify is None:
        raise ValueError("--root is of use with --verify test only")
    # before anything is written: an extra package may be missing
    export_onnx: Callable[..., str] | None = import_module("tools.export.onnx").export_onnx if options.onnx else None
    module = load_run(options.run, options.ckpt)
    if not isinstance(module, TernaryClassifier):
        if export_onnx is not None and isinstance(module, Classifier):
            line = export_onnx(module, options.onnx, **_windows(module, options.run))
            print(f"no packed file, since {options.run} is a run of {type(module).__name__}\n{line}")
            return
        raise ValueError(f"{options.run} is a run of {type(module).__name__}; only a TernaryClassifier can be packed")
    if not ternary_layers(module.network):
        if export_onnx is None:
            raise ValueError(
                f"{options.run} is a full-precision twin (quantizer none): it has no symbols to pack; its weights are in "
                "the run folder's weights.safetensors, and --onnx FILE writes it as ONNX"
            )
        print(f"no packed file, since {options.run} is a full-precision twin\n{export_onnx(module, options.onnx)}")
        return
    data = _test_data(options.run, options.root) if options.verify else None
    folder = options.run if options.run.is_dir() else options.run.resolve().parent.parent
    output = options.output or folder / f"packed_{options.coding}.lvr"
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"--output {output}: must be a file in a folder that exists")
    with replace_file(output) as temporary:
        sizes = _write(module, temporary, options.coding)
        lines = _verify(module, temporary, data)
        lines += [export_onnx(module, options.onnx)] if export_onnx else []  # a refusal leaves no packed file either
    print(f"{output}   {module.architecture}, {module.quantizer}, checkpoint {options.ckpt}")
    print("\n".join([*_table(module, sizes), *lines]))


def _windows(module: Classifier, run: Path) -> dict[str, tuple[int, ...]]:
    """What the ONNX export is told of a run that judges windows of signals."""
    if not isinstance(module, HARClassifier):
        return {}
    folder = run if run.is_dir() else run.resolve().parent.parent
    config = yaml.safe_load(newest_config(folder).read_text(encoding="utf-8"))
    return {"shape": import_module("tools.export.onnx").window_shape(module, config)}


def _write(module: TernaryClassifier, path: Path, coding: str) -> PackedSizes:
    return write_packed(
        path,
        _network(module),
        architecture=module.architecture,
        coding=coding,  # type: ignore[arg-type]  # argparse has checked it
        image_size=module.image_size,
        mean=module.hparams.get("mean"),
        std=module.hparams.get("std"),
        class_names=module.hparams.get("class_names"),
    )


def _network(module: TernaryClassifier) -> ResNet:
    assert isinstance(module.network, ResNet)
    return module.network


# ---- sizes ----


def _table(module: TernaryClassifier, sizes: PackedSizes) -> list[str]:
    """Lines that set each part of the file beside what it takes in the state dict of the full-precision twin."""
    state = effective_state_dict(module.network)
    own = {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    ternary = sum(own[f"{name}.weight"] for name in ternary_layers(module.network))
    weights = {name: size for name, size in own.items() if state[name].dim() > 1}
    number = sum(state[name].numel() for name in weights)
    whole = sum(own.values())
    rows = [
        (f"symbols ({sizes.symbol_count:,})", ternary, sizes.symbols),
        ("scales", 0, sizes.scales),
        ("biases (fp32: and batch norms)", whole - sum(weights.values()), sizes.biases),
        ("full-precision weights", sum(weights.values()) - ternary, sizes.full_precision),
        ("header and checksum", 0, sizes.header),
        ("total", whole, sizes.total),
    ]
    return [
        f"{'part':32}{'fp32 bytes':>12}{'file bytes':>12}{'bits/weight':>13}",
        *(f"{name:32}{fp32:>12,}{size:>12,}{8 * size / number:>13.4f}" for name, fp32, size in rows),
        f"{whole / sizes.total:.2f} times smaller than the fp32 state dict, batch-norm statistics and counters included",
        f"symbols: {8 * sizes.symbols / sizes.symbol_count:.4f} bits each; their entropy is "
        f"{8 * sizes.entropy / sizes.symbol_count:.4f} bits, {sizes.entropy:,.0f} bytes",
    ]


# ---- verification ----


def _verify(module: TernaryClassifier, path: Path, data: DataModule | None) -> list[str]:
    """Read a file back and compare what it computes; what to print, or a VerificationError."""
    try:
        packed = read_packed(path)
    except ValueError as error:
        raise VerificationError(str(error)) from error
    folded = fold(_network(module))
    # the logits alone would not show a weight's last bit, nor the weights alone the memory format that a sum is taken by
    own = packed.network.state_dict()
    if not all(torch.equal(own[key], value) for key, value in folded.state_dict().items()):
        raise VerificationError("the weights of the file are not those of the folded network, to the bit")
    size = module.image_size or 32
    shape = (16, module.in_channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compared = _compare(module, packed, folded, [(images, images)])
    lines = [
        "read back: weights and logits equal to those of the folded network, to the bit",
        f"random images: {compared}",
    ]
    if data is not None:
        lines.append(f"test images: {_compare(module, packed, folded, _test_batches(data, packed))}")
    return lines


@torch.inference_mode()
def _compare(module: TernaryClassifier, packed: PackedNetwork, folded: ResNet, batches: Batches) -> Comparison:
    """Compare file and folded network, which must be equal, and file and trained network, which must be near."""
    images = same = 0
    difference = largest = 0.0
    for trained_images, packed_images in batches:
        trained, logits = module(trained_images), packed.network(packed_images)
        if not torch.equal(logits, folded(packed_images)):
            raise VerificationError("the logits of the file are not those of the folded network, to the bit")
        images, same = images + len(logits), same + int((logits.argmax(1) == trained.argmax(1)).sum())
        difference = max(difference, float((logits - trained).abs().max()))
        largest = max(largest, float(trained.abs().max()))
    comparison = Comparison(images, same, difference)
    # written so that NaN fails
    if not difference <= TOLERANCE[packed.activation_bits] * max(1.0, largest):
        raise VerificationError(f"the logits of the file are too far from the trained network's: {comparison}")
    return comparison


def _test_data(run: Path, root: str | None) -> DataModule:
    """The run's own datamodule, from its newest configuration, with the test split read."""
    data = configured_data(newest_config(run if run.is_dir() else run.resolve().parent.parent), root=root)
    data.setup("test")
    return data


def _test_batches(data: DataModule, packed: PackedNetwork) -> Batches:
    """Normalised for the trained network as in its run, for the packed one as its file says."""
    for batch in data.test_dataloader():
        mean, std = packed.mean or data.mean, packed.std or data.std
        yield normalize(batch["image"], data.mean, data.std), normalize(batch["image"], mean, std)


if __name__ == "__main__":
    start(main)
