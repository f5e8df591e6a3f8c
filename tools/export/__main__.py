"""The command that writes a ternary run as a packed file, any run as ONNX, and any classifier as int8 ONNX, and verifies them.

    python -m tools.export RUN_DIR [--ckpt best|last] [--output FILE] [--coding trits|bits2|entropy]
                           [--verify test [--data.root DIR]] [--onnx FILE [--fp16] [--prompts TEXT ...]] [--weights FILE]
    python -m tools.export RUN_DIR --int8 FILE [--ckpt best|last] [...]      (tools/export/int8_command.py has the other flags)

The file is written under a temporary name and renamed only after the verification, which docs/export.md describes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules import DataModule
from foundation.atomic_files import replace_file
from foundation.sizes import sides
from lightning_modules import BaseModule, Classifier, HARClassifier, PromptedSegmenter, TernaryClassifier, load_run
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
from tools.command_line import FAILED, OK, Parser, run_command, say, start
from tools.export import int8_command
from tools.export.deployed import Deployed, VerificationError, deployed_classifier, deployed_segmenter
from tools.export.windows import raw_windows
from tools.run_data import configured_data
from transforms import normalize

TOLERANCE = {32: 1e-4, 8: 0.1}
"""Largest allowed difference to the trained network's logits by activation bits, as a share of max(1, largest logit).

