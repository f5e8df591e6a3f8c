"""Readable one-line messages for the argument parser's errors: the setting, the value given, the valid values.

For an invalid value in a class's settings, jsonargparse lists the errors of all possible types, with the useful line somewhere
inside. `readable` finds this line and rewrites it, adding the file and line of the setting and the closest valid name. Hints come
only from the classes that the command line and its configurations name. It depends on the wording of jsonargparse: its tests must
pass for all versions allowed in pyproject.toml.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger

from cli.config_files import missing_experiment
from cli.named_classes import BASES, below, named_classes
from cli.run_flags import RunFlags, UsageError
from cli.setting_hints import Hints, with_section
from cli.trainer.callback_messages import OF_CALLBACKS, with_callback, with_run_section
from foundation.suggestions import nearest

KINDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "collections.abc.Sequence": "a list",
    "dict": "a dictionary, written {NAME: VALUE},",
}
SHOWN = 80  # characters of a wrong value


@dataclass
class Source:
    """Where settings come from: the flags of the command, and the configuration files, those of a resumed run included."""

    flags: RunFlags
    configs: list[str]

    def location(self, key: str, value: str | None = None) -> str:
        """Return `` (file:line)`` of the last configuration with a setting; empty if it was given by a flag.

        Args:
            key: Dotted name of the setting.
            value: Also find lines with this value, such as the name of a class.
        """
        name = key.rpartition(".")[2]
        given = [
            argument.partition("=")[0].removesuffix("+") for argument in self.flags.rest if argument.startswith("--")
        ]
        if any(f"--{key}" == flag or ("." in flag and f"--{key}".startswith(f"{flag}.")) for flag in given):
            return ""  # by a flag of this setting, or of the one that has it as an item
        words = [rf"(^|[^\w]){re.escape(value)}($|[^\w])"] if value and value.strip() else []
        for pattern in [*words, rf"(^|[\s{{,\"'.-]){re.escape(name)}[\"']?\s*\+?:"]:
            for config in reversed(self.configs):
                lines = Path(config).read_text(encoding="utf-8").splitlines() if Path(config).is_file() else []
                for number, line in enumerate(lines, start=1):
                    if re.search(pattern, line.partition(" #")[0]) and not line.lstrip().startswith("#"):
                        return f" ({config}:{number})"
        return ""

    def typed(self, key: str, value: str) -> str:
        """The value of a flag as it was typed, where YAML reads a word such as ``yes`` as another value; else the value."""
        words = [word for argument in self.flags.rest for word in argument.split("=", 1)]
        after = [word for flag, word in pairwise(words) if flag == f"--{key}"]
        return after[-1] if after and value in ("True", "False", "None") else value


def readable(message: str, parser: ArgumentParser, flags: RunFlags, configs: list[str]) -> str:
    """Rewrite an error message of jsonargparse as one readable line.

    Args:
        message: The error message of jsonargparse.
        parser: The parser of the command; its flags are used for suggestions.
        flags: The command line.
        configs: Configuration files in their order, searched for file and line of the setting.
    """
    source = Source(flags, configs)
    try:
        classes = named_classes(RunFlags(flags.command, flags.rest, configs=configs))
    except UsageError as error:
        return str(error) + source.location(str(error).partition(":")[0], _quoted(str(error)))
    options = [option.removeprefix("--") for action in parser._actions for option in action.option_strings]
    hints = Hints(classes, [one for one in options if not one.endswith(".help")], flags)
    if found := re.search(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return hints.unknown_flag(found[1].split()[0])
    if (text := missing_experiment(configs, classes)) is not None:
        return text
    if found := re.search(r"argument (?:-\w/)?--(\S+): expected one argument", message):
        return f"--{_last_without_value(flags.rest, found[1])}: needs a value"
    if found := re.search(r"(?:Option|option) '([^']+)' is not accepted|does not accept option '([^']+)'", message):
        return _unknown_setting(message, found[1] or found[2], hints, source)
    if found := re.search(r"arguments are required: ([^\n]+)", message):
        owner = re.findall(r"class_path='[\w.]*?(\w+)'", message) or re.findall(
            r"'class_path': '[\w.]*?(\w+)'", message
        )
        name = owner[-1] if owner else _setting_name(message)
        if item := _item(message):
            name = _setting_name(message)
            return f"{name}: each item needs {found[1]}, as in [{item}]{source.location(name)}"
        return f"{name}: needs {found[1]}{source.location('class_path', name)}"
    text = _wrong_value(message, source)
    if OF_CALLBACKS in message:
        return with_callback(text, classes, flags.rest)
    named = with_section(text, classes)
    return with_run_section(text, classes, flags.rest) if named == text else named


def _item(message: str) -> str | None:
    """How an item of the list is written that an error is about, such as one of ``data.sets``; None if it is about no such list."""
    found = re.search(r"Subtypes: \[list\[(datamodules[\w.]*)\.(\w+)\]", message)
    if found is None:
        return None
    first = list(inspect.signature(getattr(import_module(found[1]), found[2])).parameters)[:2]
    return f"{{{', '.join(f'{name}: ...' for name in first)}}}"


def _of_set(message: str) -> str:
    """`` of the set 'FOLDER'`` if an error is about a setting of one item of ``data.sets``: the first that was not read."""
    found = re.search(r"Given value: \[.*?\{[^{}]*'folder': '([^']*)'", message) if _item(message) else None
    return f" (the set {found[1]!r})" if found else ""


def _quoted(message: str) -> str | None:
    found = re.search(r"no class '([^']+)'", message)
    return found[1] if found else None


def _last_without_value(arguments: list[str], top: str) -> str:
    """Name of the flag of a section that is followed by no value; the parser names the section only."""
    for argument, after in reversed(list(zip(arguments, [*arguments[1:], "--"], strict=True))):
        name = argument.removeprefix("--")
        last = argument.startswith("--") and "=" not in argument and after.startswith("--")
        if last and (name == top or name.startswith(f"{top}.")):
            return name
    return top


def _setting_name(message: str) -> str:
    """Return the dotted name of the setting in a message: the outer key, then the inner one."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    inner = re.findall(r"NestedArg\(key='([\w.]+)'", message)
    if (
        inner and keys
    ):  # the last one is the whole flag; an entry of the setting may be meant, or a name that it does not have
        keys = [keys[0], max(inner[-1], ".".join(keys[1:]), key=len)]
    return ".".join(keys or inner[-1:]) or "a setting"


def _given_value(message: str) -> str:
    """The value that the innermost error is about, as it was written."""
    inner = re.search(r"Got value: ([^\n]*)", message) or re.search(r"Given value: ([^\n]*)", message)
    value = inner[1] if inner else ""
    nested = re.fullmatch(r"NestedArg\(key='[\w.]+', val='?(.*?)'?\)", value)
    return nested[1] if nested else value


def _unknown_setting(message: str, option: str, hints: Hints, source: Source) -> str:
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    keys = keys[:1] + [key for key in keys[1:] if key != option] if keys != [option] or option in BASES else []
    if not keys:
        top = option.partition(".")[0]
        return hints.unknown_key(option) + source.location(option if top in hints.tops else top)
    if keys == ["trainer.callbacks"] and re.search(r"Given value: \{(?!.*class_path)", message):
        wanted = "a list of callbacks is needed, each a NAME or {class_path: NAME, init_args: {...}}"
        return f"trainer.callbacks: {wanted}, got {_short(_given_value(message))}{source.location(keys[0])}"
    return hints.unknown_setting(keys, option) + source.location(f"{'.'.join(keys)}.{option}")


def _wrong_value(message: str, source: Source) -> str:
    """The message for a value of a wrong type, that is no choice, or that names no class."""
    name, value = _setting_name(message), _given_value(message)
    value = source.typed(name, value)
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        if item := _item(message):
            return f"{name}: each item is written {item}, got {_short(found[1])}{source.location(name)}"
        classes = [
            cls.__name__ for base in (Callback, LightningModule, LightningDataModule, Logger) for cls in below(base)
        ]
        return f"{name}: no class {found[1]!r}{nearest(found[1], classes)}{source.location(name, found[1])}"
    if "Got value: NestedArg" in message:
        return f"{name}: no such setting, {name.rpartition('.')[0]} is one value"
    where = _of_set(message) + source.location(name)
    if wrong := unbalanced(value):
        return f"{name}: {wrong}, in {_short(value)}{where}"
    if found := re.search(r"Unable to load config '(.*?)'\n", message):
        return f"{name}: settings are needed, as in --{name}.SETTING VALUE, got {_short(found[1])}{where}"
    groups = re.findall(r"Literal\[([^\]]*)\]", message) if "Expected a" in message else []
    choices = list(dict.fromkeys(one.strip(" '\"") for group in groups for one in group.split(",")))
    if choices:
        named = ", or '{NAME: NUMBER, ..}' in quotes" if "dict[str, float]]" in message else ""
        return f"{name}: got {_short(value)}{nearest(value, choices)}; one of {', '.join(choices)}{named}{where}"
    found_kinds = dict.fromkeys(re.findall(r"Expected (?:an? )?<class '([\w.]+)'>", message))
    kinds = [one for one in found_kinds if one != "NoneType" and not (one == "int" and "float" in found_kinds)]
    if telling := _telling(message):
        return f"{telling}{where}" if name == "a setting" else f"{name}: {telling}{where}"
    if kinds:
        text = " or ".join(KINDS.get(one, one.rpartition(".")[2]) for one in kinds)
        text += _as_list(message, value) if kinds == ["list"] else ""
        return f"{name}: {text} is needed, got {_short(value)}{where}"
    if "Not a valid subclass" in message or "dot import path" in message:
        return (
            f"{name}: a class is needed, a NAME or {{class_path: NAME, init_args: {{...}}}}, got {_short(value)}{where}"
        )
    if name == "a setting":  # a message of ours
        return " ".join(message.split())
    return f"{name}: {_short(value)} is no valid value of it{where}"


ITEMS = {"int": " of whole numbers", "float": " of numbers"}
EXAMPLES = {"int": "[256,128]", "float": "[0.1,0.2]"}


def _as_list(message: str, value: str) -> str:
    """What the items of a list are, and how a value that should be a list is written as one."""
    inner = message.rpartition('Parser key "')[2]
    item = re.search(r"list\[([\w.]+)", inner)
    if item and item[1] not in ("str", "int", "float"):
        return f", written [{_item(message) or '{...}'}, ...],"
    plain = "" if ":" in value or "{" in value else value
    plain = plain.strip("[]() ")
    if item and item[1] in ITEMS:  # without spaces, so that a shell passes it on as one word
        numbers = re.findall(r"\d+", plain) if re.fullmatch(r"\d+(?:[-x;/|\s]+\d+)+", plain) else plain.split(",")
        written = ",".join(part.strip() for part in numbers)
        if not re.fullmatch(r"-?[\d.]+(?:e-?\d+)?(?:,-?[\d.]+(?:e-?\d+)?)*", written):
            return f"{ITEMS[item[1]]}, such as {EXAMPLES[item[1]]},"
        return f"{ITEMS[item[1]]}, written [{written}],"
    parts = ", ".join(part.strip() for part in plain.split(","))
    return f", written [{parts or 'A, B'}],"


def _telling(message: str) -> str | None:
    """A sentence of ours, or of a type of jsonargparse, among a list of possible errors; None if there is none."""
    noise = (
        "Expected a",
        "Expected <class",
        "Not a valid subclass of",
        "Does not validate against",
        'Parser key "',
        "Problem with",
    )
    entries = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip().startswith("- ")]
    telling = [one for one in entries if not one.startswith(noise) and not re.match(r"a (class path|dict)", one)]
    return telling[0] if telling and not telling[0].endswith((":", "{", "[")) else None


