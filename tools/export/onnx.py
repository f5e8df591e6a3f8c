"""Writes a trained classifier as a self-contained ONNX file (pixels in, logits out) and checks it against torch.

    images (B, C, S, S) float32 in 0..1 --> normalisation --> convolutions with the effective weights --> logits (B, K)

The file of a HAR run takes raw `windows` (B, S, T) in physical units: normalisation and encoder are in the graph, see
tools/export/windows.py.

A ternary layer becomes a plain convolution with weights of -1, 0 or +1 times a scale, so the file is as large as the file of the
full-precision twin. The metadata has `class_names`, `mean` and `std` (JSON) and `architecture`.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from foundation.atomic_files import replace_file
from lightning_modules import Classifier
from networks import ternary_layers
from tools.export.windows import RawWindows

if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
    raise ImportError(
        f"ONNX needs {' and '.join(missing)}, not installed here: "
        "uv sync --extra export, or pip install '.[export]' in the checkout"
    )

LARGEST = 1e-3  # largest allowed difference, as a share of the largest logit
# the same with int8 activations: a value between two levels may be rounded up by one runtime and down by the other
LARGEST_ROUNDED = 5e-2


class _IdentityQuantizer(nn.Module):
    """Replaces a quantiser: returns the weights unchanged."""

    scale = "effective"

    def forward(self, weight: Tensor) -> Tensor:
        return weight


class _Deployed(nn.Module):
    """The exported module: normalisation followed by the network."""

    factor: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
        self.register_buffer("factor", (1 / stds).float())
        self.register_buffer("shift", (-means / stds).float())

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images * self.factor + self.shift)
        return logits


@torch.no_grad()
def export_onnx(module: Classifier, path: Path, windows: RawWindows | None = None) -> str:
    """Write a classifier as ONNX and compare the logits of onnxruntime with those of torch.

    Args:
        module: A trained classifier, as returned by `load_run`; it is not changed.
        path: File to write; an existing file is replaced only after the new one has passed the check.
        windows: For a HAR run, what comes before the network; the file then takes raw windows in place of images.

    Returns:
        A line with the size of the file and the largest difference between logits, as a share of the largest logit.

    Raises:
        ValueError: The module has no mean, std or image size, the folder of ``path`` does not exist, or the logits of onnxruntime
            and torch differ by more than a thousandth of the largest logit (a twentieth with int8 activations). Nothing is
            written in these cases.
    """
    if module.mean is None or module.std is None or module.image_size is None:
        raise ValueError(
            "ONNX: the module must have mean, std and image_size of its data; main.py sets them from the data"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist")
    network = _with_effective_weights(module.deployed_network)
    shape = (module.in_channels, module.image_size, module.image_size)
    deployed = _Deployed(network, module.mean, module.std) if windows is None else nn.Sequential(windows, network)
    with replace_file(path) as temporary:
        _write(
            deployed.eval(),
            torch.zeros(2, *(windows.shape if windows else shape)),
            temporary,
            _metadata(module, windows),
        )
        difference = 0.0
        for count in (5, 1):
            if windows is None:
                inputs = torch.rand(count, *shape, generator=_seeded())
                expected = module.logits(inputs)
            else:
                inputs = windows.examples(count, _seeded())
                expected = module.deployed_network(windows(inputs))
            difference = max(difference, _difference(expected, temporary, inputs))
        rounded = any(layer.activation_bits == 8 for layer in ternary_layers(module.network).values())
        allowed = LARGEST_ROUNDED if rounded else LARGEST
        if not difference <= allowed:
            raise ValueError(
                f"{path}: not written, onnxruntime's logits differ from torch's by {difference:.2g} of the largest logit "
                f"(allowed: {allowed:g}); another version of onnxruntime may help"
            )
        size = temporary.stat().st_size
    return f"{path}: {size / 1e6:.2f} MB, logits of onnxruntime and torch differ by {difference:.1e} of the largest at most"


def _with_effective_weights(network: nn.Module) -> nn.Module:
    """Copy of a network on the CPU in float32, with the ternary layers' effective weights as plain weights and no quantiser."""
    network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format)
    for name, layer in ternary_layers(network).items():
        layer.weight = nn.Parameter(layer.effective_weight().detach(), requires_grad=False)
        network.set_submodule(f"{name}.quantizer", _IdentityQuantizer())
    return network


def _write(deployed: nn.Module, example: Tensor, path: Path, metadata: dict[str, str]) -> None:
    program = torch.onnx.export(
        deployed,
        (example,),
        input_names=["windows" if example.ndim == 3 else "images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # source lines and paths of this machine
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def _metadata(module: Classifier, windows: RawWindows | None) -> dict[str, str]:
    names = module.class_names or [str(number) for number in range(module.num_classes)]
    if windows is None:
        values = {"class_names": names, "mean": list(module.mean or []), "std": list(module.std or [])}
    else:
        mean, std = (part.flatten().tolist() for part in (windows.mean, windows.std))
        values = {"class_names": names, "mean": mean, "std": std, "signal_names": windows.signal_names}
    return {
        "architecture": str(getattr(module, "architecture", type(module).__name__)),
        **{name: json.dumps(value) for name, value in values.items()},
    }


def _difference(expected: Tensor, path: Path, inputs: Tensor) -> float:
    """Largest difference between the logits of the file and those expected, as a share of the largest logit."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: inputs.numpy()})[0])
    return float((found - expected.cpu()).abs().max() / expected.abs().max())


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
