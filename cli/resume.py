"""Resume: finds checkpoint and configuration of a run, and checks which settings may change."""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from callbacks.checkpoints import EPOCH
from callbacks.run_folder import number_of
from cli.changed_values import differences
from cli.run_flags import RunFlags, UsageError
from datamodules import TrainedOn
from foundation.bounded.text import read_json
from foundation.checkpoint_files import DamagedFileError, last_or_before, read_checkpoint
from foundation.suggestions import nearest
from lightning_modules.loading import newest_config, without_best
from metrics import direction_of

log = logging.getLogger(__name__)

# settings that a resumed run cannot change, in addition to ``fixed_on_resume`` of the classes: they determine the n-th step
FIXED = ("seed_everything", "model.class_path", "data.class_path", "trainer.accumulate_grad_batches")

# their product is the number of samples in an optimiser step; they may change together, see _only_splits_batches
STEP = ("data.batch_size", "trainer.accumulate_grad_batches")

PROCESSES = ("trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy")


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint in a run folder, with its progress and the newest configuration of the run."""

    folder: Path
    checkpoint: Path
    config: Path
    epoch: int
    step: int
    should_stop: bool
    processes: int
    trained_on: TrainedOn | None = None
    note: str | None = None  # why it is another checkpoint than the one asked for


def find(target: str, flags: RunFlags) -> RunCheckpoint:
    """Find checkpoint and configuration for the value of ``--resume`` or ``--run``: a run folder, or a checkpoint in one.

    Raises:
        UsageError: Run folder or checkpoint does not exist, the checkpoint cannot be read, or ``--run_dir`` is given too.
    """
    if "run_dir" in flags.values:
        raise UsageError("--run_dir: a resumed run continues in its own folder; remove --run_dir")
    path = Path(target)
    if not path.exists():
        raise UsageError(f"{target}: no such run folder or checkpoint{_newest_run_hint(path)}")
    if path.is_dir() and path.name == "checkpoints" and (path.parent / "config.yaml").is_file():
        raise UsageError(
            f"{target}: is the folder of the checkpoints; give its run, {path.parent}, or one of the files in it"
        )
    if path.is_file() and (path.parent / "config.yaml").is_file():
        raise UsageError(f"{target}: is no checkpoint; give its run, {path.parent}")
    folder = path if path.is_dir() else path.resolve().parent.parent
    wanted = "last" if flags.command == "fit" else flags.values.get("ckpt", "best")
    note = None
    if path.is_dir() and wanted == "last":
        checkpoint, note = last_or_before(folder / "checkpoints")
    if note is None:
        checkpoint = path if path.is_file() else _checkpoint_path(folder, wanted)
    config = _latest_config(folder)
    content = read(checkpoint)
    progress = content["loops"]["fit_loop"]["epoch_progress"]["current"]
    exact = content.get("exact_resume", {})
    stop, processes = bool(exact.get("should_stop", False)), int(exact.get("processes", 1))
    step, trained_on = content["global_step"], TrainedOn.of_checkpoint(content)
    return RunCheckpoint(folder, checkpoint, config, progress["processed"], step, stop, processes, trained_on, note)


CHOICES = ("best", "last")  # values of --ckpt that are no file


def _checkpoint_path(folder: Path, wanted: str) -> Path:
    if wanted not in CHOICES:
        if not Path(wanted).is_file():
            raise UsageError(f"--ckpt {wanted}: neither best, nor last, nor an existing file{nearest(wanted, CHOICES)}")
        return Path(wanted)
    path = folder / "checkpoints" / f"{wanted}.ckpt"
    if path.is_file():
        return path
    if not (folder / "checkpoints").is_dir() and (runs := _runs_in(folder)):
        raise UsageError(f"{folder}: is a folder of runs, not a run; in it are {_newest_first(runs)}")
    there = ", ".join(sorted(file.name for file in (folder / "checkpoints").glob("*.ckpt"))) or "none"
    raise UsageError(f"{folder}: has no checkpoint {path.name} (there: {there}){without_best(folder, path)}")


def _latest_config(folder: Path) -> Path:
    try:
        return newest_config(folder)
    except ValueError as error:
        raise UsageError(f"{error}{_newest_run_hint(folder)}") from error


RUNS_NAMED = 5  # runs that a message lists


def _newest_run_hint(path: Path) -> str:
    """A hint at the run of the closest name in the same folder, or at the newest of the folder of the closest name."""
    parent = path.parent
    if not parent.is_dir() and parent.parent.is_dir():  # runs/NAME/DATE-TIME with a wrong NAME
        close = difflib.get_close_matches(parent.name, [one.name for one in parent.parent.iterdir()], n=1)
        there = _runs_in(parent.with_name(close[0])) if close else []
        return f"; the newest run in {parent.with_name(close[0])} is {there[-1]}" if there else ""
    runs = [run for run in _runs_in(parent) if run.parent == parent]
    close = difflib.get_close_matches(path.name, [run.name for run in runs], n=1)
    if close or not runs:
        return f"; did you mean {parent / close[0]}?" if close else ""
    return f"; in {parent} are {_newest_first(runs)}"


def _newest_first(runs: list[Path]) -> str:
    more = f" and {len(runs) - RUNS_NAMED} older" if len(runs) > RUNS_NAMED else ""
    return f"{', '.join(str(run) for run in reversed(runs[-RUNS_NAMED:]))}{more}"


def _runs_in(folder: Path) -> list[Path]:
    """The runs in a folder of runs, or of folders of runs, the newest last."""
    files = [*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")] if folder.is_dir() else []
    by_time = [file.parent for file in sorted(files, key=lambda file: (file.stat().st_mtime, str(file)))]
    # runs of one experiment by their numbers, since clocks are set; those of several by time
    return sorted(by_time, key=number_of) if len({run.parent for run in by_time}) == 1 else by_time


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint to the CPU, without running code from the file (``weights_only``).

    Raises:
        UsageError: The file is missing, truncated, or not a checkpoint of a training run.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such checkpoint")
    try:
        content = read_checkpoint(path)
    except DamagedFileError as error:
        others = [file.name for file in sorted(path.parent.glob("*.ckpt")) if file.name != path.name]
        hint = f"; in the same folder: {', '.join(others)}" if others else ""
        raise UsageError(f"{error}{hint}") from error
    if not isinstance(content, dict) or not {"state_dict", "loops", "global_step"} <= content.keys():
        raise UsageError(f"{path}: is no checkpoint of a training run (it has no state_dict, loops and global_step)")
    return dict(content)


def read_best(checkpoint: Path) -> dict[str, Any]:
    """Return the content of best.json for best.ckpt; for other checkpoints their epoch, step and kind of weights."""
    path = checkpoint.with_name("best.json")
    if checkpoint.name == "best.ckpt" and path.is_file():
        try:
            return dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: is damaged ({error}); delete it") from error
    content = read(checkpoint)
    epoch = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return {"epoch": epoch, "step": content["global_step"], "weights": "ema" if "ema" in content else "raw"}


def describe(checkpoint: Path) -> str:
    """Describe a checkpoint in one line: file, epoch, monitored metric, and raw or EMA weights."""
    best = read_best(checkpoint)
    metric = f", {best['metric']} {best['value']:.6g}" if best.get("metric", EPOCH) != EPOCH else ""
    return f"{checkpoint} (epoch {best['epoch']}{metric}, {best['weights']} weights)"


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to dotted keys, without the ``init_args`` level, as in command-line flags."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, name))
    return flat


def check_changes(source: RunCheckpoint, new: dict[str, Any], flags: RunFlags) -> None:
    """Compare a new configuration with that of the run: log changed settings, reject changes of fixed settings.

    Raises:
        UsageError: A setting that cannot change in a resumed run differs.
    """
    was = flatten(yaml.safe_load(source.config.read_text(encoding="utf-8")))
    now = flatten(new)
    fixed = set(FIXED)
    for part in ("model", "data"):
        module, _, name = now[f"{part}.class_path"].rpartition(".")
        fixed |= {f"{part}.{key}" for key in getattr(import_module(module), name).fixed_on_resume}
    if _only_splits_batches(was, now) or any(was.get(name) != now.get(name) for name in PROCESSES):
        fixed -= set(STEP)  # with other processes, cli/processes.py compares the samples of a step
    changed = [key for key in dict.fromkeys((*was, *now)) if _plain(was.get(key)) != _plain(now.get(key))]
    given = {argument.removeprefix("--").partition("=")[0] for argument in flags.rest}
    for config in flags.configs:
        given |= flatten(yaml.safe_load(Path(config).read_text(encoding="utf-8")) or {}).keys()
    # a setting that did not exist when the run began has its default, which is how the run has trained so far
    changed = [key for key in changed if key in was or any(key == one or key.startswith(f"{one}.") for one in given)]
    for key in changed:
        if key in fixed or any(key.startswith(f"{name}.") for name in fixed):  # an entry of a nested setting
            (entry, old, value), *more = differences(key, _plain(was.get(key)), _plain(now.get(key)))
            where = "" if entry == key else f"{entry} "
            rest = f" and {len(more)} more" if more else ""
            raise UsageError(
                f"--{key}: cannot change in a resumed run ({where}was {old}, now {value}{rest}); start a new run for that"
            )
    for key in changed:
        for entry, old, value in differences(key, _plain(was.get(key)), _plain(now.get(key))):
            log.info(f"changed   {entry}: {old} -> {value}")


def _plain(value: Any) -> Any:
    """Leave out the settings of a list's items that are null: an older version's items lack those that are newer."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in item.items() if v is not None} if isinstance(item, dict) else item for item in value]


