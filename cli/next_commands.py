"""The last lines of a fit: its run folder, and the commands to view, continue and test it."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from callbacks.find_callbacks import find_callbacks
from callbacks.summary import earlier_best, read_best
from cli.trainer.loggers import views
from foundation.bounded.text import read_json
from foundation.project import MAIN


def next_commands(
    trainer: Trainer, folder: Path, best: Path, resume_command: str | None, tested: bool = False
) -> list[str]:
    """Return the lines to print.

    Args:
        trainer: The Trainer of the fit; what its loggers have is named (`cli.trainer.loggers.views`).
        folder: The run folder.
        best: The best checkpoint, or the last one.
        resume_command: The command that resumes the run, or None without a last.ckpt.
        tested: Whether the fit has tested it (`--test_after_fit`), which needs no command then.
    """
    run, picture = (shlex.quote(str(path)) for path in (folder, folder / "plots" / "curves.png"))
    ways = views(trainer, folder)
    ways += [picture] if (folder / "plots" / "curves.png").is_file() or not ways else []
    lines = [f"run folder   {folder}", f"view it      {'   or '.join(ways)}"]
    left = [timer.time_remaining() for timer in find_callbacks(trainer, Timer)]
    if resume_command and any(seconds is not None and seconds <= 0 for seconds in left):
        lines.append(f"continue     {resume_command} --trainer.max_time null   (stopped by max_time)")
    last = "" if best.name == "best.ckpt" else " --ckpt last"
    if "test" in getattr(getattr(trainer, "datamodule", None), "labelled_splits", ("test",)):
        lines += (
            [] if tested else [f"test it      {MAIN} test --run {run}{last}{_outdated(folder, 'test_metrics.json')}"]
        )
        use = f"use it       {MAIN} predict --run {run}{last}   (more in docs/paths.md)"
    else:
        use = f"use it       {MAIN} predict --run {run}{last} --data.images FOLDER"
        use += "   (there is no test split; more in docs/paths.md)"
    lines.append(use + _outdated(folder, "predictions.json", "predictions.csv"))
    if earlier := exported_earlier(folder):
        lines.append(f"export again {', '.join(earlier)}: older than best.ckpt")
    return lines


def _outdated(folder: Path, name: str, result: str = "") -> str:
    """Say that earlier results are not those of the best checkpoint any more; empty if they are, or without any.

    Args:
        folder: The run folder.
        name: The file that names the checkpoint.
        result: The file with the results, if that is another one.
    """
    path = folder / name
    try:
        earlier = earlier_best(dict(read_json(path)), read_best(folder)) if path.is_file() else ""
    except (OSError, ValueError, TypeError):
        return ""
    return f"   ({result or name} is {earlier})" if earlier else ""


def exported_earlier(folder: Path) -> list[str]:
    """Names of the exported files in a run folder that are older than its best.ckpt, sorted; empty without a best.ckpt."""
    best = folder / "checkpoints" / "best.ckpt"
    if not best.is_file():
        return []
    files = [path for kind in ("*.onnx", "*.lvr") for path in folder.glob(kind)]
    return sorted(path.name for path in files if path.stat().st_mtime < best.stat().st_mtime)
