"""Loads the two classifiers of a cascade and its data; each stage normalises and resizes uint8 images as in its training.

RUN_DIR or CHECKPOINT          a run of this project: its newest configuration, and the averaged weights if there are any
CONFIG.yaml:WEIGHTS            the configuration's `model` with weights from a plain file, such as a public one;
                               image settings that `model.init_args` lacks (num_classes, mean, ...) are taken from the data
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datamodules import CachedFeaturesDataModule, DataModule
from datamodules.signals.base import SignalDataModule
from foundation.places import near_or_there
from foundation.sizes import pixels_of_size, sides, size_text
from lightning_modules import CascadeHead, load_run
from lightning_modules.classification import Classifier, refuse_several_labels
from lightning_modules.loading import model_class, newest_config
from lightning_modules.pretrained import read_weights
from networks import ResNet, own_names, warm_start
from tools.command_line import watched
from tools.run_data import configured_data
from transforms import normalize, resize

LINKED = ("num_classes", "in_channels", "image_size", "mean", "std", "class_names")


class Source(NamedTuple):
    """Source of a stage: a run folder or checkpoint, or a configuration together with a file of weights."""

    path: Path
    weights: str | None

    @classmethod
    def of(cls, text: str) -> Source:
        """Parse the command-line form of a stage.

        >>> Source.of("net.yaml:weights.pt").weights, Source.of("runs/a").weights
        ('weights.pt', None)
        """
        for ending in (".yaml:", ".yml:"):
            before, found, after = text.partition(ending)
            if found:
                return cls(Path(before + ending[:-1]), after)
        return cls(Path(text), None)

    def config(self) -> Path:
        """Return the configuration file; for a run, the newest one.

        Raises:
            ValueError: There is no such configuration, run folder or checkpoint.
        """
        if self.weights is not None:
            if not self.path.is_file():
                raise ValueError(f"{self.path}: no such configuration")
            return self.path
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such run folder or checkpoint{near_or_there(self.path)}")
        return newest_config(self.path if self.path.is_dir() else self.path.resolve().parent.parent)


class Stage:
    """A classifier in eval mode that takes uint8 images.

    Args:
        name: Name in tables and messages.
        module: A classifier of this project that takes images.
        device: Device of the computation.
        bf16: Use autocast with bfloat16; otherwise everything is computed in float32.

    Raises:
        ValueError: The module does not know mean and std.
    """

    def __init__(self, name: str, module: Classifier, device: torch.device, bf16: bool = False) -> None:
        if module.mean is None or module.std is None:
            raise ValueError(f"{name}: has no mean and std to normalise images with")
        self.name, self.module, self.device, self.bf16 = name, module.eval().to(device), device, bf16
        self.module.channels_last = True
        self.module.to(memory_format=torch.channels_last)

    def prepared(self, images: Tensor) -> Tensor:
        """Resize (with antialiasing) and normalise images (B, C, H, W) uint8 for this stage's network."""
        images = images.to(self.device, non_blocking=True)
        size = self.module.image_size
        if size is not None and images.shape[-2:] != sides(size):
            images = resize(images, size)
        assert self.module.mean is not None
        assert self.module.std is not None
        return normalize(images, self.module.mean, self.module.std)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (B, K) float32 of images (B, C, H, W) uint8."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.module(self.prepared(images))
        return logits.float()

    def flops(self, images: Tensor) -> float:
        """Count the floating-point operations per image in convolutions and matrix products; a multiply-add counts as two."""
        prepared = self.prepared(images[:1])
        with torch.no_grad():
            self.module(
                prepared
            )  # a head on cached features builds its backbone in the first call, which is not counted
        # the counter does not know the fused attention kernels; the MATH backend is two matrix products, which it counts
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.module(prepared)
        return float(counter.get_total_flops())


