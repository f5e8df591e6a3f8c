"""Builds the sections of a run's report, one function per section; missing files are listed in a section at the end."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from callbacks.calibration_record import doubt
from callbacks.calibration_record import in_words as in_words_of
from callbacks.checkpoints import EPOCH
from callbacks.metrics_log import column_order
from callbacks.pictures.confusion_matrix import draw_confusion
from callbacks.pictures.curves import draw_curves
from callbacks.summary import best_metrics, earlier_best, hyperparameters
from cli.evaluation import shown_difference
from foundation.atomic_files import replace_file
from foundation.checkpoint_files import read_checkpoint
from foundation.durations import in_words
from foundation.plotting import render, write_png
from foundation.project import MAIN
from tools.report.page import Block, Code, Picture, Section, Table, Text
from tools.report.run import STAGES, Run, class_report, epoch_seconds, read_confusion, read_table, spread

LONG = 40  # a table with more rows is folded
MOST = 200  # rows shown of a CSV file
DRAWN = ("confusion", "per_class")  # CSV files and pictures that the report draws itself
CAPTIONS = {
    "mistakes_heat": "what speaks for the predicted and for the true class of the most confident mistakes",
    "mistakes": "the most confident mistakes",
    "reliability": "reliability",
    "lr_find": "learning-rate sweep",
}


def sections(run: Run, target: Path) -> list[Section]:
    """Return all sections of the report; their pictures are written to ``target``."""
    parts = [summary(run), metrics(run), curves(run, target), *evaluations(run, target), *calibration(run)]
    parts += [*other_pictures(run, target)]
    parts += [settings(run), speed(run), environment(run), commands(run)]
    if run.missing:
        parts.append(
            Section("Not in the folder", [Text("Left out, because the run has no " + ", ".join(run.missing) + ".")])
        )
    return parts


def number(value: object) -> str:
    """Format a number briefly: integers with separators, floats with four significant digits.

    >>> number(0.86713284), number(1371.30335), number(12), number(4e-07), number("sgd")
    ('0.8671', '1,371', '12', '4e-07', 'sgd')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"


def short(path: object) -> str:
    """Return the class name of a class path."""
    return str(path or "?").rpartition(".")[2]


def summary(run: Run) -> Section:
    """Section with state, model, data, epochs, best checkpoint, evaluations and training time."""
    done = int(run.epochs[-1]["epoch"]) if run.epochs else 0
    planned = f" of {run.planned}" if run.planned else ""
    rows = [
        ["state", "finished" if run.finished else "not finished: the values are those so far"],
        ["model", short((run.config.get("model") or {}).get("class_path"))],
        ["data", short((run.config.get("data") or {}).get("class_path"))],
        ["epochs", f"{done}{planned}"],
    ]
    if run.best:
        chosen = run.best.get("metric") != EPOCH
        evaluated = f"{run.best.get('metric')} {number(run.best.get('value'))}, " if chosen else "the last, "
        rows.append(["best checkpoint", f"{evaluated}epoch {run.best.get('epoch')}, {run.best.get('weights')} weights"])
    if counts := run.summary.get("parameters"):
        share = counts["trained"] / max(1, counts["total"])
        rows.append(["weights trained", f"{counts['trained']:,} of {counts['total']:,} ({share:.2%})"])
    if run.found:
        rows.append(["learning rate", str(run.found)])
    for stage, content in run.evaluations.items():
        listed = ", ".join(f"{name} {number(value)}" for name, value in (content.get("metrics") or {}).items())
        changed = " with other settings" * bool(content.get("overrides"))
        of_what = earlier_best(content, run.best) or f"of {content.get('checkpoint', '?')}"
        rows.append([f"{stage} {of_what}{changed}", listed])
    if "time" in run.summary:
        rows.append(["training time", in_words(run.summary["time"]["seconds"])])
        rows.append(["ended", str(run.summary["time"].get("finished"))])
    rows.append(["device", str(run.environment.get("device", "unknown"))])
    return Section("Summary", [Table(["", ""], rows)])


def metrics(run: Run) -> Section:
    """Section with the best and the last value of every metric."""
    if not run.rows:
        return Section("Metrics", [Text("No metrics yet: metrics.csv is missing or empty.")])
    best = run.summary.get("best_metrics") if run.finished else None
    best = best or best_metrics(run.rows, run.best)
    last: Mapping[str, float] = run.epochs[-1] if run.epochs else {}
    rows = [[name, number(one["value"]), str(one["epoch"]), number(last.get(name, ""))] for name, one in best.items()]
    blocks: list[Block] = []
    if not any(name.startswith("val/") for name in best):
        blocks.append(Text("The run has no validation: there is no best epoch, and the last weights are the result."))
    epoch = int(last["epoch"]) if last else 0
    blocks.append(Table(["metric", "best", "epoch", f"last (epoch {epoch})"], rows))
    other = sorted({*last} - {*best, "epoch", "step"}, key=column_order)
    if other:
        rest = [[name, number(last[name])] for name in other]
        blocks.append(Table(["metric", "value"], rest, fold=f"{len(rest)} other values of epoch {epoch}"))
    return Section("Metrics", blocks)


