"""Benchmark: what a canvas cache costs in memory and time as a set grows, and whole runs with and without one.

    python -m benchmarks.canvas_cache [--images 2000] [--size 64] [--repeats 5] [--json FILE]
    python -m benchmarks.canvas_cache --runs [--root DIR | --cifar10 DIR --images 5000] [--json FILE] -- --config FILE [FLAGS]

growing set  `main.py fit` for two epochs on made-up pictures whose cache is complete, on n, 2n and 10n of them: the largest
             anonymous resident memory of the process, in which pages of the cache do not count. And the time of an epoch of loader
             and augmentation on n and 2n, in turns.
whole runs   `main.py fit` with the given flags without a cache, with an empty one, which it writes, and with the complete one: the
             time of each, and the largest difference between their weights, which must be 0. The images are those of DIR, or the
             first of CIFAR-10, written as one PNG file each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.folder_pipeline import Setting, our_data, our_epochs, write_cache
from datamodules.cifar_reader import find_folder, read_batch, read_header
from foundation import measuring
from foundation.measuring import Spread
from foundation.project import ROOT

BATCH_SIZE = 64
LOOK_S = 0.02  # seconds between two looks at a process's memory
FACTORS = (1, 2, 10)
SMALL = (
    *("--config", "configs/image_standard.yaml", "--model.architecture", "test_resnet", "--trainer.accelerator", "cpu"),
    *(
        "--trainer.max_epochs",
        "2",
        "--trainer.callbacks",
        "[]",
        "--data.test_fraction",
        "0",
        "--trainer.enable_progress_bar",
    ),
    *("false", "--model.lr", "0.05", "--data.batch_size", str(BATCH_SIZE)),
)


def write_pictures(root: Path, count: int, side: int = 80) -> None:
    """Write JPEGs of noise into two class folders.

    Args:
        root: Their folder.
        count: Number of pictures.
        side: Height and width in pixels.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        path = root / f"class_{number % 2}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


def link_pictures(root: Path, target: Path, count: int) -> None:
    """Link the first pictures of a folder from `write_pictures` into another folder."""
    for path in islice(sorted(root.rglob("*.jpg"), key=lambda file: file.name), count):
        link = target / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)


def write_cifar10(source: Path, root: Path, count: int) -> None:
    """Write the first training images of CIFAR-10 as PNG files, in a folder for each class.

    Raises:
        FileNotFoundError: There is no CIFAR-10 in `source`.
    """
    folder = find_folder(source)
    if folder is None:
        raise FileNotFoundError(f"--cifar10 {source}: no cifar-10-batches-py there")
    header = read_header(folder)
    for number in range(count):
        if number % 10_000 == 0:
            images, labels = read_batch(folder / f"data_batch_{number // 10_000 + 1}", header)
        path = root / header.class_names[labels[number % 10_000]] / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[number % 10_000].transpose(1, 2, 0)).save(path)


def fit(folder: Path, *flags: str) -> tuple[float, float]:
    """Run `main.py fit` in a process of its own.

    Args:
        folder: Run folder; its log is next to it.
        flags: Arguments.

    Returns:
        Its time in seconds, and its largest anonymous resident memory in MB (0 on systems other than Linux).

    Raises:
        RuntimeError: It failed; the message is the end of its output.
    """
    log, largest, begin = folder.with_suffix(".log"), 0, time.perf_counter()
    words = [sys.executable, "main.py", "fit", *flags, "--run_dir", str(folder)]
    with log.open("w") as output:
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            largest = max(largest, anonymous_kb(process.pid))
            time.sleep(LOOK_S)
    taken = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{log.read_text()[-2000:]}")
    return taken, largest * 1024 / 1e6


