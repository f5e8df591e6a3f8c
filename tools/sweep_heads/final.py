"""The overlay for the final run of a sweep: the winner on augmented images, through the backbone that computed the cache.

And the command of that run, with a placeholder for each path that the cache does not know.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from datamodules.images.checking import TABLES, expected_of
from features import Header
from foundation.project import MAIN
from foundation.sizes import plain_size
from networks.frozen_backbone import parse_name
from networks.timm_features import SECOND

SHARED = (
    "momentum",
    "schedule",
    "warmup_epochs",
    "lr_end",
    "one_cycle_rise",
    "one_cycle_momentum",
    "step_milestones",
    "step_gamma",
    "label_smoothing",
    "class_weights",
    "class_weights_power",
    "focal_gamma",
)
"""Settings of the model that all heads of a sweep share, and that the final run takes over."""
IMAGES = ("eval_share", "framing", "pad_value", "levels")
"""Settings of ImageFolderDataModule that change the backbone's input in evaluation, as the cache names them."""
SPLIT = ("val_fraction", "test_fraction", "train_fraction", "split_seed", "fold", "group_column")
"""Settings of ImageFolderDataModule that divide the images; the tables are given again, as a cache has only their hashes."""
PLACEHOLDERS = {"labels": "TABLE.csv", "groups": "GROUPS.csv"}


def final_overlay(
    head: dict[str, Any], model: dict[str, Any], batch_size: int, epochs: int, header: Header
) -> str | None:
    """Text of an overlay for configs/cascade_train.yaml.

    Args:
        head: Settings of the winner: lr, weight_decay, hidden and so on.
        model: Settings of the model in the sweep's configuration.
        batch_size: Samples in a batch of the sweep.
        epochs: Number of epochs of the sweep.
        header: Header of the cache.

    Returns:
        The text; None if the features are not of an image folder, for which there is no such run.
    """
    identity = header.identity
    if not {"eval_share", "framing"} & identity.transform.keys():
        return None
    name, arguments = parse_name(identity.backbone)
    place = dict(header.weights_from or {})
    backbone = {
        "backbone": place.get("pretrained", name),
        "network_args": arguments or None,
        "pretrained": "pretrained" in place,
        "weights": place.get("file"),
        "layers": list(identity.layers),
        "pooling": identity.pooling.removesuffix(SECOND),
    }
    split = {key: value for key, value in identity.split.items() if key in SPLIT and value is not None}
    images = {key: _value(identity.transform[key]) for key in IMAGES if key in identity.transform}
    data = {
        "image_size": plain_size(identity.image_size),
        "mean": list(identity.mean),
        "std": list(identity.std),
        **images,
        "expected": expected_of(identity.class_names, identity.split),
    }
    content = {
        "trainer": {"max_epochs": epochs},
        "model": {"init_args": {**{key: model[key] for key in SHARED}, **head, **backbone}},
        "data": {"init_args": {**data, **split, "batch_size": batch_size}},
    }
    return yaml.safe_dump(content, sort_keys=False)


def final_command(final: Path, header: Header) -> str:
    """The command of the final run, followed by what its placeholders stand for.

    Args:
        final: The overlay.
        header: Header of the cache.
    """
    tables = [name for name in TABLES if header.identity.split.get(name) is not None]
    flags = ["--data.root FOLDER", *(f"--data.{name} {PLACEHOLDERS[name]}" for name in tables)]
    if not header.weights_from:
        flags.append("--model.weights FILE")
    meanings = [
        "FOLDER: the images that the cache was made from",
        *(f"{PLACEHOLDERS[name]}: the {TABLES[name]} it was made with" for name in tables),
    ]
    if "labels" in tables:
        meanings.append(
            "with the flags of the extraction for its columns, such as --data.label_column and --data.split_column COLUMN"
        )
    overlays = f"--config configs/cascade_train.yaml --config {shlex.quote(str(final))}"
    return f"{MAIN} fit {overlays} {' '.join(flags)}   ({'; '.join(meanings)})"


def _value(text: Any) -> Any:
    """A value of a cache's header as a setting: lists of numbers are stored as text."""
    return [float(part) for part in text.split()] if isinstance(text, str) and text != "letterbox" else text