class Samples(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64 in memory."""

    image: Tensor
    label: Tensor

    def part(self, places: Tensor) -> Samples:
        """Select the samples at the given indices."""
        return Samples(self.image[places], self.label[places])


def open_stages(
    sources: Sequence[Source],
    config: Path,
    settings: Mapping[str, Any] | None,
    device: torch.device,
    bf16: bool,
    checkpoint: str = "best",
    weights: Sequence[str] | None = None,
) -> tuple[list[Stage], DataModule]:
    """Load the stages, and create the data at the largest of their image sizes.

    Args:
        sources: Sources of the stages.
        config: Configuration whose ``data`` section is used.
        settings: Settings of the data in place of configured ones, such as `root`.
        device: Device of both stages.
        bf16: See :class:`Stage`.
        checkpoint: Checkpoint of a run folder, ``best`` or ``last``.
        weights: Files with the weights of the backbones of the stages that are cascade heads; None: where they were in training.

    Returns:
        The stages and the datamodule, which is not set up yet.

    Raises:
        ValueError: A source is missing, is no classifier, or does not fit the data.
    """
    data = configured_data(config, settings)
    if isinstance(data, CachedFeaturesDataModule):
        raise ValueError(
            f"{config}: its data are cached features, but a cascade needs their images; give the configuration of the extraction, "
            "such as --data configs/cascade_extract.yaml --data.root FOLDER"
        )
    if isinstance(data, SignalDataModule):
        raise ValueError(
            f"{config}: its data are windows of signals, but a cascade passes images from one stage to the next; compare runs on "
            "signals with tools.compare"
        )
    modules = [_module(source, data, checkpoint) for source in sources]
    if weights is not None:
        _give_weights([module for module in modules if isinstance(module, CascadeHead)], weights)
    given = [module.image_size for module in modules if module.image_size is not None]
    largest = max(given, key=pixels_of_size, default=None)
    if largest is not None and largest != data.image_size:
        data = configured_data(config, settings, largest)
    for source, module in zip(sources, modules, strict=True):
        _check(source, module, data)
    names = [_name(source) for source in sources]
    return [Stage(name, module, device, bf16) for name, module in zip(names, modules, strict=True)], data


def _name(source: Source) -> str:
    return Path(source.weights).stem if source.weights is not None else str(source.path)


def _module(source: Source, data: DataModule, checkpoint: str) -> Classifier:
    if source.weights is None:
        module = load_run(source.path, checkpoint)
        if not isinstance(module, Classifier):
            raise ValueError(f"{source.path}: is a run of {type(module).__name__}, but a classifier is needed")
        return module
    cls = model_class(source.config())
    if not issubclass(cls, Classifier):
        raise ValueError(f"{source.path}: model.class_path: {cls.__name__} is not a classifier")
    given = yaml.safe_load(source.path.read_text(encoding="utf-8"))["model"].get("init_args") or {}
    try:
        made = cls(**{**_data_settings(data), **given})
        tensors = read_weights(source.weights, made.network.state_dict().keys()).tensors
        warm_start(made.network, own_names(tensors) if isinstance(made.network, ResNet) else tensors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source.path}:{source.weights}: {error}") from error
    return made


def _give_weights(heads: Sequence[CascadeHead], weights: Sequence[str]) -> None:
    if len(weights) not in (1, len(heads)) or not heads:
        raise ValueError(
            f"--weights: one file for each of the {len(heads)} stages that are cascade heads on a frozen backbone, "
            f"got {len(weights)}"
        )
    for number, head in enumerate(heads):
        head.weights = weights[number % len(weights)]


def _data_settings(data: DataModule) -> dict[str, Any]:
    values = {name: getattr(data, name) for name in LINKED}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check(source: Source, module: Classifier, data: DataModule) -> None:
    """Raise ValueError if a stage cannot classify the data: other classes, other channels or larger images."""
    if module.several_labels:
        raise ValueError(
            f"{_name(source)}: has several labels an image (--model.task multilabel), but a cascade answers with one class, whose "
            "probability decides whether an image goes on"
        )
    for name in ("num_classes", "in_channels"):
        own, there = getattr(module, name), getattr(data, name)
        if own != there:
            raise ValueError(f"{_name(source)}: {name} {own}, but the data has {there}")
    if module.class_names is not None and list(module.class_names) != list(data.class_names):
        raise ValueError(
            f"{_name(source)}: its classes are {', '.join(module.class_names[:5])}, but the data has "
            f"{', '.join(data.class_names[:5])}: classes or their order differ"
        )
    if module.image_size is None:
        return
    (high, wide), (tall, broad) = sides(module.image_size), sides(data.image_size)
    sizes = f"takes images of {size_text(module.image_size)} pixels, but the data has images of {size_text(data.image_size)} pixels"
    if high * broad != wide * tall:
        raise ValueError(f"{_name(source)}: {sizes}, of other proportions; train all stages at sizes of the same ones")
    if high > tall:
        raise ValueError(f"{_name(source)}: {sizes}, and images are not enlarged")


def open_split(data: DataModule, split: str) -> None:
    """Set up the datamodule for ``val`` or ``test``, unless it is, so that its lines are printed once."""
    if split not in data.splits:
        data.setup("validate" if split == "val" else "test")


def read_samples(data: DataModule, split: str, limit: int | None, seed: int, left_out: Tensor | None = None) -> Samples:
    """Read a split into memory.

    Args:
        data: The datamodule; it is set up here.
        split: ``val`` or ``test``.
        limit: Number of samples to draw; None for all.
        seed: Seed of the draw.
        left_out: ``index`` of the samples to leave out, (M,) int64.

    Raises:
        ValueError: The split is empty.
    """
    open_split(data, split)
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    batches = list(watched(f"reading {split}", loader, "batches", len(loader)))
    if not batches:
        raise ValueError(f"--split {split}: the split has no samples")
    refuse_several_labels(data, "a cascade answers with one class an image")
    samples = Samples(torch.cat([b["image"] for b in batches]).cpu(), torch.cat([b["label"] for b in batches]).cpu())
    if left_out is not None and len(left_out):
        index = torch.cat([b["index"] for b in batches]).cpu()
        samples = samples.part((~torch.isin(index, left_out)).nonzero().flatten())
    if limit is None or limit >= len(samples.label):
        return samples
    drawn = torch.randperm(len(samples.label), generator=torch.Generator().manual_seed(seed))[:limit]
    return samples.part(drawn.sort()[0])
