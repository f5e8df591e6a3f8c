"""Tests every YAML file under configs/: runs one batch with the real command line and checks the header comment."""

import pickle
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cli import main
from cli.trainer.loggers import NEEDS
from datamodules.signals.har_generator import write_generated
from networks.timm_network import build_timm_network
from tests.datamodules.pictures import write_classes
from tools.check.__main__ import main as check
from tools.write_shards.__main__ import main as write_shards

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "defaults")
OVERLAYS = sorted([*(ROOT / "configs" / "with").glob("*.yaml"), *(ROOT / "configs" / "experiments").glob("*.yaml")])
TINY_BACKBONE = ["--model.backbone", "test_vit"]


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty random images in CIFAR-10's layout."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = random.integers(0, 256, (40, 3072), dtype=np.uint8)
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": rows, b"labels": [i % 10 for i in range(40)]}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({b"label_names": [f"class {i}".encode() for i in range(10)]}, file)
    return folder.parent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small images, enough for non-empty validation and test splits."""
    return write_classes(tmp_path_factory.mktemp("pictures"), {"cat": 20, "dog": 20})


def base_of(overlay: Path) -> Path:
    """The experiment named in the first line of an overlay, or digits_ternary.yaml if the line names none."""
    first = overlay.read_text().splitlines()[0]
    named = re.search(r"configs/(\w+\.yaml)", first)
    assert first.startswith("# On "), f"{overlay}: its first line must name its base"
    return ROOT / "configs" / (named[1] if named else "digits_ternary.yaml")


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of six people in UCI HAR's layout."""
    return write_generated(tmp_path_factory.mktemp("har"), subjects=range(1, 7), test_subjects=(2,), windows=2)


