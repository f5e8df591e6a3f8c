"""Messages about settings that do not exist: the closest name, the section or the class that has a setting of this name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cli.named_classes import BASES, accepted_settings, below
from cli.run_flags import FLAGS, RunFlags
from cli.synonyms import INSTEAD, of_another_name
from foundation.project import MAIN
from foundation.suggestions import nearest

LINKED = ("num_classes", "in_channels", "image_size", "mean", "std", "class_names", "feature_width", "signals")
"""Settings of the model that are taken from the data."""
SECTIONS = (*BASES, "checkpoint", "non_finite", "progress", "curves")
LAST_CALLBACK = (
    "flags set the last callback of trainer.callbacks, as --trainer.callbacks.SETTING, or that of a class, as "
    "--trainer.callbacks.EMA.decay"
)
LISTED = 4  # classes that a message names
CONFIG = (".yaml", ".yml")


class Hints:
    """What to say of a setting that does not exist.

    Args:
        classes: The classes of the command (:func:`cli.named_classes.named_classes`).
        options: Flags of the parser without the dashes.
        flags: The command line.
    """

    def __init__(self, classes: dict[str, type], options: Iterable[str], flags: RunFlags) -> None:
        self.classes, self.flags = classes, flags
        self.options = [*options, *(flag.removeprefix("--") for flag in FLAGS)]
        self.settings = {key: accepted_settings(cls) for key, cls in classes.items()}
        self.tops = {option.partition(".")[0] for option in self.options}

    def unknown_flag(self, argument: str) -> str:
        """The message for a word of the command line that the parser does not know."""
        name = argument.removeprefix("--").partition("=")[0]
        if not argument.startswith("-"):
            if argument.endswith(CONFIG):
                return f"{argument}: a configuration is given with its flag, --config {argument}"
            stray = f"{argument}: belongs to no flag"
            return f"{stray}{self._place_for(argument) or ', each takes one value; a list is written [A, B]'}"
        flag = argument.partition("=")[0]
        typed = next((one for one in self.flags.rest if one.partition("=")[0].endswith(f"callbacks.{name}")), None)
        if typed is not None:
            return f"{typed.partition('=')[0]}: {LAST_CALLBACK}"
        top, _, inner = name.partition(".")
        last = inner or name
        if inner and top not in self.tops:
            found = self._elsewhere(last) or nearest(top, self.tops) or self._other_name(last)
            return f"{flag}: no such setting as {top!r}{found}"
        hint = self._other_name(last) or self._elsewhere(last) or self._close(top, inner)
        return f"{flag}: no such flag{hint or self._elsewhere(last, close=True) or self._all()}"

    def _place_for(self, argument: str) -> str:
        """The flag that an existing path is meant for, if the chosen classes have one."""
        path, of_data = Path(argument), self.settings.get("data", frozenset())
        if (path / "config.yaml").is_file() or path.suffix == ".ckpt":
            return f"; a run is given as {'--resume' if self.flags.command == 'fit' else '--run'} {argument}"
        names = ("images",) if self.flags.command == "predict" else ("root", "cache") if path.is_dir() else ("file",)
        there = next((name for name in names if name in of_data), None) if path.exists() else None
        return f"; is --data.{there} {argument} meant?" if there else ""

    def unknown_key(self, key: str) -> str:
        """The message for a key outside of the settings of a class, such as a section that does not exist."""
        top, _, rest = key.partition(".")
        if top not in self.tops:
            found = (
                ("" if rest else self._other_name(top))
                or nearest(top, self.tops)
                or ("" if rest else self._elsewhere(top))
            )
            return f"{top}: no such setting{found or self._sections()}"
        last = rest.partition(".")[0]
        found = self._other_name(last) or self._elsewhere(last) or self._close(top, last)
        return f"{top}.{last}: no such setting{found or self._all()}"

    def unknown_setting(self, keys: list[str], option: str) -> str:
        """The message for a setting that a class does not have.

        Args:
            keys: Section, and within it the setting that has the item, such as ``data``, ``sets``.
            option: Name of the setting, in this section or item.
        """
        name, cls = option.partition(".")[0], self.classes.get(keys[0])
        place = ".".join([*keys, name])
        if keys[0] in BASES and len(keys) == 1 and cls is not None:
            if (instead := INSTEAD.get((cls.__name__, name))) is not None:
                return f"{place}: {cls.__name__} has no such setting; {instead}"
            found = self._elsewhere(name)
            if found and "checkpoint." not in found and "non_finite." not in found:
                others = self._other_classes(keys[0], name)
                of = f" of {cls.__name__}; {others} (--{keys[0]} CLASS)" if others else ""
                return f"{place}: no such setting{of}{found}"
            if another := self._other_name(name):
                return f"{place}: {cls.__name__} has no such setting{another}"
            if name in LINKED and keys[0] == "data":
                return f"{place}: no such setting of {cls.__name__}; it is computed from the data"
            if others := self._other_classes(keys[0], name):
                return f"{place}: {cls.__name__} has no such setting; {others} (--{keys[0]} CLASS)"
            close = nearest(name, self.settings[keys[0]] - set(LINKED if keys[0] == "model" else ()))
            if close or found:
                return f"{place}: no such setting{close or found}"
            if others := self._close_in_other_classes(keys[0], name):
                return f"{place}: {cls.__name__} has no such setting; {others} (--{keys[0]} CLASS)"
            return f"{place}: no such setting{self._of(cls)}"
        if cls is not None:
            known = _settings_of_items(cls, keys[1:])
        else:
            known = frozenset(one for key, names in self.settings.items() if key.startswith(keys[0]) for one in names)
        owners = [
            key.rpartition(".")[2]
            for key, names in self.settings.items()
            if key.startswith(f"{keys[0]}.") and name in names
        ]
        if owners and keys[0] == "trainer.callbacks":
            return f"{place}: is a setting of {owners[0]}, not of the last callback; give --{place_of(owners[0], name)}"
        return f"{place}: no such setting{nearest(name, known) or '; there are ' + ', '.join(sorted(known))}"

    def _other_name(self, name: str) -> str:
        """A hint at the setting or the overlay that is meant by a name of other programs."""
        of_none = [one for one in self.options if "." not in one]
        known = {key: names - set(LINKED if key == "model" else ()) for key, names in self.settings.items()}
        return of_another_name(name, {**known, "": of_none}, [cls.__name__ for cls in self.classes.values()])

    def _close(self, top: str, inner: str) -> str:
        """A hint at the closest setting of the same section, or at the closest flag of no section."""
        if not inner:
            return nearest(top, [one for one in self.options if "." not in one])
        of_section = [one.partition(".")[2] for one in self.options if one.startswith(f"{top}.")]
        ending = sorted(one for one in of_section if one.endswith(f"_{inner}"))
        found = nearest(ending[0], ending) if len(ending) == 1 else nearest(inner, of_section)
        return found.replace("'", f"'{top}.", 1) if found else ""

    def _elsewhere(self, name: str, close: bool = False) -> str:
        """A hint at the sections whose classes have a setting of this name, or also of a name close to it."""
        places = [
            f"{key}.{one}"
            for key, names in self.settings.items()
            if not key.startswith("trainer.callbacks")
            for one in names
            if one == name and not (key == "model" and one in LINKED)
        ]
        if places:
            return f", did you mean {' or '.join(repr(one) for one in sorted(places))}?"
        of_callback = [
            key.rpartition(".")[2]
            for key, names in self.settings.items()
            if key.startswith("trainer.callbacks.") and name in names
        ]
        if of_callback:
            return f"; the callback {of_callback[0]} in trainer.callbacks has it: --{place_of(of_callback[0], name)}"
        if not close:
            return ""
        known = {one: key for key in ("trainer", "data", "model") for one in self.settings.get(key, ())}
        if ending := sorted(one for one in known if one.endswith(f"_{name}")):  # epochs: max_epochs or min_epochs
            return f", did you mean {' or '.join(repr(f'{known[one]}.{one}') for one in ending[:2])}?"
        hint = nearest(name, known)
        found = hint.partition("'")[2].partition("'")[0]
        return f", did you mean '{known[found]}.{found}'?" if hint else ""

    def _other_classes(self, section: str, name: str) -> str:
        classes = [cls for cls in below(BASES[section]) if cls is not BASES[section] and _is_ours(cls)]
        there = list(dict.fromkeys(cls.__name__ for cls in classes if name in accepted_settings(cls) - set(LINKED)))
        if not there or len(there) > 2 * LISTED:
            return ""
        more = (
            f" and {len(there) - LISTED} more have" if len(there) > LISTED else " has" if len(there) == 1 else " have"
        )
        return f"{', '.join(there[:LISTED])}{more} it"

    def _close_in_other_classes(self, section: str, name: str) -> str:
        """The setting of a close name that one other class has."""
        classes = [cls for cls in below(BASES[section]) if cls is not BASES[section] and _is_ours(cls)]
        known = {one for cls in classes for one in accepted_settings(cls)} - set(LINKED)
        close = nearest(name, sorted(known)).partition("'")[2].partition("'")[0]
        others = self._other_classes(section, close) if close else ""
        return f"is {close!r} meant? {others}" if others.endswith(" has it") else ""

    def _of(self, cls: type) -> str:
        return f" of {cls.__name__}{self._all()}"

    def _all(self) -> str:
        configs = " ".join(f"--config {path}" for path in self.flags.configs) or "--config FILE"
        return f"; for all settings: {MAIN} {self.flags.command} {configs} --help"

    def _sections(self) -> str:
        sections = [one for one in sorted(self.tops) if f"--{one}" not in FLAGS and one not in ("c", "h", "-c", "-h")]
        return f"; there are {', '.join(one for one in sections if not one.startswith('-'))}"


def place_of(callback: str, name: str) -> str:
    """The flag, without dashes, that sets one callback of the list by its class (cli/trainer/callback_flags.py)."""
    return f"trainer.callbacks.{callback}.{name}"


def _is_ours(cls: type) -> bool:
    """Whether a class is one of the project's that a configuration names."""
    package = cls.__module__.partition(".")[0]
    return package in ("datamodules", "lightning_modules") and cls.__name__ in import_module(package).__all__


