"""Settings of the five systems that change a run, tiny runs of them, and the verdict on two settings that are given together.

Two settings together must train with a finite loss and both keep their effect, or be refused before the first step in one line that
names one of them, or a line must say which of them is without effect. A run lasts a few steps. Each setting has an effect by which
its loss is noticed: `weights`, the raw weights differ from those without it; `average`, the checkpoint has an average; `none`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
import yaml
from safetensors.torch import save_file

from callbacks import read_metrics
from cli import main
from datamodules.signals.har_generator import write_generated
from tests.datamodules.pictures import write_classes
from tests.tools.sweep_cache import write_cache

OWN = "{own}"
"""In flags: the folder of the configuration."""


class Setting(NamedTuple):
    """Flags that give a setting a value other than its default, and how its effect shows."""

    flags: tuple[str, ...]
    effect: Literal["weights", "average", "none"] = "weights"

    @property
    def names(self) -> set[str]:
        """Words by which a line may name the setting: the last part of its flags, and the classes of callbacks."""
        words = [flag.partition("=") for flag in self.flags if flag.startswith("--")]
        return {name.removesuffix("+").rpartition(".")[2] for name, _, _ in words} | {
            value for name, _, value in words if name.endswith("+")
        }


class Outcome(NamedTuple):
    """What a run of a few steps left."""

    code: int
    printed: str
    error: str
    weights: str
    averages: bool
    finite: bool
    folder: bool


def callback(name: str, **settings: object) -> tuple[str, ...]:
    """Flags that append a callback."""
    return (f"--trainer.callbacks+={name}", *(f"--trainer.callbacks.{key}={value}" for key, value in settings.items()))


COMMON: dict[str, Setting] = {
    "optimizer lion": Setting(("--model.optimizer", "lion")),
    "optimizer muon": Setting(("--model.optimizer", "muon")),
    "optimizer adafactor": Setting(("--model.optimizer", "adafactor")),
    "momentum": Setting(("--model.momentum", "0.5")),
    "weight_decay": Setting(("--model.weight_decay", "0.3")),
    "one_cycle": Setting(("--model.schedule", "one_cycle")),
    "step": Setting(("--model.schedule", "step", "--model.step_gamma", "0.5")),
    "plateau": Setting(
        ("--model.schedule", "plateau", "--model.plateau_patience", "0", "--model.plateau_monitor", "train/loss")
    ),
    "plateau on validation": Setting(("--model.schedule", "plateau", "--model.plateau_factor", "0.5")),
    "warmup_epochs": Setting(("--model.warmup_epochs", "0.5")),
    "lr_end": Setting(("--model.lr_end", "0.5")),
    "accumulation": Setting(("--trainer.accumulate_grad_batches", "2")),
    "accumulation by epoch": Setting(
        callback("lightning.pytorch.callbacks.GradientAccumulationScheduler", scheduling="{0: 2, 1: 1}")
    ),
    "clipping": Setting(("--trainer.gradient_clip_val", "0.01")),
    "clipping by value": Setting(
        ("--trainer.gradient_clip_val", "0.001", "--trainer.gradient_clip_algorithm", "value")
    ),
    "bf16-mixed": Setting(("--trainer.precision", "bf16-mixed")),
    "bf16-true": Setting(("--trainer.precision", "bf16-true")),
    "overfit_batches": Setting(("--trainer.overfit_batches", "2")),
    "limit_train_batches": Setting(("--trainer.limit_train_batches", "2")),
    "no validation": Setting(("--trainer.limit_val_batches", "0"), "none"),
    "max_steps": Setting(("--trainer.max_steps", "3")),
    "drop_last": Setting(("--data.drop_last", "false")),
    "seed": Setting(("--seed_everything", "5")),
    "no fast loop": Setting(("--fast_loop", "false"), "none"),
    "EMA": Setting(callback("EMA", decay=0.5), "average"),
    "EMA with raw statistics": Setting(callback("EMA", decay=0.5, buffers="copy", validate_raw="false"), "average"),
    "EMA with batch statistics": Setting(callback("EMA", decay=0.5, batch_statistics=8), "average"),
    "early stopping": Setting(callback("EarlyStopping", monitor="val/loss", stopping_threshold=1000.0)),
    "finder": Setting(callback("LearningRateFinder", steps=20)),
}
IMAGES = {
    "class_weights": Setting(("--model.class_weights", "balanced")),
    "label_smoothing": Setting(("--model.label_smoothing", "0.2")),
    "mixup": Setting(("--data.mixup_prob", "0.5")),
    "cutmix": Setting(("--data.cutmix_prob", "1.0", "--data.cutmix_alpha", "0.5")),
    "randaugment": Setting(("--data.policy", "randaugment")),
    "calibration": Setting(callback("Calibration"), "none"),
}
CLASSES = {name: IMAGES[name] for name in ("class_weights", "label_smoothing", "calibration")}
SETTINGS: dict[str, dict[str, Setting]] = {
    "ternary": {
        **COMMON,
        **IMAGES,
        "rule ttq": Setting(("--model.quantizer", "ttq")),
        "twin": Setting(("--model.quantizer", "none")),
        "scale": Setting(("--model.scale", "layer")),
        "all ternary": Setting(("--model.full_precision", "[]")),
        "activations": Setting(("--model.activation_bits", "8")),
        "dropout": Setting(("--model.dropout", "0.5")),
        "crop": Setting(("--data.crop_padding", "1")),
        "stages": Setting(callback("ProgressiveResizing", stages="[{size: 6, epochs: 1}, {size: 8, epochs: 1}]")),
        "other batches": Setting(
            callback("ProgressiveResizing", stages="[{size: 8, epochs: 1, batch_size: 9}, {size: 8, epochs: 1}]")
        ),
    },
    "image": {
        **COMMON,
        **IMAGES,
        "dropout": Setting(("--model.dropout", "0.5")),
        "drop_path": Setting(("--model.drop_path", "0.5")),
        "freeze": Setting(("--model.freeze", "backbone")),
        "frozen statistics": Setting(("--model.freeze", "norm_statistics")),
        "backbone_lr": Setting(("--model.backbone_lr", "0.1")),
        "layer_decay": Setting(("--model.layer_decay", "0.5")),
        "erasing": Setting(("--data.erasing_prob", "1.0")),
        "stages": Setting(callback("ProgressiveResizing", stages="[{size: 24, epochs: 1}, {size: 32, epochs: 1}]")),
        "labels in a table": Setting(("--data.labels", "one.csv"), "none"),
        "several labels": Setting(("--data.labels", "several.csv", "--model.task", "multilabel")),
        "focal": Setting(("--model.focal_gamma", "2.0")),
        "balanced sampling": Setting(("--data.sampling", "balanced")),
        "metrics": Setting(("--model.metrics", "[f1, auroc]"), "none"),
        "height x width": Setting(("--data.image_size", "[24, 40]")),
        "letterbox": Setting(("--data.framing", "letterbox")),
        "adapters": Setting(
            ("--model.architecture", "test_vit", "--model.adapter", "lora", "--model.weights", f"{OWN}/vit.safetensors")
        ),
    },
    "cached": {
        **COMMON,
        **CLASSES,
        "linear": Setting(("--model.hidden", "[]")),
        "dropout": Setting(("--model.dropout", "0.6")),
        "head_seed": Setting(("--model.head_seed", "7")),
    },
    "har": {
        **COMMON,
        **CLASSES,
        "signals": Setting(("--model.architecture", "signal_resnet", "--data.mode", "signals")),
        "flatten": Setting(("--data.mode", "flatten")),
        "fusion": Setting(("--data.mode", "flatten", "--model.fusion", "features")),
        "image_loss": Setting(("--model.image_loss", "images")),
        "hidden": Setting(("--model.hidden", "[8]")),
        "dropout": Setting(("--model.dropout", "0.6")),
        "freeze": Setting(("--model.freeze", "backbone")),
        "unfreeze": Setting(("--model.freeze", "backbone", "--model.unfreeze_epoch", "1")),
        "backbone_lr": Setting(("--model.backbone_lr", "0.1")),
        "rotation": Setting(("--data.rotation", "20.0")),
        "range": Setting(("--data.encoder_range", "null")),
        "stages": Setting(callback("ProgressiveResizing", stages="[{size: 24, epochs: 1}, {size: 32, epochs: 1}]")),
    },
    "segmentation": {
        **{name: setting for name, setting in COMMON.items() if name not in ("optimizer muon",)},
        "focal": Setting(("--model.pixel", "focal")),
        "no pixel loss": Setting(("--model.pixel", "none")),
        "pos_weight": Setting(("--model.pos_weight", "4.0")),
        "no region loss": Setting(("--model.region", "none")),
        "tversky": Setting(("--model.region", "tversky")),
        "over": Setting(("--model.over", "batch")),
        "encoder_lr": Setting(("--model.encoder_lr", "0.1")),
        "negatives": Setting(("--data.negatives", "1.0")),
        "stages": Setting(callback("ProgressiveResizing", stages="[{size: 24, epochs: 1}, {size: 32, epochs: 1}]")),
    },
}
BASES: dict[str, dict[str, Any]] = {
    "ternary": {
        "model": ("TernaryClassifier", {"architecture": "resnet20", "lr": 0.05}),
        "data": ("DigitsDataModule", {"batch_size": 16, "train_fraction": 0.04}),
    },
    "image": {
        "model": ("ImageClassifier", {"architecture": "test_resnet", "lr": 0.05}),
        "data": ("ImageFolderDataModule", {"image_size": 32, "batch_size": 6, "workers": 0}),
    },
    "cached": {
        "model": ("CascadeHead", {"hidden": [8], "lr": 0.01, "class_weights": "none", "warmup_epochs": 0}),
        "data": ("CachedFeaturesDataModule", {"batch_size": 6}),
    },
    "har": {
        "model": ("HARClassifier", {"architecture": "test_resnet", "hidden": [], "lr": 0.01, "warmup_epochs": 0}),
        "data": ("HARDataModule", {"mode": "channels", "encoder": "line_plot", "image_size": 32, "batch_size": 18}),
    },
    "segmentation": {
        "model": ("PromptedSegmenter", {"encoder": "test_resnet", "width": 8, "optimizer": "adamw", "lr": 0.01}),
        "data": ("PromptedSegmentationDataModule", {"generate": 12, "image_size": 32, "batch_size": 2, "workers": 0}),
    },
}


def data_of(system: str, folder: Path) -> dict[str, object]:
    """Write the data of a system's tiny runs; returns its settings."""
    if system == "image":
        root = write_classes(folder / "data", {"cat": 11, "dog": 9, "owl": 7})
        _write_tables(root)
        save_file(timm.create_model("test_vit", pretrained=False).state_dict(), folder / "vit.safetensors")
        return {"root": str(root)}
    if system == "cached":
        return {"cache": str(write_cache(folder / "cache", ("a", "b", "c"), 27, 12))}
    if system == "har":
        return {"root": str(write_generated(folder / "har", subjects=range(1, 6), test_subjects=(2,), windows=2))}
    return {"root": str(folder / "generated")} if system == "segmentation" else {}