def curves(run: Run, target: Path) -> Section:
    """Section with the training curves, drawn from metrics.csv, so that an unfinished run has them too."""
    if not run.rows:
        return Section("Curves", [Text("No metrics yet.")])
    title = f"{run.folder.resolve().parent.name}/{run.folder.resolve().name}"
    figure = draw_curves(run.rows, title, run.best.get("epoch"))
    write_png(target / "curves.png", render(figure))
    return Section("Curves", [Picture("curves.png", "Loss, accuracy and settings over the epochs")])


def evaluations(run: Run, target: Path) -> list[Section]:
    """One section per evaluated stage: metrics, confusion matrix, metrics per class, other tables and pictures."""
    found: list[Section] = []
    for stage, title in STAGES.items():
        blocks: list[Block] = []
        if content := run.evaluations.get(stage):
            rows = [[name, number(value)] for name, value in (content.get("metrics") or {}).items()]
            blocks += [Text(evaluated(content, run.best)), Table(["metric", "value"], rows)]
        if confusion := read_confusion(run.folder, stage):
            blocks += _confusion(*confusion, stage, title, target)
        own = sorted((run.folder / "plots").glob(f"*_{stage}.png"))
        blocks += [_copied(path, target) for path in own if not path.stem.startswith(DRAWN)]
        blocks += _tables(run.folder, stage)
        if blocks:
            found.append(Section(title, blocks))
    found += _on_other_data(run)
    if not found:
        found.append(Section("Evaluations", [Text("No evaluation left a table or a picture in this folder.")]))
    return found


def _on_other_data(run: Run) -> list[Section]:
    """Sections of the evaluations in the folder `evaluations`."""
    found = []
    for (name, stage), content in run.other_evaluations.items():
        rows = [[metric, number(value)] for metric, value in (content.get("metrics") or {}).items()]
        blocks: list[Block] = [Text(evaluated(content, run.best)), Table(["metric", "value"], rows)]
        found.append(Section(f"{name}: {stage} on other data or with other settings", blocks))
    return found


