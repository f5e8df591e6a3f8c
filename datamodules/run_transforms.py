"""`transform_of`: the preprocessing of a run, from what its checkpoint says of the training data; no data is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datamodules.images.transform import ImageTransform
from datamodules.images.unlabelled import Reading
from datamodules.signals.transform import WindowTransform
from datamodules.trained_on import TrainedOn
from transforms.run_transform import RunTransform


def transform_of(checkpoint: Mapping[str, Any], own_size: bool = False) -> RunTransform:
    """The preprocessing that `main.py predict` applies to new samples of a run.

    Args:
        checkpoint: Content of a checkpoint.
        own_size: Whether pictures keep their own size, as for a segmenter.

    Raises:
        ValueError: The checkpoint does not say how its samples become the input of the network.
    """
    record = TrainedOn.of_checkpoint(checkpoint)
    if record is None:
        raise ValueError("the checkpoint does not say what it was trained on; train the run again")
    if "encoder" in record.inputs and record.own.get("signals") is None:
        raise ValueError(
            "the run has features of sensor signals; extract the new windows, and predict with --data.cache"
        )
    if record.own.get("signals") is not None:
        if "encoder" not in record.inputs:
            raise ValueError("the checkpoint does not say how its signals were prepared; train the run again")
        return WindowTransform(record)
    inputs = {"levels": record.own.get("levels")} if own_size else record.inputs
    reading = Reading.of(inputs, None if own_size else record.image_size, record.in_channels)
    return ImageTransform(reading, record.mean, record.std)
