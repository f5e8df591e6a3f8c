"""Checks of the configuration files of a command before they are parsed, and what each replaces of the earlier ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from cli.run_flags import OVERLAYS, UsageError
from foundation.project import CONFIG_GROUPS, config_names
from foundation.suggestions import nearest

log = logging.getLogger(__name__)

CLASSES = ("model", "data")  # sections that name a class; it may also be given as a name only
PARTS = ("class_path", "init_args", "dict_kwargs")  # of an entry that names a class
FIRST = "configs/digits_ternary.yaml"  # the experiment that is shown as an example
SETTINGS = ("trainer", "checkpoint", "progress", "curves", "non_finite")  # sections of settings only


def check_configs(paths: Iterable[str]) -> None:
    """Reject a configuration file that is missing, not valid YAML, empty, or has a value where it needs settings.

    Raises:
        UsageError: The message has the closest file name, or file and line of the YAML error.
    """
    contents = {}
    for name in paths:
        contents[name] = read_config(name)
        _check_sections(name, contents[name])
    _check_order(contents)


def _check_order(contents: dict[str, dict[str, Any]]) -> None:
    """Refuse an overlay before its experiment, which would replace what the overlay sets."""
    names = list(contents)
    classes = [any(_names_class(contents[name], key) for key in CLASSES) for name in names]
    first = classes.index(True) if True in classes else 0
    for name in names[:first]:
        if Path(name).parent.name in OVERLAYS or any(key in contents[name] for key in CLASSES):
            right = f"--config {names[first]} --config {name}"
            raise UsageError(f"--config {name}: an overlay changes the experiment before it; give it later: {right}")


def _names_class(content: dict[str, Any], key: str) -> bool:
    entry = content.get(key)
    return isinstance(entry, str) or (isinstance(entry, dict) and "class_path" in entry)


def read_config(name: str) -> dict[str, Any]:
    """Return the content of a configuration file.

    Raises:
        UsageError: The file is missing, not valid YAML, or has no settings.
    """
    path = Path(name)
    if path.is_dir():
        inside = ", ".join(str(file) for file in sorted(path.glob("[!.]*.yaml"))[:8])
        raise UsageError(f"--config {name}: is a folder, not a file{f'; in it are {inside}' if inside else ''}")
    if not path.is_file():
        there = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        shipped = [file for inner in CONFIG_GROUPS for file in config_names(inner)]
        raise UsageError(f"--config {name}: no such file{nearest(str(path), dict.fromkeys([*there, *shipped]))}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UsageError(f"{name}:{line}: is no valid YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: is no valid YAML: it has characters that are no text") from error
    if not isinstance(content, dict):
        raise UsageError(f"{name}: is not a configuration, it has no settings")
    return content


def _check_sections(name: str, content: dict[str, Any]) -> None:
    for key, value in content.items():
        if key in CLASSES and isinstance(value, dict):
            _check_class(name, key, value)
        if not isinstance(key, str):
            raise UsageError(f"{name}: {key}: no such setting, the name of a section is needed")
        inner = value.get("init_args") if isinstance(value, dict) and key in CLASSES else None
        for place, found, needs in (
            (key, value, key in SETTINGS or (key in CLASSES and not isinstance(value, str))),
            (f"{key}.init_args", inner, True),
        ):
            if needs and found is not None and not isinstance(found, dict):
                line = _line_of(name, place.rpartition(".")[2])
                raise UsageError(f"{place}: settings are needed, written NAME: VALUE, got {found!r} ({name}{line})")
            for setting in found if needs and isinstance(found, dict) else ():
                if not isinstance(setting, str):
                    raise UsageError(f"{place}.{setting}: no such setting, a name is needed ({name})")


def _check_class(name: str, key: str, entry: dict[str, Any]) -> None:
    """Refuse a setting next to ``class_path`` and ``init_args``, where the parser would name the whole entry."""
    stray = [one for one in entry if one not in PARTS]
    if not stray or len(stray) == len(entry):  # or settings only, of the class given before
        return
    hint = nearest(str(stray[0]), PARTS) or f"; settings of the class are written below {key}.init_args"
    raise UsageError(f"{key}.{stray[0]}: no such setting{hint} ({name}{_line_of(name, str(stray[0]))})")


def _line_of(name: str, key: str) -> str:
    lines = Path(name).read_text(encoding="utf-8").splitlines()
    return next((f":{number}" for number, line in enumerate(lines, 1) if re.match(rf"\s*{key}\s*:", line)), "")


def missing_experiment(paths: list[str], named: Iterable[str]) -> str | None:
    """Return what to give if no configuration names a model or no data, as overlays do not; None if both are named.

    Args:
        paths: The configurations of the command.
        named: The sections of `CLASSES` for which a class is named.
    """
    missing = [key for key in CLASSES if key not in named]
    if not missing:
        return None
    there = [name for name in config_names() if Path(name).name != "defaults.yaml"]
    if not paths:
        listed = f" (there: {', '.join(there)})" if there else ""
        return f"no {' and no '.join(missing)}: give --config FILE{listed}{_class_flag(missing)}"
    overlay = next((path for path in reversed(paths) if experiments_of(path)), paths[0])
    known = experiments_of(overlay)
    given = " ".join(f"--config {quote(path)}" for path in paths)
    what = " and no ".join(missing)
    if known:
        return f"no {what}: {overlay} is an overlay on {' or '.join(known)}; give both: --config {known[0]} {given}"
    text = f"no {what}: {', '.join(paths)} {'names' if len(paths) == 1 else 'name'} none{_class_flag(missing)}"
    text += "; give the experiment first" if len(missing) == len(CLASSES) else ", or give an experiment first"
    return f"{text}, as in --config {FIRST if FIRST in there else there[0]} {given}" if there else text


def _class_flag(missing: list[str]) -> str:
    """How to name the class if only one is missing: then a model or a dataset of one's own is probably meant."""
    return f"; name its class with --{missing[0]} CLASS" if len(missing) == 1 else ""


