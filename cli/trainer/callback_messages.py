"""Names the owner of a setting in a message about a callback: the flag that was typed, or the class that has the setting."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cli.named_classes import accepted_settings
from cli.trainer.callback_flags import split_callback_flags

OF_CALLBACKS = "callbacks.callback.Callback]"  # in the list of types that jsonargparse tried
SECTIONS = ("checkpoint", "non_finite", "progress", "curves")  # callbacks of every run
BEGINNING = re.compile(r"(?:trainer\.callbacks\.)?(\w+)(?=[: ])")
LOCATION = re.compile(r" \([^()]+:\d+\)$")


def with_callback(message: str, classes: Mapping[str, type], arguments: Sequence[str]) -> str:
    """Put the class of the callback before the name of a setting at the beginning of a message.

    Args:
        message: A message about a setting of one of ``trainer.callbacks``, as in ``decay: at least 0 and under 1``.
        classes: The classes of the command by section.
        arguments: The command line; a setting that it gives is named as it was typed, without a line of a file.

    >>> with_callback("decay: under 1, got 2 (a.yaml:3)", {}, ["--trainer.callbacks.EMA.decay", "2"])
    'trainer.callbacks.EMA.decay: under 1, got 2'
    """
    found = BEGINNING.match(message)
    if found is None:
        return message
    name, rest = found[1], message[found.end() :]
    typed = split_callback_flags(arguments)[1]
    for one in typed:
        if name in (one.setting, one.setting.partition(".")[0]) or re.search(rf"\b{name}\b", one.value):
            item = "" if name in one.setting.split(".") else f".{name}"
            return f"{one.flag.removeprefix('--')}{item}{LOCATION.sub('', rest)}"
    owners = [
        key for key, cls in classes.items() if key.startswith("trainer.callbacks.") and name in accepted_settings(cls)
    ]
    if not owners:
        return message
    return f"{' or '.join(f'{key}.{name}' for key in owners)}{rest}"


def with_run_section(message: str, classes: Mapping[str, type], arguments: Sequence[str]) -> str:
    """Put the section of a callback of every run before the name of its setting: ``checkpoint.every_n_epochs: 0 or more``."""
    found = BEGINNING.match(message)
    given = [key for key in SECTIONS if found and any(one.startswith(f"--{key}.{found[1]}") for one in arguments)]
    owners = given or [
        key for key in SECTIONS if key in classes and found and found[1] in accepted_settings(classes[key])
    ]
    return f"{owners[0]}.{message}" if len(owners) == 1 and "callbacks." not in message else message