@pytest.fixture(scope="module")
def cache(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature cache of the images, extracted by a tiny random network."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    flags = ["--config", str(ROOT / "configs" / "cascade_extract.yaml"), "--cache", str(folder), *TINY_BACKBONE]
    flags += ["--data.root", str(pictures), "--data.workers", "0", "--data.image_size", "32"]
    assert main(["predict", *flags, "--model.pretrained", "false", "--trainer.accelerator", "cpu"]) == 0
    return folder


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in shards."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    assert write_shards(["--data.root", str(pictures), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ViT, which adapters need."""
    path = tmp_path_factory.mktemp("vit") / "vit.pt"
    torch.save(build_timm_network("test_vit", num_classes=0, image_size=32).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def data(cifar: Path, pictures: Path, signals: Path, cache: Path, shards: Path, vit: Path) -> dict[str, Path]:
    """Folder for each kind of data, and the weights of a ViT."""
    return {"cifar": cifar, "pictures": pictures, "signals": signals, "cache": cache, "shards": shards, "vit": vit}


def one_batch(configs: list[Path], data: dict[str, Path]) -> int:
    command = "predict" if any("FeatureWriter" in config.read_text() for config in configs) else "fit"
    return main([command, *tiny_flags(configs, data), "--trainer.fast_dev_run", "true"])


def tiny_flags(configs: list[Path], data: dict[str, Path]) -> list[str]:
    """Flags of a fit of these configurations on tiny data, without a download."""
    flags = [item for config in configs for item in ("--config", str(config))]
    texts = [config.read_text() for config in configs]
    if any("CachedFeaturesDataModule" in text for text in texts):
        flags += ["--data.cache", str(data["cache"])]
    if any("CIFAR10DataModule" in text for text in texts):
        flags += ["--data.root", str(data["cifar"])]
    if any("ShardedImagesDataModule" in text for text in texts):
        flags += ["--data.shards", str(data["shards"]), "--data.workers", "0", "--data.image_size", "32"]
        flags += ["--data.cache_folder", str(data["shards"].with_name("cache")), "--model.architecture", "test_resnet"]
    elif any("ImageFolderDataModule" in text for text in texts):  # no workers, no download, small images
        flags += ["--data.root", str(data["pictures"]), "--data.workers", "0"]
        if not any("network_args" in text for text in texts):  # network_args fit only their own network
            frozen = any("backbone:" in text for text in texts)
            flags += TINY_BACKBONE if frozen else ["--model.architecture", "test_resnet"]
        small = ["--data.image_size", "32"]
        flags += ["--data.drop_last", "false"] if any("ProgressiveResizing" in text for text in texts) else small
    if any("adapter: lora" in text for text in texts):
        flags += ["--model.architecture", "test_vit", "--model.weights", str(data["vit"])]
    if any("HARDataModule" in text for text in texts):
        flags += ["--data.root", str(data["signals"]), "--model.compile", "false"]
        if any("architecture: vit_" in text for text in texts):
            flags += ["--model.architecture", "test_vit", "--data.image_size", "32"]
    if any("PromptedSegmentationDataModule" in text for text in texts):
        flags += [
            "--data.root",
            str(data["pictures"].parent / "segmentation"),
            "--data.generate",
            "20",
            "--data.sets",
            "null",
            "--data.workers",
            "0",
        ]
        flags += ["--data.image_size", "48", "--data.canvas", "64"]
        if any("network: clipseg" in text for text in texts):
            flags += ["--model.weights", "random_tiny"]
    if any("pretrained: true" in text for text in texts):
        flags += ["--model.pretrained", "false"]
    return [*flags, "--data.batch_size", "8", "--trainer.accelerator", "cpu"]


def _slow_twin(path: Path) -> Any:
    """Test parameter; cifar_twin differs from configs/cifar_ternary.yaml in one setting only, so it is marked slow."""
    marks = [pytest.mark.slow] if path.stem == "cifar_twin" else []
    return pytest.param(path, marks=marks, id=path.stem)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", [_slow_twin(path) for path in EXPERIMENTS])
def test_experiment_runs(experiment: Path, data: dict[str, Path]) -> None:
    assert one_batch([experiment], data) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", [path for path in EXPERIMENTS if path.stem != "cascade_extract"], ids=lambda p: p.stem
)
def test_check_passes(experiment: Path, data: dict[str, Path]) -> None:
    """`tools.check` passes each experiment that trains, on tiny data and without the weights that would be downloaded."""
    assert check([*tiny_flags([experiment], data), "--trainer.enable_progress_bar", "false"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_runs_on_its_base(overlay: Path, data: dict[str, Path]) -> None:
    if (package := overlay.stem) in NEEDS.values() and find_spec(package) is None:
        pytest.skip(f"needs the extra `{package}`")
    assert one_batch([base_of(overlay), overlay], data) == 0


@pytest.mark.parametrize("path", [*EXPERIMENTS, *OVERLAYS], ids=lambda path: path.stem)
def test_header_has_the_command_and_what_was_measured(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(re.search("python main.py (fit|predict) --config", line) for line in header), "header: the command"
    if path in EXPERIMENTS:
        text = " ".join(header)
        assert re.search(r"\d+(\.\d+)? %", text) or "not yet run" in text.lower(), (
            "header: measured results or 'not yet run'"
        )


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_overlays_append_callbacks(path: Path) -> None:
    assert not re.search(r"^\s+callbacks:", path.read_text(), re.MULTILINE), (
        "'callbacks:' would replace the list; write 'callbacks+:'"
    )


def test_quick_combines_resnet20_and_progressive_cifar() -> None:
    """quick.yaml combines resnet20.yaml and progressive_cifar.yaml, which are separate files for comparisons."""
    quick, network, stages = (
        yaml.safe_load((ROOT / "configs" / "with" / f"{name}.yaml").read_text())
        for name in ("quick", "resnet20", "progressive_cifar")
    )
    assert quick.pop("trainer") == network.pop("trainer") | stages.pop("trainer") | {"max_epochs": 30}
    network["model"]["init_args"]["lr"] = 0.4
    assert (quick, stages) == (network, {})


def test_help_lists_the_settings_of_the_named_classes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(ROOT / "configs" / "digits_ternary.yaml"), "--help"]) == 0
    text = capsys.readouterr().out
    for setting in (
        "--model.quantizer",
        "--model.lr",
        "--data.crop_padding",
        "--checkpoint.monitor",
        "--resume",
        "--trainer.max_epochs",
    ):
        assert setting in text
    assert "one_cycle" in text
    assert text.rstrip().splitlines()[-3].strip().startswith("python main.py fit --config")
    assert main(["--help"]) == 0
    assert "fit       --resume RUN_DIR | CHECKPOINT" in capsys.readouterr().out
