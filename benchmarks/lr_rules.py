"""Benchmark: compares rules of the learning-rate finder, on simulated sweeps and on short real runs of four systems.

    python -m benchmarks.lr_rules --simulated
    python -m benchmarks.lr_rules --real --data DATA --output runs/lr_rules   (DATA has flowers/ and weights/)
    python -m benchmarks.lr_rules --seeds 20 --output runs/lr_rules

--real: of each case a sweep, a run at each rate of a grid, and a run at the pick of each rule, all with the same seed, data and
settings; the table shows each rule's pick and the share of the grid's best validation accuracy that the run with it reaches.
--seeds: the digits for five epochs with each seed, without a finder and with it. The runs are kept in --output, and an interrupted
benchmark continues from them. benchmarks/lr_curves.py has the rules and the simulated sweeps.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from benchmarks.lr_curves import KINDS, SMOOTHINGS, simulated
from cli import main as run
from foundation import measuring
from foundation.atomic_files import write_json
from foundation.project import ROOT

WEIGHTS = "mobilenetv2_100_same_imagenet_fp16.safetensors"
SGD = (0.01, 0.1, 0.3)
ADAMW = (3e-4, 2e-3, 1e-2)
DIVERGED = 4  # exit code of a run whose loss is not finite
ENOUGH = 0.95  # share of the best accuracy that counts as good
COMPARED = {
    "bottom": ("both sides", "bottom"),
    "minimum": ("both sides", "minimum"),
    "steepest of older versions": ("average from its maximum", "steepest"),
}
LIGHT: tuple[str, ...] = ("--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false")
LIGHT += ("--trainer.logger", "false", "--curves.every_s", "null")
FINDER = '{"class_path": "LearningRateFinder"}'
EMA = '[{"class_path": "EMA", "init_args": {"decay": 0.99}}]'


class Case(NamedTuple):
    """A training of a few seconds.

    Attributes:
        name: Name of its folder.
        config: Configuration file, relative to configs/.
        flags: Further flags; ``{data}`` stands for the folder of the data, ``{out}`` for the folder of the benchmark.
        grid: Learning rates to compare with.
    """

    name: str
    config: str
    flags: tuple[str, ...]
    grid: tuple[float, ...]

    def words(self, options: argparse.Namespace) -> list[str]:
        """Arguments of main.py fit, without run folder and learning rate."""
        overlays = [w.replace("{data}", str(options.data)).replace("{out}", str(options.output)) for w in self.flags]
        return ["fit", "--config", str(ROOT / "configs" / self.config), *overlays, "--trainer.callbacks", EMA]


DIGITS = ("--trainer.max_epochs", "5")
PHOTOS: tuple[str, ...] = ("--data.root", "{out}/photos", "--data.val_fraction", "0.4", "--data.test_fraction", "0.05")
PHOTOS += ("--data.image_size", "48", "--data.batch_size", "32", "--data.policy", "none", "--data.workers", "0")
SCRATCH = (*PHOTOS, "--data.mixup_prob", "0", "--model.architecture", "resnet10t", "--trainer.max_epochs", "6")
HAR = ("--data.root", "{out}", "--data.generate", "true", "--trainer.max_epochs", "3")
SIGNALS = (*HAR, "--data.mode", "signals", "--model.architecture", "signal_resnet")
FINE: tuple[str, ...] = ("--model.architecture", "mobilenetv2_100", "--model.network_args", '{"pad_type": "same"}')
FINE += ("--model.pretrained", "false", "--model.weights", "{data}/weights/" + WEIGHTS, "--trainer.max_epochs", "3")
MEAN = ("--data.mean", "[0.5,0.5,0.5]", "--data.std", "[0.5,0.5,0.5]", "--model.freeze", "norm_statistics")
CASES = (
    Case("digits, ternary, SGD", "digits_ternary.yaml", DIGITS, SGD),
    Case(
        "digits, ternary (ttq), AdamW",
        "digits_ternary.yaml",
        (*DIGITS, "--model.quantizer", "ttq", "--model.optimizer", "adamw"),
        ADAMW,
    ),
    Case("flowers from scratch, SGD", "image_standard.yaml", SCRATCH, SGD),
    Case("flowers from scratch, AdamW", "image_standard.yaml", (*SCRATCH, "--model.optimizer", "adamw"), ADAMW),
    Case("flowers, fine-tuned, AdamW", "image_finetune.yaml", (*PHOTOS, *FINE, *MEAN), ADAMW),
    Case("HAR (synthetic), images, AdamW", "har_cpu.yaml", HAR, ADAMW),
    Case("HAR (synthetic), signals, AdamW", "har_cpu.yaml", SIGNALS, ADAMW),
    Case("head on features of flowers, AdamW", "cascade_cached.yaml", ("--data.cache", "{out}/features"), ADAMW),
)


def small_photos(source: Path, target: Path, per_class: int = 200, side: int = 64) -> None:
    """Writes the first photographs of each class as PNG files with a short side of ``side`` pixels."""
    if target.is_dir():
        return
    temporary = target.with_name(f"{target.name}.tmp")
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir())[:per_class]:
            image = Image.open(path).convert("RGB")
            share = side / min(image.size)
            small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)
            place = temporary / folder.name / f"{path.stem}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            small.save(place)
    temporary.rename(target)


def trained(place: Path, words: list[str], rate: float | None = None, name: str | None = None) -> float:
    """Best validation accuracy of a run, 0 to 1; of a run that diverges, that of its epochs before."""
    folder = place / (name or f"lr_{rate:.4g}")
    note = folder.with_suffix(".json") if name else place / f"{folder.name}.json"
    if not note.is_file():
        if folder.is_dir():
            raise SystemExit(f"{folder}: an interrupted run; remove it")
        given = [] if rate is None else ["--model.lr", f"{rate:.4g}"]
        code = run([*words, *given, "--run_dir", str(folder), *LIGHT])
        if code not in (0, DIVERGED):
            raise SystemExit(f"{folder}: exit code {code}")
        values = [0.0]
        if (folder / "metrics.csv").is_file():
            with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
                values += [float(row["val/acc"]) for row in csv.DictReader(file) if row.get("val/acc")]
        write_json(note, {"exit_code": code, "val/acc": max(values)})
    return float(json.loads(note.read_text(encoding="utf-8"))["val/acc"])


def swept(folder: Path, words: list[str]) -> tuple[list[float], list[float]]:
    """Rates and losses of a sweep with the default settings; the run itself is cut after one batch."""
    table = folder / "lr_find.csv"
    if not table.is_file():
        cut = ["--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
        run(
            [
                *words[:-1],
                f"{EMA[:-1]}, {FINDER}]",
                *cut,
                "--run_dir",
                str(folder),
                "--trainer.enable_progress_bar",
                "false",
            ]
        )
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [float(row["lr"]) for row in rows], [float(row["loss"]) for row in rows]


def features(options: argparse.Namespace) -> None:
    """Extracts the features of the small photographs with a pretrained MobileNetV2."""
    cache = options.output / "features"
    if not cache.is_dir():
        configs = [str(ROOT / "configs" / name) for name in ("cascade_extract.yaml", "with/mobilenetv2_features.yaml")]
        words = [
            "predict",
            "--config",
            configs[0],
            "--config",
            configs[1],
            "--model.weights",
            f"{options.data}/weights/{WEIGHTS}",
        ]
        words += [
            "--data.root",
            f"{options.output}/photos",
            "--data.image_size",
            "64",
            "--data.workers",
            "0",
            "--cache",
            str(cache),
        ]
        words += ["--data.val_fraction", "0.4", "--data.test_fraction", "0.05"]
        if run(words):
            raise SystemExit("the features could not be extracted")


def near(place: Path, words: list[str], rate: float, known: dict[float, float]) -> float:
    """Accuracy of a run with a rate; one within 20 % of a rate with a run counts as that run. Adds new runs to ``known``."""
    closest = min(known, key=lambda other: abs(math.log(other / rate)))
    if abs(math.log(closest / rate)) > math.log(1.2):
        known[rate] = trained(place, words, rate)
        closest = rate
    return known[closest]


def real(options: argparse.Namespace) -> None:
    """Runs the cases and prints, for each rule, its pick and the share of the grid's best accuracy that the run with it reaches."""
    small_photos(options.data / "flowers", options.output / "photos")
    features(options)
    rows: list[list[str]] = []
    shares: dict[str, list[float]] = {name: [] for name in COMPARED}
    for number, case in enumerate(CASES):
        words, place = case.words(options), options.output / str(number)
        rates, losses = swept(place / "sweep_0", words)
        grid = {rate: trained(place, words, rate) for rate in case.grid}
        best = max(grid.values())
        reached = dict(grid)
        good = [rate for rate, accuracy in grid.items() if accuracy >= ENOUGH * best]
        cells = [case.name, f"{100 * best:.1f}", f"{min(good):g} to {max(good):g}"]
        for name, (smoothing, rule) in COMPARED.items():
            rate = SMOOTHINGS[smoothing](rates, losses)[rule]
            share = near(place, words, rate, reached) / best if rate else math.nan
            shares[name].append(share)
            cells.append(f"{rate:.2g}: {100 * share:.0f} %" if rate else "none")
        rows.append(cells)
        print(cells, flush=True)
    rows.append(["lowest share", "", "", *(f"{100 * min(values):.0f} %" for values in shares.values())])
    print(measuring.table(["case", "best of the grid, %", f"rates with {100 * ENOUGH:.0f} % of it", *COMPARED], rows))


