"""Results of validate, test and predict: settings and data that differ from those of the run, and where results are written.

RUN_DIR/test_metrics.json                     the run's own data; overridden settings are listed in it
RUN_DIR/evaluations/NAME/test_metrics.json    other data, another --runtime, or with --name; plots and tables too
RUN_DIR/predictions.csv, predictions.json     predictions, and what was predicted; those of another source, or with other prompts,
                                              are in evaluations/NAME
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer

from callbacks.failures.explosion import absurd_result, exploded_in, guessing_loss
from callbacks.progress.lines import is_loss_again
from cli.changed_values import short, without_alike
from cli.resume import RunCheckpoint, describe, flatten, read, read_best
from cli.run_flags import RunFlags, UsageError
from cli.test_time import say_gain
from datamodules import DataModule
from foundation.atomic_files import write_json
from foundation.bounded.text import read_json
from lightning_modules import BaseModule

log = logging.getLogger(__name__)

NAME = re.compile(r"[\w.+-]{1,80}")
FIRST = ("loss", "acc", "balanced_acc", "iou", "dice", "f1", "auroc", "ap", "aurc", "brier", "nll", "ece")
"""Metrics that are printed before the others, but after the one that chose the checkpoint; the others follow by name."""
ON_A_LINE = 4
"""Up to four metrics are printed in one line, more of them in a table."""
IN_A_COLUMN = 12
"""Up to twelve metrics are printed in one column, more of them in two, read from top to bottom."""
SPLITS = {"validate": "val", "test": "test"}
ONLY_SPEED = (
    "data.workers", "data.prefetch", "data.persistent_workers", "data.pin_memory", "data.download", "data.canvas_cache",
    "data.verify", "trainer.logger", "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.default_root_dir",
    "progress", "curves",
)  # fmt: skip
"""Beginnings of settings that change neither a training nor an evaluation, at most its speed and what is shown of it."""
# settings that cannot change the metrics of an evaluation
NO_EFFECT = (
    *ONLY_SPEED, "data.on_device", "data.batch_size", "data.eval_batch_size", "data.drop_last", "trainer.callbacks",
    "checkpoint", "non_finite", "on_oom", "fast_loop", "seed_everything",
)  # fmt: skip


def refuse_random_backbone(model: Any, flags: RunFlags) -> None:
    """Refuse to extract the features of random weights, unless ``--model.pretrained false`` is on the command line.

    Raises:
        UsageError: The backbone has neither weights nor pretrained ones.
    """
    asked = any(word.partition("=")[0] == "--model.pretrained" for word in flags.rest)
    if getattr(model, "weights_from", {}) is None and not asked:
        raise UsageError(
            "model.weights: is needed, or the features are those of a random backbone; give --model.weights FILE or "
            "--model.pretrained true (--model.pretrained false on the command line takes the random one)"
        )


def given_settings(flags: RunFlags) -> frozenset[str]:
    """Names of the data settings that the user gives on this command line, by flag or in a configuration file."""
    names = {argument.removeprefix("--").partition("=")[0] for argument in flags.rest if argument.startswith("--data.")}
    for config in flags.configs:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}
        names |= {name for name, value in flatten(content).items() if value is not None}
    parts = [name.removeprefix("data.").removeprefix("init_args.") for name in names if name.startswith("data.")]
    return frozenset(part.split(".")[0] for part in parts)


def overrides(source: RunCheckpoint, now: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from those of the run and can change metrics: name -> [value of the run, value now]."""
    was, new = flatten(yaml.safe_load(source.config.read_text(encoding="utf-8"))), flatten(now)
    # entries of a dictionary may be on one side only; other sections differ between fit and test
    both = [name for name in {**was, **new} if (name in was and name in new) or name.startswith(("model.", "data."))]
    changed = {name: [was.get(name), new.get(name)] for name in both if was.get(name) != new.get(name)}
    return {name: values for name, values in changed.items() if not name.startswith(NO_EFFECT)}


