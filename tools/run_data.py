"""The data of a classifier's configuration, as its run had it: no command line, no trainer."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from datamodules import DataModule, PromptedSegmentationDataModule


def configured_data(config: Path, root: str | None = None, image_size: int | None = None) -> DataModule:
    """Make the datamodule that a configuration names; nothing is read yet.

    Args:
        config: YAML with ``data.class_path`` and ``data.init_args``, such as a run's config.yaml.
        root: Folder of the data, in place of the configured one.
        image_size: Height and width of the images in pixels, where the datamodule has a setting for it; None leaves it.

    Raises:
        ValueError: The file names no datamodule, or one of masks, or its settings do not fit, or a root is given to one that reads
            no folder.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
        package, _, name = str(content["class_path"]).rpartition(".")
        cls, settings = getattr(import_module(package or "datamodules"), name), dict(content.get("init_args") or {})
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{config}: names no datamodule that can be made: data.class_path") from error
    if not (isinstance(cls, type) and issubclass(cls, DataModule)):
        raise ValueError(f"{config}: data.class_path: {package}.{name} is no DataModule of datamodules")
    if issubclass(cls, PromptedSegmentationDataModule):
        raise ValueError(f"{config}: data.class_path: {name} has masks; the data of a classifier is needed")
    known = inspect.signature(cls).parameters
    if root is not None:
        if "root" not in known:
            raise ValueError(f"--root: {name} reads no folder")
        settings["root"] = root
    if image_size is not None and "image_size" in known:
        settings["image_size"] = image_size
    return _made(cls, settings, config)


def _made(cls: type[DataModule], settings: dict[str, Any], config: Path) -> DataModule:
    try:
        return cls(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config}: data.init_args: {error}") from error