MONITORED = (("checkpoint", "monitor", "mode"), ("model.init_args", "plateau_monitor", "plateau_mode"))
"""Where a configuration has a monitored metric and its direction, in addition to callbacks."""


def mend_modes(source: RunCheckpoint, config: Any) -> None:
    """Replace directions that contradict their metric if the run recorded them so; older versions did not check them.

    Args:
        source: The run.
        config: The parsed configuration of this start, changed in place. A contradiction that is new is left, and refused later.
    """
    recorded = yaml.safe_load(source.config.read_text(encoding="utf-8"))
    was, places = [], []
    for path, monitor, mode in MONITORED:
        places.append((path.partition(".")[0], config.get(path), monitor, mode))
        node = recorded
        for part in path.split("."):
            node = (node or {}).get(part)
        was.append(((node or {}).get(monitor), (node or {}).get(mode)))
    listed = config.get("trainer.callbacks") or []
    for entry in listed if isinstance(listed, list) else [listed]:
        places.append((entry.class_path.rpartition(".")[2], entry.get("init_args"), "monitor", "mode"))
    was += [(one.get("monitor"), one.get("mode")) for one in _settings_of_callbacks(recorded)]
    for owner, settings, monitor, mode in places:
        pair = (settings.get(monitor), settings.get(mode)) if settings is not None else (None, None)
        right = direction_of(pair[0]) if isinstance(pair[0], str) else None
        if right is not None and pair[1] in ("min", "max") and pair[1] != right and pair in was:
            settings[mode] = right
            log.warning(
                f"{owner}.{mode}: the run has {pair[1]}, which contradicts {pair[0]}; from here on it is {right}"
            )


