"""Reads the files of a run folder for the report: configuration, metrics, confusion matrix, epoch times; files may be missing."""

from __future__ import annotations

import csv
import re
import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from callbacks.learning_rate_finder import FoundRate, found_rate
from callbacks.metrics_log import read_metrics
from callbacks.pictures.curves import epoch_rows
from foundation.bounded.text import parse_yaml, read_json
from foundation.places import near_or_there

STAGES = {"test": "Test", "validate": "Validation of a checkpoint", "val": "Validation during training"}
EPOCH_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) epoch (\d+)/(\d+|\?) ")


@dataclass
class Run:
    """Contents of a run folder; missing files are empty values.

    Attributes:
        folder: The run folder.
        config: Configuration of the run, the latest one if it was resumed.
        config_name: Name of the configuration file.
        config_text: Text of the configuration file.
        summary: Content of training_summary.json, empty until training ends.
        environment: Content of environment.json.
        best: Content of checkpoints/best.json.
        rows: Rows of metrics.csv.
        evaluations: Contents of the files STAGE_metrics.json, by stage.
        other_evaluations: Contents of these files in the folder `evaluations`, by name of the evaluation and stage.
        missing: Names of the missing files.
        first_epochs: Planned number of epochs of its first start; None if unknown.
        found: The learning rate that LearningRateFinder chose; None without one, or if the run was resumed with another rate.
    """

    folder: Path
    config: dict[str, Any]
    config_name: str
    config_text: str
    summary: dict[str, Any]
    environment: dict[str, Any]
    best: dict[str, Any]
    rows: list[dict[str, float]]
    evaluations: dict[str, dict[str, Any]]
    other_evaluations: dict[tuple[str, str], dict[str, Any]]
    missing: list[str]
    found: FoundRate | None = None
    first_epochs: int | None = None

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Rows of metrics.csv at the end of an epoch."""
        return epoch_rows(self.rows)

    @property
    def planned(self) -> int | None:
        """Planned number of epochs, None if unknown."""
        return _planned(self.config)

    @property
    def lengthened(self) -> bool:
        """Whether a resume planned another number of epochs than the first start, so that its schedule has two parts."""
        return None not in (self.first_epochs, self.planned) and self.first_epochs != self.planned

    @property
    def finished(self) -> bool:
        """Whether training has ended and was not continued afterwards."""
        done = int(self.rows[-1]["epoch"]) if self.rows else 0
        return bool(self.summary) and done <= self.summary.get("total_epochs", 0)


def _planned(config: dict[str, Any]) -> int | None:
    epochs = (config.get("trainer") or {}).get("max_epochs")
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        ValueError: The folder is not a run folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder{near_or_there(folder, folder=True)}; give the folder of a run, such as runs/NAME/DATE-TIME"
        )
    configs = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    configs = [path for path in (folder / "config.yaml", *configs) if path.is_file()]
    if not configs:
        raise ValueError(
            f"{folder}: is not a run folder, because it has no config.yaml; give one such as runs/NAME/DATE-TIME"
        )
    text = configs[-1].read_text(encoding="utf-8")
    missing: list[str] = []

    def read(name: str) -> dict[str, Any]:
        return _json(folder / name, missing)

    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        missing.append("metrics.csv")
    config = _yaml(text, configs[-1])
    found = found_rate(folder, config)
    evaluations = {path.stem.removesuffix("_metrics"): _json(path, missing) for path in folder.glob("*_metrics.json")}
    others = {
        (path.parent.name, path.stem.removesuffix("_metrics")): _json(path, missing)
        for path in folder.glob("evaluations/*/*_metrics.json")
    }
    return Run(
        folder,
        config,
        configs[-1].name,
        text,
        read("training_summary.json"),
        read("environment.json"),
        read("checkpoints/best.json"),
        read_metrics(metrics) if metrics.is_file() else [],
        dict(sorted(evaluations.items())),
        dict(sorted(others.items())),
        missing,
        found,
        _planned(config if len(configs) == 1 else _yaml(configs[0].read_text(encoding="utf-8"), configs[0])),
    )


def _yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path}: is not valid YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = read_json(path)
    except FileNotFoundError:
        missing.append(path.name)
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def read_table(path: Path) -> list[list[str]]:
    """Read header and rows of a CSV file; bytes that are not valid UTF-8 are shown as escapes."""
    with path.open(newline="", encoding="utf-8", errors="backslashreplace") as file:
        try:
            return [row for row in csv.reader(file) if row]
        except csv.Error as error:
            raise ValueError(f"{path}: cannot be read as a CSV file ({error})") from error


def read_confusion(folder: Path, stage: str) -> tuple[Tensor, list[str]] | None:
    """Read the confusion matrix of an evaluation.

    Args:
        folder: Run folder.
        stage: Stage of the evaluation, such as ``test``.

    Returns:
        Counts (K, K), rows are true classes and columns predicted ones, and the K class names; None if there is no table. The
        classes have the order of per_class_STAGE.csv, which includes classes without samples.
    """
    path = folder / f"confusion_{stage}.csv"
    if not path.is_file():
        return None
    pairs = read_table(path)[1:]
    listed = folder / f"per_class_{stage}.csv"
    names = [row[0] for row in read_table(listed)[1:]] if listed.is_file() else []
    names = list(dict.fromkeys([*names, *sorted({name for true, taken, _ in pairs for name in (true, taken)})]))
    place = {name: number for number, name in enumerate(names)}
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    for true, taken, count in pairs:
        counts[place[true], place[taken]] += int(count)
    return counts, names


class ClassReport(NamedTuple):
    """Metrics of a class or their mean, in [0, 1]; 0 for a class without samples or without predictions, as in scikit-learn."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def class_report(counts: Tensor, names: list[str]) -> list[ClassReport]:
    """Compute precision, recall, F1 and support of each class, then their mean and their mean weighted by support.

    Args:
        counts: (K, K) int64; rows are true classes, columns predicted ones.
        names: Names of the K classes.

    >>> class_report(torch.tensor([[3, 1], [0, 4]]), ["cat", "dog"])[0]
    ClassReport(name='cat', precision=1.0, recall=0.75, f1=0.8571428571428571, support=4)
    """
    hits, support, taken = counts.diagonal().double(), counts.sum(1), counts.sum(0)
    precision, recall = hits / taken.clamp(min=1), hits / support.clamp(min=1)
    f1 = 2 * hits / (support + taken).clamp(min=1)
    values = torch.stack([precision, recall, f1])
    n, weights = int(support.sum()), support.double() / max(int(support.sum()), 1)

    def row(name: str, shares: Tensor, samples: int) -> ClassReport:
        return ClassReport(name, float(shares[0]), float(shares[1]), float(shares[2]), samples)

    rows = [row(name, values[:, k], int(support[k])) for k, name in enumerate(names)]
    rows += [row("mean of the classes", values.mean(1), n), row("weighted by support", values @ weights, n)]
    return rows


def epoch_seconds(run: Run) -> list[float]:
    """Read from train.log the seconds between the ends of consecutive epochs, including validation and checkpoints.

    The first epoch after a resume is left out, because it includes the pause.
    """
    path = run.folder / "train.log"
    if not path.is_file():
        return []
    seconds, last = [], None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not (found := EPOCH_LINE.match(line)):
            last = None if "resum" in line.lower() else last
            continue
        at, epoch = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S"), int(found[2])
        if last is not None and epoch == last[1] + 1:
            passed = (at - last[0]).total_seconds()
            seconds += [passed] if passed >= 0 else []  # else the clock was set back
        last = (at, epoch)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float] | None:
    """Return median, lowest and highest value; None for an empty list."""
    return (statistics.median(values), min(values), max(values)) if values else None