def anonymous_kb(pid: int) -> int:
    """Anonymous resident memory of a process in kB; 0 if that is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def growing(images: int, size: int, repeats: int, threads: int) -> dict[str, Any]:
    """Measure sets of n, 2n and 10n pictures.

    Returns:
        `memory_mb` by factor, `memory_ratio` of 10n to n, and `epoch_ratio`, the time of an epoch of 2n to that of n.
    """
    memory: dict[int, float] = {}
    sides = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(folder / "all", max(FACTORS) * images)
        for factor in FACTORS:
            root, cache = folder / f"in{factor}", folder / f"cache{factor}"
            link_pictures(folder / "all", root, factor * images)
            data = our_data(Setting(root, size, BATCH_SIZE, threads, 0.35), str(cache))
            write_cache(data)
            if factor <= 2:
                sides[factor] = our_epochs(data, threads)
            settings = ("--data.root", root, "--data.image_size", size, "--data.canvas_cache", cache)
            _, memory[factor] = fit(folder / f"run{factor}", *SMALL, *map(str, settings))
        timed = {str(factor): partial(_seconds, epoch) for factor, epoch in sides.items()}
        measuring.interleave(timed, 1)
        taken = measuring.interleave(timed, repeats)
    ratios = [double / single for single, double in zip(taken["1"], taken["2"], strict=True)]
    return {
        "memory_mb": memory,
        "memory_ratio": memory[max(FACTORS)] / memory[1] if memory[1] else float("nan"),
        "epoch_s": {name: Spread.of(values)._asdict() for name, values in taken.items()},
        "epoch_ratio": Spread.of(ratios)._asdict(),
    }


def _seconds(epoch: Any) -> float:
    begin = time.perf_counter()
    epoch()
    return time.perf_counter() - begin


def whole_runs(root: Path, flags: list[str]) -> dict[str, Any]:
    """Run a fit without a cache, with one that it writes, and with the complete one.

    Returns:
        `seconds` of each, and `weight_difference`, the largest of any tensor of the last checkpoints.
    """
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cached = ["--data.canvas_cache", str(folder / "cache")]
        weights = []
        for name, more in (("without", []), ("writes", cached), ("complete", cached)):
            seconds[name], _ = fit(folder / name, *flags, "--data.root", str(root), *more)
            last = torch.load(folder / name / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
            weights.append(last["state_dict"])
    difference = max(
        float((one.double() - weights[0][name].double()).abs().max())
        for others in weights[1:]
        for name, one in others.items()
    )
    return {"seconds": seconds, "weight_difference": difference}


def main(args: list[str] | None = None) -> None:
    """Measures and prints a table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--images", type=int, default=2000, help="n, pictures of the smallest set, or images of CIFAR-10"
    )
    parser.add_argument("--size", type=int, default=64, help="training image size of the growing set, in pixels")
    parser.add_argument("--runs", action="store_true", help="whole runs in place of growing sets")
    parser.add_argument("--root", type=Path, metavar="DIR", help="images of the runs, in a folder for each class")
    parser.add_argument(
        "--cifar10", type=Path, metavar="DIR", help="images of the runs: the first --images of CIFAR-10"
    )
    parser.add_argument("flags", nargs="*", help="arguments of main.py fit, after --")
    options, before = measuring.begin(parser, args)
    if options.images * 0.9 < BATCH_SIZE:
        parser.error(f"--images: enough for a batch of {BATCH_SIZE} with a tenth held out, got {options.images}")
    content = _runs(parser, options) if options.runs else _growing(options)
    measuring.report(before, {"benchmark": "canvas_cache", "images": options.images, **content}, options.json)


def _growing(options: argparse.Namespace) -> dict[str, Any]:
    found = growing(options.images, options.size, options.repeats, options.threads)
    times = {name: Spread(**spread).text(3) for name, spread in found["epoch_s"].items()}
    rows = [
        [f"{factor * options.images:,}", f"{megabytes:,.0f}", times.get(str(factor), "")]
        for factor, megabytes in found["memory_mb"].items()
    ]
    print(
        measuring.table(
            ("images", "largest anonymous memory of a fit, MB", "loader and augmentation, s an epoch"), rows
        )
    )
    print(
        f"\nmemory with {max(FACTORS)} times the images: {found['memory_ratio']:.3f} times; an epoch of twice the images: "
        f"{Spread(**found['epoch_ratio']).text(3)} times, median (least .. most) of {options.repeats} repeats; {options.size} px"
    )
    return found


def _runs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    if (options.root is None) == (options.cifar10 is None):
        parser.error("--runs needs either --root DIR or --cifar10 DIR")
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root
        if root is None:
            root = Path(temporary)
            write_cifar10(options.cifar10, root, options.images)
        found = whole_runs(root.resolve(), options.flags)
    base = found["seconds"]["without"]
    rows = [[name, f"{seconds:,.1f}", f"{seconds / base:.2f}"] for name, seconds in found["seconds"].items()]
    print(measuring.table(("cache", "s", "ratio"), rows))
    print(f"\nlargest difference of a weight: {found['weight_difference']:g}")
    return {**found, "flags": options.flags}


if __name__ == "__main__":
    main()
