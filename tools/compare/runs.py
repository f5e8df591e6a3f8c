"""Reads run folders for compare: metrics, settings, speed, memory, cost. Only JSON, CSV and YAML are read, no checkpoints."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from callbacks import read_metrics
from callbacks.learning_rate_finder import FoundRate, found_rate
from callbacks.summary import best_metrics, earlier_best, read_best
from cli.evaluation import ONLY_SPEED, shown_difference
from datamodules.segmentation.prompt_sets import PromptSet
from foundation.bounded.text import content_of, parse_yaml, read_json
from lightning_modules.loading import newest_config
from metrics import direction_of

Curve = list[tuple[float, float]]
Value = str | float | int | bool | None

SEED = "seed_everything"
LR = "model.lr"
EVALUATIONS = ("validate", "test")
# settings that do not count as differences between runs
LEFT_OUT = (SEED, *ONLY_SPEED)
# a head is trained on cached features of the images that another network is trained on
SAME_IMAGES = {"CachedFeaturesDataModule": "ImageFolderDataModule", "SignalFileDataModule": "HARDataModule"}
UNSET = {one.name: one.default for one in fields(PromptSet) if one.default is not MISSING}  # defaults of a data set
FINISHED, UNFINISHED, BROKEN = "finished", "unfinished", "broken"


@dataclass
class Run:
    """A row of the comparison; fields that a run lacks stay empty.

    Args:
        name: The folder as given on the command line.
        status: ``finished``, ``unfinished`` (no training_summary.json) or ``broken: reason``.
        best: Best value and its epoch, for each training and validation metric.
        final: Last value of each of these metrics.
        evaluated: Results of ``validate`` and ``test`` by metric; those on other data begin with the name of the evaluation.
        settings: Every setting by the name of its flag, without the seed.
        seed: Seed of the training.
        found: The learning rate that LearningRateFinder chose, or None; `settings` has the rate used.
        main: The metric that selected the best checkpoint, or the one given to :func:`read_run`.
        curve: Pairs of epoch and value of the main metric.
        chosen: Epoch of best.ckpt; None if there is none.
        epochs: Number of finished epochs.
        device_hours: Training time in hours times number of devices.
        images_per_s: Median of ``speed/images_per_s`` over the rows of metrics.csv.
        memory_gb: Largest ``memory/gb`` in metrics.csv.
        notes: Why evaluated metrics are not those of the run as it was trained: overridden settings, samples seen in training.
    """

    name: str
    status: str = UNFINISHED
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    evaluated: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Value] = field(default_factory=dict)
    seed: int | None = None
    found: FoundRate | None = None
    main: str | None = None
    curve: Curve = field(default_factory=list)
    chosen: int | None = None
    epochs: int | None = None
    device_hours: float | None = None
    images_per_s: float | None = None
    memory_gb: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The kind of its data: metrics of runs of different kinds cannot be compared. Empty if it is not known."""
        return SAME_IMAGES.get(self.datamodule, self.datamodule)

    @property
    def datamodule(self) -> str:
        """Class of its data; empty if it is not known."""
        return str(self.settings.get("data", ""))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run folder: it has a config.yaml, a metrics.csv or a training_summary.json."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.csv", "training_summary.json"))


def read_run(folder: Path, metric: str | None = None) -> Run:
    """Read a run folder. A file that is missing or cannot be read makes the status ``broken``; the other files are still read.

    Args:
        folder: Run folder of any system.
        metric: Main metric of the run; None for the metric that selected the run's best checkpoint.
    """
    run = Run(str(folder))
    problems = []
    for name, read in (
        ("config.yaml", _read_config),
        ("metrics.csv", _read_table),
        ("training_summary.json", _read_summary),
        ("test_metrics.json", _read_evaluations),
    ):
        try:
            read(run, folder, metric)
        except FileNotFoundError:
            if name != "training_summary.json":
                problems.append(f"no {name}")
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            csv.Error,
            yaml.YAMLError,
        ) as error:
            problems.append(f"{name} cannot be read ({' '.join(str(error).split())[:80] or type(error).__name__})")
    if problems == ["no metrics.csv"] and not (folder / "training_summary.json").is_file():
        problems = []  # it has begun, and no epoch has ended yet
    if problems:
        run.status = f"{BROKEN}: {'; '.join(problems)}"
    return run


def _read_config(run: Run, folder: Path, metric: str | None) -> None:
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError
    config = parse_yaml(content_of(newest_config(folder)).decode("utf-8"))
    run.found = found_rate(folder, config)
    seed = config.get(SEED)
    run.seed = seed if isinstance(seed, int) else None
    run.settings = {name: value for name, value in flat(config) if not name.startswith(LEFT_OUT)}
    monitor = (config.get("checkpoint") or {}).get("monitor")
    run.main = metric or (monitor if isinstance(monitor, str) else None)


def _read_table(run: Run, folder: Path, metric: str | None) -> None:
    rows = read_metrics(folder / "metrics.csv")
    best = read_best(folder)
    run.best = best_metrics(rows, best)
    run.chosen = int(best["epoch"]) if best else None
    # rows at the end of an epoch; rows of single steps have none of these metrics
    epochs = [row for row in rows if run.best.keys() & row.keys()]
    run.epochs = int(epochs[-1]["epoch"]) if epochs else 0
    run.final = {name: epochs[-1][name] for name in run.best if name in epochs[-1]} if epochs else {}
    if metric is None and run.main not in run.best:
        run.main = next((name for name in ("val/acc", *sorted(run.best)) if name in run.best), None)
    run.curve = [(row["epoch"], row[run.main]) for row in epochs if run.main in row] if run.main else []
    speeds = [row["speed/images_per_s"] for row in rows if "speed/images_per_s" in row]
    run.images_per_s = statistics.median(speeds) if speeds else None
    run.memory_gb = max((row["memory/gb"] for row in rows if "memory/gb" in row), default=None)


