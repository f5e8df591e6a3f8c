"""Creates the datamodule of a classifier from a configuration file, such as config.yaml of a run, without CLI or Trainer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from datamodules import DataModule, PromptedSegmentationDataModule
from datamodules.checkpoint_data import settings_of
from foundation.sizes import Size, plain_size
from foundation.suggestions import nearest


def configured_data(config: Path, given: Mapping[str, Any] | None = None, image_size: Size | None = None) -> DataModule:
    """Create the datamodule that a configuration names; no data is read yet.

    Args:
        config: YAML file with ``data.class_path`` and ``data.init_args``, such as config.yaml of a run.
        given: Settings that replace configured ones, such as `root`; a text is read as YAML, as on the command line.
        image_size: Size of the images in pixels, if the datamodule has this setting; None keeps the configured size.

    Raises:
        ValueError: The file names no datamodule, the datamodule serves masks, its settings are invalid, or one is given that it
            does not have.
    """
    cls, settings = named_class(config)
    if issubclass(cls, PromptedSegmentationDataModule):
        raise ValueError(f"{config}: data.class_path: {cls.__name__} has masks; the data of a classifier is needed")
    known = settings_of(cls)
    for name, value in (given or {}).items():
        if name not in known:
            wrong = f"{cls.__name__} {'reads no folder' if name == 'root' else f'has no such setting{nearest(name, known)}'}"
            raise ValueError(f"--data.{name}: {wrong}")
        settings[name] = _value(name, value)
    if image_size is not None and "image_size" in known:
        settings["image_size"] = plain_size(image_size)
    return _create(cls, settings, config)


def named_class(config: Path) -> tuple[type[DataModule], dict[str, Any]]:
    """The class of the datamodule that a configuration names, and its settings.

    Raises:
        ValueError: The file names no datamodule.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        package, _, name = str(content["class_path"]).rpartition(".")
        cls, settings = getattr(import_module(package or "datamodules"), name), dict(content.get("init_args") or {})
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{config}: names no datamodule that can be created; check data.class_path") from error
    if not (isinstance(cls, type) and issubclass(cls, DataModule)):
        raise ValueError(
            f"{config}: data.class_path: {package}.{name} is no DataModule; name a class of the package datamodules"
        )
    return cls, settings


def _value(name: str, text: Any) -> Any:
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError as error:
        raise ValueError(
            f"--data.{name} {text}: cannot be read; a text with special characters needs quotes"
        ) from error


def _create(cls: type[DataModule], settings: dict[str, Any], config: Path) -> DataModule:
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config}: data.init_args: {error}") from error
