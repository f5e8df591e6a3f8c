"""`Deployed`: what an ONNX file computes, for each kind of run: one module from raw input to logits, and how to test it.

    image classifiers, heads    images (B, C, S, S) in 0..1              --> normalisation --> network --> logits (B, K)
    HAR                         windows (B, S, T) in physical units      --> normalisation --> encoder --> network --> logits (B, K)
    prompted segmentation       images (B, 3, H, W) in 0..1, any H and W --> normalisation --> network --> logits (B, P, H, W)

The text part of a segmenter is not in the file: the vectors of P prompts are constants in it.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from datamodules.images.transform import ImageTransform
from foundation.sizes import sides
from lightning_modules import Classifier, PromptedSegmenter
from lightning_modules.multilabel import MultiLabelClassifier
from networks import ternary_layers
from networks.segmenters.clip import CLIPSegmenter
from networks.segmenters.parts import PairSegmenter
from tools.export.windows import RawWindows

IMAGES = ((2, 3, 75, 107), (1, 3, 64, 64), (3, 3, 33, 130))  # images of a segmenter in the test of the file: B, C, H, W


PIXELS = "images (batch, channels, height, width), float32 in 0..1; the file itself subtracts mean and divides by std"
WINDOWS = (
    "windows (batch, signals, samples), float32 in physical units; the file itself subtracts mean and divides by std"
)
"""The metadata's `input`: nobody need normalise a second time because mean and std are there."""


class VerificationError(Exception):
    """A written file does not reproduce the network."""


class Deployed(NamedTuple):
    """What a file computes.

    Attributes:
        before: Maps the input to what the network takes; always float32.
        network: Maps it to logits.
        input: Name of the input, ``images`` or ``windows``.
        dynamic: Names of the axes of the input that may have any length, by their number.
        examples: Inputs for the export (the first) and for the test of the file.
        logits: The logits (B, ...) that torch gives for an input.
        metadata: Written into the file.
    """

    before: nn.Module
    network: nn.Module
    input: str
    dynamic: dict[int, str]
    examples: Sequence[Tensor]
    logits: Callable[[Tensor], Tensor]
    metadata: dict[str, str]


class Normalisation(nn.Module):
    """(x - mean) / std for each channel, as one product and one sum."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer("factor", (1 / stds).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) of images in 0..1."""
        return images * self.factor + self.shift