def _read_summary(run: Run, folder: Path, metric: str | None) -> None:
    content = read_json(folder / "training_summary.json")
    seconds, devices = content["time"]["seconds"], content["environment"]["devices"]
    run.device_hours = float(seconds) * int(devices) / 3600
    run.status = FINISHED


def _read_evaluations(run: Run, folder: Path, metric: str | None) -> None:
    best = read_best(folder)
    for place in (folder, *sorted((folder / "evaluations").glob("*/"))):
        for name in EVALUATIONS:
            path = place / f"{name}_metrics.json"
            if path.is_file():
                _read_evaluation(run, name, path, "" if place == folder else place.name, best)


def _read_evaluation(run: Run, name: str, path: Path, other: str, best: dict[str, Any]) -> None:
    """Read the results of validate or test; those of an earlier best.ckpt are left out, as the other columns are not of it.

    Args:
        run: The run, which they are added to.
        name: ``validate`` or ``test``.
        path: The file.
        other: Name of an evaluation on other data, empty for the run's own.
        best: Content of best.json.
    """
    content = read_json(path)
    if earlier := earlier_best(content, best):
        run.notes.append(f"{f'{other}: ' if other else ''}{name} left out: it is {earlier}; evaluate it again")
        return
    # the metrics of validate are also named val/...; the prefix separates them from those of training
    prefix = "".join(f"{part}:" for part in (other, "" if name == "test" else name) if part)
    run.evaluated |= {f"{prefix}{key}": float(value) for key, value in content["metrics"].items()}
    overrides = content.get("overrides", {}).items()
    changed = ["{} {} (trained with {})".format(key, *shown_difference(now, was)) for key, (was, now) in overrides]
    if changed and not other:
        run.notes.append(f"{name} with {', '.join(changed)}")
    if seen := content.get("data", {}).get("seen_in_training"):
        run.notes.append(f"{prefix}{name}: {seen:,} of {content['data']['samples']:,} samples were trained on")


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Value]]:
    """Flatten a configuration to pairs of flag name and value; a class becomes its name, followed by its own settings.

    >>> dict(flat({"model": {"class_path": "a.Net", "init_args": {"lr": 0.1}}, "layers": [1, 2]}))
    {'model': 'Net', 'model.lr': 0.1, 'layers': '[1, 2]'}
    """
    dot = f"{name}." if name else ""
    if isinstance(value, Mapping) and "class_path" in value:
        yield name, str(value["class_path"]).rpartition(".")[2]
        yield from flat(value.get("init_args") or {}, name)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{dot}{key}")
    elif isinstance(value, Sequence) and any(isinstance(item, Mapping) and "class_path" in item for item in value):
        for item in value:
            yield from flat(item, f"{dot}{str(item['class_path']).rpartition('.')[2]}")
    elif (
        isinstance(value, Sequence) and value and all(isinstance(item, Mapping) and "folder" in item for item in value)
    ):
        yield from _data_sets(value, name)
    elif name:
        yield name, value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)


def _data_sets(sets: Sequence[Mapping[str, Any]], name: str) -> Iterator[tuple[str, Value]]:
    """Flatten data sets: one entry with all folders, and those of each set by its folder, without settings at their default."""
    folders = [str(one["folder"]) for one in sets]
    yield name, ", ".join(folders)
    for number, (folder, one) in enumerate(zip(folders, sets, strict=True)):
        again = folders[:number].count(folder) + 1  # a folder may be listed again with other categories
        label = folder if again == 1 else f"{folder}({again})"
        settings = {key: inner for key, inner in one.items() if key != "folder" and inner != UNSET.get(key)}
        yield from flat(settings, f"{name}.{label}")


def by_kind(runs: Sequence[Run]) -> list[list[Run]]:
    """Divide runs by the kind of their data, in order of first appearance; if there is one kind, the others are taken for it."""
    kinds = dict.fromkeys(run.kind for run in runs)
    if len([kind for kind in kinds if kind]) < 2:
        return [list(runs)]
    return [[run for run in runs if run.kind == kind] for kind in kinds]


def runs_below(folder: Path) -> str:
    """The pattern of the runs in a folder of runs, or of folders of runs, such as ``runs/NAME/*``; empty if there is none."""
    for pattern in ("*", "*/*"):
        if any(is_run(path) for path in folder.glob(pattern) if path.is_dir()):
            return f"{folder}/{pattern}"
    return ""


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of settings that differ between runs: settings that all runs have first, and model, data, trainer before others."""
    known = [run for run in runs if run.settings]
    names = sorted(
        {name for run in known for name in run.settings},
        key=lambda name: (any(name not in run.settings for run in known), *_order(name)),
    )
    return [name for name in names if len({json.dumps(run.settings.get(name)) for run in known}) > 1]


def _order(name: str) -> tuple[int, str]:
    parts = ("model", "data", "trainer")
    first = name.partition(".")[0]
    return (parts.index(first) if first in parts else len(parts), name)


def grouped(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in the seed, in order of first appearance; a run without settings forms its own group.

    A learning rate that the finder chose is a result, not a setting: such runs are grouped by the configured one.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {**run.settings, LR: run.found.configured, "found": True} if run.found else run.settings
        key = json.dumps(sorted(settings.items())) if settings else f"no settings: {run.name}"
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def best_of(values: Sequence[float | None], name: str) -> float | None:
    """Best value of a column by the direction of its metric; None if that is not known, or with fewer than two different values."""
    known = [value for value in values if value is not None and value == value]
    mode = direction_of(name.removeprefix("validate:"))
    return None if mode is None or len({*known}) < 2 else min(known) if mode == "min" else max(known)
