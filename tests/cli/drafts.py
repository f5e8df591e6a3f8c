"""A right command line of each system on its tiny configuration, which tests/cli/mutations.py spoils."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CONF = Path(__file__).resolve().parent.parent / "conf"
SYSTEMS = ("digits_ternary", "har", "image_folder", "segmentation", "cascade_cached")
CHOICES = {
    "schedule": "cosinus",
    "matmul_precision": "hgh",
    "compile_mode": "fast",
    "policy": "randaug",
    "shrink": "resizee",
}
RANGES = {"lr": -1, "weight_decay": -0.5, "momentum": 1.5, "batch_size": 0, "eval_batch_size": 0, "warmup_epochs": -1}


class Mistake(NamedTuple):
    """A wrong command line.

    Args:
        kind: Name of the kind of mistake.
        arguments: Command line after ``fit``; ``CONFIG`` is replaced by the path of the configuration.
        config: Text of the configuration.
        words: One of them must be in the message.
    """

    kind: str
    arguments: list[str]
    config: str
    words: tuple[str, ...]


class Draft:
    """A right command line of a system, which a mistake changes.

    Args:
        system: One of `SYSTEMS`.
        rng: Source of all choices.
        data: Setting of the data and its value, such as ``root`` and a folder.
    """

    def __init__(self, system: str, rng: random.Random, data: dict[str, str]) -> None:
        self.rng, self.flags, self.first = rng, list[str](), list[str]()
        self.content: dict[str, Any] = yaml.safe_load((CONF / f"{system}_tiny.yaml").read_text(encoding="utf-8"))
        self.content["data"]["init_args"] |= data
        self.text: str | None = None

    def part(self) -> tuple[str, dict[str, Any]]:
        """A section and its settings."""
        section = self.rng.choice(("model", "data", "trainer", "checkpoint"))
        return section, self.settings(section)

    def settings(self, section: str) -> dict[str, Any]:
        """The settings of a section."""
        found: dict[str, Any] = self.content[section]
        return found["init_args"] if section in ("model", "data") else found

    def scalar(self) -> tuple[str, str]:
        """Section and name of a setting of one number."""
        found = [
            (section, name)
            for section in ("model", "data", "trainer")
            for name, value in self.settings(section).items()
            if type(value) in (int, float)
        ]
        return self.rng.choice(found)

    def give(self, section: str, name: str, value: Any) -> None:
        """Give a setting in the configuration or as a flag."""
        if self.rng.random() < 0.5:
            self.settings(section)[name] = value
        else:
            dumped = yaml.safe_dump(value, default_flow_style=True).splitlines()[0]
            self.flags += [f"--{section}.{name}", dumped]

    def misspelt(self, name: str) -> str:
        """A name with one mistake: two letters swapped, one left out, one twice, or one too many."""
        at = self.rng.randrange(1, len(name) - 1) if len(name) > 2 else 0
        ways = (
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            name + "x",
            name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
        )
        return self.rng.choice([way for way in ways if way != name] or [name + "x"])

    def shuffled(self) -> None:
        """Change the order of the sections and settings."""

        def mixed(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            keys = list(value)
            self.rng.shuffle(keys)
            return {key: mixed(value[key]) for key in keys}

        self.content = mixed(self.content)