def _settings_of_callbacks(config: dict[str, Any]) -> list[dict[str, Any]]:
    listed = (config.get("trainer") or {}).get("callbacks") or []
    return [entry.get("init_args") or {} for entry in (listed if isinstance(listed, list) else [listed])]


def _only_splits_batches(was: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether optimiser steps keep their samples and only their batches are split into equal parts."""
    resizing = any("ProgressiveResizing" in entry["class_path"] for entry in now.get("trainer.callbacks") or [])
    (batch, accumulate), (part, more) = ([settings[name] for name in STEP] for settings in (was, now))
    return not resizing and part >= 1 and more % accumulate == 0 and part * more == batch * accumulate


def parts(source: RunCheckpoint, accumulate: int) -> int:
    """Return the number of batches into which the resumed run splits each batch of the original run.

    Args:
        source: The run.
        accumulate: Current number of batches per optimiser step (``accumulate_grad_batches``).
    """
    first = yaml.safe_load((source.folder / "config.yaml").read_text(encoding="utf-8"))
    return int(accumulate // first["trainer"]["accumulate_grad_batches"])


def changed_since_start(source: RunCheckpoint) -> frozenset[str]:
    """Names of the settings of the data that a resume of the run has changed: the run itself gives them."""
    first, last = (
        flatten(yaml.safe_load(path.read_text(encoding="utf-8"))["data"])
        for path in (source.folder / "config.yaml", source.config)
    )
    return frozenset(name.partition(".")[0] for name in {**first, **last} if first.get(name) != last.get(name))


def finished(source: RunCheckpoint, config: dict[str, Any]) -> str | None:
    """Return why a run has no training left (last epoch reached, or stopped early), or None if it can continue."""
    limit = config["trainer"].get("max_epochs")
    if limit is not None and 0 <= limit <= source.epoch:
        return f"finished ({source.epoch} of {limit} epochs); raise --trainer.max_epochs to go on"
    if source.should_stop and not _patience_raised(source, config):
        return f"stopped early after epoch {source.epoch}; raise the patience of EarlyStopping to go on"
    return None


def _patience_raised(source: RunCheckpoint, config: dict[str, Any]) -> bool:
    states = [state for key, state in read(source.checkpoint)["callbacks"].items() if key.startswith("EarlyStopping")]
    stoppers = [entry for entry in config["trainer"].get("callbacks") or [] if "EarlyStopping" in entry["class_path"]]
    waited = max((state["wait_count"] for state in states if state["wait_count"] >= state["patience"]), default=None)
    return waited is not None and all(entry["init_args"]["patience"] > waited for entry in stoppers)