def evaluated(content: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Describe the checkpoint, the data and the overridden settings of an evaluation; `best` is the content of best.json."""
    weights = f", {content['weights']} weights" if content.get("weights") else ""
    text = f"Checkpoint {content.get('checkpoint', '?')}, epoch {content.get('epoch', '?')}{weights}."
    if earlier := earlier_best(content, best):
        text += f" These results are {earlier}: evaluate it again."
    if data := content.get("data"):
        text += (
            f" {number(data.get('samples'))} samples of {data.get('place')} (fingerprint {data.get('fingerprint')})."
        )
        if data.get("seen_in_training"):
            text += f" {number(data['seen_in_training'])} of them were trained on: these are not metrics of new data."
    if changed := content.get("overrides"):
        listed = ", ".join(
            "{} {} (trained with {})".format(name, *shown_difference(now, was)) for name, (was, now) in changed.items()
        )
        text += f" Settings that differ from those of the run: {listed}."
    return text


def _confusion(counts: Tensor, names: list[str], stage: str, title: str, target: Path) -> list[Block]:
    name = f"confusion_{stage}.png"
    write_png(target / name, render(draw_confusion(counts, names, title)))
    rows = [
        [one.name, *(f"{share:.4f}" for share in (one.precision, one.recall, one.f1)), f"{one.support:,}"]
        for one in class_report(counts, names)
    ]
    fold = f"Metrics of {len(names)} classes" if len(rows) > LONG else ""
    table = Table(["class", "precision", "recall", "F1", "support"], rows, fold)
    return [Picture(name, f"Confusion matrix: {title.lower()}"), table]


def _tables(folder: Path, stage: str) -> list[Block]:
    """Return the remaining CSV files of a stage as tables, all except those that the report draws itself."""
    blocks: list[Block] = []
    for path in sorted(folder.glob(f"*_{stage}.csv")):
        content = read_table(path) if not path.stem.startswith(DRAWN) else []
        if len(content) < 2:
            continue
        header, rows = content[0], [row for row in content[1:] if len(row) == len(content[0])]
        cut = f", the first {MOST}" if len(rows) > MOST else ""
        blocks.append(Table(header, rows[:MOST], fold=f"{path.name}: {len(rows):,} rows{cut}"))
    return blocks


def calibration(run: Run) -> list[Section]:
    """Section with what the best checkpoint's calibration fitted and chose: temperature, exit threshold, prediction sets."""
    path = run.folder / "checkpoints" / "best.ckpt"
    try:
        record = read_checkpoint(path).get("calibration")
        lines = [*filter(None, [doubt(record)]), *in_words_of(record)] if record else []
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [Section("Calibration", [Text(f"Of {path.name}: {line}.") for line in lines])] if lines else []


def other_pictures(run: Run, target: Path) -> list[Section]:
    """Section with the pictures that do not belong to an evaluation."""
    known = {f"_{stage}" for stage in STAGES}
    paths = [
        path
        for path in sorted((run.folder / "plots").glob("*.png"))
        if path.stem != "curves" and not path.stem.endswith(tuple(known))
    ]
    return [Section("Other pictures", [_copied(path, target) for path in paths])] if paths else []


def _copied(path: Path, target: Path) -> Picture:
    if path.resolve() != (target / path.name).resolve():
        with replace_file(target / path.name) as temporary:
            shutil.copyfile(path, temporary)
    kind = next((caption for start, caption in CAPTIONS.items() if path.stem.startswith(start)), "")
    return Picture(path.name, f"{path.stem}{': ' * bool(kind)}{kind}")


def settings(run: Run) -> Section:
    """Section with the settings of model, data and trainer, and the whole configuration file."""
    rows = [[name, number(value)] for name, value in sorted(hyperparameters(run.config).items())]
    blocks: list[Block] = [Table(["setting", "value"], rows, fold=f"{len(rows)} settings of model, data and trainer")]
    blocks.append(Code(run.config_text, "yaml", fold=f"The whole configuration ({run.config_name})"))
    return Section("Settings", blocks)


def speed(run: Run) -> Section:
    """Section with images per second, waiting for data, peak memory and time per epoch."""
    rows = []
    kinds: Iterable[tuple[str, str, float]] = (
        ("speed/images_per_s", "images per second", 1),
        ("speed/data_share", "share of the time spent waiting for data (%)", 100),
        ("memory/gb", "peak memory (GB)", 1),
    )
    for name, label, factor in kinds:
        if values := spread([factor * row[name] for row in run.rows if name in row]):
            rows.append([label, *(number(value) for value in values)])
    if values := spread(epoch_seconds(run)):
        rows.append(["time per epoch, including validation and checkpoints (s)", *(number(value) for value in values)])
    if not rows:
        return Section("Speed and memory", [Text("Not measured.")])
    device = (
        "of the device's tensors" if str(run.environment.get("device")).startswith("cuda") else "of the whole process"
    )
    return Section(
        "Speed and memory",
        [Table(["", "median", "lowest", "highest"], rows), Text(f"Each memory value is the peak so far, {device}.")],
    )


def environment(run: Run) -> Section:
    """Section with machine, software versions and code revision."""
    if not run.environment:
        return Section("Environment", [Text("environment.json is missing: the run never began to train.")])
    content = dict(run.environment)
    content.pop("command", None)
    versions = content.pop("versions", {})
    dirty = content.pop("git_dirty", False)
    revision = content.get("git_revision")
    content["git_revision"] = f"{revision}{' with uncommitted changes' * bool(dirty)}" if revision else "unknown"
    rows = [[name.replace("_", " "), str(value)] for name, value in content.items()]
    return Section("Environment", [Table(["", ""], [*rows, *([name, str(one)] for name, one in versions.items())])])


def _from_scratch(run: Run, folder: str) -> list[str]:
    """The commands that train the run again; one that was lengthened needs two, as one has the schedule of all epochs."""
    if not run.lengthened:
        return [f"{MAIN} fit --config {folder}/{run.config_name}        # the same run from scratch"]
    return [
        f"{MAIN} fit --config {folder}/config.yaml --run_dir NEW        # from scratch: {run.first_epochs} epochs, as it began",
        f"{MAIN} fit --resume NEW --trainer.max_epochs {run.planned}        # then lengthened; one fit of {run.planned} has "
        "another schedule",
    ]


def commands(run: Run) -> Section:
    """Section with the commands that reproduce, resume and test the run."""
    folder = shlex.quote(str(run.folder))
    blocks: list[Block] = []
    if command := run.environment.get("command"):
        blocks += [Text("The command of the last start:"), Code(f"{MAIN} {shlex.join(map(str, command[1:]))}", "bash")]
    revision = run.environment.get("git_revision")
    lines = [f"git checkout {revision}"] if revision else []
    lines += _from_scratch(run, folder)
    if not run.finished:
        lines.append(f"{MAIN} fit --resume {folder}        # resume where it stopped")
    last = "" if run.best else " --ckpt last"
    lines.append(f"{MAIN} test --run {folder}{last}        # test metrics")
    blocks += [Text("Reproduce, resume, test:"), Code("\n".join(lines), "bash")]
    return Section("Commands", blocks)
