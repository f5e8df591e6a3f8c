"""`python -m tools.export RUN_DIR --int8 FILE`: the flags of the int8 file, their checks, and the command.

[--calibrate N] [--seed N] [--method auto|minmax|percentile|entropy] [--int8_ends both|stem|classifier|none] [--weight_bits 7|8]
[--max_drop POINTS] [--data CONFIG] [--data.root DIR] [--time]
"""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation.allocator import keep_freed_memory
from foundation.places import close_to
from lightning_modules import Classifier, HARClassifier, load_run
from lightning_modules.loading import newest_config
from tools.export.deployed import deployed_classifier
from tools.export.windows import raw_windows

DEFAULTS: dict[str, Any] = {
    "calibrate": 512,
    "seed": 0,
    "method": "auto",
    "int8_ends": "both",
    "weight_bits": 7,
    "max_drop": 0.2,
    "data": None,
    "time": False,
}
OTHERS = ("output", "coding", "verify", "onnx", "fp16", "prompts")  # flags of the other files


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an int8 file; those not given stay None, see `DEFAULTS`."""
    group = parser.add_argument_group("int8 ONNX of a classifier")
    group.add_argument(
        "--int8", type=Path, metavar="FILE", help="write only this file, quantised to int8 by onnxruntime"
    )
    group.add_argument("--calibrate", type=int, metavar="N", help="training samples that set the scales (default: 512)")
    group.add_argument("--seed", type=int, metavar="N", help="seed with which they are drawn (default: 0)")
    group.add_argument(
        "--method",
        choices=("auto", "minmax", "percentile", "entropy"),
        help="how a tensor's range is chosen; auto tries all three and takes the best on validation (default)",
    )
    group.add_argument(
        "--int8_ends",
        choices=("both", "stem", "classifier", "none"),
        help="which of the first and the last layer are int8, the others stay fp32 (default: both)",
    )
    group.add_argument(
        "--weight_bits",
        type=int,
        choices=(7, 8),
        help="bits of the weights of layers that are not ternary; 7 is right on every processor (default)",
    )
    group.add_argument(
        "--max_drop", type=float, metavar="POINTS", help="largest loss of test accuracy, in points (default: 0.2)"
    )
    group.add_argument(
        "--data", type=Path, metavar="CONFIG", help="configuration of the data, in place of the run's own"
    )
    group.add_argument(
        "--time", action="store_const", const=True, help="also time the file against torch, batches of 1 and 32"
    )


def check_flags(options: argparse.Namespace) -> None:
    """Check the flags of an int8 file and set those that were not given to their defaults.

    Raises:
        ValueError: A flag needs --int8 or cannot be combined with it, or its value is out of range.
    """
    if options.int8 is None:
        given = [name for name in DEFAULTS if getattr(options, name) is not None]
        if given:
            raise ValueError(f"--{given[0]}: only valid with --int8 FILE")
        return
    for name in OTHERS:
        if getattr(options, name):
            raise ValueError(
                f"--{name}: not valid with --int8 FILE, which writes only that file; run the command twice"
            )
    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
    for name, good, wanted in (
        ("calibrate", options.calibrate >= 1, "1 or more samples"),
        ("seed", options.seed >= 0, "0 or more"),
        ("max_drop", math.isfinite(options.max_drop) and options.max_drop >= 0, "0 or more points"),
    ):
        if not good:
            raise ValueError(f"--{name}: {wanted}, got {getattr(options, name)}")
    if not options.int8.parent.is_dir() or options.int8.is_dir():
        raise ValueError(f"--int8 {options.int8}: must be a file in a folder that exists")
    if options.data is not None and not options.data.is_file():
        raise ValueError(f"--data {options.data}: no such configuration{close_to(options.data)}")


def run(options: argparse.Namespace) -> None:
    """Write the int8 file of a run and print what was measured; `check_flags` has checked the flags.

    Raises:
        ValueError: The run is no classifier, or its data cannot be read.
        VerificationError: The file loses too much accuracy. Nothing is written.
    """
    import_module("tools.export.onnx")  # says which packages are missing
    from tools.export.int8 import Int8Settings, coarse_split, export_int8
    from tools.export.int8_timing import time_int8
    from tools.export.split_inputs import data_of, open_splits
    from tools.export.static_quantization import METHODS

    module = load_run(options.run, options.ckpt, options.weights)
    if not isinstance(module, Classifier):
        raise ValueError(f"--int8: {options.run} is a run of {type(module).__name__}, but a classifier is needed")
    if module.several_labels:
        raise ValueError(
            "--int8: its accuracy is that of one label an image, and this run has several; write it with --onnx"
        )
    keep_freed_memory()
    folder = options.run if options.run.is_dir() else options.run.resolve().parent.parent
    data = data_of(module, options.data or newest_config(folder), options.data_settings)
    windows = raw_windows(options.run, options.ckpt) if isinstance(module, HARClassifier) else None
    deployed = deployed_classifier(module, windows)
    splits = open_splits(data, options.calibrate, options.seed)
    methods = tuple(METHODS) if options.method == "auto" else (options.method,)
    settings = Int8Settings(methods, options.int8_ends, options.weight_bits, options.max_drop, options.seed)
    if note := coarse_split(settings, len(data.splits["test"]["label"])):
        print(note, flush=True)
    print("\n".join(export_int8(deployed, splits, options.int8, settings)))
    if options.time:
        print("\n".join(time_int8(deployed, options.int8)))