def _write_tables(root: Path) -> None:
    """Write one.csv, the classes of the folders, and several.csv: the class and `bright`, which every third image has."""
    files = [path.relative_to(root) for path in sorted(root.glob("*/*"))]
    one = ["file,label", *(f"{file},{file.parent.name}" for file in files)]
    names = ("cat", "dog", "owl")
    rows = [[file, *(int(file.parent.name == name) for name in names), int(n % 3 == 0)] for n, file in enumerate(files)]
    several = [",".join(("file", *names, "bright")), *(",".join(map(str, row)) for row in rows)]
    for name, lines in (("one.csv", one), ("several.csv", several)):
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_base(system: str, folder: Path, **data: object) -> Path:
    """Write the configuration of a tiny run: two epochs without callbacks."""
    parts = {part: {"class_path": name, "init_args": dict(values)} for part, (name, values) in BASES[system].items()}
    parts["data"]["init_args"] |= data
    trainer = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False}
    monitor = {"monitor": "val/iou"} if system == "segmentation" else {}
    path = folder / f"{system}.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": trainer, "checkpoint": monitor, **parts}))
    return path


def run(config: Path, folder: Path, settings: list[Setting]) -> Outcome:
    """Train with settings; the folder is new."""
    printed, error = io.StringIO(), io.StringIO()
    flags = [flag.replace(OWN, str(config.parent)) for setting in settings for flag in setting.flags]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(error):
        code = main(["fit", "--config", str(config), *flags, "--run_dir", str(folder)])
    last, digest, averages, finite = folder / "checkpoints" / "last.ckpt", "", False, False
    if code == 0:
        checkpoint = torch.load(last, weights_only=True)
        tensors = [tensor for name, tensor in checkpoint["state_dict"].items() if name.startswith("network.")]
        content = b"".join(
            tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors
        )
        digest, averages = hashlib.sha256(content).hexdigest(), "ema" in checkpoint
        losses = [row[name] for row in read_metrics(folder / "metrics.csv") for name in row if name.endswith("/loss")]
        finite = bool(losses) and all(math.isfinite(loss) for loss in losses)
    return Outcome(code, printed.getvalue(), error.getvalue(), digest, averages, finite, folder.exists())


