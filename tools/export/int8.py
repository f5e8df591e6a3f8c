"""Writes the int8 ONNX file of a classifier: quantised by onnxruntime, chosen on validation, verified on the whole test split.

    fp32 ONNX --train, N samples--> scales by minmax, percentile, entropy --val--> the best one --test--> accuracy, then renamed

The metadata is that of the fp32 file (tools/export/onnx.py), and `quantization`: JSON with the settings.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from foundation.atomic_files import replace_file
from networks import ternary_layers
from tools.command_line import Progress, say
from tools.export.deployed import Deployed, VerificationError
from tools.export.onnx import LARGEST, largest_difference, write_onnx
from tools.export.quantized_weights import described, read_integers
from tools.export.split_inputs import Splits
from tools.export.static_quantization import METHODS, Ends, Method, Source, quantize

Logits = Callable[[Tensor], Tensor]

EFFORT: dict[Method, int] = {"minmax": 5, "percentile": 7, "entropy": 9}
"""Rough time of onnxruntime for a batch, in passes of the fp32 file (MobileNetV2, 160 px, one core, 2026-11-30)."""

ROUNDED = (
    "activation_bits 8: fp32 ONNX leaves the network's rounding out, int8 ONNX has scales per tensor in place of "
    "its scale per image"
)


class Batches(Protocol):
    """Batches of inputs and labels, whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Int8Settings(NamedTuple):
    """Settings of an int8 file.

    Attributes:
        methods: Ways to choose the scales of activations; the best one on validation is taken.
        ends: Which of the first and the last layer are int8.
        weight_bits: 7 or 8, of layers that are not ternary.
        max_drop: Largest allowed loss of accuracy on the test split, in percentage points.
        seed: Seed with which the calibration samples were drawn; written into the file.
    """

    methods: tuple[Method, ...] = tuple(METHODS)
    ends: Ends = "both"
    weight_bits: int = 7
    max_drop: float = 0.2
    seed: int = 0


class Score(NamedTuple):
    """Result of one side on a split.

    Attributes:
        samples: Number of samples.
        right: Number of correct predictions.
        same: Number of predictions that equal those of the trained network.
    """

    samples: int
    right: int
    same: int

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        return 100 * self.right / self.samples

    def __str__(self) -> str:
        return (
            f"{self.accuracy:.2f} % of {self.samples:,}, same class as trained {100 * self.same / self.samples:.2f} %"
        )


def export_int8(deployed: Deployed, splits: Splits, path: Path, settings: Int8Settings) -> list[str]:
    """Write an int8 file, unless it loses too much accuracy.

    A network with `activation_bits: 8` rounds its activations with a scale per image. The file has a scale per tensor in its place.

    Args:
        deployed: From `deployed_classifier`; rounding of activations is removed from its network.
        splits: From `open_splits`.
        path: File to write; an existing file is replaced only after the verification.
        settings: See `Int8Settings`.

    Returns:
        Lines to print.

    Raises:
        ValueError: The folder does not exist, or the network cannot be quantised. Nothing is written.
        VerificationError: The file loses more than ``max_drop``, or a ternary layer has other integers than it should. Nothing is
            written.
    """
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"--int8 {path}: must be a file in a folder that exists")
    layers = ternary_layers(deployed.network)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "fp32.onnx"
        rounded = any(layer.activation_bits == 8 for layer in layers.values())
        for layer in layers.values():
            layer.activation_bits = 32
        source = Source(plain, write_onnx(deployed, plain), list(layers))
        if not rounded and not (difference := largest_difference(deployed, plain)) <= LARGEST:
            raise VerificationError(f"the logits of the fp32 file differ by {difference:.2g} of the largest logit")
        files = {method: Path(folder) / f"{method}.onnx" for method in settings.methods}
        for number, (method, file) in enumerate(files.items(), start=1):
            count = sum(map(len, splits.calibration))
            batches = [batch.numpy() for batch in splits.calibration]
            say(
                "int8",
                f"{method}, {number} of {len(files)}: calibrated on {count:,} samples in {len(batches):,} batches, each about "
                f"{EFFORT[method]} times the time of a pass, then the int8 layers are written",
            )
            quantize(source, file, batches, method, settings.ends, settings.weight_bits)
        chosen, lines = _chosen(deployed, files, splits, settings.max_drop)
        scores = evaluate(
            {"trained": deployed.logits, "fp32 ONNX": onnx_logits(plain), "int8 ONNX": onnx_logits(files[chosen])},
            splits.test,
            "test",
        )
        lines += [f"test   {name:10} {score}" for name, score in scores.items()]
        drop = scores["trained"].accuracy - scores["int8 ONNX"].accuracy
        trained, made = scores["trained"], scores["int8 ONNX"]
        change = f"{abs(drop):.2f} points {'lower' if drop > 0 else 'higher'} than" if drop else "the same as"
        lines.append(
            f"accuracy of the int8 file on the test split: {change} that of the trained network (--max_drop {settings.max_drop:g})"
        )
        if not drop <= settings.max_drop:
            raise VerificationError(
                f"the int8 file loses {drop:.2f} points of accuracy on the test split ({trained.accuracy:.2f} -> "
                f"{made.accuracy:.2f} %, {trained.right:,} -> {made.right:,} of {trained.samples:,} right, {chosen}), more than "
                f"--max_drop {settings.max_drop:g}; {ways_on(settings, drop, trained.samples)}"
            )
        with replace_file(path) as temporary:
            _write(files[chosen], temporary, _record(splits, settings, chosen))
            integers = read_integers(temporary)
            _check_shapes(deployed, temporary)
        size, before = path.stat().st_size, plain.stat().st_size
    rounding = [ROUNDED] if rounded else []
    return [
        f"{path}: {size / 1e6:.2f} MB, {before / size:.2f} times smaller than fp32, calibrated by {chosen}",
        *lines,
        *rounding,
        *described(integers, layers),
    ]