CLOSING = {"[": "]", "{": "}"}


def unbalanced(value: str) -> str:
    """Which bracket of a list or dictionary has no partner; empty if all have one, or if the value is neither.

    >>> unbalanced("{crack: {images: a}")
    "'}' is missing: '{' at character 1 is not closed"
    >>> unbalanced("[{prompts: [a}]")
    "']' is missing before '}' at character 14: '[' at character 12 is not closed"
    >>> unbalanced("[1, 2]]"), unbalanced('["[", 1]'), unbalanced("a [1")
    ("']' at character 7 closes nothing", '', '')
    """
    if value[:1] not in CLOSING:
        return ""
    opened: list[tuple[str, int]] = []
    for match in re.finditer(r'"[^"]*"|(?<![\w])\'[^\']*\'|[\[\]{}]', value):
        mark, place = match[0], match.start() + 1
        if mark in CLOSING:
            opened.append((mark, place))
        elif mark in CLOSING.values():
            if not opened:
                return f"{mark!r} at character {place} closes nothing"
            before, start = opened.pop()
            if CLOSING[before] != mark:
                return (
                    f"{CLOSING[before]!r} is missing before {mark!r} at character {place}: {before!r} at character {start} is not "
                    "closed"
                )
    if not opened:
        return ""
    missing = "".join(CLOSING[mark] for mark, _ in reversed(opened))
    return f"{missing!r} is missing: {opened[-1][0]!r} at character {opened[-1][1]} is not closed"


def _short(value: str) -> str:
    return repr(value if len(value) <= SHOWN else f"{value[:SHOWN]}...")
