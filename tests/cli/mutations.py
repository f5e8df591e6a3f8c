"""Mistakes in command lines and configurations, drawn from a seed over the tiny configurations of all five systems.

Each mistake is one of those that people make: a key misspelt or in another section, a value of another type, a list or a dictionary
in place of one value, a missing file, an abbreviated flag, an empty value, broken YAML. A `Mistake` also has words, the setting
or the file; the message must contain one of them.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.cli.drafts import CHOICES, RANGES, SYSTEMS, Draft, Mistake

Words = tuple[str, ...]


def misspelt_key(draft: Draft) -> Words:
    """A setting misspelt in the configuration."""
    _, settings = draft.part()
    name = draft.rng.choice(list(settings))
    wrong = draft.misspelt(name)
    settings[wrong] = settings.pop(name)
    return (wrong,)


def misspelt_flag(draft: Draft) -> Words:
    """A setting misspelt as a flag."""
    section, settings = draft.part()
    name = draft.rng.choice([one for one in settings if type(settings[one]) in (int, float, str)] or ["max_epochs"])
    wrong = draft.misspelt(name)
    draft.flags += [f"--{section}.{wrong}", str(settings.get(name, 1))]
    return (wrong,)


def misspelt_section(draft: Draft) -> Words:
    """A section misspelt in the configuration or in a flag."""
    section = draft.rng.choice(("model", "data", "trainer", "checkpoint"))
    wrong = draft.misspelt(section)
    if draft.rng.random() < 0.5:
        draft.content[wrong] = {"lr": 1} if section in ("trainer", "checkpoint") else {"init_args": {"lr": 1}}
    else:
        draft.flags += [f"--{wrong}.lr", "1"]
    return (wrong,)


def bare_flag(draft: Draft) -> Words:
    """A flag without its section."""
    name = draft.rng.choice(("lr", "batch_size", "epochs", "weight_decay", "devices", "optimizer", "gpu", "workers"))
    draft.flags += [f"--{name}", "1"]
    return (f"--{name}",)


def abbreviated(draft: Draft) -> Words:
    """An abbreviated flag."""
    name = draft.rng.choice(
        ("trainer.max_epochs", "checkpoint.monitor", "seed_everything", "model.schedule", "data.batch_size")
    )
    wrong = name[: -draft.rng.randint(1, 3)]
    draft.flags += [f"--{wrong}", "1"]
    return (wrong,)


def wrong_type(draft: Draft) -> Words:
    """Text, true or a date where a number is needed."""
    section, name = draft.scalar()
    draft.give(section, name, draft.rng.choice(("many", "1O", "3 epochs", "1,5", "0.1.2", "nan!")))
    return (f"{section}.{name}",)


def list_for_scalar(draft: Draft) -> Words:
    """A list where one value is needed."""
    section, name = draft.scalar()
    if name == "val_subjects":  # it takes a list of people, too
        section, name = "model", "lr"
    draft.give(section, name, draft.rng.choice(([1], [], [1, 2], [[1]])))
    return (f"{section}.{name}",)


def dict_for_scalar(draft: Draft) -> Words:
    """A dictionary where one value is needed."""
    section, name = draft.scalar()
    draft.give(section, name, draft.rng.choice(({"a": 1}, {}, {"value": 3, "unit": "epochs"})))
    return (f"{section}.{name}",)


def scalar_for_list(draft: Draft) -> Words:
    """One value or a dictionary where a list is needed."""
    section, name, values = draft.rng.choice(
        (
            ("model", "step_milestones", ("100,150", 0.5, "half", {"a": 0.5})),
            (
                "trainer",
                "callbacks",
                (3, "EMMA", {"a": 1}, [3], [{"init_args": {"decay": 0.9}}], ["EMA", 1], {"EMA": {"decay": 0.9}}),
            ),
        )
    )
    value = draft.rng.choice(values)
    draft.give(section, name, value)
    return (f"{section}.{name}",)


def moved(draft: Draft) -> Words:
    """A setting in another section."""
    name, section = draft.rng.choice(
        (("lr", "data"), ("lr", "trainer"), ("batch_size", "model"), ("batch_size", "trainer"), ("max_epochs", "model"))
    )
    name, section = draft.rng.choice(
        ((name, section), ("monitor", "trainer"), ("max_epochs", "data"), ("val_fraction", "model"))
    )
    draft.give(section, name, 1)
    return (f"{section}.{name}", name)


def missing_path(draft: Draft) -> Words:
    """A file or folder that does not exist."""
    way = draft.rng.randrange(3)
    if way == 0:
        draft.flags += ["--config", "nowhere/overlay.yaml"]
    elif way == 1 and "root" in draft.content["data"]["init_args"]:
        draft.give("data", "root", "nowhere")
        draft.content["data"]["init_args"].pop("generate", None)
        return ("nowhere", "sets")
    else:
        draft.flags += ["--resume", "nowhere"]
    return ("nowhere",)


def empty(draft: Draft) -> Words:
    """A setting without its value."""
    section, name = draft.scalar()
    way = draft.rng.randrange(4)
    if way == 0:
        draft.flags += [f"--{section}.{name}"]
    elif way == 1:
        draft.flags += [f"--{section}.{name}="]
    elif way == 2:
        draft.flags += [f"--{section}.{name}", ""]
    else:
        draft.flags += ["--config"]
        return ("--config",)
    return (f"{section}.{name}",)


def null(draft: Draft) -> Words:
    """A setting that cannot be null, left empty in the configuration."""
    section, name = draft.rng.choice(
        (("model", "lr"), ("data", "batch_size"), ("model", "optimizer"), ("data", "val_fraction"))
    )
    if name == "val_fraction" and name not in draft.settings("data"):
        name = "batch_size"
    draft.give(section, name, None)
    return (f"{section}.{name}",)


def nested(draft: Draft) -> Words:
    """A key below a setting of one value, or an unknown key of a section or a callback."""
    way = draft.rng.randrange(5)
    if way == 0:
        section, name = draft.scalar()
        draft.flags += [f"--{section}.{name}.more", "1"]
        return (f"{section}.{name}",)
    if way == 1:
        draft.content["model"]["init_argss"] = draft.content["model"].pop("init_args")
        return ("init_argss",)
    if way == 2:
        draft.content["trainer"]["callbacks"] = [{"class_path": "EMA", "init_args": {"decy": 0.9}}]
        return ("decy",)
    if way == 3:
        draft.content["trainer"]["callbacks"] = [{"class_pth": "EMA"}]
        return ("class_pth", "trainer.callbacks")
    draft.content["data"]["lr"] = 0.1
    return ("data.lr", "lr")


def bad_yaml(draft: Draft) -> Words:
    """A configuration that is no YAML, or has no settings."""
    text = yaml.safe_dump(draft.content)
    lines = text.splitlines()
    at = draft.rng.randrange(1, len(lines) - 1)
    draft.text = draft.rng.choice(
        (
            "\n".join([*lines[:at], "   x: [1,", *lines[at:]]),
            "\n".join([*lines[:at], "\tlr: 1", *lines[at:]]),
            "",
            "- 1\n- 2\n",
            "just text",
            "model: {lr: 0.1",
            text + "\x00",
            "a: b: c\n",
            "1: 2\n",
            text.replace("model:", "model:\nmodel"),
        )
    )
    return ("case.yaml",)


def wrong_class(draft: Draft) -> Words:
    """A class that does not exist or is of another kind."""
    section = draft.rng.choice(("model", "data"))
    name = draft.misspelt(draft.content[section]["class_path"])
    wrong = draft.rng.choice((name, f"nowhere.{name}", "torch.nn.Linear", 3))
    if draft.rng.random() < 0.5:
        draft.content[section]["class_path"] = wrong
    else:
        draft.flags += [f"--{section}", str(wrong)]
    return (f"{section}:", f"{section}.")


def wrong_section(draft: Draft) -> Words:
    """A section that is a list or a value."""
    section = draft.rng.choice(("model", "data", "trainer", "checkpoint"))
    draft.content[section] = draft.rng.choice(([1, 2], 3, [], "text", True))
    return (section,)


def wrong_choice(draft: Draft) -> Words:
    """A value that is no choice of its setting."""
    model = {"schedule", "matmul_precision", "compile_mode"}
    accepted = [one for one in CHOICES if one in model or one in draft.settings("data")]
    name = draft.rng.choice(accepted)
    draft.give("model" if name in model else "data", name, CHOICES[name])
    return (f".{name}: got",)


def out_of_range(draft: Draft) -> Words:
    """A value that no run can have."""
    name = draft.rng.choice(list(RANGES))
    draft.give("data" if "batch" in name else "model", name, RANGES[name])
    return (name,)


def stray_word(draft: Draft) -> Words:
    """A word that belongs to no flag."""
    word = draft.rng.choice(("more", "0.1", "configs/with/quick.yaml", "-x", "--", "trainer.max_epochs=3", "—lr"))
    draft.flags += [word]
    return (word,)


def wrong_place(draft: Draft) -> Words:
    """A file in place of the folder of the data, a folder within it, or a name that is nearly its own."""
    settings = draft.settings("data")
    name = next((one for one in ("cache", "root") if one in settings), None)
    if name is None:
        draft.flags += ["--run_dir", "CONFIG"]
        return ("run folder",)
    right = Path(settings[name])
    ways = [str(right / "1234"), f"{right}x", "CONFIG"] if "generate" not in settings else ["CONFIG"]
    draft.flags += [f"--data.{name}", draft.rng.choice(ways)]
    return (f"--data.{name}", "no UCI HAR")


def commas(draft: Draft) -> Words:
    """A list with commas and without brackets."""
    lists = [("model", "step_milestones", "0.3,0.6"), ("model", "hidden", "8,4"), ("data", "mean", "0.5,0.5,0.5")]
    has_hidden, has_mean = "hidden" in draft.settings("model"), "image_size" in draft.settings("data")
    section, name, value = draft.rng.choice([lists[0], *lists[1:2] * has_hidden, *lists[2:] * has_mean])
    draft.give(section, name, value)
    return (f"{section}.{name}",)


def overlay_first(draft: Draft) -> Words:
    """An overlay before its experiment."""
    overlay = draft.rng.choice(("twin", "early_stopping", "har_quick", "bf16", "calibration"))
    draft.first = ["--config", f"configs/with/{overlay}.yaml"]
    return (f"configs/with/{overlay}.yaml",)


def swapped(draft: Draft) -> Words:
    """Model and data, or their settings, in each other's place."""
    if draft.rng.random() < 0.5:
        draft.content["model"], draft.content["data"] = draft.content["data"], draft.content["model"]
        return ("model:", "data:")
    model, data = draft.content["model"], draft.content["data"]
    model["init_args"], data["init_args"] = data["init_args"], model["init_args"]
    return ("model.", "data.")