With int8 activations a value between two levels may be rounded differently, hence the larger tolerance.
"""

Batches = Iterable[tuple[Tensor, Tensor]]
"""Pairs of images: normalised for the trained network, and for the packed network."""


class Comparison(NamedTuple):
    """Comparison of the packed network with the trained one.

    Attributes:
        images: Number of images.
        same_class: Number of them with the same class.
        difference: Largest difference between two logits, as a share of the largest logit, or of 1 if that is smaller.
    """

    images: int
    same_class: int
    difference: float

    def __str__(self) -> str:
        same = f"same class on {self.same_class:,} of {self.images:,}"
        return f"{same}, logits differ by {self.difference:.2g} of the largest at most"


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> int:
        try:
            _export(_parser().parse_with_data(argv))
        except VerificationError as error:
            print(f"verification failed: {error}; nothing is written", file=sys.stderr)
            return FAILED
        return OK

    return run_command(command)


def _parser() -> Parser:
    parser = Parser(
        "export",
        "Write the network of a ternary run as a packed file, of any run as ONNX, of a classifier as int8 ONNX.",
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path, help="run folder, or a checkpoint in one")
    parser.add_argument(
        "--ckpt", default="best", help="checkpoint: best or last; averaged weights are used if there are any"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: RUN_DIR/packed_<coding>.lvr")
    parser.add_argument(
        "--coding", choices=("trits", "bits2", "entropy"), help="coding of the ternary symbols (default: trits)"
    )
    parser.add_argument("--verify", choices=("test",), help="also compare both networks on the run's test split")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="folder of the test data, in place of the run's own"
    )
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="also write the network as ONNX")
    parser.add_argument("--fp16", action="store_true", help="weights and operations of the ONNX file in float16")
    parser.add_argument(
        "--prompts", nargs="+", metavar="TEXT", help="prompts of a segmenter's ONNX file (default: those of training)"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="weights of a head's backbone or of CLIPSeg, if they have moved"
    )
    int8_command.add_flags(parser)
    return parser


def _export(options: argparse.Namespace) -> None:
    _check_flags(options)
    for path in (options.onnx, options.int8):
        if path is not None and path.is_file():
            say("replaces", f"{path}, which is there from an earlier export")
    if options.int8 is not None:
        int8_command.run(options)
        return
    # import before anything is written, because an optional package may be missing
    export_onnx: Callable[..., str] | None = import_module("tools.export.onnx").export_onnx if options.onnx else None
    module = load_run(options.run, options.ckpt, options.weights)
    without = _without_symbols(module, options.run)
    if export_onnx is None and without:
        raise ValueError(
            f"{without}; its weights are in the run folder's weights.safetensors, and --onnx FILE writes it as ONNX"
        )
    onnx = partial(export_onnx, _deployed(module, options), options.onnx, options.fp16) if export_onnx else None
    if without:
        packs = [flag for flag in ("verify", "output", "coding") if getattr(options, flag) is not None]
        if packs:
            raise ValueError(f"--{packs[0]}: is of the packed file, but {without}; leave it out")
        assert onnx is not None
        if isinstance(module, TernaryClassifier):  # the other systems have no packed file
            print(f"no packed file, because {without}")
        print(onnx())
        return
    assert isinstance(module, TernaryClassifier)
    coding = options.coding or "trits"
    data = _test_data(options.run, options.data_settings) if options.verify else None
    folder = options.run if options.run.is_dir() else options.run.resolve().parent.parent
    output = options.output or folder / f"packed_{coding}.lvr"
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"--output {output}: must be a file in a folder that exists")
    with replace_file(output) as temporary:
        sizes = _write(module, temporary, coding)
        lines = _verify(module, temporary, data)
        lines += [onnx()] if onnx else []  # an error in the ONNX export also discards the packed file
    print(f"{output}   {module.architecture}, {module.quantizer}, checkpoint {options.ckpt}")
    print("\n".join([*_table(module, sizes), *lines]))


def _check_flags(options: argparse.Namespace) -> None:
    int8_command.check_flags(options)
    if options.data_settings and options.verify is None and options.int8 is None:
        raise ValueError(f"--data.{next(iter(options.data_settings))}: only valid with --verify test or --int8 FILE")
    for flag in ("prompts", "fp16"):
        if getattr(options, flag) and options.onnx is None:
            raise ValueError(f"--{flag}: only valid with --onnx FILE")


def _without_symbols(module: BaseModule, run: Path) -> str:
    """Why a run has no symbols to pack; empty if it has."""
    if not isinstance(module, TernaryClassifier):
        return f"{run} is a run of {type(module).__name__}, and only a TernaryClassifier has symbols to pack"
    if not ternary_layers(module.network):
        return f"{run} is a full-precision twin (quantizer none), which has no symbols to pack"
    return ""


def _deployed(module: BaseModule, options: argparse.Namespace) -> Deployed:
    """What the ONNX file of a run computes."""
    if isinstance(module, PromptedSegmenter):
        return deployed_segmenter(module, options.prompts)
    if options.prompts:
        raise ValueError(f"--prompts: is of a PromptedSegmenter, but {options.run} is a run of {type(module).__name__}")
    if not isinstance(module, Classifier):
        raise ValueError(f"--onnx: {options.run} is a run of {type(module).__name__}, which has no network to export")
    windows = raw_windows(options.run, options.ckpt) if isinstance(module, HARClassifier) else None
    return deployed_classifier(module, windows)


def _write(module: TernaryClassifier, path: Path, coding: str) -> PackedSizes:
    return write_packed(
        path,
        _network(module),
        architecture=module.architecture,
        coding=coding,  # type: ignore[arg-type]  # argparse has checked it
        image_size=module.image_size if isinstance(module.image_size, int) else None,
        mean=module.hparams.get("mean"),
        std=module.hparams.get("std"),
        class_names=module.hparams.get("class_names"),
    )


def _network(module: TernaryClassifier) -> ResNet:
    assert isinstance(module.network, ResNet)
    return module.network


# ---- sizes ----


def _table(module: TernaryClassifier, sizes: PackedSizes) -> list[str]:
    """Table of the size of each part of the file, next to its size in the state dict of the full-precision twin."""
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
    """Read the file back and compare its weights and logits with the run's network.

    Returns:
        Lines to print.

    Raises:
        VerificationError: Weights or logits differ.
    """
    try:
        packed = read_packed(path)
    except ValueError as error:
        raise VerificationError(str(error)) from error
    folded = fold(_network(module))
    # logits may hide a wrong last bit of a weight; weights do not show a memory format that changes the order of a sum
    own = packed.network.state_dict()
    if not all(torch.equal(own[key], value) for key, value in folded.state_dict().items()):
        raise VerificationError("the weights of the file are not bit-identical to the folded network")
    shape = (16, module.in_channels, *sides(module.image_size or 32))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compared = _compare(module, packed, folded, [(images, images)])
    lines = [
        "read back: weights and logits are bit-identical to the folded network",
        f"random images: {compared}",
    ]
    if data is not None:
        lines.append(f"test images: {_compare(module, packed, folded, _test_batches(data, packed))}")
    return lines


@torch.inference_mode()
def _compare(module: TernaryClassifier, packed: PackedNetwork, folded: ResNet, batches: Batches) -> Comparison:
    """Compare the logits of the file: equal to the folded network's, and within ``TOLERANCE`` of the trained network's."""
    images = same = 0
    difference = largest = 0.0
    for trained_images, packed_images in batches:
        trained, logits = module(trained_images), packed.network(packed_images)
        if not torch.equal(logits, folded(packed_images)):
            raise VerificationError("the logits of the file are not bit-identical to the folded network")
        images, same = images + len(logits), same + int((logits.argmax(1) == trained.argmax(1)).sum())
        difference = max(difference, float((logits - trained).abs().max()))
        largest = max(largest, float(trained.abs().max()))
    comparison = Comparison(images, same, difference / max(1.0, largest))
    allowed = TOLERANCE[packed.activation_bits]
    # this form of the condition also fails for NaN
    if not comparison.difference <= allowed:
        raise VerificationError(
            f"the logits of the file are too far from the trained network's: {comparison}, {allowed:g} is allowed"
        )
    return comparison


def _test_data(run: Path, settings: Mapping[str, Any]) -> DataModule:
    """Create the datamodule from the run's newest configuration, and set up the test split."""
    data = configured_data(newest_config(run if run.is_dir() else run.resolve().parent.parent), settings)
    data.setup("test")
    return data


def _test_batches(data: DataModule, packed: PackedNetwork) -> Batches:
    """Yield test images normalised with the data's mean and std, and with those in the packed file (if it has any)."""
    for batch in data.test_dataloader():
        mean, std = packed.mean or data.mean, packed.std or data.std
        yield normalize(batch["image"], data.mean, data.std), normalize(batch["image"], mean, std)


if __name__ == "__main__":
    start(main)
