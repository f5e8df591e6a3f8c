"""Benchmark: training many heads in one sweep (tools.sweep_heads) against one `main.py fit` run per head.

    python -m benchmarks.head_sweep [--parts linear mlp] [--heads 52] [--repeats 3] [--alone N] [--json FILE]

    linear  52 linear heads on 20,000 x 768 features, 2 classes, 10 epochs, batch 1,024, validated on 4,000 samples every epoch
    mlp     as many heads with one hidden layer of 256

A separate run is `main.py fit` on the same cache, in this process, without progress bar, averaged weights and evaluation plots. The
final weights of both sides are compared: they must agree to 1e-5. The features are random, with a decaying spectrum like that of a
frozen network's features.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import yaml
from torch import Tensor

from cli import main as run
from cli.app import configure_logging
from features import CacheWriter, Identity
from foundation import measuring
from foundation.measuring import Spread
from tools.sweep_heads.__main__ import parser
from tools.sweep_heads.head_groups import Head, Outcome
from tools.sweep_heads.search import search
from tools.sweep_heads.settings import make_plan, typed

PARTS = ("linear", "mlp")


def samples(n: int, width: int, classes: int, seed: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random features (n, D) and labels (n,) of overlapping classes; all seeds draw from the same classes."""
    fixed, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + seed)
    spectrum = torch.arange(1, width + 1).float().rsqrt()
    turned = torch.linalg.qr(torch.randn(width, width, generator=fixed))[0]
    centres = torch.randn(classes, width, generator=fixed) * spectrum * 0.25
    label = torch.randint(classes, (n,), generator=draw)
    return (centres[label] + noise * torch.randn(n, width, generator=draw) * spectrum) @ turned, label


def write_cache(folder: Path, training: int, validation: int, width: int, classes: int) -> None:
    """Writes a cache of such features in float32."""
    about = Identity(
        backbone="random",
        weights_hash="0" * 64,
        layers=(-1,),
        pooling="cls",
        image_size=224,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        transform={},
        data="tensors:" + "0" * 64,
        split={},
        class_names=tuple(f"class {k}" for k in range(classes)),
        dtype="float32",
        feature_width=width,
    )
    writer = CacheWriter(folder, about)
    counts = {"train": training, "val": validation, "test": validation}
    for seed, (split, n) in enumerate(counts.items()):
        features, label = samples(n, width, classes, seed)
        writer.append(split, features=features, label=label, index=torch.arange(n))  # type: ignore[arg-type]
    writer.finish(counts)


def write_config(path: Path, epochs: int) -> None:
    """Writes the configuration of both sides: AdamW, gradient clipping, warm-up and cosine, class weights, no averaged weights."""
    trainer = {"accelerator": "cpu", "max_epochs": epochs, "gradient_clip_val": 1.0, "enable_progress_bar": False}
    model = {"class_path": "CascadeHead", "init_args": {"hidden": [], "class_weights": "balanced"}}
    data = {"class_path": "CachedFeaturesDataModule", "init_args": {"batch_size": 1024, "verify": False}}
    path.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer, "model": model, "data": data}))