def with_section(message: str, classes: Mapping[str, type]) -> str:
    """Put the section before the name of a setting at the beginning of a message, if only one class has it.

    Args:
        message: An error message of a model or a datamodule.
        classes: The classes of the command by section.
    """
    found = re.match(r"(\w+)(?= is |: | and | must be )", message)
    known = {
        key: accepted_settings(classes[key]) - set(LINKED if key == "model" else ()) for key in BASES if key in classes
    }
    sections = [key for key, names in known.items() if found and found[1] in names]
    return f"{sections[0]}.{message}" if len(sections) == 1 else message


def _settings_of_items(cls: type, path: list[str]) -> frozenset[str]:
    """Setting names of the items of a setting, such as ``sets`` of the datamodule; those of the class itself without a path."""
    if not path:
        return accepted_settings(cls)
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        hints |= get_type_hints(vars(base)["__init__"]) if "__init__" in vars(base) and base is not object else {}
    found: set[str] = set()
    waiting = [hints.get(path[0])]
    while waiting:
        hint = waiting.pop()
        waiting += get_args(hint)
        if inspect.isclass(hint) and hint.__module__.partition(".")[0] in (
            "datamodules",
            "callbacks",
            "lightning_modules",
        ):
            found |= set(inspect.signature(hint).parameters)
    return frozenset(found) or accepted_settings(cls)
