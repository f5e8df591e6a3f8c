"""Benchmark: our logistic regression over a grid of C against scikit-learn's lbfgs in float64, both with warm starts.

    python -m benchmarks.logistic_path [--samples 40000] [--tolerances 1e-4 1e-6] [--repeats 3] [--json FILE]

Both solve the 45 values of C in tools/sweep_heads/logistic.py on synthetic features that resemble those of a frozen network. Our
solver in float64, run to convergence, gives the optimum with which the objectives of both sides are compared. scikit-learn runs
once per tolerance.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundation import measuring
from foundation.measuring import Spread
from tools.sweep_heads.logistic import CS
from tools.sweep_heads.logistic_path import logistic_path

WIDTH, CLASSES, LATENT = 384, 10, 48
NEAR = 1e-6
"""Relative distance to the optimum within which an objective counts as reached."""


class Path(NamedTuple):
    """Solutions of one side, and the time and number of steps they took."""

    seconds: float
    cpu_seconds: float
    steps: int
    weights: list[tuple[Tensor, Tensor]]
    """Weights (K, D) and biases (K,) for each C, float64."""


def network_features(n: int, seed: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    """Synthetic features (n, D) and labels (n,) like those of a frozen network; all seeds draw from the same network and classes.

    48 normal values around a class centre pass through a random layer, GELU and another random layer; a little noise is added.
    Features are correlated, 60 directions hold most of the variance, and classes overlap: about 77 % of the samples can be
    classified correctly.
    """
    fixed, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + seed)
    falling = 1.2 * torch.arange(1, LATENT + 1).float().rsqrt()
    centres = torch.randn(classes, LATENT, generator=fixed) * falling
    first = torch.randn(LATENT, 2 * width, generator=fixed) / LATENT**0.5
    second = torch.randn(2 * width, width, generator=fixed) / (2 * width) ** 0.5
    label = torch.randint(classes, (n,), generator=draw)
    latent = centres[label] + torch.randn(n, LATENT, generator=draw)
    hidden = torch.nn.functional.gelu(2 * latent @ first)
    return hidden @ second + 0.05 * torch.randn(n, width, generator=draw), label


def ours(x: Tensor, y: Tensor, cs: Sequence[float], **settings: Any) -> Path:
    """Solves for all C with tools/sweep_heads/logistic_path.py."""
    wall, cpu = perf_counter(), process_time()
    solutions = list(logistic_path(x, y, int(y.max()) + 1, cs, **settings))
    weights = [(solution.weight, solution.bias) for solution in solutions]
    return Path(perf_counter() - wall, process_time() - cpu, sum(s.steps for s in solutions), weights)


def scikit_learn(x: Tensor, y: Tensor, cs: Sequence[float], tolerance: float = 1e-4) -> Path:
    """Solves for all C with LogisticRegression(solver="lbfgs", warm_start=True) in float64; the copy to float64 is not timed."""
    from sklearn.linear_model import LogisticRegression

    rows, label = x.double().numpy(), y.numpy()
    model = LogisticRegression(warm_start=True, max_iter=20_000, tol=tolerance)
    weights, steps, wall, cpu = [], 0, 0.0, 0.0
    for c in cs:
        model.C = c
        begin = perf_counter(), process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # line searches that stop because of rounding
            model.fit(rows, label)
        wall, cpu = wall + perf_counter() - begin[0], cpu + process_time() - begin[1]
        steps += int(model.n_iter_.max())
        weights.append((torch.from_numpy(model.coef_.copy()), torch.from_numpy(model.intercept_.copy())))
    return Path(wall, cpu, steps, weights)


def objectives(path: Path, x: Tensor, y: Tensor, cs: Sequence[float]) -> Tensor:
    """Objective for each C in float64, for three classes or more."""
    x = x.double()
    loss = torch.nn.functional.cross_entropy
    found = [
        c * loss(x @ w.T + b, y, reduction="sum") + w.square().sum() / 2
        for c, (w, b) in zip(cs, path.weights, strict=True)
    ]
    return torch.stack(found)


def evaluate(
    path: Path, best: Path, x: Tensor, y: Tensor, held: Tensor, label: Tensor, cs: Sequence[float]
) -> dict[str, Any]:
    """Compares a path with the optimal one: objectives, predicted classes, best C and accuracy on held-out samples."""
    away = objectives(path, x, y, cs) / objectives(best, x, y, cs) - 1
    classes, wanted = (
        torch.stack([(held.double() @ w.T + b).argmax(1) for w, b in found.weights]) for found in (path, best)
    )
    accuracy, accuracy_of_best = ((given == label).double().mean(dim=1) for given in (classes, wanted))
    return {
        "most_above": float(away.max()),
        "least_above": float(away.min()),
        "reached": int((away <= NEAR).sum()),
        "same_class": float((classes == wanted).double().mean(dim=1).min()),
        "same_best_c": int(accuracy.argmax()) == int(accuracy_of_best.argmax()),
        "accuracy": float(accuracy.max()),
        "steps": path.steps,
        "seconds": path.seconds,
        "cpu_seconds": path.cpu_seconds,
    }


def main(args: list[str] | None = None) -> None:
    """Measures and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--samples", type=int, default=40_000, help="training samples; a fifth as many are held out for validation"
    )
    parser.add_argument("--tolerances", type=float, nargs="*", default=[1e-4, 1e-6], help="scikit-learn, one run each")
    options, before = measuring.begin(parser, args)
    x, y = network_features(options.samples, 0, WIDTH, CLASSES)
    held, label = network_features(options.samples // 5, 1, WIDTH, CLASSES)
    best = ours(x, y, CS, tolerance=1e-11, dtype=torch.float64)
    runs = [ours(x, y, CS) for _ in range(options.repeats)]
    times = {name: Spread.of([getattr(run, name) for run in runs]) for name in ("seconds", "cpu_seconds")}
    sides = {"ours, float32": evaluate(runs[-1], best, x, y, held, label, CS)}
    sides["ours, float32"] |= {name: spread.median for name, spread in times.items()}
    for tolerance in options.tolerances:
        found = scikit_learn(x, y, CS, tolerance)
        sides[f"scikit-learn, tol {tolerance:g}"] = evaluate(found, best, x, y, held, label, CS)
    rows = []
    for name, side in sides.items():
        ratio = side["seconds"] / times["seconds"].median
        row = [name, f"{side['seconds']:.1f}", f"{side['cpu_seconds']:.1f}", f"{ratio:.1f}", f"{side['steps']:,}"]
        within = f"{side['reached']} of {len(CS)}"
        same = f"{side['same_class']:.2%}, {'same' if side['same_best_c'] else 'other'} best C"
        rows.append([*row, f"{side['most_above']:.1e}", within, same])
    titles = (
        "45 values of C",
        "wall, s",
        "CPU, s",
        "time / ours",
        "steps",
        "above optimum",
        f"within {NEAR:g}",
        "same class",
    )
    print(measuring.table(titles, rows))
    print(
        f"\n{options.samples:,} x {WIDTH} features, {CLASSES} classes, best accuracy {sides['ours, float32']['accuracy']:.1%}"
    )
    print(
        f"ours: median of {options.repeats} repeats, {times['seconds'].text(1)} s; scikit-learn: once for each tolerance"
    )
    print(
        "above optimum, same class: the worst of the 45; same class on held-out samples; the optimum is our solver in float64"
    )
    content = {"benchmark": "logistic_path", "samples": options.samples, "repeats": options.repeats, "sides": sides}
    measuring.report(before, content, options.json)


if __name__ == "__main__":
    main()
