"""Checks of the weights that a command starts from, before any data is read: which they are, and that they can be weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.run_flags import RunFlags, UsageError
from foundation.places import near_or_there
from lightning_modules.pretrained import absent, other_kind

SOURCES = ("weights", "init_from", "teacher")  # settings of models that name a run, a checkpoint or a file of weights


def check_given_weights(flags: RunFlags, config: Any) -> None:
    """Check the weights of a command without ``--run`` and ``--resume``.

    Args:
        flags: The command line.
        config: The parsed settings of the command.

    Raises:
        UsageError: An evaluation has no checkpoint, or the checkpoint or the weights to start from do not exist.
    """
    listed = config.trainer.get("callbacks") or []
    writes = any("FeatureWriter" in one.class_path for one in (listed if isinstance(listed, list) else [listed]))
    evaluates = flags.command != "fit" and not writes
    if evaluates and "cache" not in flags.values:  # --cache without a writer is refused later
        given = flags.values.get("ckpt")
        if given in (None, "best", "last"):
            raise UsageError(f"{flags.command}: which weights? give --run RUN_DIR, or --config FILE and --ckpt PATH")
        if not Path(given).is_file():
            raise UsageError(f"--ckpt {given}: no such checkpoint{near_or_there(Path(given))}")
        return
    for name, path in _sources(config):
        if not path.exists():
            raise UsageError(f"model.{name}: {absent(path)}")


def check_kinds(config: Any) -> None:
    """Check by the ending of each file of weights that it can be one; also with ``--run`` and ``--resume``.

    Args:
        config: The parsed settings of the command.

    Raises:
        UsageError: A file is a table, an image or another kind of file.
    """
    for name, path in _sources(config):
        if other := other_kind(path):
            raise UsageError(f"model.{name}: {other}")


def _sources(config: Any) -> Iterator[tuple[str, Path]]:
    """The settings that name weights, and the paths; those of CLIPSeg may be a name on the hub, which is no file."""
    on_hub = config.model.get("init_args.network") == "clipseg"
    for name in SOURCES[1:] if on_hub else SOURCES:
        source = config.model.get(f"init_args.{name}")
        if isinstance(source, str):
            yield name, Path(source)