class OfPrompts(nn.Module):
    """A segmenter with fixed prompts: logits (B, P, H, W) of normalised images (B, 3, H, W).

    Args:
        network: The segmenter, on the CPU.
        prompts: P texts.
    """

    vectors: Tensor

    def __init__(self, network: PairSegmenter, prompts: Sequence[str]) -> None:
        super().__init__()
        _pad_statically(network)
        self.segmenter = network
        if isinstance(network, CLIPSegmenter):
            self.image_tower = network.clip.towers["vision"]  # registered here, so that it follows the dtype
        self.register_buffer("vectors", network.vectors(prompts).detach())

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        count, height, width = images.shape[0], images.shape[2], images.shape[3]
        # repeats the last row and column, as `pad_to_multiple` does, for lengths that are not known at the export
        multiple = self.segmenter.multiple
        rows = torch.arange((height + multiple - 1) // multiple * multiple).clamp(max=height - 1)
        columns = torch.arange((width + multiple - 1) // multiple * multiple).clamp(max=width - 1)
        padded = images.index_select(2, rows).index_select(3, columns)
        features, index = self.segmenter.features(padded), torch.arange(count)
        # one prompt after another: with pairs as one axis, of B times P, the export of three prompts took minutes
        found = [self.segmenter.decoded(padded, features, vector.expand(count, -1), index) for vector in self.vectors]
        return torch.cat(found, dim=1)[..., :height, :width]


def _pad_statically(network: nn.Module) -> None:
    """Replace convolutions that pad as TensorFlow does by such with constant padding.

    Their padding depends on the size of the image, and with an unknown size the export of a network of them takes very long. The
    sides of the images here are divisible by all strides, for which the padding is constant.
    """
    for name, layer in [*network.named_modules()]:
        if not isinstance(layer, Conv2dSame):
            continue
        pads: list[int] = []
        for kernel, stride, dilation in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
            total = max((kernel - 1) * dilation + 1 - stride, 0)
            pads = [total // 2, total - total // 2, *pads]  # the last axis comes first
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            0,
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
        )
        plain.weight, plain.bias = layer.weight, layer.bias
        network.set_submodule(name, nn.Sequential(nn.ZeroPad2d(tuple(pads)), plain))  # type: ignore[arg-type]


class _IdentityQuantizer(nn.Module):
    """Replaces a quantiser: returns the weights unchanged."""

    scale = "effective"

    def forward(self, weight: Tensor) -> Tensor:
        return weight


def deployed_classifier(module: Classifier, windows: RawWindows | None = None) -> Deployed:
    """What the file of a classifier computes.

    Args:
        module: A trained classifier, as returned by `load_run`; it is not changed.
        windows: For a HAR run, what comes before the network; the file then takes raw windows in place of images.

    Raises:
        ValueError: The module has no mean, std or image size, or the weights of its frozen backbone cannot be read.
    """
    if module.mean is None or module.std is None or module.image_size is None:
        raise ValueError(
            "ONNX: the module must have mean, std and image_size of its data; main.py sets them from the data"
        )
    network = _with_effective_weights(module.deployed_network)
    names = module.class_names or [str(number) for number in range(module.num_classes)]
    architecture = str(getattr(module, "architecture", type(module).__name__))
    known: dict[str, object] = {"class_names": names, "temperature": module.temperature}
    if isinstance(module, MultiLabelClassifier) and module.several_labels:
        known = {"class_names": names, "task": module.task, "thresholds": module.label_probabilities}
    if windows is not None:
        mean, std = (part.flatten().tolist() for part in (windows.mean, windows.std))
        known |= {"input": WINDOWS, "mean": mean, "std": std, **windows.description}
        examples = [windows.examples(count, _seeded()) for count in (2, 5, 1)]
        return Deployed(
            windows,
            network,
            "windows",
            {0: "batch"},
            examples,
            lambda raw: module.deployed_network(windows(raw)),
            _metadata(architecture, known),
        )
    shape = (module.in_channels, *sides(module.image_size))
    return Deployed(
        Normalisation(module.mean, module.std),
        network,
        "images",
        {0: "batch"},
        [torch.rand(count, *shape, generator=_seeded()) for count in (2, 5, 1)],
        module.logits,
        _metadata(
            architecture,
            {**known, "input": PIXELS, "mean": list(module.mean), "std": list(module.std), **_preprocessing(module)},
        ),
    )


def _preprocessing(module: Classifier | PromptedSegmenter) -> dict[str, object]:
    """How image files become the input of the file, where the run knows it."""
    with contextlib.suppress(ValueError):  # not from a run, or one of an old record
        transform = module.transform if module.make_transform is not None else None
        if isinstance(transform, ImageTransform):
            return {"preprocessing": transform.reading.description}
    return {}


def deployed_segmenter(module: PromptedSegmenter, prompts: Sequence[str] | None = None) -> Deployed:
    """What the file of a prompted segmenter computes.

    Args:
        module: A trained segmenter, as returned by `load_run`; it is not changed.
        prompts: Prompts of the file; None: those of training.

    Raises:
        ValueError: The module has no mean and std, or a prompt contains no word.
    """
    if module.mean is None or module.std is None:
        raise ValueError("ONNX: the module must have mean and std of its data; main.py sets them from the data")
    asked = list(module.class_names if prompts is None else prompts)
    module.warn_of_unknown(asked)
    # copies share the towers of CLIPSeg, which are in no dtype but float32 unless they are copied, too
    network = copy.deepcopy(module.network).cpu().float().eval()
    if isinstance(network, CLIPSegmenter):
        network.clip = copy.copy(network.clip)
        network.clip.towers = copy.deepcopy(network.clip.towers)
    known = {
        "prompts": asked,
        "thresholds": [module.threshold_of(prompt) for prompt in asked],
        "input": PIXELS,
        "mean": list(module.mean),
        "std": list(module.std),
        "side": module.side,
        **_preprocessing(module),
    }
    return Deployed(
        Normalisation(module.mean, module.std),
        OfPrompts(network, asked),
        "images",
        {0: "batch", 2: "height", 3: "width"},
        [torch.rand(*shape, generator=_seeded()) for shape in IMAGES],
        lambda images: _logits_of(module, images, asked),
        _metadata(
            module.encoder if module.kind == "light" else f"clipseg, decoder {module.decoder or 'clipseg'}", known
        ),
    )


def _logits_of(module: PromptedSegmenter, images: Tensor, prompts: list[str]) -> Tensor:
    """Logits (B, P, H, W) of the module's own network, from the path that validation takes, without resizing and tiles."""
    index = torch.arange(len(images)).repeat_interleave(len(prompts))
    before = Normalisation(module.mean or [], module.std or [])
    with module.evaluating():
        logits: Tensor = module.network(before(images), prompts * len(images), index)
    return logits.view(len(images), len(prompts), *images.shape[-2:])


def _with_effective_weights(network: nn.Module) -> nn.Module:
    """Copy of a network on the CPU in float32, with the ternary layers' effective weights as plain weights and no quantiser."""
    network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    for name, layer in ternary_layers(network).items():
        layer.weight = nn.Parameter(layer.effective_weight().detach(), requires_grad=False)
        network.set_submodule(f"{name}.quantizer", _IdentityQuantizer())
    return network


def _metadata(architecture: str, known: dict[str, object]) -> dict[str, str]:
    return {"architecture": architecture, **{key: json.dumps(value) for key, value in known.items()}}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
