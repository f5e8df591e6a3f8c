"""The backbones of a probe: checks their names and weights before anything is read, and writes the extraction of each.

--backbones NAME ...        networks of timm, with or without a tag of weights: resnet50.a1_in1k
--weights NAME=FILE         its weights from a file; NAME=random takes random ones, which the table says
--overlay NAME=FILE.yaml    settings of this backbone only, such as its padding and normalisation
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import yaml
from timm.models import get_pretrained_cfg

from foundation.places import close_to
from foundation.project import find_config
from foundation.suggestions import nearest
from networks.frozen_backbone import full_name

RANDOM = "random"
OWN = ("image_size", "mean", "std")
"""Settings of the data that each backbone has its own values of, from timm."""
OF_TRAINER = ("accelerator", "precision")
"""Settings of the Trainer that are taken from a configuration; the others are of a training."""


@dataclass(frozen=True)
class Backbone:
    """A backbone with its weights.

    Args:
        name: As given.
        weights: ``pretrained``, ``random``, or the path of a file.
        overlay: Configuration with settings of this backbone only.
    """

    name: str
    weights: str
    overlay: Path | None = None

    @property
    def flags(self) -> list[str]:
        """Flags of ``main.py predict`` that choose the backbone and its weights."""
        given = ["--model.backbone", self.name, "--model.pretrained", str(self.weights == "pretrained").lower()]
        return given if self.weights in ("pretrained", RANDOM) else [*given, "--model.weights", self.weights]


def backbones_of(names: Sequence[str], weights: Sequence[str], overlays: Sequence[str]) -> list[Backbone]:
    """Check names, weights and overlays.

    Args:
        names: Names of networks.
        weights: ``NAME=FILE`` or ``NAME=random``.
        overlays: ``NAME=FILE.yaml``.

    Raises:
        ValueError: A name is given twice or is unknown, a file does not exist, or a backbone would have random weights unasked.
    """
    files, own = (_by_name(flag, given, names) for flag, given in (("--weights", weights), ("--overlay", overlays)))
    found: dict[str, str] = {}
    made = []
    for name in names:
        overlay = find_config(own[name]) if name in own else None
        place = _weights_of(name, files.get(name), overlay)
        if place not in (None, RANDOM) and not Path(str(place)).exists():
            raise ValueError(f"--weights {name}={place}: no such file{close_to(Path(str(place)))}")
        config = _timm_config(name, wants_weights=place is None)
        key = name if place is not None else f"{config.architecture}.{config.tag}"
        if key in found:
            same = f"{found[key]} and {name} are the same" if found[key] != name else f"{name} is given twice"
            raise ValueError(f"--backbones: {same}; give each backbone once")
        found[key] = name
        made.append(Backbone(name, place or "pretrained", overlay))
    return made


def _by_name(flag: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not value:
            raise ValueError(f"{flag} {one}: must be NAME=FILE, with a name of --backbones")
        if name not in names:
            raise ValueError(f"{flag} {one}: {name} is not among --backbones{nearest(name, names)}")
        if name in pairs:
            raise ValueError(f"{flag}: {name} is given twice")
        pairs[name] = value
    return pairs


def _weights_of(name: str, given: str | None, overlay: Path | None) -> str | None:
    """The file of weights of ``--weights`` or else of the overlay, or ``random``; ``None``: timm's weights.

    Raises:
        ValueError: The overlay cannot be read, is of another backbone, turns timm's weights off and none are given, or names
            weights though random ones are wanted.
    """
    if overlay is None:
        return given
    settings = _section(_content("--overlay", overlay), "model")
    other = settings.get("backbone", name)
    if full_name(str(other)) != full_name(name):
        raise ValueError(f"--overlay {name}={overlay}: its model.backbone is {other}; give the overlay of {name}")
    if given == RANDOM and settings.get("weights") is not None:
        raise ValueError(
            f"--weights {name}={RANDOM}: {overlay} names the weights {settings['weights']}; give one of them"
        )
    if given is not None:
        return given
    if settings.get("weights") is None and settings.get("pretrained") is False:
        raise ValueError(f"--overlay {name}={overlay}: has pretrained: false; give --weights {name}=FILE too")
    return str(settings["weights"]) if settings.get("weights") is not None else None


def _timm_config(name: str, wants_weights: bool) -> Any:
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"--backbones: timm has no network {name}{nearest(architecture, timm.list_models())}")
    try:
        config = get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        raise ValueError(
            f"--backbones: timm has no weights {name}; there are {', '.join(tags) or 'none'} of {architecture}"
        ) from None
    if wants_weights and not (config is not None and config.has_weights):
        raise ValueError(
            f"--backbones: timm has no weights of {name}; give --weights {name}=FILE (or {name}=random for random ones)"
        )
    return config


def _content(flag: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{flag} {path}: no such file{close_to(path)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{flag} {path}: cannot be read as YAML ({' '.join(str(error).split())[:100]})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{flag} {path}: is no configuration; name a file such as configs/cascade_extract.yaml")
    return content


def _section(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of ``model`` or ``data``, written with or without init_args; ``class_path`` is left out."""
    section = content.get(name)
    inner = section.get("init_args", section) if isinstance(section, dict) else None
    return {key: value for key, value in inner.items() if key != "class_path"} if isinstance(inner, dict) else {}