def verdict(pair: dict[str, Setting], plain: Outcome, alone: dict[str, Outcome], both: Outcome) -> str | None:
    """What is wrong with a run of two settings; None if nothing is.

    Args:
        pair: The two settings by name.
        plain: The run of none. A setting that changes nothing by itself cannot be lost.
        alone: The run of each of them.
        both: The run of both.
    """
    named = {name: any(word in both.printed + both.error for word in setting.names) for name, setting in pair.items()}
    if both.code == 2:
        lines = both.error.strip().splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return f"refused in {len(lines)} lines: {both.error[:300]}"
        if both.folder:
            return f"refused, but the run folder stays: {lines[0]}"
        return None if any(named.values()) else f"refused without naming a setting: {lines[0]}"
    if both.code != 0:
        return f"exit code {both.code}: {both.error.strip()[-300:]}"
    if not both.finite:
        return "a loss is not finite"
    for (name, setting), other in zip(pair.items(), reversed(pair), strict=True):
        acts = setting.effect == "weights" and alone[name].code == 0 and alone[name].weights != plain.weights
        lost = acts and both.weights == alone[other].weights
        lost = lost or (setting.effect == "average" and not both.averages)
        said = [line for line in both.printed.splitlines() if any(word in line for word in setting.names)]
        if lost and not said:
            return f"{name} has no effect beside {other}, and no line says so"
    return None


def pairs_of(settings: dict[str, Setting]) -> list[tuple[str, str]]:
    """Return every two settings that do not set the same flag and are not the same callback."""

    def keys(setting: Setting) -> set[str]:
        flags = {flag.partition("=")[0] for flag in setting.flags if flag.startswith("--")}
        own = {flag for flag in setting.flags if flag.startswith("--trainer.callbacks+=")}
        return {flag for flag in flags if not flag.startswith("--trainer.callbacks")} | own

    return [(a, b) for a, b in itertools.combinations(settings, 2) if not keys(settings[a]) & keys(settings[b])]
