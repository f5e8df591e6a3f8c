"""Writes a trained run as a self-contained ONNX file (raw input, logits out) and checks it against torch.

tools/export/deployed.py states what a file computes for each kind of run. A ternary layer becomes a plain convolution with weights
of -1, 0 or +1 times a scale, so the file is as large as the file of the full-precision twin. With ``half`` the network's weights
and operations are float16, and the file is half as large; input, normalisation and logits stay float32.

The metadata has `input` (shape, range, and that the file normalises), `mean` and `std` (JSON) and `architecture`; of a classifier
also `class_names` and `temperature`, or with several labels an image `class_names`, `task` (multilabel) and `thresholds`, the
probabilities (sigmoid of a logit) from which labels are predicted; of a run on images `preprocessing`, how a file becomes
`images` (`Reading.description`); of a segmenter `prompts`, their `thresholds` and `side`; of a HAR run `signal_names`,
`signal_units`, `sampling_rate` (Hz) and `window_length`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from foundation.atomic_files import replace_file
from networks import ternary_layers
from tools.command_line import say
from tools.export.deployed import Deployed

if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
    raise ImportError(
        f"ONNX needs {' and '.join(missing)}, not installed here: "
        "uv sync --extra export, or pip install '.[export]' in the checkout"
    )

LARGEST = 1e-3  # largest allowed difference, as a share of the largest logit
LARGEST_HALF = 2e-2  # the same in float16, whose values are rounded to 1/2048
# the same with int8 activations: a value between two levels may be rounded up by one runtime and down by the other
LARGEST_ROUNDED = 5e-2


class _Half(nn.Module):
    """Casts the input of a network in float16, and its output back to float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs.half())
        return logits.float()


@torch.no_grad()
def export_onnx(deployed: Deployed, path: Path, half: bool = False) -> str:
    """Write an ONNX file and compare the logits of onnxruntime with those of torch in float32.

    Args:
        deployed: From `deployed_classifier` or `deployed_segmenter`.
        path: File to write; an existing file is replaced only after the new one has passed the check.
        half: Weights and operations of the network in float16.

    Returns:
        A line with the size of the file and the largest difference between logits, as a share of the largest logit.

    Raises:
        ValueError: The folder of ``path`` does not exist, or the logits of onnxruntime and torch differ by more than a thousandth
            of the largest logit (a fiftieth in float16, a twentieth with int8 activations). Nothing is written in these cases.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--onnx {path}: must be a file in a folder that exists")
    rounded = any(layer.activation_bits == 8 for layer in ternary_layers(deployed.network).values())
    network = _Half(deployed.network) if half else deployed.network
    with replace_file(path) as temporary:
        write_onnx(deployed._replace(network=network), temporary)
        difference = largest_difference(deployed, temporary)
        allowed = LARGEST_ROUNDED if rounded else LARGEST_HALF if half else LARGEST
        if not difference <= allowed:
            advice = "leave out --fp16" if half else "another version of onnxruntime may help"
            raise ValueError(
                f"{path}: not written, onnxruntime's logits differ from torch's by {difference:.3g} of the largest logit "
                f"(allowed: {allowed:g}); {advice}"
            )
        size = temporary.stat().st_size
    return f"{path}: {size / 1e6:.2f} MB, logits of onnxruntime and torch differ by {difference:.1e} of the largest at most"


def write_onnx(deployed: Deployed, path: Path) -> list[str]:
    """Write an ONNX file without a check.

    Args:
        deployed: From `deployed_classifier` or `deployed_segmenter`.
        path: File to write.

    Returns:
        Names of the nodes that come before the network: the normalisation, and the encoder of a HAR run.
    """
    say("onnx", "torch traces the network: seconds to minutes, without progress")
    program = torch.onnx.export(
        nn.Sequential(OrderedDict(before=deployed.before, network=deployed.network)).eval(),
        (deployed.examples[0],),
        input_names=[deployed.input],
        output_names=["logits"],
        dynamic_shapes=({axis: torch.export.Dim(name) for axis, name in deployed.dynamic.items()},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    before = []
    for node in program.model.graph:
        if "'before'" in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
            before.append(str(node.name))
        node.metadata_props.clear()  # source lines and paths of this machine
    program.model.metadata_props.update(deployed.metadata)
    program.save(path, external_data=False)
    return before


@torch.no_grad()
def largest_difference(deployed: Deployed, path: Path) -> float:
    """Largest difference between the logits of a file and those of torch on the examples, as a share of the largest logit.

    Args:
        deployed: What the file should compute.
        path: The file.
    """
    import onnxruntime

    say("onnx", f"compared with torch in onnxruntime on {len(deployed.examples)} inputs")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    shares = []
    for inputs in deployed.examples:
        expected = deployed.logits(inputs).cpu()
        found = torch.from_numpy(session.run(["logits"], {session.get_inputs()[0].name: inputs.numpy()})[0])
        shares.append(float((found - expected).abs().max() / expected.abs().max()))
    return math.nan if any(map(math.isnan, shares)) else max(shares)