@dataclass
class Data:
    """The data of all backbones: what configurations and flags say of it.

    Args:
        class_path: Class of the datamodule.
        settings: Its settings in the configurations.
        trainer: Settings of the Trainer in the configurations: accelerator and precision.
        seed: ``seed_everything``.
        flags: Further flags of ``main.py predict``.
    """

    class_path: str
    settings: dict[str, Any]
    trainer: dict[str, Any]
    seed: int
    flags: list[str]

    @classmethod
    def of(cls, configs: Sequence[str], flags: Sequence[str]) -> Data:
        """Read the configurations; later ones override earlier ones, and flags override all of them.

        Raises:
            ValueError: A file cannot be read, or none names the class of the data.
        """
        made = cls("", {}, {}, 0, list(flags))
        for config in configs:
            content = _content("--config", find_config(config))
            named = content.get("data")
            given = named.get("class_path") if isinstance(named, dict) else named if isinstance(named, str) else None
            if given is not None and given != made.class_path:
                made.class_path, made.settings = str(given), {}
            made.settings |= _section(content, "data")
            trainer = content.get("trainer") or {}
            made.trainer |= {name: trainer[name] for name in OF_TRAINER if name in trainer}
            made.seed = content.get("seed_everything", made.seed)
        for name in ("--data", "--data.class_path"):
            if (flag := made.flag(name)) is not None and flag != made.class_path:
                made.class_path, made.settings = flag, {}
        if not made.class_path:
            raise ValueError(f"--config {' '.join(configs)}: names no data; add data.class_path, or give --data CLASS")
        return made

    def flag(self, name: str) -> str | None:
        """Value of a flag, written as ``--x value`` or ``--x=value``; None if it is not given."""
        for number, word in enumerate(self.flags):
            if word == name and number + 1 < len(self.flags):
                return self.flags[number + 1]
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        return None

    def value(self, name: str) -> Any:
        """A setting of the data; None if it is not given."""
        flag = self.flag(f"--data.{name}")
        return self.settings.get(name) if flag is None else yaml.safe_load(flag)

    def own_settings(self, backbone: Backbone) -> dict[str, Any]:
        """Image size, mean and std that timm states for a backbone, as far as the data has such settings.

        Mean and std stay those of the data if its images have another number of channels than 3.
        """
        package, _, name = self.class_path.rpartition(".")
        found = getattr(import_module(package or "datamodules"), name, None)
        known = inspect.signature(found).parameters if isinstance(found, type) else {}
        config = _timm_config(backbone.name, wants_weights=False)
        if config is None:
            return {}
        _, high, wide = config.input_size
        own = {"image_size": high if high == wide else [high, wide], "mean": [*config.mean], "std": [*config.std]}
        left_out = () if self.value("channels") in (None, 3) else ("mean", "std")
        return {key: own[key] for key in OWN if key in known and key not in left_out}

    def extraction(self, backbone: Backbone, splits: Sequence[str]) -> dict[str, Any]:
        """Configuration of the extraction of a backbone's features, as YAML values.

        Args:
            backbone: The backbone.
            splits: The splits to extract.
        """
        writer = {"class_path": "FeatureWriter", "init_args": {"dtype": "float16", "views": 1, "splits": [*splits]}}
        return {
            "seed_everything": self.seed,
            "trainer": {**self.trainer, "callbacks": [writer]},
            "model": {"class_path": "FeatureExtractor", "init_args": {"backbone": backbone.name}},
            "data": {"class_path": self.class_path, "init_args": self.settings | self.own_settings(backbone)},
        }
