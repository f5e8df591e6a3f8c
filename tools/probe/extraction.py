"""Extracts the features of one backbone into a cache, as `main.py predict` does, and measures the time of an image."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from features import CachedSplit, Header, read_header
from foundation.atomic_files import write_json
from tools.command_line import Progress
from tools.probe.backbones import RANDOM, Backbone, Data

LARGEST_BATCH = 32
REPEATS, LEAST_REPEATS, SECONDS = 20, 3, 3.0
"""Timed batches: at most, at least, and the time after which no further one is begun."""


class CommonError(Exception):
    """A fault of the data or of the settings of all backbones, so that none can be probed."""


@dataclass(frozen=True)
class Cost:
    """What an image costs on a device.

    Args:
        weights_hash: Hash of the backbone's weights.
        device: Name of the device.
        precision: Precision of the Trainer.
        shape: Shape of the timed batch.
        ms_per_image: Milliseconds per image of the network without its loader, median over batches.
        parameters: Number of weights of the network without its classifier.
    """

    weights_hash: str
    device: str
    precision: str
    shape: tuple[int, ...]
    ms_per_image: float
    parameters: int


@dataclass(frozen=True)
class Extracted:
    """A finished extraction.

    Args:
        cache: Folder of the feature cache.
        header: Its header.
        cost: Time and size of the network.
        device: Device of the extraction.
    """

    cache: Path
    header: Header
    cost: Cost
    device: torch.device


class _Lines(Callback):
    """Prints progress lines, in place of a bar."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.progress: Progress | None = None

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **named: Any) -> None:
        if self.progress is None:
            self.progress = Progress(self.name, int(sum(trainer.num_predict_batches)), "batches")
        self.progress()


class _ExtractionCLI(VisionCLI):
    """``main.py predict`` with the feature writer and progress lines as its only callbacks."""

    name, record = "", Path()
    wanted: tuple[str, ...] = ()
    cost: Cost

    def run(self) -> None:
        """Run the extraction, without signal handlers: the tool handles signals."""
        try:
            self._run()
        except SystemExit as end:  # Lightning ends an interrupted prediction so
            raise KeyboardInterrupt from end
        except Exception as error:
            if self._common:
                raise CommonError(str(error)) from error
            raise

    _common = True

    def _of_data(self, name: str, data: Any) -> Any:
        self._common = True
        value = super()._of_data(name, data)
        self._common = False
        return value

    def _all_callbacks(self, own: list[Callback], settings: Any, options: dict[str, Any]) -> list[Callback]:
        options["enable_progress_bar"] = options["enable_checkpointing"] = options["logger"] = False
        return [*own, _Lines(self.name)]

    def predict(self, model: LightningModule, datamodule: Any) -> None:
        """Extract what is missing, then measure the network, unless an earlier start did on the same device."""
        if absent := [split for split in self.wanted if split not in datamodule.labelled_splits]:
            raise CommonError(f"the data has no {absent[0]} split; there are {', '.join(datamodule.labelled_splits)}")
        super().predict(model, datamodule)
        device = self.trainer.strategy.root_device
        about = model.backbone_identity()  # type: ignore[operator]
        batch = min(LARGEST_BATCH, datamodule.eval_batch_size)
        size = datamodule.image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        windows = getattr(datamodule, "images_per_window", 1)
        shape = (batch, *((windows,) if windows > 1 else ()), datamodule.in_channels, *sides)
        key = (about["weights_hash"], device_name(device), str(self.trainer.precision), tuple(shape))
        if (known := _read_cost(self.record)) is None or key != place_of(known):
            network = model.network
            parameters = sum(values.numel() for values in network.features.network.parameters())  # type: ignore
            self.cost = Cost(*key, milliseconds(model, device, shape, self.trainer), parameters)
            write_json(self.record, asdict(self.cost))
        else:
            self.cost = known


def place_of(cost: Cost) -> tuple[str, str, str, tuple[int, ...]]:
    """What a measured time depends on: weights, device, precision and shape."""
    return cost.weights_hash, cost.device, cost.precision, cost.shape


def _read_cost(record: Path) -> Cost | None:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return Cost(**{**content, "shape": tuple(content["shape"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def device_name(device: torch.device) -> str:
    """Name of a device: that of the GPU, else ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def milliseconds(model: Any, device: torch.device, shape: Sequence[int], trainer: Trainer) -> float:
    """Median time of an image in ms: the network on a batch of random images, after two batches of warm-up."""
    model.to(device)
    draw = torch.Generator().manual_seed(0)
    image = trainer.precision_plugin.convert_input(torch.randn(*shape, generator=draw).to(device))
    if model.channels_last and image.ndim == 4:
        image = image.contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    begun = time.monotonic()
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        while len(times) < LEAST_REPEATS + 2 or (len(times) < REPEATS and time.monotonic() - begun < SECONDS):
            _wait(device)
            start = time.perf_counter()
            model.joined(image)
            _wait(device)
            times.append(time.perf_counter() - start)
    model.to("cpu")
    return 1000 * median(times[2:]) / shape[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extract(backbone: Backbone, data: Data, splits: Sequence[str], output: Path, wanted: Sequence[str]) -> Extracted:
    """Extract the features of a backbone, or go on with an interrupted extraction.

    Args:
        backbone: The backbone.
        data: The data.
        splits: Splits to extract.
        output: Folder of the probe; the cache is in ``caches/``, the time in ``costs/``.
        wanted: Splits that the data must have.

    Raises:
        CommonError: The settings or the data are wrong, whatever the backbone is.
        Exception: The backbone cannot be built, loaded or run: any error of the libraries.
    """
    part = "" if "train" in splits else f".{splits[0]}"
    cache = output / "caches" / f"{backbone.name}{part}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / f"{backbone.name}.yaml"
        config.write_text(yaml.safe_dump(data.extraction(backbone, splits), sort_keys=False), encoding="utf-8")
        overlay = [] if backbone.overlay is None else ["--config", str(backbone.overlay)]
        words = ["predict", "--config", str(config), *overlay, *data.flags, *backbone.flags, "--cache", str(cache)]
        try:
            cli = _ExtractionCLI(split_flags([*words, "--trainer.devices", "1"]), ["main.py", *words])
        except UsageError as error:
            raise CommonError(str(error)) from error
        cli.name, cli.record, cli.wanted = backbone.name, output / "costs" / f"{backbone.name}.json", tuple(wanted)
        (output / "costs").mkdir(parents=True, exist_ok=True)
        said = logging.getLogger("lightning_modules.pretrained.backbone")
        said.setLevel(logging.ERROR if backbone.weights == RANDOM else logging.INFO)  # the tool says it
        cli.run()
    return Extracted(cache, read_header(cache), cli.cost, cli.trainer.strategy.root_device)


def read_split(found: Extracted, split: Any) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) int64 of a split, on the device of the extraction."""
    cached = CachedSplit(found.cache, found.header, split)
    return cached.whole(found.device).float(), cached.label.to(found.device)