def shown_difference(one: Any, other: Any) -> tuple[str, str]:
    """The two values of a setting in short: of two lists only the items that differ, of items only what differs and their names.

    >>> shown_difference([{"folder": "a", "groups": None}, {"folder": "b"}], [{"folder": "b"}, {"folder": "c"}])
    ('[{folder: a}]', '[{folder: c}]')
    >>> shown_difference([{"folder": "a", "prompts": ["crack"], "masks": "m"}], [{"folder": "a", "prompts": ["crack"]}])
    ('[{folder: a, masks: m}]', '[{folder: a, masks: null}]')
    """
    if isinstance(one, list) and isinstance(other, list) and len(one) and len(other):
        differ = [[item for item in items if item not in others] for items, others in ((one, other), (other, one))]
        one, other = differ if all(differ) else (one, other)
        if all(isinstance(item, dict) for item in (*one, *other)):
            one, other = without_alike(one, other)
    return short(one), short(other)


def changed_settings(
    source: RunCheckpoint | None, config: dict[str, Any], checkpoint: Path, module: BaseModule, linked: Sequence[str]
) -> dict[str, Any]:
    """Return the settings of an evaluation that differ from those of the training: name -> [value in training, value now].

    Args:
        source: The run; None if only a checkpoint is given, whose hyperparameters are compared then.
        config: The configuration of this command.
        checkpoint: The evaluated checkpoint.
        module: The module that evaluates it.
        linked: Settings of the module that come from the data, which is matched to the checkpoint.
    """
    if source is not None:
        return overrides(source, config)
    was, now = dict(read(checkpoint).get("hyper_parameters", {})), dict(module.hparams)
    names = [name for name in now if name in was and name not in linked and not name.startswith("_")]
    return {f"model.{name}": [was[name], now[name]] for name in names if was[name] != now[name]}