def _chosen(
    deployed: Deployed, files: Mapping[Method, Path], splits: Splits, max_drop: float
) -> tuple[Method, list[str]]:
    """The best method on the validation split, by accuracy, then by agreement with the trained network, and a line on each."""
    sides: dict[str, Logits] = {"trained": deployed.logits}
    sides |= {method: onnx_logits(file) for method, file in files.items()}
    scores = evaluate(sides, splits.val, "validation")
    best = max(files, key=lambda method: (scores[method].right, scores[method].same))
    lines = [f"val    {name:10} {score}" for name, score in scores.items()]
    if (drop := scores["trained"].accuracy - scores[best].accuracy) > max_drop:
        lines.append(f"note: on validation {best} loses {drop:.2f} points, more than --max_drop {max_drop:g}")
    return best, lines


def ways_on(settings: Int8Settings, drop: float, samples: int) -> str:
    """What to change after a file has lost too much: the settings that cost accuracy, a larger split, or a larger ``max_drop``.

    Args:
        settings: Those of the file.
        drop: Points that it has lost on the test split.
        samples: Samples of the test split.

    >>> ways_on(Int8Settings(), 6.25, 16)
    'give --int8_ends none, --weight_bits 8 (for VNNI), or --max_drop 6.25; one of 16 samples is 6.25 points: take a larger split'
    >>> ways_on(Int8Settings(ends="none", weight_bits=8), 0.254, 10_000)
    'give --calibrate more samples, or --max_drop 0.26'
    """
    flags = ["--int8_ends none"] * (settings.ends != "none") + ["--weight_bits 8 (for VNNI)"] * (
        settings.weight_bits < 8
    )
    enough = math.ceil(100 * drop - 1e-6) / 100
    text = f"give {', '.join(flags or ['--calibrate more samples'])}, or --max_drop {enough:g}"
    if (one := 100 / samples) > settings.max_drop:
        text += f"; one of {samples:,} samples is {one:.2f} points: take a larger split"
    return text


def coarse_split(settings: Int8Settings, samples: int) -> str:
    """Say before the work that a test split is too small for ``max_drop`` to allow one sample; empty if it is not.

    >>> coarse_split(Int8Settings(), 16)
    'note: one of 16 test samples is 6.25 points, so --max_drop 0.2 allows to lose none; --max_drop 6.25 allows one'
    >>> coarse_split(Int8Settings(), 500)
    ''
    """
    one = 100 / samples
    if one <= settings.max_drop:
        return ""
    enough = math.ceil(100 * one - 1e-6) / 100
    return (
        f"note: one of {samples:,} test samples is {one:.2f} points, so --max_drop {settings.max_drop:g} allows to lose none; "
        f"--max_drop {enough:g} allows one"
    )


@torch.inference_mode()
def evaluate(sides: Mapping[str, Logits], batches: Batches, split: str) -> dict[str, Score]:
    """Evaluate several networks on the same samples.

    Args:
        sides: Maps inputs to logits (B, K); agreement is counted with the first one.
        batches: Inputs and labels (B,).
        split: What the samples are, for the progress lines.

    Returns:
        The score of each side.

    Raises:
        ValueError: There are no samples.
    """
    say(split, f"{len(batches):,} batches, each through {', '.join(sides)}")
    progress = Progress(split, len(batches) * len(sides), f"passes of a batch through one of {len(sides)} networks")
    right, same, samples = dict.fromkeys(sides, 0), dict.fromkeys(sides, 0), 0
    for inputs, label in batches:
        samples += len(label)
        first: Tensor | None = None
        for name, logits in sides.items():
            answer = logits(inputs).argmax(1).cpu()
            first = answer if first is None else first
            right[name] += int((answer == label).sum())
            same[name] += int((answer == first).sum())
            progress()
    if samples == 0:
        raise ValueError("a split has no samples to compare the int8 file on")
    return {name: Score(samples, right[name], same[name]) for name in sides}


def onnx_logits(path: Path, threads: int | None = None) -> Logits:
    """A function from inputs to the logits of an ONNX file in onnxruntime, on the CPU.

    Args:
        path: The file.
        threads: Number of threads; None: as many as torch uses.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def logits(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {name: inputs.numpy()})[0])

    return logits


def _record(splits: Splits, settings: Int8Settings, method: Method) -> dict[str, Any]:
    return {
        "method": method,
        "calibration_samples": sum(len(batch) for batch in splits.calibration),
        "seed": settings.seed,
        "int8_ends": settings.ends,
        "weight_bits": settings.weight_bits,
    }


def _write(source: Path, target: Path, record: Mapping[str, Any]) -> None:
    import onnx

    model = onnx.load(source)
    entry = model.metadata_props.add()
    entry.key, entry.value = "quantization", json.dumps(record)
    onnx.save(model, target)


def _check_shapes(deployed: Deployed, path: Path) -> None:
    """Check that the file takes batches of any size."""
    logits = onnx_logits(path)
    for inputs in deployed.examples:
        found, wanted = logits(inputs).shape, deployed.logits(inputs).shape
        if found != wanted:
            raise VerificationError(f"the int8 file gives logits of shape {tuple(found)} in place of {tuple(wanted)}")
