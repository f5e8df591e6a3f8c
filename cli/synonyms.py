"""Names that other programs give to our settings, and what does the work of a setting that there is not.

A name here is looked up only if no setting of the chosen classes has it; `cli.setting_hints` names those settings alone that the
chosen classes have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from foundation.project import MAIN, TOOL

_FOLDER = ("data.root", "data.cache", "data.file")
_NETWORK = ("model.architecture", "model.encoder", "model.backbone")

SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("learning_rate", "base_lr", "max_lr"): ("model.lr",),
    ("wd", "l2", "weight_reg"): ("model.weight_decay",),
    ("scheduler", "lr_scheduler", "lr_schedule"): ("model.schedule",),
    ("optim", "opt"): ("model.optimizer",),
    ("warmup", "warmup_steps", "warm_up"): ("model.warmup_epochs",),
    ("smoothing",): ("model.label_smoothing",),
    ("drop", "drop_rate"): ("model.dropout",),
    ("name", "arch", "model", "model_name", "network", "net", "backbone", "architecture"): _NETWORK,
    ("bs", "batch"): ("data.batch_size",),
    ("num_workers", "n_workers", "worker"): ("data.workers",),
    ("val_split", "validation_split", "val_size", "valid_fraction"): ("data.val_fraction", "data.val_subjects"),
    ("test_split", "test_size"): ("data.test_fraction", "data.test_subjects"),
    ("path", "dir", "folder", "dataset", "data_dir", "data_path", "data_root", "root_dir", "train_dir"): _FOLDER,
    ("augment", "augmentation", "autoaugment", "randaugment"): ("data.policy", "data.augment_prob"),
    ("size", "img_size", "imgsz", "input_size", "resolution"): ("data.image_size",),
    ("letterbox", "crop_mode", "resize_mode", "keep_aspect"): ("data.framing",),
    ("pad_color", "padding_value", "pad_fill"): ("data.pad_value",),
    ("in_chans", "num_channels", "n_channels", "input_channels"): ("data.channels",),
    ("epochs", "num_epochs", "n_epochs", "max_epoch"): ("trainer.max_epochs",),
    ("steps", "num_steps", "n_steps", "max_step"): ("trainer.max_steps",),
    ("gpus", "gpu", "num_gpus", "n_gpus"): ("trainer.devices",),
    ("device", "cuda"): ("trainer.accelerator",),
    ("amp", "fp16", "bf16", "mixed_precision"): ("trainer.precision",),
    ("clip", "clip_grad", "grad_clip", "gradient_clip", "clip_norm"): ("trainer.gradient_clip_val",),
    ("accumulate", "grad_accum", "accumulation_steps", "gradient_accumulation_steps"): (
        "trainer.accumulate_grad_batches",
    ),
    ("seed", "random_seed"): ("seed_everything",),
}
"""Other names of a setting -> our settings; the first one that the chosen classes have is meant."""

WORDS: dict[tuple[str, ...], str] = {
    ("early_stopping", "early_stop", "patience"): "--config configs/with/early_stopping.yaml stops a run early",
    ("lr_finder", "auto_lr_find", "find_lr", "lr_find"): "--config configs/with/lr_finder.yaml finds the learning rate",
    ("ema", "ema_decay", "model_ema"): "the callback EMA averages the weights: --trainer.callbacks+=EMA adds it",
    ("save_top_k", "save_last", "save_best", "save_every"): (
        "the best and the last checkpoint are kept; --checkpoint.monitor selects the best, --checkpoint.every_n_epochs keeps more"
    ),
    ("resume", "resume_from_checkpoint", "ckpt_path"): f"{MAIN} fit --resume RUN_DIR continues a run",
    (
        "output",
        "out",
        "output_dir",
        "out_dir",
        "save_dir",
        "logdir",
        "log_dir",
    ): "--run_dir DIR names the folder of a run",
    (
        "normalize",
        "normalise",
    ): "the images are always normalised, with mean and std of the training data or of the weights",
}
"""Names of what is no setting here -> what does its work."""

CUT = f"signals have no pictures; {TOOL}cut_windows cuts new recordings into windows, and"
IN_MEMORY = "its data is in memory and needs no workers"
INSTEAD = {
    ("HARDataModule", "images"): f"{CUT} --data SignalFileDataModule --data.test_file NEW.npz takes them",
    ("SignalFileDataModule", "images"): f"{CUT} --data.test_file NEW.npz takes them",
    ("CachedFeaturesDataModule", "root"): (
        f"give --data.cache CACHE; {MAIN} predict --config configs/cascade_extract.yaml --data.root FOLDER --cache CACHE makes one"
    ),
    ("PromptedSegmentationDataModule", "test_file"): (
        'other images with masks: --data.sets "[{folder: FOLDER, prompts: [PROMPT], split: test}]"'
    ),
    **{
        (name, "test_file"): "--data.root FOLDER gives other images to test on"
        for name in ("ImageFolderDataModule", "CIFAR10DataModule")
    },
    ("TernaryClassifier", "weights"): "--model.init_from RUN_DIR starts from the weights of a run or a file",
    **{
        (name, setting): IN_MEMORY
        for name in (
            "DigitsDataModule",
            "CIFAR10DataModule",
            "HARDataModule",
            "SignalFileDataModule",
            "CachedFeaturesDataModule",
        )
        for setting in ("workers", "num_workers")
    },
}
"""What does the work of a setting that a class does not have."""


def of_another_name(name: str, settings: Mapping[str, Iterable[str]], callbacks: Iterable[str]) -> str:
    """Return what is meant by a name that is no setting: ``, did you mean 'model.lr'?`` or ``; --config ...``; or an empty string.

    Args:
        name: The name, without its section.
        settings: Section -> settings that its class accepts; the section ``""`` has those of no section.
        callbacks: Names of the classes in ``trainer.callbacks``.
    """
    for names, ours in SETTINGS.items():
        if name in names:
            there = [one for one in ours if one.rpartition(".")[2] in settings.get(one.rpartition(".")[0], ())]
            return f", did you mean {there[0]!r}?" if there else ""
    for names, text in WORDS.items():
        if name in names:
            known = next((one for one in callbacks if f"callback {one} " in text), None)
            return f"; the callback {known} in trainer.callbacks does it" if known else f"; {text}"
    return ""
