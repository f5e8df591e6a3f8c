"""Benchmark: how often an exit threshold with an accuracy guarantee misses its target, over many splits of CIFAR-10's test set.

    python -m benchmarks.exit_guarantee --weights DIR [--root DIR] [--target 0.99] [--splits 500] [--json FILE]

ResNet-20 of pytorch_resnet_cifar10 (configs/stages/) is evaluated on CIFAR-10's 10,000 test images. In each split, one half is
given to `calibrate`, the function of the callback `Calibration` (it fits the temperature on one half of it and chooses the
threshold on the other). Exit accuracy and coverage are measured on the remaining half. These 5,000 images are a sample too: of
thresholds whose true accuracy equals the target, about half would seem to miss it. The share of misses is therefore only reported,
without a pass limit. Tests with known true accuracies are in tests/callbacks/test_calibration_record.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.calibration_record import Rules, Samples, calibrate
from datamodules.in_memory import seeded_generator
from foundation import measuring
from foundation.measuring import Spread
from foundation.project import ROOT
from tools.cascade.stages import Source, open_stages, read_samples

CONFIDENCE = 0.95


def resplit(samples: Samples, target: float, seed: int) -> tuple[float, float] | None:
    """Exit accuracy and coverage on one half at the threshold chosen on the other; None without a threshold or without exits."""
    order = torch.randperm(len(samples.label), generator=seeded_generator("resplit", seed))
    chosen, rest = (samples.where(part.sort().values) for part in order.chunk(2))
    record, _ = calibrate(chosen, Rules(target, CONFIDENCE), 1 - CONFIDENCE, seed)
    threshold = record["threshold"]
    if threshold is None or threshold == "never":
        return None
    confidence, predicted = (rest.logits / record["temperature"]).softmax(dim=1).max(dim=1)
    exits = confidence >= threshold
    if not exits.any():
        return None
    right: Tensor = (predicted == rest.label)[exits]
    return float(right.double().mean()), float(exits.double().mean())


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints the table and returns the results."""
    parser = measuring.arguments(__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="folder with the weight file")
    parser.add_argument("--root", default="data", help="folder of CIFAR-10")
    parser.add_argument("--target", type=float, default=0.99, help="exit accuracy to guarantee")
    parser.add_argument("--splits", type=int, default=500, help="number of random splits of the test set into halves")
    options, before = measuring.begin(parser, list(args) if args is not None else None)
    config = ROOT / "configs" / "stages" / "cifar10_resnet20.yaml"
    source = Source(config, str(options.weights / "cifar10_resnet20_fp32.safetensors"))
    try:
        stages, data = open_stages([source, source], config, options.root, torch.device("cpu"), bf16=False)
        found = read_samples(data, "test", None, seed=0)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    logits = torch.cat([stages[0].logits(images).float() for images in found.image.split(256)])
    samples = Samples(logits, found.label, torch.arange(len(found.label)))
    outcomes = [resplit(samples, options.target, seed) for seed in range(options.splits)]
    kept = [outcome for outcome in outcomes if outcome is not None]
    below = sum(accuracy < options.target for accuracy, _ in kept)
    share = below / len(outcomes)
    spreads = [Spread.of(values).text(4) for values in zip(*kept, strict=True)] if kept else ["", ""]
    rows = [
        ["splits", f"{len(outcomes)}"],
        ["splits with a threshold", f"{len(kept)}"],
        ["exit accuracy on the other half", spreads[0]],
        ["coverage on the other half", spreads[1]],
        [
            f"exit accuracy on the other half below {options.target:g}",
            f"{share:.1%} (+- {_error(share, len(outcomes)):.1%})",
        ],
    ]
    print(measuring.table([f"target {options.target:g}, {CONFIDENCE:.0%}", "median (least .. most)"], rows))
    content = {"target": options.target, "splits": len(outcomes), "found": len(kept), "below": below, "outcomes": kept}
    measuring.report(before, content, options.json)
    return content


def _error(share: float, count: int) -> float:
    """Standard error of a share of `count` samples."""
    return math.sqrt(share * (1 - share) / count)


if __name__ == "__main__":
    main()
