"""The two stages of a cascade: trained classifiers that are given uint8 images, each normalised and sized as it was trained.

RUN_DIR or CHECKPOINT          a run of ours: newest configuration, averaged weights where there are any
CONFIG.yaml:WEIGHTS            a network of the configuration's `model` with the weights of a plain file, such as a public one;
                               what `model.init_args` does not say of the images (num_classes, mean, ...) is that of the data
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datamodules import CachedFeaturesDataModule, DataModule
from lightning_modules import load_run
from lightning_modules.classification import Classifier
from lightning_modules.loading import model_class, newest_config
from lightning_modules.pretrained import read_weights
from networks import ResNet, own_names, warm_start
from tools.command_line import watched
from tools.run_data import configured_data
from transforms import normalize, resize

LINKED = ("num_classes", "in_channels", "image_size", "mean", "std", "class_names")


class Source(NamedTuple):
    """Where a stage comes from: a run or checkpoint, or a configuration and a file of weights."""

    path: Path
    weights: str | None

    @classmethod
    def of(cls, text: str) -> Source:
        """Take apart what the command line was given.

        >>> Source.of("net.yaml:weights.pt").weights, Source.of("runs/a").weights
        ('weights.pt', None)
        """
        for ending in (".yaml:", ".yml:"):
            before, found, after = text.partition(ending)
            if found:
                return cls(Path(before + ending[:-1]), after)
        return cls(Path(text), None)

    def config(self) -> Path:
        """The configuration.

        Raises:
            ValueError: There is none.
        """
        if self.weights is not None:
            if not self.path.is_file():
                raise ValueError(f"{self.path}: no such configuration")
            return self.path
        if not self.path.exists():
            raise ValueError(f"{self.path}: no such run folder or checkpoint")
        return newest_config(self.path if self.path.is_dir() else self.path.resolve().parent.parent)


class Stage:
    """A classifier in eval mode that takes uint8 images.

    Args:
        name: For tables.
        module: Any classifier of ours that takes images.
        device: Where it computes.
        bf16: Compute in bfloat16 where autocast does; else in float32.
    """

    def __init__(self, name: str, module: Classifier, device: torch.device, bf16: bool = False) -> None:
        if module.mean is None or module.std is None:
            raise ValueError(f"{name}: does not know the mean and std of its images")
        self.name, self.module, self.device, self.bf16 = name, module.eval().to(device), device, bf16
        self.module.channels_last = True
        self.module.to(memory_format=torch.channels_last)

    def prepared(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) uint8 as this stage's network takes them; larger ones are shrunk, antialiased."""
        images = images.to(self.device, non_blocking=True)
        size = self.module.image_size
        if size is not None and images.shape[-1] != size:
            images = resize(images, size)
        assert self.module.mean is not None
        assert self.module.std is not None
        return normalize(images, self.module.mean, self.module.std)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) float32 of images (B, C, H, W) uint8."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: Tensor = self.module(self.prepared(images))
        return logits.float()

    def flops(self, images: Tensor) -> float:
        """Floating-point operations an image, a multiplication and an addition counted as two: convolutions and matrix products."""
        prepared = self.prepared(images[:1])
        # the fused attention kernels are unknown to the counter; the plain one is two products of matrices
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.module(prepared)
        return float(counter.get_total_flops())


class Samples(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64, in memory."""

    image: Tensor
    label: Tensor

    def part(self, places: Tensor) -> Samples:
        """The samples at these places."""
        return Samples(self.image[places], self.label[places])


def open_stages(
    sources: Sequence[Source],
    config: Path,
    root: str | None,
    device: torch.device,
    bf16: bool,
    checkpoint: str = "best",
) -> tuple[list[Stage], DataModule]:
    """Both stages, and the data at the larger of their image sizes.

    Args:
        sources: Of the stages.
        config: Configuration whose ``data`` both are shown.
        root: Folder of the data, in place of the configured one.
        device: Where both compute.
        bf16: See :class:`Stage`.
        checkpoint: Which one of a run folder.

    Raises:
        ValueError: Something is missing or does not fit; one line says what.
    """
    data = configured_data(config, root)
    if isinstance(data, CachedFeaturesDataModule):
        raise ValueError(
            f"{config}: holds features, and a cascade is shown images; name a configuration of images by --data"
        )
    modules = [_module(source, data, checkpoint) for source in sources]
    largest = max((module.image_size or 0 for module in modules), default=0)
    if largest and largest != data.image_size:
        data = configured_data(config, root, largest)
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
            raise ValueError(f"{source.path}: is a run of {type(module).__name__}, a classifier is needed")
        return module
    cls = model_class(source.config())
    if not issubclass(cls, Classifier):
        raise ValueError(f"{source.path}: model.class_path: {cls.__name__} is no classifier")
    given = yaml.safe_load(source.path.read_text(encoding="utf-8"))["model"].get("init_args") or {}
    try:
        made = cls(**{**_of_data(data), **given})
        tensors = read_weights(source.weights, made.network.state_dict().keys()).tensors
        warm_start(made.network, own_names(tensors) if isinstance(made.network, ResNet) else tensors)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source.path}:{source.weights}: {error}") from error
    return made


def _of_data(data: DataModule) -> dict[str, Any]:
    values = {name: getattr(data, name) for name in LINKED}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check(source: Source, module: Classifier, data: DataModule) -> None:
    """Refuse a stage that cannot judge the data."""
    for name in ("num_classes", "in_channels"):
        own, there = getattr(module, name), getattr(data, name)
        if own != there:
            raise ValueError(f"{_name(source)}: {name} {own}, but the data has {there}")
    if module.class_names is not None and list(module.class_names) != list(data.class_names):
        raise ValueError(
            f"{_name(source)}: tells apart {', '.join(module.class_names[:5])}, but the data has "
            f"{', '.join(data.class_names[:5])}: classes or their order differ"
        )
    if module.image_size is not None and module.image_size > data.image_size:
        raise ValueError(
            f"{_name(source)}: takes images of {module.image_size} pixels, and those of the data have {data.image_size}, "
            "which are not enlarged"
        )


def read_samples(data: DataModule, split: str, limit: int | None, seed: int) -> Samples:
    """A split in memory.

    Args:
        data: Not set up yet, or already.
        split: ``val`` or ``test``.
        limit: Most samples, drawn by seed; None for all.
        seed: Of the draw.

    Raises:
        ValueError: The split is empty.
    """
    data.setup("validate" if split == "val" else "test")
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    batches = list(watched(f"reading {split}", loader, "batches", len(loader)))
    if not batches:
        raise ValueError(f"--split {split}: has no samples")
    samples = Samples(torch.cat([b["image"] for b in batches]).cpu(), torch.cat([b["label"] for b in batches]).cpu())
    if limit is None or limit >= len(samples.label):
        return samples
    drawn = torch.randperm(len(samples.label), generator=torch.Generator().manual_seed(seed))[:limit]
    return samples.part(drawn.sort()[0])
