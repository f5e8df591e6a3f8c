"""Flags that set one callback of the list by its class: --trainer.callbacks.EMA.decay 0.9, wherever it is in trainer.callbacks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from cli.named_classes import accepted_settings
from cli.run_flags import UsageError
from foundation.suggestions import nearest

FLAG = re.compile(
    r"--trainer\.callbacks\.(?P<cls>[A-Z]\w*)\.(?P<setting>[\w.]+)"
)  # a class begins with a capital letter

ADD = "--trainer.callbacks+"
PAIRS = 2  # settings of an item that an example shows


class OfCallback(NamedTuple):
    """A setting of one callback, given as a flag.

    Args:
        flag: The flag without its value.
        cls: Name of the callback's class.
        setting: Name of its setting.
        value: The value as typed.
    """

    flag: str
    cls: str
    setting: str
    value: str


def split_callback_flags(arguments: Sequence[str]) -> tuple[list[str], list[OfCallback]]:
    """Split arguments into those for the parser and the settings of callbacks that are named by their class.

    Raises:
        UsageError: A flag has no value.

    >>> split_callback_flags(["fit", "--trainer.callbacks.EMA.decay", "0.9", "--model.lr=1"])
    (['fit', '--model.lr=1'], [OfCallback(flag='--trainer.callbacks.EMA.decay', cls='EMA', setting='decay', value='0.9')])
    """
    others: list[str] = []
    found: list[OfCallback] = []
    added = ""  # class of the callback that a flag has added last, which may need settings to be parsed at all
    iterator = iter(arguments)
    for argument in iterator:
        flag, equals, value = argument.partition("=")
        named = FLAG.fullmatch(flag)
        if named is None:
            others.append(argument)
            if equals and flag == ADD:
                added = value
            elif others[-2:-1] == [ADD]:
                added = argument
            continue
        value = value if equals else next(iterator, "--")
        if not equals and value.startswith("--"):
            raise UsageError(f"{flag}: needs a value")
        if named["cls"] == added.rpartition(".")[2]:
            others.append(f"--trainer.callbacks.{named['setting']}={value}")
        else:
            found.append(OfCallback(flag, named["cls"], named["setting"], value))
    return others, found


def parse_with_callback_flags(
    parser: ArgumentParser, of_command: ArgumentParser, arguments: Sequence[str]
) -> Namespace:
    """Parse a command line; then set the callbacks that flags name by their class, and parse it again with the changed list.

    Args:
        parser: The parser of all commands.
        of_command: The parser of the command, which is the first argument.
        arguments: The command line.

    Raises:
        UsageError: The list has no callback of the class or several, or the class has no such setting.
    """
    others, named = split_callback_flags(arguments)
    config = parser.parse_args(others)
    if not named:
        return config
    text = of_command.dump(config[others[0]], skip_validation=True, skip_unset=False)
    given = yaml.safe_load(text)["trainer"]["callbacks"] or []
    listed: list[Any] = given if isinstance(given, list) else [given]
    for one in named:
        _set(listed, one)
    return parser.parse_args([*others, f"--trainer.callbacks={json.dumps(listed)}"])


def _set(listed: list[Any], one: OfCallback) -> None:
    names = [entry["class_path"].rpartition(".")[2] for entry in listed]
    if names.count(one.cls) != 1:
        if one.cls in names:
            raise UsageError(f"{one.flag}: {one.cls} is in trainer.callbacks twice; give the list in a file")
        there = f"{nearest(one.cls, names)}; there are {', '.join(names)}" if names else ", which is empty"
        raise UsageError(
            f"{one.flag}: no {one.cls} in trainer.callbacks{there}; --trainer.callbacks+ {one.cls} adds it"
        )
    entry = listed[names.index(one.cls)]
    module, _, name = entry["class_path"].rpartition(".")
    known = accepted_settings(getattr(import_module(module), name))
    if one.setting not in known:
        hint = nearest(one.setting, known) or f"; there are {', '.join(sorted(known))}"
        raise UsageError(f"{one.flag}: no such setting of {one.cls}{hint}")
    try:
        value = yaml.safe_load(one.value)
    except yaml.YAMLError:
        value = one.value
    before = (entry.get("init_args") or {}).get(one.setting)
    if isinstance(before, list) and before:
        _check_list(one, value, before[0])
    entry["init_args"] = {**(entry.get("init_args") or {}), one.setting: value}


def _check_list(one: OfCallback, value: Any, item: Any) -> None:
    """Refuse what is no list in place of a list whose first item is ``item``, or a list of other things than dictionaries."""
    of_dicts = isinstance(item, dict)
    if isinstance(value, list) and (not of_dicts or all(isinstance(each, dict) for each in value)):
        return
    pairs = [f"{name}: {inner}" for name, inner in item.items() if inner is not None][:PAIRS] if of_dicts else []
    shown = f"{{{', '.join(pairs)}}}" if of_dicts else str(item)
    raise UsageError(f"{one.flag.removeprefix('--')}: a list, such as '[{shown}]', is needed, got {one.value!r}")
