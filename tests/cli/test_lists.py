"""A list given anew replaces the earlier one item by item, in overlays and as a flag; dictionaries and ``+`` work as before."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from lightning.pytorch import Callback

import callbacks
import datamodules
import lightning_modules
from cli.named_classes import below
from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
CIFAR = ["--config", str(CONFIGS / "cifar_ternary.yaml")]
PROMPTS = ["--config", str(CONFIGS / "prompt_segmentation.yaml")]
STAGES = ["--config", str(CONFIGS / "image_progressive.yaml")]


class OnlyParsed(VisionCLI):
    """Parses a command line and creates nothing."""

    def instantiate_classes(self) -> None:
        """Does nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing."""


def parsed(*arguments: str) -> Any:
    """The configuration of ``fit`` with these arguments."""
    cli = OnlyParsed(split_flags(["fit", *arguments]), ["main.py"])
    cli._run()
    return cli.config_dict()


def given_as(way: str, key: str, value: Any, tmp_path: Path) -> list[str]:
    """Arguments that give a setting in an overlay, or as a flag."""
    if way == "flag":
        return [f"--{key}", yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()]
    top, name = key.split(".")
    inner = {"init_args": {name: value}} if top == "data" else {name: value}
    (tmp_path / "overlay.yaml").write_text(yaml.safe_dump({top: inner}))
    return ["--config", str(tmp_path / "overlay.yaml")]


def listed(names: list[str], **settings: Any) -> list[dict[str, Any]]:
    """A list of callbacks, the first one with settings."""
    return [
        {"class_path": name, **({"init_args": settings} if settings and n == 0 else {})} for n, name in enumerate(names)
    ]


WAYS = pytest.mark.parametrize("way", ["overlay", "flag"])


@WAYS
def test_callbacks(way: str, tmp_path: Path) -> None:
    own = listed(["EMA", "TernaryShares"], decay=0.9)
    ema, shares = parsed(*CIFAR, *given_as(way, "trainer.callbacks", own, tmp_path))["trainer"]["callbacks"]
    assert (ema["init_args"]["decay"], ema["init_args"]["batch_statistics"]) == (0.9, 0)  # the experiment has 5120
    assert shares["class_path"] == "callbacks.TernaryShares"


def test_callbacks_of_other_classes_take_over_no_setting_of_the_same_name(tmp_path: Path) -> None:
    base = given_as("overlay", "trainer.callbacks", listed(["ConfusionMatrix"], every_s=77.0), tmp_path)
    own = given_as("flag", "trainer.callbacks", listed(["WorstMistakes"], count=3), tmp_path)
    (mistakes,) = parsed(*CIFAR, *base, *own)["trainer"]["callbacks"]
    assert mistakes == {
        "class_path": "callbacks.WorstMistakes",
        "init_args": {"count": 3, "heat_maps": 8, "every_s": 10.0},
    }


@WAYS
@pytest.mark.every(2)
def test_sets_of_ones_own(way: str, tmp_path: Path) -> None:
    own = [{"folder": name, "prompts": [f"segment {name}"]} for name in ("a", "b")]
    sets = parsed(*PROMPTS, *given_as(way, "data.sets", own, tmp_path))["data"]["init_args"]["sets"]
    assert [(one["folder"], one["prompts"]) for one in sets] == [("a", ["segment a"]), ("b", ["segment b"])]
    assert [(one["groups"], one["file_column"]) for one in sets] == [
        (None, None)
    ] * 2  # the experiment has groups.csv and name


@WAYS
@pytest.mark.every(2)
def test_a_list_within_a_list(way: str, tmp_path: Path) -> None:
    own = listed(["EMA", "ProgressiveResizing", "ConfusionMatrix", "WorstMistakes"])
    own[1]["init_args"] = {"stages": [{"size": 32, "epochs": 1}, {"size": 64, "epochs": 2}, {"size": 96, "epochs": 3}]}
    found = parsed(*STAGES, *given_as(way, "trainer.callbacks", own, tmp_path))["trainer"]["callbacks"]
    assert found[0]["init_args"]["decay"] == inspect.signature(callbacks.EMA).parameters["decay"].default
    assert [stage["strength"] for stage in found[1]["init_args"]["stages"]] == [1.0, 1.0, 1.0]  # were 0.5, 0.75, 1
    assert found[1]["init_args"]["schedule"] == "per_stage"  # was whole


def test_an_item_without_its_class_is_refused(tmp_path: Path) -> None:
    own = [{"init_args": {"decay": 0.9}}, {"class_path": "TernaryShares"}]
    with pytest.raises(UsageError, match=r"^trainer.callbacks: an item with init_args needs a class_path"):
        parsed(*CIFAR, *given_as("overlay", "trainer.callbacks", own, tmp_path))


def test_loggers(tmp_path: Path) -> None:
    loggers = [
        [{"class_path": "CSVLogger", "init_args": one}] for one in ({"save_dir": "x", "version": 7}, {"save_dir": "y"})
    ]
    base = given_as("overlay", "trainer.logger", loggers[0], tmp_path)
    (one,) = parsed(*CIFAR, *base, *given_as("flag", "trainer.logger", loggers[1], tmp_path))["trainer"]["logger"]
    assert (one["init_args"]["save_dir"], one["init_args"]["version"]) == ("y", None)


def test_every_list_of_classes_is_tested_here() -> None:
    bases = (lightning_modules.BaseModule, datamodules.DataModule, Callback)
    packages = ("callbacks", "datamodules", "lightning_modules")
    ours = [cls for base in bases for cls in below(base) if cls.__module__.partition(".")[0] in packages]
    found = {
        f"{cls.__name__}.{name}"
        for cls in ours
        for name, hint in get_type_hints(vars(cls).get("__init__", object.__init__)).items()
        if name != "return" and any(is_list_of_classes(one) for one in (hint, *get_args(hint)))
    }
    assert found == {"PromptedSegmentationDataModule.sets", "ProgressiveResizing.stages"}


def is_list_of_classes(hint: Any) -> bool:
    """Whether a type is a list whose items have settings of their own."""
    items = get_args(hint) if get_origin(hint) in (list, tuple, Sequence) else ()
    return any((inspect.isclass(item) and item.__module__ != "builtins") or get_origin(item) is dict for item in items)


@pytest.mark.slow
def test_items_are_added_with_plus_and_flags_set_the_last(tmp_path: Path) -> None:
    stop = ["--config", str(CONFIGS / "with" / "early_stopping.yaml")]
    for extra in (stop, ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]):
        ema, _, last = parsed(*CIFAR, *extra, "--trainer.callbacks.patience", "4")["trainer"]["callbacks"]
        assert (ema["init_args"]["decay"], ema["init_args"]["batch_statistics"]) == (0.99, 5120)
        assert (last["class_path"].rpartition(".")[2], last["init_args"]["patience"]) == ("EarlyStopping", 4)
    three = listed(["EarlyStopping", "TernaryShares", "EMA"], monitor="val/loss")
    found = parsed(*CIFAR, *stop, *given_as("overlay", "trainer.callbacks", three, tmp_path))["trainer"]["callbacks"]
    assert [one["class_path"].rpartition(".")[2] for one in found] == ["EarlyStopping", "TernaryShares", "EMA"]
    assert found[2]["init_args"]["batch_statistics"] == 0


def test_dictionaries_and_classes_work_as_before(tmp_path: Path) -> None:
    (tmp_path / "overlay.yaml").write_text("model: {class_path: TernaryClassifier, init_args: {lr: 0.5}}\n")
    model = parsed(*CIFAR, "--config", str(tmp_path / "overlay.yaml"))["model"]["init_args"]
    assert (model["lr"], model["weight_decay"]) == (0.5, 5.0e-4)  # a class of the same name keeps the other settings


@pytest.mark.slow
def test_a_stored_configuration_loads_unchanged(tmp_path: Path) -> None:
    content = parsed(*STAGES)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert parsed("--config", str(tmp_path / "config.yaml")) == content
