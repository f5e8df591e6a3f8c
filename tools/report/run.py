"""A run folder as it is found: every file that may be missing is read here, and what is not there is None or empty."""

from __future__ import annotations

import csv
import json
import re
import statistics
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from callbacks.metrics_log import read_metrics
from callbacks.pictures.curves import epoch_rows

STAGES = {"test": "Test", "validate": "Validation of a checkpoint", "val": "Validation during training"}
EPOCH_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) epoch (\d+)/(\d+|\?) ")


@dataclass
class Run:
    """What there is of a run.

    Attributes:
        folder: Of the run.
        config: Its configuration, the latest one where it was resumed; and its file's name and text.
        summary: training_summary.json, empty before the end.
        environment: environment.json.
        best: checkpoints/best.json.
        rows: Of metrics.csv.
        evaluations: STAGE_metrics.json by stage.
        missing: Names of what is not there.
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
    missing: list[str]

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Rows that end an epoch."""
        return epoch_rows(self.rows)

    @property
    def planned(self) -> int | None:
        """Epochs that the run is to have."""
        epochs = (self.config.get("trainer") or {}).get("max_epochs")
        return epochs if isinstance(epochs, int) and epochs > 0 else None

    @property
    def finished(self) -> bool:
        """Whether training came to its end, and did not go on since."""
        done = int(self.rows[-1]["epoch"]) if self.rows else 0
        return bool(self.summary) and done <= self.summary.get("total_epochs", 0)


def read_run(folder: Path) -> Run:
    """Read what is there.

    Raises:
        ValueError: The folder is no run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give the folder of a run, such as runs/NAME/DATE-TIME")
    configs = sorted(folder.glob("config.resume-*.yaml"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
    configs = [path for path in (folder / "config.yaml", *configs) if path.is_file()]
    if not configs:
        raise ValueError(f"{folder}: is no run folder, as it has no config.yaml; give one such as runs/NAME/DATE-TIME")
    text = configs[-1].read_text(encoding="utf-8")
    missing: list[str] = []

    def read(name: str) -> dict[str, Any]:
        return _json(folder / name, missing)

    metrics = folder / "metrics.csv"
    if not metrics.is_file():
        missing.append("metrics.csv")
    evaluations = {path.stem.removesuffix("_metrics"): _json(path, missing) for path in folder.glob("*_metrics.json")}
    return Run(
        folder,
        _yaml(text, configs[-1]),
        configs[-1].name,
        text,
        read("training_summary.json"),
        read("environment.json"),
        read("checkpoints/best.json"),
        read_metrics(metrics) if metrics.is_file() else [],
        dict(sorted(evaluations.items())),
        missing,
    )


def _yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is no valid YAML: {error}") from error
    return content if isinstance(content, dict) else {}


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append(path.name)
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: is no valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def read_table(path: Path) -> list[list[str]]:
    """Header and rows of a CSV; names may hold bytes that are no UTF-8, which are shown as such."""
    with path.open(newline="", encoding="utf-8", errors="backslashreplace") as file:
        return [row for row in csv.reader(file) if row]


def read_confusion(folder: Path, stage: str) -> tuple[Tensor, list[str]] | None:
    """Counts (K, K), rows are true classes, and the names, of an evaluation; None where there is no table.

    The order is that of per_class_STAGE.csv, which also has the classes that no sample was of.
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
    """Figures of a class, or of all: shares from 0 to 1, and 0 where nothing is of a class or taken for it, as in scikit-learn."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def class_report(counts: Tensor, names: list[str]) -> list[ClassReport]:
    """Precision, recall, F1 and support of each class, then their mean and their mean weighted by support.

    Args:
        counts: (K, K) int64; rows are true classes, columns predicted ones.
        names: Of the K classes.

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
    """Seconds from the end of one epoch to the end of the next, as train.log has them: with validation and checkpoints.

    The gap before an epoch that a resume began with is left out.
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
            seconds.append((at - last[0]).total_seconds())
        last = (at, epoch)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float] | None:
    """Median, lowest and highest."""
    return (statistics.median(values), min(values), max(values)) if values else None
