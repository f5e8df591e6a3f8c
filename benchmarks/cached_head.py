"""Benchmark: training a head on cached features against running the frozen backbone, and training time on a large cache.

    python -m benchmarks.cached_head [--images 1024] [--repeats 5] [--threads N] [--json FILE]

1. MobileNetV2 at 224 px with random weights, 1280-256-2 head, batches of 64, fp32. `live` is a forward pass of the frozen backbone
and
   a training step of the head, with images in memory, without decoding and augmentation, which makes it cheaper than in practice.
   `cached` is an epoch of `CachedFeaturesDataModule`: loading and training steps. Both alternate. Reported: seconds per sample and
   their ratio.
2. `main.py fit` on 50,000 samples with 768 features, 768-256-2 head, batches of 1,024, fp32, ten epochs, without validation, plots,
EMA
   and progress bar. Reported: seconds of the Trainer's fit, from its first hook to its last, in each repeat. It alternates with a
   bare loop of as many steps of the same head on the same features, selected by index, which is the best this machine can do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from cli import main as run
from datamodules import CachedFeaturesDataModule
from features import CachedSplit, CacheWriter, Identity, read_header
from foundation import measuring
from foundation.measuring import Spread
from networks.frozen_backbone import FrozenBackbone
from networks.mlp_head import MLPHead

BATCH, SIZE = 64, 224
SAMPLES, WIDTH, LARGE_BATCH, EPOCHS = 50_000, 768, 1024, 10
WANTED_RATIO, WANTED_S = 100, 6.0


def write_cache(folder: Path, samples: int, width: int) -> None:
    """Writes a cache of random features with two classes; validation and test have a tenth as many samples."""
    identity = Identity(
        backbone="random",
        weights_hash="0" * 64,
        layers=(-1,),
        pooling="native",
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        transform={},
        data=f"tensors:{'0' * 64}",
        split={},
        class_names=("a", "b"),
        dtype="float32",
        feature_width=width,
    )
    writer, generator = CacheWriter(folder, identity), torch.Generator().manual_seed(0)
    counts = {"train": samples, "val": samples // 10, "test": samples // 10}
    first = 0
    for split, count in counts.items():
        features = torch.randn(count, width, generator=generator)
        writer.append(split, features, torch.arange(count) % 2, torch.arange(first, first + count))  # type: ignore[arg-type]
        first += count
    writer.finish(counts)


class Step:
    """Training step of a head with its own optimiser."""

    def __init__(self, width: int) -> None:
        self.head = MLPHead(width, 2)
        self.optimizer = AdamW(self.head.parameters(), fused=True)

    def __call__(self, features: Tensor, label: Tensor) -> None:
        """Trains on one batch."""
        loss = F.cross_entropy(self.head(features), label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def sides(images: int, cache: Path) -> dict[str, Any]:
    """Measuring functions for `live` and `cached`; each returns seconds per sample."""
    backbone = FrozenBackbone("mobilenetv2_100", {"pad_type": "same"}, SIZE, 3, (-1,), "native")
    backbone.to(memory_format=torch.channels_last)
    pictures = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    label, step = torch.arange(BATCH) % 2, Step(backbone.feature_width)
    data = CachedFeaturesDataModule(str(cache), batch_size=BATCH)
    data.setup("fit")
    loader = data.train_dataloader()

    def live() -> float:
        begin = time.perf_counter()
        for _ in range(images // BATCH):
            step(backbone(pictures), label)
        return (time.perf_counter() - begin) / (images // BATCH * BATCH)

    def cached() -> float:
        begin = time.perf_counter()
        for batch in loader:
            step(batch["features"], batch["label"])
        return (time.perf_counter() - begin) / (len(loader) * BATCH)

    return {"live": live, "cached": cached}


class Stopwatch(Callback):
    """Callback that measures the seconds of a fit, from the first hook to the last."""

    seconds: float = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock in the first hook."""
        type(self).seconds = -time.perf_counter()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops the clock in the last hook."""
        type(self).seconds += time.perf_counter()


def fit(cache: Path, folder: Path) -> float:
    """Seconds of ten epochs of `main.py fit`."""
    flags = {
        "--model": "CascadeHead",
        "--data": "CachedFeaturesDataModule",
        "--data.cache": str(cache),
        "--data.batch_size": str(LARGE_BATCH),
        "--trainer.max_epochs": str(EPOCHS),
        "--trainer.limit_val_batches": "0",
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
        "--trainer.accelerator": "cpu",
        "--trainer.callbacks": "benchmarks.cached_head.Stopwatch",
        "--curves.every_s": "null",
        "--run_dir": str(folder),
    }
    with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
        code = run(["fit", *(item for pair in flags.items() for item in pair)])
    assert code == 0
    # with python -m, this module is __main__; the command line imported another copy of the class, which holds the time
    return float(importlib.import_module("benchmarks.cached_head").Stopwatch.seconds)


def bare(cache: Path) -> float:
    """Seconds of ten epochs of a bare loop over the features in memory."""
    train = CachedSplit(cache, read_header(cache), "train")
    features, label = train.whole(torch.device("cpu")), train.label
    batches, step = len(label) // LARGE_BATCH, Step(WIDTH)
    begin = time.perf_counter()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(label)).split(LARGE_BATCH)[:batches]:
            step(features.index_select(0, chosen), label.index_select(0, chosen))
    return time.perf_counter() - begin


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table and returns the results."""
    parser = measuring.arguments(
        "Training a head on cached features against running the frozen backbone, and training time on a large cache."
    )
    parser.add_argument("--images", type=int, default=1024, help="images of a live measurement, 64 or more")
    options, before = measuring.begin(parser, args)
    with tempfile.TemporaryDirectory() as place:
        small, large = Path(place) / "small", Path(place) / "large"
        write_cache(small, 20 * BATCH, 1280)
        write_cache(large, SAMPLES, WIDTH)
        measured = measuring.interleave(sides(options.images, small), options.repeats)
        runs = (Path(place) / f"run{repeat}" for repeat in range(options.repeats))
        turns = {"fit": lambda: fit(large, next(runs)), "bare": lambda: bare(large)}
        fits = measuring.interleave(turns, options.repeats)
    ratio = Spread.of([live / cached for live, cached in zip(measured["live"], measured["cached"], strict=True)])
    spreads = {name: Spread.of([1e6 * value for value in values]) for name, values in measured.items()}
    rows = [
        ["live, MobileNetV2 224 px, microseconds per sample", spreads["live"].text(0), ""],
        ["cached, microseconds per sample", spreads["cached"].text(1), ""],
        ["live / cached", ratio.text(0), f">= {WANTED_RATIO}"],
        ["fit, 10 x 50,000 x 768, seconds", Spread.of(fits["fit"]).text(2), f"<= {WANTED_S:g}"],
        ["a bare loop of the same steps, seconds", Spread.of(fits["bare"]).text(2), ""],
    ]
    print(measuring.table(["", "median (least .. most)", "target"], rows))
    content = {"seconds_a_sample": measured, "ratio": ratio._asdict(), "fit_s": fits["fit"], "bare_s": fits["bare"]}
    measuring.report(before, content, options.json)
    return content


if __name__ == "__main__":
    main()