class Heads:
    """A sweep of heads, and the equivalent separate runs, on one cache.

    Args:
        folder: Empty folder for cache and runs.
        heads: Number of heads of the sweep, each with its own learning rate.
        hidden: Hidden sizes of the heads, in the syntax of the command line.
        samples: Number of training samples.
        alone: Number of separate runs that are timed; the time of all runs is extrapolated from these.
    """

    def __init__(self, folder: Path, heads: int, hidden: str, samples: int, alone: int) -> None:
        self.folder, self.alone, self.runs = folder, alone, 0
        write_cache(folder / "cache", samples, samples // 5, 768, 2)
        write_config(folder / "config.yaml", 10)
        self.arguments = ["--config", str(folder / "config.yaml"), "--data.cache", str(folder / "cache")]
        rates = [f"{1e-4 * 100 ** (i / max(1, heads - 1)):.6g}" for i in range(heads)]
        self.options = parser().parse_args(["--cache", str(folder / "cache"), "--hidden", hidden, "--lr", *rates])
        self.outcomes: list[Outcome] = []

    def sweep(self) -> float:
        """Seconds of a sweep over all heads, including reading of configuration and cache."""
        begin = perf_counter()
        with quiet():
            self.outcomes = search(make_plan(self.options, self.arguments))[1]
        return perf_counter() - begin

    def one_after_another(self) -> float:
        """Seconds of one run per head of the sweep, extrapolated from the runs that are timed."""
        if not self.outcomes:
            self.sweep()
        heads = [outcome.head for outcome in self.outcomes]
        every = math.ceil(len(heads) / self.alone)
        chosen = heads[::every]
        begin = perf_counter()
        for head in chosen:
            self._fit(head)
        return (perf_counter() - begin) * len(heads) / len(chosen)

    def _fit(self, head: Head) -> None:
        self.runs += 1
        settings = {"lr": head.lr, "hidden": list(head.hidden), "head_seed": head.seed}
        flags = [word for name, value in settings.items() for word in (f"--model.{name}", str(value))]
        with quiet():
            code = run(["fit", *self.arguments, *flags, "--run_dir", str(self.folder / f"run{self.runs}")])
        if code:
            raise RuntimeError(f"a run ended with exit code {code}")

    def difference(self) -> float:
        """Largest difference between the final weights of the last separate run and those of the same head in the sweep."""
        path = self.folder / f"run{self.runs}"
        content = yaml.safe_load((path / "config.yaml").read_text())["model"]["init_args"]
        state = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        outcome = next(o for o in self.outcomes if o.head.lr == content["lr"])
        named = {f"network.head.{name}": values for name, values in outcome.weights.items()}
        return max(float((state[name] - values).abs().max()) for name, values in named.items())


@contextlib.contextmanager
def quiet() -> Any:
    """Suppresses the output of runs and sweeps."""
    with contextlib.redirect_stdout(io.StringIO()):
        configure_logging()  # log lines follow the redirected standard output
        yield
    configure_logging()


def heads_row(hidden: str, options: Any) -> dict[str, Any]:
    """Measures one kind of head."""
    with tempfile.TemporaryDirectory() as folder:
        task = Heads(Path(folder), options.heads, hidden, options.samples, options.alone or options.heads)
        metrics = measuring.interleave({"alone": task.one_after_another, "sweep": task.sweep}, options.repeats)
        ratio = [alone / sweep for alone, sweep in zip(metrics["alone"], metrics["sweep"], strict=True)]
        spreads = {name: Spread.of(values) for name, values in (*metrics.items(), ("ratio", ratio))}
        timed = len(task.outcomes[:: math.ceil(len(task.outcomes) / task.alone)])
        return {"what": f"{options.heads} heads, hidden {typed(task.outcomes[0].head.hidden)}", "runs_timed": timed} | {
            **spreads,
            "weight_difference": task.difference(),
        }


def main(args: list[str] | None = None) -> None:
    """Measures and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="kinds of heads to measure")
    parser.add_argument("--heads", type=int, default=52, help="number of heads in a sweep")
    parser.add_argument("--samples", type=int, default=20_000, help="number of training samples")
    parser.add_argument("--alone", type=int, help="separate runs that are timed; extrapolated to all (default: all)")
    options, before = measuring.begin(parser, args)
    content: dict[str, Any] = {}
    rows = []
    for part in options.parts:
        metrics = heads_row("none" if part == "linear" else "256", options)
        content[part] = {n: v._asdict() if isinstance(v, Spread) else v for n, v in metrics.items()}
        rows.append([metrics["what"], *(metrics[name].text(1) for name in ("alone", "sweep", "ratio"))])
        rows[-1].append(f"weights within {metrics['weight_difference']:.1e}; {metrics['runs_timed']} runs timed")
    print(measuring.table(("heads", "separate runs, s", "sweep, s", "ratio", "check"), rows))
    print(f"\nmedian (least .. most) of {options.repeats} alternating repeats")
    settings = {"heads": options.heads, "samples": options.samples, "repeats": options.repeats}
    measuring.report(before, {"benchmark": "head_sweep", **settings, "parts": content}, options.json)


if __name__ == "__main__":
    main()
