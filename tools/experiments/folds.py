"""k-fold cross-validation of one configuration: its runs, the out-of-fold predictions, mean and spread of the metrics.

OUT/fold_1 .. fold_K      run folders, each tested on its fold          OUT/folds.json      metrics by fold, mean, spread, pooled
OUT/out_of_fold.csv       index [file|subject] fold label class probability probability_NAME ..    each sample once
"""

from __future__ import annotations

import csv
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.experiments.jobs import Job, first_words, state_of

if TYPE_CHECKING:
    from tools.run_logits import RunLogits

BY_NAME = ("balanced_acc", "f1", "auroc", "ap")
OF_PROBABILITIES = ("nll", "brier", "ece")


def fold_jobs(configs: Sequence[Path], folds: int, out: Path, flags: Sequence[str]) -> list[Job]:
    """One run for each fold."""
    return [
        Job(
            f"fold_{k}",
            out / f"fold_{k}",
            first_words(configs, out / f"fold_{k}", [*flags, "--data.fold", f"{k}/{folds}"]),
        )
        for k in range(1, folds + 1)
    ]


def check_folds(configs: Sequence[Path], folds: int, flags: Sequence[str]) -> None:
    """Divide the data once, so that a mistake ends one command; classes in too few groups are named in a warning.

    Raises:
        UsageError: A setting is wrong, or the data cannot be divided into folds.
        MisconfigurationException: There are fewer groups than folds, or the groups of a cache are not known.
        ValueError: The datamodule has no folds, or the model is no classifier of one label a sample.
    """
    from cli.app import configure_logging

    configure_logging()
    with _of_one_fold():
        _divide(configs, folds, flags)


@contextmanager
def _of_one_fold() -> Iterator[None]:
    """Say warnings only: what is known of one fold would be read as of all."""
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _divide(configs: Sequence[Path], folds: int, flags: Sequence[str]) -> None:
    from cli.load_datamodule import load_datamodule
    from datamodules import PromptedSegmentationDataModule

    words = [word for config in configs for word in ("--config", str(config))]
    plain = load_datamodule([*words, *flags])
    if isinstance(plain, PromptedSegmentationDataModule):
        raise ValueError(
            f"--folds {folds}: {type(plain).__name__} has no folds; they are for image folders, tables of labels, signals and "
            "feature caches; sets of masks are divided by their setting split"
        )
    if plain.fold is not None:
        raise ValueError(f"--folds {folds}: --data.fold {plain.fold} is given too; leave it out, each run gets its own")
    data = load_datamodule([*words, *flags, "--data.fold", f"1/{folds}"])
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    if data.splits["test"]["label"].ndim == 2:
        raise ValueError(
            f"--folds {folds}: out-of-fold predictions are of one label a sample, and the data has several"
        )


def report_folds(out: Path, jobs: Sequence[Job]) -> None:
    """Write and print the result, if all folds are finished.

    Raises:
        ValueError: A sample is in two folds, or the folds have different metrics.
    """
    if unfinished := [job.name for job in jobs if state_of(job.folder) != "finished"]:
        print(f"{', '.join(unfinished)}: not finished; run the same command again for the out-of-fold predictions")
        return
    from cli.app import configure_logging
    from cli.evaluation import FIRST
    from tools.run_logits import run_logits

    configure_logging()
    with _of_one_fold():
        found = [run_logits("tools.experiments", job.folder, "test") for job in jobs]
    table = rows(found)
    pooled = _pooled(found)
    write_rows(out / "out_of_fold.csv", table)
    by_fold = [_metrics(job.folder) for job in jobs]
    names = [name for name in by_fold[0] if all(name in one for one in by_fold)]
    names.sort(key=lambda name: (FIRST.index(of) if (of := name.partition("/")[2]) in FIRST else len(FIRST), of))
    content: dict[str, Any] = {
        "samples": len(table) - 1,
        "folds": {job.name: metrics for job, metrics in zip(jobs, by_fold, strict=True)},
        "mean": {name: statistics.fmean(one[name] for one in by_fold) for name in names},
        "standard_deviation": {name: statistics.stdev(one[name] for one in by_fold) for name in names},
        "pooled": pooled,
    }
    from foundation.atomic_files import write_json

    write_json(out / "folds.json", content)
    print("\n".join(lines(content, len(jobs))))
    print(f"out of fold  {out / 'out_of_fold.csv'}   metrics: {out / 'folds.json'}")