def results_folder(run: Path, checkpoint: Path, data: DataModule, name: str | None, runtime: str = "torch") -> Path:
    """Return the folder for the results: the run's own for its checkpoints and data, else one of its evaluations.

    Args:
        run: The run folder.
        checkpoint: The evaluated checkpoint.
        data: The datamodule, matched to the checkpoint.
        name: Value of ``--name``.
        runtime: Value of ``--runtime``; results of another one than torch have a folder of their own, called as it is.

    Raises:
        UsageError: The name is not valid, or that evaluation is of other data.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: letters, digits, '.', '_', '+' and '-' only, at most 80")
    of_run = checkpoint.resolve().parent.parent == run.resolve()
    other = [] if runtime == "torch" else [runtime]
    own = name is None and of_run and data.is_training_data()
    if own and not other:
        return run
    source = data.place_name if of_run else f"{checkpoint.resolve().parent.parent.name}_{checkpoint.stem}"
    source = "_".join([*([] if own else [source]), *other])
    base = name or _folder_name(source)
    for number in range(1, 1000):
        folder = run / "evaluations" / (base if number == 1 else f"{base}-{number}")
        there = {place for path in folder.glob("*_metrics.json") if (place := _place_of(path)) is not None}
        if there <= {data.place}:
            break
        if name is not None:
            raise UsageError(f"--name {name}: {folder} has the results on {sorted(there)[0]}; give another name")
    return folder


def _folder_name(source: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", source).strip("._")[:80] or "data"


def predictions_folder(
    run: Path | None, target: Path | None, data: DataModule, name: str | None
) -> tuple[Path, str, str]:
    """Return the folder for predictions, in which those of another source are never replaced, and the name of their source.

    The third value is a line for the user, to print once they are written: which earlier ones stay; else it is empty.

    Args:
        run: The run folder, or None: the current folder.
        target: Folder for the results of this command.
        data: The datamodule.
        name: Value of ``--name``.

    Raises:
        UsageError: ``--name`` is that of predictions of another source.
    """
    first = target or Path()
    source = data.images.source if data.images is not None else "test split" if first == run else data.place
    asked = prompts if (prompts := getattr(data, "prompts", None)) and prompts != data.class_names else []
    source = f"{source} (prompts {', '.join(asked)})" if asked else source
    if name is not None:
        if (there := _predicted_in(first)) not in (None, source, ""):
            raise UsageError(f"--name {name}: {first} has the predictions of {there}; give another name")
        return first, source, ""
    if (there := _predicted_in(first)) in (None, source):
        return first, source, ""
    base = _folder_name("_".join([data.images.name if data.images is not None else data.place_name, *asked]))
    evaluations = first.parent if first.parent.name == "evaluations" else first / "evaluations"
    for number in range(1, 10000):
        folder = evaluations / (base if number == 1 else f"{base}-{number}")
        found = _predicted_in(folder)
        if found == source or (found is None and not any(folder.glob("*_metrics.json"))):
            break
    owner = there or "another predict"
    owner = f"the {owner}" if owner.endswith(" split") else owner
    kept = f"predict     {first / 'predictions.csv'} is of {owner} and stays; this one is in {folder}"
    return folder, source, kept


def _predicted_in(folder: Path) -> str | None:
    """Source of the predictions in a folder; None if there are none, empty if it is not known."""
    if not (folder / "predictions.csv").is_file():
        return None
    try:
        return str(read_json(folder / "predictions.json")["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def record_predictions(folder: Path, source: str, checkpoint: Path, kept: str = "") -> None:
    """Write predictions.json, after predictions.csv: what that is of and the checkpoint; print `kept`.

    Warns of a checkpoint whose validation loss had exploded.

    Args:
        folder: The folder of the predictions, as the next and the last value from :func:`predictions_folder`.
        source: What they are of.
        checkpoint: The checkpoint.
        kept: Which earlier predictions stay.
    """
    of = {"checkpoint": checkpoint.name, **read_best(checkpoint)}
    write_json(folder / "predictions.json", {"source": source, **of})
    if (loss := exploded_in(read(checkpoint))) is not None:
        log.warning(
            f"the loss of {checkpoint} had exploded (val/loss {loss:.3g}): its predictions mean little; train a new run with a "
            "lower --model.lr"
        )
    if kept:
        log.info(kept)


def _place_of(path: Path) -> str | None:
    try:
        return str(read_json(path)["data"]["place"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report_results(
    command: str,
    checkpoint: Path,
    results: Any,
    changed: dict[str, Any],
    model: object,
    data: DataModule,
    run: Path | None,
    target: Path | None,
    plain: Any = None,
) -> None:
    """Print the results of validate or test and write them.

    Args:
        command: ``validate`` or ``test``.
        checkpoint: The evaluated checkpoint.
        results: What the Trainer returned: metrics by name, for each loader.
        changed: Result of :func:`overrides`.
        model: The evaluated module.
        data: The datamodule.
        run: The run folder, or None.
        target: Folder for the results: ``run``, one of its evaluations, or None to write nothing.
        plain: What the Trainer returned with one view of each image, if the metrics are of several (``--tta``).
    """
    metrics = {name: value for result in results for name, value in result.items()}
    log.info(f"{command}  {describe(checkpoint)}\n{_listed(metrics, read_best(checkpoint).get('metric', ''))}")
    name = f"{SPLITS[command]}/loss"
    loss = float(metrics.get(name, 0.0))
    used, batches = _batches(command, data.trainer)
    if used < batches:
        kind = "val" if command == "validate" else "test"
        log.warning(f"only {used:,} of {batches:,} batches were evaluated (trainer.limit_{kind}_batches)")
    if text := absurd_result(name, loss, guessing_loss(model, data.num_classes)):
        log.warning(text)
    for name, (was, now) in changed.items():
        log.info("      with {} {} (the run: {})".format(name, *shown_difference(now, was)))
    of_one_view = {name: value for result in plain or [] for name, value in result.items()}
    say_gain(of_one_view, metrics)
    if target is None:
        return
    of_run = run is not None and checkpoint.resolve().parent.parent == run.resolve()
    content = {
        "checkpoint": checkpoint.name if of_run else str(checkpoint),
        **read_best(checkpoint),
        "metrics": metrics,
        **({"one_view": of_one_view} if of_one_view else {}),
    }
    _write(target, command, {**content, "data": _describe(command, data, target == run), "overrides": changed})
    if target != run:
        log.info(f"      results on {data.place} are in {target}; the run keeps its own")


def _listed(metrics: dict[str, float], monitored: str) -> str:
    """The metrics as indented text: the one that chose the checkpoint, those that people look for first, the others."""
    chosen_by = monitored.partition("/")[2]

    def rank(name: str) -> tuple[bool, int, str]:
        metric = name.partition("/")[2]
        first = metric == chosen_by and metric not in FIRST[:2]
        known = metric in FIRST
        return not first, FIRST.index(metric) if known else len(FIRST), "" if known else metric

    ordered = sorted((name for name in metrics if not is_loss_again(name, metrics)), key=rank)
    if len(ordered) <= ON_A_LINE:
        return " " * 6 + "  ".join(f"{name} {metrics[name]:.6g}" for name in ordered)
    width = max(map(len, ordered))
    rows = [f"{name:{width}}  {metrics[name]:<12.6g}" for name in ordered]
    half = len(rows) if len(rows) <= IN_A_COLUMN else (len(rows) + 1) // 2
    columns = zip_longest(rows[:half], rows[half:], fillvalue="")
    return "\n".join(f"      {left}  {right}".rstrip() for left, right in columns)


def _describe(command: str, data: DataModule, own: bool) -> dict[str, Any]:
    """Describe the evaluated data for the results: place, number of samples, fingerprint, samples seen in training."""
    split = SPLITS[command]
    return {
        "place": data.place,
        "datamodule": type(data).__name__,
        "split": split,
        "samples": _evaluated(command, data),
        "fingerprint": data.fingerprint(split),
        "seen_in_training": data.seen.get(split, 0),
        "own": own,
    }


def _batches(command: str, trainer: Trainer | None) -> tuple[int, int]:
    """Batches of the split that were evaluated, after the Trainer's limit, and all of them; both 0 without a Trainer."""
    if trainer is None:
        return 0, 0
    loader, limit = (
        (trainer.val_dataloaders, trainer.limit_val_batches)
        if command == "validate"
        else (trainer.test_dataloaders, trainer.limit_test_batches)
    )
    batches = len(loader)  # type: ignore[arg-type]
    return (min(batches, limit) if isinstance(limit, int) else int(batches * limit)), batches


def _evaluated(command: str, data: DataModule) -> int:
    """Number of samples that were evaluated."""
    count, trainer = len(data.splits[SPLITS[command]]["index"]), data.trainer
    used, batches = _batches(command, trainer)
    if trainer is None or used == batches:
        return count
    loader: Any = trainer.val_dataloaders if command == "validate" else trainer.test_dataloaders
    if hasattr(loader, "seen"):  # batches of one image size are not all full
        return int(loader.seen(used))
    return min(count, used * data.eval_batch_size * trainer.world_size)


def _write(folder: Path, command: str, content: dict[str, Any]) -> None:
    """Write COMMAND_metrics.json, and say if the data has changed since the last time."""
    path = folder / f"{command}_metrics.json"
    try:
        before = dict(read_json(path)["data"])
    except (OSError, ValueError, KeyError, TypeError):
        before = {}
    if before.get("fingerprint", content["data"]["fingerprint"]) != content["data"]["fingerprint"]:
        log.warning(f"the {content['data']['split']} data has changed since the last {command}: {path} is replaced")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