def experiments_of(path: str) -> list[str]:
    """Experiments that the comments of an overlay name, the first one first."""
    lines = [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return list(dict.fromkeys(re.findall(r"\bconfigs/\w+\.yaml", "\n".join(lines))))


def say_dropped(paths: Iterable[str]) -> None:
    """Log the entries of dictionaries such as ``network_args`` that a later file drops: it replaces the dictionary as a whole."""
    earlier: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in paths:
        content = read_config(path)
        for section in CLASSES:
            settings = content[section].get("init_args") if isinstance(content.get(section), dict) else None
            for name, value in (settings or {}).items():
                if not isinstance(value, dict) or "class_path" in value:
                    continue
                key = f"{section}.{name}"
                _, before = earlier.get(key, ("", {}))
                gone = {entry: before[entry] for entry in before if entry not in value}
                if gone:
                    listed = ", ".join(f"{entry}: {it}" for entry, it in gone.items())
                    log.warning(
                        f"{key}: {path} replaces the entries of {earlier[key][0]}, so {listed} is no longer there; repeat what "
                        "is to stay"
                    )
                earlier[key] = (path, value)


def weights_win(config: Any, words: Iterable[str]) -> None:
    """Let ``--model.weights FILE`` on the command line switch off a ``pretrained: true`` of a configuration; a line says so.

    Args:
        config: The parsed configuration of a command without a run, changed in place.
        words: The arguments of the command line; with ``--model.pretrained`` among them too, nothing changes.
    """
    given = {word.removeprefix("--model.").removeprefix("init_args.").partition("=")[0] for word in words}
    settings = config.model.get("init_args") or {}
    if (
        "weights" in given
        and "pretrained" not in given
        and settings.get("weights")
        and settings.get("pretrained") is True
    ):
        settings["pretrained"] = False
        log.info(f"weights    model.pretrained is false, since --model.weights {settings['weights']} is given")
