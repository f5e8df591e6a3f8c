"""Tiny data of every system for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamodules.segmentation.generator import write_generated as write_masks
from datamodules.signals.har_generator import write_generated
from tests.datamodules.pictures import write_classes
from tests.tools.sweep_cache import write_cache

CONF = Path(__file__).resolve().parent.parent / "conf"


@pytest.fixture(scope="session")
def system_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Settings of the data of each tiny configuration that needs some, by the configuration's name without ``_tiny``."""
    folder = tmp_path_factory.mktemp("data")
    write_masks(folder / "generated" / "segmentation_generated_14", 14)  # once: a refused command would remove its own
    return {
        "har": {"root": str(write_generated(folder / "har", subjects=range(1, 6), test_subjects=(2,), windows=2))},
        "image_folder": {"root": str(write_classes(folder / "images", {"cat": 11, "dog": 9, "owl": 7}))},
        "segmentation": {"root": str(folder / "generated")},
        "cascade_cached": {"cache": str(write_cache(folder / "cache", ("a", "b", "c"), 27, 12))},
    }


@pytest.fixture
def of_system(system_data: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Arguments of ``fit`` with the tiny configuration and data of each system, by the configuration's name without ``_tiny``."""
    names = [path.stem.removesuffix("_tiny") for path in CONF.glob("*_tiny.yaml")]
    return {
        name: [
            "--config",
            str(CONF / f"{name}_tiny.yaml"),
            *(word for key, value in system_data.get(name, {}).items() for word in (f"--data.{key}", value)),
        ]
        for name in names
    }