def rows(found: Sequence[RunLogits]) -> list[list[str]]:
    """Header and rows of out_of_fold.csv, by index.

    Raises:
        ValueError: A sample is in two folds, or the folds have different classes.
    """
    names = list(found[0].data.class_names)
    made: dict[int, list[str]] = {}
    column = ""
    for number, one in enumerate(found, start=1):
        if list(one.data.class_names) != names:
            raise ValueError(f"fold_{number}: its classes are not those of fold_1; give another --output")
        files, subjects = _named(one)
        column = "file" if files else "subject" if subjects else ""
        chances = one.module.probabilities_of(one.logits)
        for place, (index, label, row) in enumerate(
            zip(one.index.tolist(), one.label.tolist(), chances.tolist(), strict=True)
        ):
            if index in made:
                raise ValueError(
                    f"fold_{number}: sample {index} is in another fold too; the data has changed, give another --output"
                )
            best = max(range(len(row)), key=row.__getitem__)
            own = [files[index]] if files else [subjects[place]] if subjects else []
            made[index] = [
                str(index), *own, str(number), names[label], names[best], f"{row[best]:.6f}", *(f"{p:.6f}" for p in row)
            ]  # fmt: skip
    header = ["index", *([column] if column else []), "fold", "label", "class", "probability"]
    return [[*header, *(f"probability_{name}" for name in names)], *(made[index] for index in sorted(made))]


def _named(one: RunLogits) -> tuple[list[str], list[str]]:
    """Files by index, and people by place; each may be empty."""
    list_files = getattr(one.data, "files", None)
    if list_files is not None and (files := list_files("test")) is not None:
        return list(files), []
    test = one.data.splits["test"]
    if "subject" not in test:
        return [], []
    subject_of = dict(zip(test["index"].tolist(), test["subject"].tolist(), strict=True))
    return [], [one.data.subject_name(subject_of[index]) for index in one.index.tolist()]


def write_rows(path: Path, table: Sequence[Sequence[str]]) -> None:
    """Write a CSV file atomically; names may contain bytes that are not UTF-8."""
    from foundation.atomic_files import replace_file

    with (
        replace_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(table)


def _pooled(found: Sequence[RunLogits]) -> dict[str, float]:
    """Metrics of all out-of-fold predictions together, named as those of a test; calibrated: with the temperature of each fold."""
    import torch

    from metrics import BinnedCalibration, metrics_by_name

    logits, label = torch.cat([one.logits for one in found]), torch.cat([one.label for one in found])
    divided = torch.cat([one.logits / one.module.temperature for one in found])
    pooled = {"acc": float((logits.argmax(dim=1) == label).double().mean())}
    pooled |= metrics_by_name(BY_NAME, logits, label)
    for suffix, values in (("", logits), ("_calibrated", divided)):
        calibration = BinnedCalibration()
        calibration.update(values, label)
        measured = calibration.compute().metrics()
        pooled |= {f"{name}{suffix}": measured[name] for name in OF_PROBABILITIES}
    return pooled


def _metrics(run: Path) -> dict[str, float]:
    content = json.loads((run / "test_metrics.json").read_text(encoding="utf-8"))["metrics"]
    return {name: float(value) for name, value in content.items() if isinstance(value, (int, float))}


def lines(content: dict[str, Any], folds: int) -> list[str]:
    """The printed table: mean and standard deviation over the folds, and the pooled values.

    Args:
        content: Content of folds.json.
        folds: Number of folds.
    """
    width = max(map(len, content["mean"]))
    text = [f"{'':{width}}  mean   sd     pooled   ({content['samples']:,} samples, {folds} folds)"]
    for name, mean in content["mean"].items():
        spread, pooled = content["standard_deviation"][name], content["pooled"].get(name.removeprefix("test/"))
        text.append(
            f"{name:{width}}  {mean:<6.4g} {spread:<6.2g} {'' if pooled is None else format(pooled, '.4g')}".rstrip()
        )
    return text
