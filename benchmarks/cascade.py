"""Benchmark: accuracy and time of a two-stage cascade (ResNet-20, then ResNet-56) on CIFAR-10 against ResNet-56 by itself.

    python -m benchmarks.cascade --weights DIR [--root DIR] [--budget 0.45] [--timed 2000] [--repeats 5] [--json FILE]

DIR holds cifar10_resnet20_fp32.safetensors and cifar10_resnet56_fp32.safetensors (pytorch_resnet_cifar10, configs/stages/). Both
networks were trained on all training images, so the test set is split into random halves: the threshold is chosen on one half and
evaluated on the other, in both directions, for each of `--splits` splits. Two rules choose the threshold: the most accurate
threshold that needs at most `--budget` of ResNet-56's operations, and the cheapest threshold that is as accurate as ResNet-56 on
the choosing half.

Time is measured at the median threshold of the first rule, on images drawn by seed: from uint8 images in memory to predicted
classes, fp32, channels last, each side once per repeat in alternating order. Shares of the time are computed within each repeat.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foundation import measuring
from foundation.measuring import Spread
from foundation.project import ROOT
from tools.cascade import measures as cascade
from tools.cascade.measures import Evaluated, Sweep
from tools.cascade.stages import Source, Stage, open_stages, read_samples

NETWORKS = ("cifar10_resnet20", "cifar10_resnet56")
# Target of the project: the cascade loses at most 0.1 points of accuracy against ResNet-56, in at most half of its time.
LOSS, TIME = -0.1, 0.5
Rule = Callable[[Sweep], int]


class Outcome(NamedTuple):
    """A threshold chosen on one half of the test set, and its results on the other half."""

    threshold: float
    gain: float
    """Accuracy of the cascade minus accuracy of stage 2 by itself, in percentage points."""
    forwarded: float
    """Share of the images that are forwarded to stage 2."""


def outcomes(evaluated: Evaluated, rule: Rule, splits: int) -> list[Outcome]:
    """Chooses and evaluates thresholds on all splits, in both directions.

    Args:
        evaluated: Predictions of both stages on the test set.
        rule: Chooses a position in the sweep over thresholds.
        splits: Number of random splits into halves.
    """
    found = []
    for seed in range(splits):
        halves = cascade.halves(len(evaluated.confidence), seed)
        for choosing, measured in (halves, halves[::-1]):
            swept = cascade.sweep(evaluated.part(choosing))
            threshold = float(swept.threshold[rule(swept)])
            other = cascade.sweep(evaluated.part(measured))
            place = other.at(threshold)
            gain = 100 * float(other.accuracy[place] - other.accuracy[0])
            found.append(Outcome(threshold, gain, 1 - float(other.coverage[place])))
    return found


def rows_of(rules: dict[str, list[Outcome]]) -> list[list[str]]:
    """Rows of the table, one per rule."""
    return [
        [
            name,
            f"{statistics.mean(o.gain for o in found):+.3f}",
            f"{min(o.gain for o in found):+.2f} .. {max(o.gain for o in found):+.2f}",
            f"{sum(o.gain >= LOSS for o in found)} of {len(found)}",
            Spread.of([o.threshold for o in found]).text(4),
            Spread.of([100 * o.forwarded for o in found]).text(1),
        ]
        for name, found in rules.items()
    ]


def main(args: Sequence[str] | None = None) -> None:
    """Measures and prints the tables; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, metavar="DIR", help="folder with the two weight files")
    parser.add_argument("--root", default="data", help="folder of CIFAR-10")
    parser.add_argument("--budget", type=float, default=0.45, help="most operations, as a share of ResNet-56's")
    parser.add_argument("--splits", type=int, default=10, help="number of random splits of the test set into halves")
    parser.add_argument("--timed", type=int, default=2000, help="number of images for the time measurement")
    parser.add_argument("--batch_size", type=int, default=256, help="images in a batch of either stage")
    options, before = measuring.begin(parser, list(args) if args is not None else None)
    configs = [ROOT / "configs" / "stages" / f"{name}.yaml" for name in NETWORKS]
    sources = [
        Source(config, str(options.weights / f"{name}_fp32.safetensors"))
        for config, name in zip(configs, NETWORKS, strict=True)
    ]
    try:
        stages, data = open_stages(sources, configs[0], options.root, torch.device("cpu"), bf16=False)
        samples = read_samples(data, "test", None, seed=0)
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    first, second = (stage.flops(samples.image) for stage in stages)
    evaluated = cascade.evaluate(stages, samples, options.batch_size)
    budget = partial(cascade.choose_at_cost, first=first, second=second, share=options.budget)
    rules = {
        f"at most {options.budget:.0%} of the operations": outcomes(evaluated, budget, options.splits),
        "as accurate as ResNet-56": outcomes(
            evaluated, lambda swept: cascade.choose_within(swept, tolerance=0.0), options.splits
        ),
    }
    best = next(iter(rules.values()))
    threshold = statistics.median(o.threshold for o in best)
    images = read_samples(data, "test", options.timed, seed=0).image
    exits = cascade.answer(stages, images, threshold, options.batch_size).exited  # also warms up
    sides: dict[str, Stage | list[Stage]] = {"ResNet-20": stages[0], "ResNet-56": stages[1], "cascade": stages}
    timed: dict[str, Callable[[], float]] = {
        name: partial(cascade.seconds, side, images, options.batch_size, threshold) for name, side in sides.items()
    }
    times = measuring.interleave(timed, options.repeats)
    shares = {
        name: Spread.of([own / other for own, other in zip(found, times["ResNet-56"], strict=True)])
        for name, found in times.items()
    }
    accuracies = [100 * float(right.mean()) for right in (evaluated.right1, evaluated.right2)]
    print(
        f"\ntest set: ResNet-20 {accuracies[0]:.2f} %, ResNet-56 {accuracies[1]:.2f} % of {len(samples.label):,} images\n"
    )
    header = ("rule", "points against ResNet-56, mean", "range", f">= {LOSS}", "threshold", "% forwarded")
    print(measuring.table(header, rows_of(rules)))
    timings = [
        [name, Spread.of([1e3 * t / len(images) for t in found]).text(3), shares[name].text(3)]
        for name, found in times.items()
    ]
    print()
    print(measuring.table(("", "ms/image", "share of ResNet-56's time"), timings))
    forwarded = 1 - float(exits.double().mean())
    print(f"\n{len(images):,} images, threshold {threshold:.4f}: {100 * forwarded:.1f} % forwarded")
    gain = statistics.mean(o.gain for o in best)
    held = gain >= LOSS and shares["cascade"].median <= TIME
    print(f"target: {LOSS} points, {TIME:.0%} of the time: {'met' if held else 'NOT met'}")
    content: dict[str, Any] = {
        "benchmark": "cascade",
        "accuracy": dict(zip(NETWORKS, accuracies, strict=True)),
        "flops": dict(zip(NETWORKS, (first, second), strict=True)),
        "rules": {name: [o._asdict() for o in found] for name, found in rules.items()},
        "timed": {"images": len(images), "threshold": threshold, "forwarded": forwarded, "seconds": times},
        "time_share": {name: share._asdict() for name, share in shares.items()},
        "held": held,
    }
    measuring.report(before, content, options.json)


if __name__ == "__main__":
    main()