def seeds(options: argparse.Namespace) -> None:
    """Trains the digits with each seed, without and with the finder, and prints both accuracies."""
    rows = []
    words = CASES[0].words(options)
    for seed in range(options.seeds):
        place = options.output / "seeds"
        without = trained(place, [*words, "--seed_everything", str(seed)], name=f"without_{seed}")
        both = [*words[:-1], f"{EMA[:-1]}, {FINDER}]"]
        found = trained(place, [*both, "--seed_everything", str(seed)], name=f"with_{seed}")
        lr = json.loads((place / f"with_{seed}" / "lr_find.json").read_text(encoding="utf-8"))["lr"]
        rows.append(
            [str(seed), f"{100 * without:.1f}", f"{lr:.3g}", f"{100 * found:.1f}", f"{100 * found / without:.0f} %"]
        )
        print(rows[-1], flush=True)
    print(measuring.table(["seed", "lr 0.1, %", "lr found", "with it, %", "share"], rows))


def simulations(per_kind: int) -> None:
    """Prints the outcomes of every rule on every kind of simulated curve."""
    rows = []
    for rule, row in simulated(per_kind).items():
        cells = [
            "/".join(f"{100 * share:.0f}" for share in (one.far, one.low, one.high, one.none)) for one in row.values()
        ]
        rows.append([rule, *cells])
    print(measuring.table([f"{per_kind} curves of each kind: 10x off/low/high/no pick, %", *KINDS], rows))


def main(args: list[str] | None = None) -> None:
    """Runs the parts that the flags name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--simulated", type=int, nargs="?", const=40, default=0, metavar="N", help="curves of each kind, default 40"
    )
    parser.add_argument("--real", action="store_true", help="run the cases")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="train the digits with N seeds")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with flowers and weights")
    parser.add_argument("--output", type=Path, default=Path("runs/lr_rules"), help="folder in which the runs are kept")
    options = parser.parse_args(args)
    if not (options.simulated or options.real or options.seeds):
        parser.error("give --simulated, --real or --seeds N")
    if options.simulated:
        simulations(options.simulated)
    if options.real:
        real(options)
    if options.seeds:
        seeds(options)


if __name__ == "__main__":
    main(sys.argv[1:])
