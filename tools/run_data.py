"""Creates the datamodule of a classifier from a configuration file, such as config.yaml of a run, without CLI or Trainer."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from datamodules import DataModule, PromptedSegmentationDataModule
from foundation.sizes import Size, plain_size


def configured_data(config: Path, root: str | None = None, image_size: Size | None = None) -> DataModule:
    """Create the datamodule that a configuration names; no data is read yet.

    Args:
        config: YAML file with ``data.class_path`` and ``data.init_args``, such as config.yaml of a run.
        root: Folder of the data, replaces the configured one.
        image_size: Size of the images in pixels, if the datamodule has this setting; None keeps the configured size.

    Raises:
        ValueError: The file names no datamodule, the datamodule serves masks, its settings are invalid, or ``root`` is given to a
            datamodule that reads no folder.
    """
    cls, settings = named_class(config)
    if issubclass(cls, PromptedSegmentationDataModule):
        raise ValueError(f"{config}: data.class_path: {cls.__name__} has masks; the data of a classifier is needed")
    known = inspect.signature(cls).parameters
    if root is not None:
        if "root" not in known:
            raise ValueError(f"--data.root: {cls.__name__} reads no folder")
        settings["root"] = root
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


def _create(cls: type[DataModule], settings: dict[str, Any], config: Path) -> DataModule:
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config}: data.init_args: {error}") from error