KINDS: tuple[Callable[[Draft], Words], ...] = (
    misspelt_key, misspelt_flag, misspelt_section, bare_flag, abbreviated, wrong_type, list_for_scalar, dict_for_scalar,
    scalar_for_list, moved, missing_path, empty, null, nested, bad_yaml, wrong_class, wrong_section, wrong_choice, out_of_range,
    stray_word, wrong_place, commas, overlay_first, swapped,
)  # fmt: skip


def mistakes(count: int, seed: int, data: dict[str, dict[str, str]]) -> list[Mistake]:
    """Draw mistakes, of all kinds and systems in turn.

    Args:
        count: Number of mistakes.
        seed: Seed of all choices.
        data: Settings of the data of each system.
    """
    found = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        system, kind = SYSTEMS[number % len(SYSTEMS)], KINDS[number % len(KINDS)]
        system = SYSTEMS[(number + number // len(KINDS)) % len(SYSTEMS)]
        draft = Draft(system, rng, copy.deepcopy(data.get(system, {})))
        words = kind(draft)
        if rng.random() < 0.3:
            draft.shuffled()
        text = yaml.safe_dump(draft.content, sort_keys=False) if draft.text is None else draft.text
        config = ["--config", "CONFIG"]
        arguments = (
            [*draft.flags, *config] if _may_come_first(draft.flags) and rng.random() < 0.3 else [*config, *draft.flags]
        )
        found.append(Mistake(kind.__name__, [*draft.first, *arguments], text, words))
    return found


def _may_come_first(flags: list[str]) -> bool:
    return len(flags) == 2 and flags[0].startswith("--")
