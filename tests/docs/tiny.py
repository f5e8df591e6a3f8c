"""Replaces the placeholders of the documentation by tiny data and tiny runs, and shortens a command to one batch.

FOLDER --> images, UCI HAR or segmentation sets, as the system of the command reads
RUN_DIR, HAR_RUN_DIR, runs/NAME/DATE-TIME --> a finished run of that system, trained when first asked for
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cli import main
from datamodules.signals.har_generator import write_generated
from tests.datamodules.cifar_layout import write_cifar
from tests.datamodules.pictures import write_class, write_classes
from tests.datamodules.raw_recordings import write_recordings
from tests.datamodules.segmentation_sets import write_pair
from tests.docs.commands import Command
from tests.lightning_modules.random_photos import weights_file
from tools.cut_windows.__main__ import main as cut_windows
from tools.sweep_heads.__main__ import main as sweep_heads
from tools.write_shards.__main__ import main as write_shards

RUN = "runs/NAME/DATE-TIME"
BACKBONE = "test_vit-5.pt"
RUN_WORDS = ("RUN_DIR", "HAR_RUN_DIR", "SEGMENTER_RUN_DIR", "HEAD_RUN", "runs/RUN", "runs/head", "runs/photos", RUN)
PAGES = {
    "adapters.md": "image",
    "har_data.md": "har",
    "har_vit.md": "har",
    "segmentation.md": "segmentation",
    "prompted_segmentation.md": "segmentation",
    "cascade.md": "head",
    "configs/cascade_cached.yaml": "head",
}
"""Pages on which RUN_DIR is not a run of the ternary classifier."""
FOLDERS = {"har": "data", "segmentation": "segmentation"}
CPU = [
    "--trainer.accelerator",
    "cpu",
    "--trainer.devices",
    "1",
    "--trainer.num_nodes",
    "1",
    "--trainer.strategy",
    "auto",
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]

# flags that shorten a fit to one batch on any machine; --trainer.fast_dev_run writes nothing
ONE_BATCH = {"--trainer.fast_dev_run": "true", "--trainer.accelerator": "cpu"}
SHORT = {
    "digits": {
        **ONE_BATCH,
        **dict(zip(CPU[2::2], CPU[3::2], strict=True)),
        "--trainer.precision": "32-true",
        "--model.architecture": "resnet20",
        "--model.compile": "false",
        "--data.batch_size": "8",
    },
    "image": {
        **ONE_BATCH,
        "--trainer.precision": "32-true",
        "--model.architecture": "test_resnet",
        "--model.network_args": "null",
        "--model.pretrained": "false",
        "--data.image_size": "48",
        "--data.workers": "0",
        "--data.drop_last": "false",
        "--data.batch_size": "8",
    },
    "har": {
        **ONE_BATCH,
        "--model.architecture": "test_vit",
        "--model.pretrained": "false",
        "--model.compile": "false",
        "--data.image_size": "32",
        "--data.batch_size": "8",
    },
    "segmentation": {
        **ONE_BATCH,
        "--data.image_size": "48",
        "--data.canvas": "64",
        "--data.batch_size": "4",
        "--data.workers": "0",
        "--model.weights": "null",
    },
    "frozen": {
        **ONE_BATCH,
        "--model.backbone": "test_vit",
        "--model.pretrained": "false",
        "--model.weights": BACKBONE,
        "--model.network_args": "null",
        "--data.image_size": "32",
        "--data.workers": "0",
        "--data.batch_size": "8",
    },
    "cached": {**ONE_BATCH, "--data.batch_size": "8"},
}


TABLES = {"train.csv": "kaggle", "_classes.csv": "roboflow", "labels.csv": "labelled"}
"""Folder of each table of labels; see `_write_tables`."""


def system_of(command: Command) -> str:
    """Return the system that a command trains: digits, image, har, segmentation, or head (on a frozen backbone)."""
    configs = [Path(word).name for word in command.words if word.startswith("configs/") and "/with/" not in word]
    for start, system in (("har_", "har"), ("prompt_", "segmentation"), ("image_", "image"), ("cascade_", "head")):
        if any(name.startswith(start) for name in configs):
            return system
    return PAGES.get(command.place.partition(":")[0], "digits")


class Workplace:
    """A folder with configs/, tiny data under the names that the documentation uses, and tiny runs.

    Args:
        folder: An empty folder.
        data: Folder that :func:`write_data` has filled.
        run: Returns the folder of a finished tiny run of a system.
        root: The project.
    """

    def __init__(self, folder: Path, data: Path, run: Callable[[str], Path], root: Path) -> None:
        self.folder, self.run = folder, run
        for name in ("configs", "tests"):
            (folder / name).symlink_to(root / name)
        for source in data.iterdir():
            if source.name != "caches":
                (folder / source.name).symlink_to(source)
        self._cache = data / "caches" / "NAME"
        (folder / "HAR_DATA.yaml").write_text(_data_section(root / "configs" / "har_vit.yaml"))
        flowers = f"{_data_section(root / 'configs' / 'image_standard.yaml')}\nmodel:\n  class_path: ImageClassifier\n"
        (folder / "flowers.yaml").write_text(flowers.replace("root: data", "root: data/flowers"))

    def words(self, command: Command) -> list[str]:
        """Return the arguments of a command without placeholders; copies the runs that they name into the folder."""
        system = system_of(command)
        found: list[str] = []
        self._add_caches(command)
        if command.module == "tools.cut_windows" and len(command.arguments) > 1:
            (self.folder / command.arguments[1]).unlink(missing_ok=True)  # it writes this file
        table = next((word for before, word in pairwise(command.arguments) if before == "--data.labels"), None)
        labelled = TABLES.get(Path(table or "").name)
        for word in command.arguments:
            name = next((name for name in RUN_WORDS if word == name or word.startswith(f"{name}/")), None)
            if word == "FILE" or (word.startswith("mobilenetv2") and word.endswith(".safetensors") and "=" not in word):
                kind = "twin" if any("cifar_ternary" in word for word in command.words) else "image"
                self.copy_run(kind, f"runs/{kind}")
                found.append(f"runs/{kind}/weights.safetensors")
            elif labelled is not None and word.partition("/")[0] == "FOLDER":
                found.append(word.replace("FOLDER", labelled))
            elif word in ("runs/NAME/SMALL", "runs/NAME/LARGE", "runs/NAME/*", "runs/OTHER/*"):
                found += self._two_runs(word)
            elif name is not None and "--run_dir" not in command.arguments:
                self.copy_run(self._kind(command, name, system), name)
                found.append(word.replace("epoch=075.ckpt", "last.ckpt"))
            else:
                found.append(self._word(word, system))
        return found

    def _add_caches(self, command: Command) -> None:
        """Add the cache or the sweep that a command reads; an extraction writes its own cache."""
        (self.folder / "caches").mkdir(exist_ok=True)
        for word in command.arguments:
            if word.startswith("caches/") and command.arguments[0] != "predict" and not (self.folder / word).exists():
                (self.folder / word).symlink_to(self._cache)
            if word.startswith("sweeps/NAME/"):
                self.copy_run("sweep", "sweeps/NAME")

    def _word(self, word: str, system: str) -> str:
        return {
            "FOLDER": FOLDERS.get(system, "folder"),
            "EXPERIMENT": "configs/digits_ternary.yaml",
            "new.csv": "recordings/jog_4/sub_1.csv",
            "BACKBONE": "test_vit",
            "PHOTOS": "my_photos",
            "SOURCE": "recordings",
            "N": "2",
        }.get(word, word)

    def _kind(self, command: Command, name: str, system: str) -> str:
        if name in ("HAR_RUN_DIR", "SEGMENTER_RUN_DIR"):
            return "har" if name.startswith("HAR") else "segmentation"
        if name == "HEAD_RUN":
            return "head"
        if name in ("runs/RUN", "runs/head", "runs/photos") or any(
            word.endswith("image_finetune.yaml") for word in command.words
        ):
            return "image"
        if "--fp16" in command.words and system == "digits":
            return "trained_digits"
        return "twin" if any("cifar_ternary" in word for word in command.words) else system

    def _two_runs(self, word: str) -> list[str]:
        names = ("SMALL", "LARGE") if word.endswith("*") else (Path(word).name,)
        for name in names:
            self.copy_run("digits", str(Path(word).with_name(name)))
        return sorted(glob.glob(word, root_dir=self.folder)) if word.endswith("*") else [word]

    def copy_run(self, kind: str, name: str) -> None:
        """Copy the tiny run of a system to the path ``name`` in the folder, unless it is there."""

        def copy(source: str, target: str) -> None:
            # checkpoints are replaced, never modified, so a hard link is enough
            (os.link if source.endswith(".ckpt") else shutil.copy2)(source, target)

        if not (self.folder / name).exists():
            shutil.copytree(self.run(kind), self.folder / name, copy_function=copy)


def _data_section(config: Path) -> str:
    text = config.read_text(encoding="utf-8")
    return text[text.index("\ndata:") :]


def write_data(folder: Path) -> None:
    """Write small replacements for CIFAR-10, folders of images, a feature cache, UCI HAR, recordings and masks."""
    # with the official class names, the reader would verify the official checksums
    write_cifar(folder / "data" / "cifar-10-batches-py", names=[f"class {i}" for i in range(10)], size=32)
    write_cifar(folder / "my_images", names=["cat", "dog", "fox"], size=12, files=2)
    (folder / "my_photos").mkdir()
    Image.new("RGB", (40, 30), "teal").save(folder / "my_photos" / "boat.jpg")
    for name in ("folder", "photos", "data/flowers", "other_photos", "road"):
        write_classes(folder / name, {"cat": 20, "dog": 20})
    assert write_shards(["--data.root", str(folder / "folder"), "--output", str(folder / "shards")]) == 0
    files = [path.relative_to(folder / "road") for path in sorted((folder / "road").rglob("*.png"))]
    rows = [f"{file},road {number % 5}" for number, file in enumerate(files)]
    (folder / "road" / "groups.csv").write_text("\n".join(["file,road", *rows]) + "\n")
    for name, sets in (("segmentation", ("taping", "cracks", "walls")), ("other_masks", ("stairs",))):
        for one in sets:
            for number in range(12):
                write_pair(folder / name / one, f"{one[0]}{number:02}", shift=number)
    images = [path.name for path in sorted((folder / "segmentation").glob("*/images/*.png"))]
    (folder / "segmentation" / "groups.csv").write_text(
        "\n".join(["name,group", *(f"{name},{name}" for name in images)]) + "\n"
    )
    (folder / "segmentation" / "stairs").symlink_to(folder / "other_masks" / "stairs")
    write_generated(folder / "data", subjects=range(1, 7), test_subjects=(2,), windows=2)
    _write_recordings(folder)
    _write_tables(folder)
    _extract(folder, weights_file(folder))


def _write_tables(folder: Path) -> None:
    """Write images with labels in tables: Kaggle's, Roboflow's, and one with the paths of images in a folder."""
    for root in ("kaggle/train", "roboflow/train", "roboflow/valid", "labelled"):
        write_class(folder / root, 40)
    stems = [f"{number:03}" for number in range(40)]
    kaggle = [f"{stem},{'cat' if number % 2 else 'dog'}" for number, stem in enumerate(stems)]
    roboflow = [f"{stem}.png,{number % 2},{1 - number % 2}" for number, stem in enumerate(stems)]
    (folder / "kaggle" / "train.csv").write_text("\n".join(["id,label", *kaggle]) + "\n")
    for split in ("train", "valid"):
        (folder / "roboflow" / split / "_classes.csv").write_text("\n".join(["filename,cat,dog", *roboflow]) + "\n")
    paths = [line.replace(",", ".png,") for line in kaggle]
    (folder / "labelled" / "labels.csv").write_text("\n".join(["image,label", *paths]) + "\n")


def _extract(folder: Path, weights: str) -> None:
    """Write the cache as the documentation does, of a small backbone."""
    extract = str(Path(__file__).parents[2] / "configs" / "cascade_extract.yaml")
    model = ["--model.backbone", "test_vit", "--model.pretrained", "false", "--model.weights", weights]
    data = ["--data.root", str(folder / "folder"), "--data.image_size", "32", "--data.workers", "0"]
    cache = ["--cache", str(folder / "caches" / "NAME"), "--trainer.accelerator", "cpu"]
    assert main(["predict", "--config", extract, *model, *data, *cache]) == 0


def _write_recordings(folder: Path) -> None:
    write_recordings(folder / "recordings", seconds=12, people=4)
    cut = ["--rate", "50", "--window", "2.56", "--time_unit", "ms", "--path", "{label}_{}/sub_{subject}.csv"]
    assert cut_windows([str(folder / "recordings"), str(folder / "windows.npz"), *cut]) == 0
    like = ["--like", str(folder / "windows.npz")]
    assert cut_windows([str(folder / "recordings" / "jog_4" / "sub_1.csv"), str(folder / "new.npz"), *like]) == 0
    with np.load(folder / "windows.npz") as windows:  # other people, who move a little differently
        other = {
            **windows,
            "subject": np.char.add("1", windows["subject"]),
            "signal": windows["signal"] * np.float32(1.01),
        }
    np.savez(folder / "other.npz", **other)


def train(kind: str, data: Path, folder: Path, root: Path) -> None:
    """Train the tiny run of a system, other than the digits, in ``folder``."""
    configs = root / "configs"
    if kind == "sweep":
        grid = ["--lr", "1e-3", "3e-3", "--epochs", "1", "--batch_size", "8"]
        assert sweep_heads(["--cache", str(data / "caches" / "NAME"), *grid, "--output", str(folder)]) == 0
        return
    arguments = {
        "har": [
            *["--data", "SignalFileDataModule", "--data.file", f"{data}/windows.npz", "--data.batch_size", "8"],
            *["--model", "HARClassifier", "--model.architecture", "signal_resnet"],
        ],
        "segmentation": [
            *["--config", str(root / "tests/conf/segmentation_tiny.yaml"), "--data.generate", "20"],
        ],
        "image": [
            *["--config", f"{configs}/image_standard.yaml", "--data.root", f"{data}/folder"],
            *(word for pair in SHORT["image"].items() if pair[0] != "--trainer.fast_dev_run" for word in pair),
        ],
        "twin": [
            *["--config", f"{configs}/cifar_twin.yaml", "--config", f"{configs}/with/resnet20.yaml"],
            *["--data.root", f"{data}/data", "--data.batch_size", "32"],
        ],
        "trained_digits": [  # float16 rounds logits near 0 of the other tiny run by more than an export allows
            *["--config", str(root / "tests/conf/digits_ternary_tiny.yaml"), "--data.train_fraction", "1"],
            *["--data.mixup_prob", "0", "--model.dropout", "0", "--model.quantizer", "twn"],
        ],
        "head": [
            *["--config", f"{configs}/cascade_cached.yaml", "--data.cache", str(folder.with_name("cache"))],
            *["--data.batch_size", "8"],
        ],
    }[kind]
    if kind == "head":
        flags = [word for pair in SHORT["frozen"].items() if pair[0] != "--trainer.fast_dev_run" for word in pair]
        flags[flags.index(BACKBONE)] = f"{data}/{BACKBONE}"
        extract = ["--config", f"{configs}/cascade_extract.yaml", "--data.root", f"{data}/folder", *flags]
        assert main(["predict", *extract, "--cache", str(folder.with_name("cache"))]) == 0
    assert main(["fit", *arguments, *QUIET, "--run_dir", str(folder)]) == 0
    torch.set_num_threads(1)


def shortened(command: Command, arguments: list[str]) -> list[str]:
    """Append the flags that shorten a fit, or an extraction of features, to one batch; others are left as they are."""
    starts = arguments[0] == "fit" and not {"--resume", "--help", "--print_config"} & {*arguments}
    if not starts and "--cache" not in arguments and "--config" not in arguments:
        return arguments
    system = system_of(command)
    if system == "head":
        cached = any(word.endswith("cascade_cached.yaml") for word in arguments)
        added = dict(SHORT["cached" if cached else "frozen"])
        if "HAR_DATA.yaml" in arguments:
            added = {**SHORT["frozen"], "--data.root": "data", "--model.weights": BACKBONE}
            del added["--data.workers"]
    else:
        added = dict(SHORT[system])
    if any("progressive" in word for word in arguments):  # the stages have sizes
        added.pop("--data.image_size", None)
    if "signal_resnet" in arguments:  # the network that reads signals directly, without images
        added["--model.architecture"] = "signal_resnet"
    if any(word.endswith("lora.yaml") for word in arguments):  # adapters need weights
        added |= {"--model.architecture": "test_vit", "--model.weights": BACKBONE, "--data.image_size": "32"}
    if "configs/prompt_segmentation.yaml" in arguments:
        added["--model.weights"] = "random_tiny"
    if arguments[0] == "predict":
        del added["--trainer.fast_dev_run"]
    return [*arguments, *(word for pair in added.items() for word in pair)]
