"""A trained classifier as an ONNX file that needs none of this project: pixels in, logits out, checked against torch.

    images (B, C, S, S) float32 in 0..1 --> normalisation --> convolutions with the effective weights --> logits (B, K)

A HAR run's file takes `images` of windows, (B, S, C, N, N) in the mode flatten, or normalised `signals` (B, S, T).

A ternary layer becomes a plain convolution whose weights are -1, 0 or +1 times a scale, so the file is as large as that of the
full-precision twin. The metadata holds `class_names`, `mean` and `std` (JSON) and `architecture`.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from foundation.atomic_files import replace_file
from lightning_modules import Classifier, HARClassifier
from networks import ternary_layers
from networks.signal_encoder import SIGNAL_NETWORK

if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
    raise ImportError(
        f"ONNX needs {' and '.join(missing)}, not installed here: pip install 'lightning-vision-recipes[export]'"
    )

LARGEST = 1e-3  # difference that is allowed, as a share of the largest logit
# a value that lies between two levels of int8 may be rounded up by one runtime and down by the other
LARGEST_ROUNDED = 5e-2


class _AsItIs(nn.Module):
    """Stands where a quantiser was."""

    scale = "effective"

    def forward(self, weight: Tensor) -> Tensor:
        return weight


class _Deployed(nn.Module):
    """The graph of the file: normalisation and network."""

    factor: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], places: int) -> None:
        super().__init__()
        self.network = network
        each = (-1, *[1] * places)  # of a channel, over the dimensions behind it
        means, stds = (torch.tensor(values, dtype=torch.float64).view(each) for values in (mean, std))
        self.register_buffer("factor", (1 / stds).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.factor + self.shift)
        return logits


def export_onnx(module: Classifier, path: Path, shape: tuple[int, ...] | None = None) -> str:
    """Write a classifier as ONNX, and compare what onnxruntime makes of it with what torch does.

    Args:
        module: A trained classifier, as `load_run` gives it; left as it is.
        path: File to write; replaced only when the new one has been checked.
        shape: Of one input; None: (C, S, S). Of a HAR run see :func:`window_shape`.

    Returns:
        A line with the size of the file and the largest difference of the logits, as a share of the largest logit.

    Raises:
        ValueError: The module does not know mean, std or image size, there is no such folder, or onnxruntime's logits differ from
            torch's by more than a thousandth of the largest (a twentieth with int8 activations); then nothing is written.
    """
    if module.mean is None or module.std is None or module.image_size is None:
        raise ValueError("ONNX: the module must know mean, std and image_size of its data; the command line gives them")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    shape = shape or (module.in_channels, module.image_size, module.image_size)
    places = 1 if len(shape) == 2 else 2
    deployed = _Deployed(_plain(module.deployed_network), module.mean, module.std, places).eval()
    with replace_file(path) as temporary:
        _write(deployed, torch.zeros(2, *shape), temporary, _metadata(module))
        difference = max(
            _difference(module, temporary, torch.rand(count, *shape, generator=_seeded())) for count in (5, 1)
        )
        rounded = any(layer.activation_bits == 8 for layer in ternary_layers(module.network).values())
        allowed = LARGEST_ROUNDED if rounded else LARGEST
        if not difference <= allowed:
            raise ValueError(
                f"{path}: not written, onnxruntime's logits differ from torch's by {difference:.2g} of the largest logit "
                f"(allowed: {allowed:g}); another version of onnxruntime may help"
            )
        size = temporary.stat().st_size
    return f"{path}: {size / 1e6:.2f} MB, logits of onnxruntime and torch differ by {difference:.1e} of the largest at most"


def window_shape(module: HARClassifier, config: dict[str, Any]) -> tuple[int, ...]:
    """Shape of what a HAR run judges at a time, without the batch.

    Args:
        module: Of the run, which knows size and channels.
        config: The run's configuration, which knows whether a window is several images.

    Returns:
        (S, T) for signals, (S, C, N, N) in the mode flatten, else (C, N, N).
    """
    size = cast(int, module.image_size)
    if module.architecture == SIGNAL_NETWORK:
        return module.in_channels, size
    flat = config["data"]["init_args"].get("mode") == "flatten"
    return (*([module.signals] if flat else []), module.in_channels, size, size)


def _plain(network: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32, whose ternary layers hold their effective weights and quantise them no more."""
    network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    for name, layer in ternary_layers(network).items():
        layer.weight = nn.Parameter(layer.effective_weight().detach(), requires_grad=False)
        network.set_submodule(f"{name}.quantizer", _AsItIs())
    return network


def _write(deployed: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    program = torch.onnx.export(
        deployed,
        (example,),
        input_names=["signals" if example.ndim == 3 else "images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},  # the argument of _Deployed.forward
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the lines of code, with their paths, that each node comes from
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _metadata(module: Classifier) -> dict[str, str]:
    names = module.class_names or [str(number) for number in range(module.num_classes)]
    values = {"class_names": names, "mean": list(module.mean or []), "std": list(module.std or [])}
    return {
        "architecture": str(getattr(module, "architecture", type(module).__name__)),
        **{name: json.dumps(value) for name, value in values.items()},
    }


def _difference(module: Classifier, path: Path, images: Tensor) -> float:
    """Largest difference of the logits of the file and of the module, as a share of the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: images.numpy()})[0])
    expected = module.logits(images).cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
