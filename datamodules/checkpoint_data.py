"""Describes training data in a checkpoint, and matches other data to it: classes by name, its normalisation, samples seen before.

    fit       training_record() --> checkpoint["trained_on"]: classes, mean and std, input settings, keys of samples, groups
    evaluate  match(record): class names, mean and std become the checkpoint's; labels are renumbered by class name;
              samples and groups that the checkpoint was trained on are counted and reported

A sample's key is a hash of its content, so that a copy under another name or in another folder is recognised.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.images.class_folders import listed
from datamodules.images.unlabelled import GivenImages
from datamodules.sample_keys import row_keys, text_keys
from datamodules.trained_on import MATCHED, FromCheckpoint, TrainedOn
from foundation.project import TOOL

log = logging.getLogger(__name__)


WHOLE = {"framing": "crop", "eval_share": 1.0}
"""Inputs of datamodules without these settings: the whole image."""


OTHER_KIND = 0.5
"""Difference of the shares of a kind of files from which evaluated files are taken to be of another kind."""


def settings_of(kind: type) -> set[str]:
    """Names of the settings of a class, of those of its base classes if it passes them on."""
    return {
        name
        for cls in kind.__mro__
        for name in inspect.signature(vars(cls).get("__init__", object.__init__)).parameters
    }


class MatchedToCheckpoint(LightningDataModule):
    """Base class of datamodules that describe their training data, and serve other data as a checkpoint knows it."""

    trained_on: TrainedOn | None = None
    """The checkpoint's record, set by `match`; None if the datamodule is not matched to a checkpoint."""
    reads_own: bool = False
    """Whether `class_names`, `mean` and `std` return the data's own values although it is matched."""

    numbers_classes: ClassVar[bool] = True
    """Whether a network's outputs belong to classes by their number, so that names in another order would be wrong."""

    splits: dict[str, dict[str, Tensor]]
    seen: dict[str, int]
    images: GivenImages | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the properties in `MATCHED` follow the checkpoint, in every subclass that defines them."""
        super().__init_subclass__(**kwargs)
        for name in MATCHED:
            if isinstance(own := vars(cls).get(name), property | cached_property):
                setattr(cls, name, FromCheckpoint(own, name))

    @contextmanager
    def own_values(self) -> Iterator[None]:
        """Within this context `class_names`, `mean` and `std` are the data's own."""
        before, self.reads_own = self.reads_own, True
        try:
            yield
        finally:
            self.reads_own = before

    @property
    def own_class_names(self) -> list[str]:
        """Names of the classes as the data numbers them."""
        with self.own_values():
            names: list[str] = list(self.class_names)  # type: ignore[attr-defined]
        return names

    # ---- description of the training data ----

    @property
    def place(self) -> str:
        """Folder or file of the data; the name of the class for data that is part of a package."""
        found = next((value for name in ("root", "file", "cache") if (value := getattr(self, name, None))), None)
        return type(self).__name__ if found is None else os.path.abspath(found)

    @property
    def place_name(self) -> str:
        """Short name of the place, for a folder of results."""
        return Path(self.place).stem

    def sample_keys(self, split: str) -> Tensor:
        """Return the keys of the samples of a split that setup has read, (n,) int64 in their order."""
        values = self.splits[split]
        return row_keys(values["signal" if "signal" in values else "image"])

    def file_kinds(self, split: str) -> dict[str, float]:
        """Return the share of a split's image files of each kind that changes what a network sees; empty if there are no files."""
        return {}

    def target_keys(self, split: str) -> Tensor:
        """Return a hash of the target of each sample, (n,) int64 in the order of `sample_keys`: of the names of its classes."""
        names, label = self.class_names, self.splits[split]["label"]  # type: ignore[attr-defined]
        if label.ndim == 2:
            return text_keys(["\n".join(names[k] for k, own in enumerate(row) if own) for row in label.tolist()])
        return text_keys([names[number] for number in label.tolist()])

    def sample_groups(self, split: str) -> list[str]:
        """Return the group of each sample of a split that setup has read, as set with `groups`; of samples without one, none."""
        return []

    def group_names(self, split: str) -> list[str]:
        """Return the names of the people or groups in a split that setup has read, sorted; none if the data has no groups."""
        return sorted({*self.sample_groups(split)})

    @property
    def own_record(self) -> dict[str, Any]:
        """Values for `TrainedOn.own`, plain."""
        return {}

    def training_record(self) -> dict[str, Any]:
        """Return the description of the training data for a checkpoint, as plain values and tensors; computed once."""
        if self._record_of_training is None:
            data: Any = self
            there = [split for split in ("train", "val") if split in self.splits]
            keys = {split: self.sample_keys(split) for split in there}
            record = TrainedOn(
                datamodule=type(self).__name__,
                place=self.place,
                class_names=list(data.class_names),
                mean=[float(value) for value in data.mean],
                std=[float(value) for value in data.std],
                in_channels=int(data.in_channels),
                image_size=data.image_size,
                inputs=dict(data.transform_settings),
                split=dict(data.split_settings),
                keys={split: found.sort().values for split, found in keys.items()},
                groups={split: self.group_names(split) for split in there},
                fingerprints={split: self.fingerprint(split, found) for split, found in keys.items()},
                own={**self.own_record, "file_kinds": self.file_kinds("train") if "train" in there else {}},
            )
            self._record_of_training = record._asdict()
        return self._record_of_training

    _record_of_training: dict[str, Any] | None = None

    def check_loaded(self, checkpoint: dict[str, Any]) -> None:
        """Compare the data with a checkpoint that the Trainer loads, after `setup`.

        Raises:
            MisconfigurationException: A resumed fit has other training data; or classes differ in evaluation without `match`.
        """
        record = TrainedOn.of_checkpoint(checkpoint)
        if record is None:
            return
        if self.trainer is not None and self.trainer.state.fn == "fit":
            if record.datamodule:
                self._check_continues(record)
        elif self.trained_on is None and self.images is None and self.numbers_classes:
            own = self.own_class_names
            if own != record.class_names:
                raise MisconfigurationException(
                    f"the checkpoint was trained on the classes {listed(record.class_names)}, but the data has {listed(own)}, "
                    "in this order; call datamodule.match(TrainedOn.of_checkpoint(checkpoint)) before the Trainer"
                )

    def _check_continues(self, record: TrainedOn) -> None:
        """Check that a fit that goes on from a checkpoint has the training data of its first start."""
        now = TrainedOn(**self.training_record())
        if now.class_names != record.class_names:
            raise MisconfigurationException(
                f"the classes are {listed(now.class_names)}, but the run was trained on {listed(record.class_names)}; "
                "continue with the same data, or start a new run"
            )
        for split in sorted(record.keys.keys() & now.keys.keys()):
            if now.fingerprints[split] != record.fingerprints[split]:
                gone = int((~torch.isin(record.keys[split], now.keys[split])).sum())
                new = int((~torch.isin(now.keys[split], record.keys[split])).sum())
                counts = f"{gone:,} samples are gone or changed, {new:,} are new"
                raise MisconfigurationException(
                    f"the {split} data in {now.place} has changed since the run began: "
                    f"{counts if gone or new else 'classes or masks of the samples are others'}; "
                    "restore the data to resume, or start a new run (--model.weights of this one)"
                )

    def say_shared(self, splits: Collection[str]) -> None:
        """Warn of validation and test samples of a fit that are equal to training samples, bit by bit.

        Args:
            splits: The splits that the fit uses; setup has read them.
        """
        trained = self.training_record()["keys"]["train"]
        for split in ("val", "test"):
            if split not in splits:
                continue
            keys = self.sample_keys(split)
            if count := int(torch.isin(keys, trained).sum()):
                log.warning(
                    f"{count:,} of the {len(keys):,} {split} samples are train samples too, equal to the bit: the {split} metrics "
                    f"are not those of new data; {TOOL}inspect_data with the same --config and --data flags names them"
                )

    # ---- other data ----

    def match(self, record: TrainedOn, given: frozenset[str] = frozenset(), *, labelled: bool = True) -> None:
        """Serve the data as the checkpoint knows it; call before `setup`, in evaluation.

        Args:
            record: What the checkpoint was trained on.
            given: Names of settings of the datamodule that the user gives explicitly; these may differ from training.
            labelled: Whether labels are compared with predictions; if not, classes are not compared.

        Raises:
            MisconfigurationException: The data has classes, channels or input settings that the checkpoint does not know.
        """
        data: Any = self
        self.trained_on = record
        for name in ("mean", "std"):
            wanted = [float(value) for value in getattr(record, name)]
            if name in given and self._own_numbers(name) != wanted:
                raise MisconfigurationException(
                    f"--data.{name}: the checkpoint was trained with {name} {wanted}, which evaluation uses; remove the setting"
                )
        if data.in_channels != record.in_channels:
            raise MisconfigurationException(
                f"the checkpoint was trained on {record.in_channels} channels, but {self.place} has {data.in_channels}"
                + (f"; give --data.channels {record.in_channels}" if hasattr(data, "_channels") else "")
                + _channels_by(record.inputs, data.transform_settings)
            )
        self._check_inputs(record, given)
        if labelled and self.images is None:
            self._check_classes(record)

    def _own_numbers(self, name: str) -> list[float]:
        with self.own_values():
            return [float(value) for value in getattr(self, name)]

    def _check_inputs(self, record: TrainedOn, given: frozenset[str]) -> None:
        data: Any = self
        # a checkpoint without a record knows only the size; older ones of cached features had no inputs
        if not record.datamodule or (record.datamodule == "CachedFeaturesDataModule" and not record.inputs):
            record = record._replace(inputs=dict(data.transform_settings))
        trained = {**WHOLE, **record.inputs, "image_size": record.image_size or data.image_size}
        now = {**WHOLE, **data.transform_settings, "image_size": data.image_size}
        for name in [name for name in {**trained, **now} if not name.startswith("views.")]:
            value, other = _given(trained.get(name)), _given(now.get(name))
            if value == other:
                continue
            setting = f"{name.partition('.')[0]}_args" if "." in name else name
            if setting in given:
                log.info(f"data       {name} is {other}, as given; the checkpoint was trained with {value}")
            elif name == "image_size" or setting in settings_of(type(data)):
                advice = f"give --data.{setting}" + (
                    f" {value}, or {other} explicitly if you want it" if setting == name else ""
                )
                raise MisconfigurationException(
                    f"data.{name} was {value} in training and is {other} now, which changes the network's input; "
                    + (advice if setting in settings_of(type(data)) else f"{self.place} has images of another size")
                )
            else:
                log.warning(f"{name} was {value} in training and is {other} for this data, which cannot set it")

    def _check_classes(self, record: TrainedOn) -> None:
        own = self.own_class_names
        if unknown := [name for name in own if name not in record.class_names]:
            raise MisconfigurationException(
                f"{self.place} has the class{'es' * (len(unknown) > 1)} {listed(unknown)}, but the checkpoint was trained on "
                f"{listed(record.class_names)}"
            )
        if own != record.class_names:
            absent = [name for name in record.class_names if name not in own]
            log.info(
                f"data       classes are matched by name: {len(own)} of the {len(record.class_names)} classes of the checkpoint"
                + (f" (without {listed(absent)})" if absent else ", in another order")
            )

    def as_trained(self, label: Tensor) -> Tensor:
        """Renumber labels (N,) int64 from the data's own classes to those of the checkpoint; unchanged if there is none.

        Of labels (N, K) of 0 and 1, the columns are moved.
        """
        if self.trained_on is None or not self.numbers_classes:
            return label
        if (own := self.own_class_names) == self.trained_on.class_names:
            return label
        places = {name: number for number, name in enumerate(self.trained_on.class_names)}
        if label.ndim == 2:
            moved = label.new_zeros(len(label), len(places))
            known = [number for number, name in enumerate(own) if name in places]
            moved[:, [places[own[number]] for number in known]] = label[:, known]
            return moved
        # in predict, labels are not used, and the data may have classes that the checkpoint does not know
        table = torch.tensor([places.get(name, 0) for name in own], dtype=label.dtype, device=label.device)
        return table[label]

    def seen_in_training(self, split: str) -> int:
        """Count the samples of a split that the checkpoint was trained on, and log them and the people or groups that it knows."""
        if self.trained_on is None or not self.trained_on.keys:
            return 0
        parts = ("train",) if split == "val" else ("train", "val")  # the validation data chose the checkpoint
        before = self.trained_on.own.get("file_kinds", {})
        for name, share in self.file_kinds(split).items():
            if abs(share - before.get(name, share)) >= OTHER_KIND:
                log.warning(f"{share:.0%} of the {split} images are {name}, of the training images {before[name]:.0%}")
        keys, known_keys = (
            self.sample_keys(split),
            [self.trained_on.keys[p] for p in parts if p in self.trained_on.keys],
        )
        count, total = int(torch.isin(keys, torch.cat(known_keys)).sum()), len(keys)
        if count:
            log.warning(
                f"{count:,} of the {total:,} {split} samples are {' or '.join(parts)} samples of the checkpoint, equal to the bit: "
                "the metrics are not those of new data"
            )
        if split == "test":
            self._say_part(total, torch.cat(known_keys))
        known = {name for part in parts for name in self.trained_on.groups.get(part, [])}
        if both := [name for name in self.group_names(split) if name in known]:
            same = (type(self).__name__, self.place) == (self.trained_on.datamodule, self.trained_on.place)
            log.warning(
                f"people or groups of the {split} data are in the checkpoint's {' or '.join(parts)} data: {listed(both)}; "
                "the metrics are not those of new ones"
                if same
                else f"people or groups of the {split} data have the names of some in the checkpoint's {' or '.join(parts)} data: "
                f"{listed(both)}; if they are the same, the metrics are not those of new ones"
            )
        return count

    def left_by_the_draw(self) -> tuple[int, Tensor, str]:
        """Number of samples that a drawn test split leaves out, keys of the first ones, and how to test all; 0 if none is drawn."""
        return 0, torch.zeros(0, dtype=torch.int64), ""

    def _say_part(self, tested: int, known: Tensor) -> None:
        """Warn that only a drawn part of other data is tested; a copy of the training data is divided as it was."""
        left, keys, how = self.left_by_the_draw()
        if left and not torch.isin(keys, known).any():
            log.warning(
                f"only {tested:,} of the {tested + left:,} samples in {self.place} are tested, a drawn split; to test all, {how}"
            )

    def is_training_data(self) -> bool:
        """Whether the data, wherever it lies, is the one that the checkpoint was trained on; True without a record."""
        record = self.trained_on
        if record is None or not record.keys:
            return True
        same_split = dict(self.split_settings) == record.split  # type: ignore[attr-defined]
        same_place = same_split and (type(self).__name__, self.place) == (record.datamodule, record.place)
        logging.disable(logging.WARNING)  # of reading a split that is only compared
        try:  # the data may have been moved, or replaced in its place
            self.setup("validate")
            compared = ("val",) if same_place else tuple(record.fingerprints)
            return all(self.fingerprint(split) == record.fingerprints.get(split) for split in compared)
        except (MisconfigurationException, ValueError, OSError):
            return same_place  # the training data is gone
        finally:
            logging.disable(logging.NOTSET)
            self.seen.clear()  # counted again, and logged, in the evaluation's own setup

    def fingerprint(self, split: str, keys: Tensor | None = None) -> str:
        """Hash of the samples of a split with their classes or masks, 16 hexadecimal digits; their order does not matter.

        Args:
            split: A split that setup has read.
            keys: Result of `sample_keys` if it is known.
        """
        rows = torch.stack([self.sample_keys(split) if keys is None else keys, self.target_keys(split)], dim=1)
        return hashlib.sha256(np.sort(row_keys(rows).numpy()).tobytes()).hexdigest()[:16]


def _given(value: Any) -> Any:
    """A value as it is given on the command line: height and width as `[96,160]`."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value


def _channels_by(trained: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which setting of signals was another in training, by which a network has other channels."""
    for name in ("mode", "asinh_scale"):
        if (was := trained.get(name)) != (new := now.get(name)):
            value = "null" if was is None else was
            return f"; data.{name} was {value} in training and is {'null' if new is None else new} now: give --data.{name} {value}"
    return ""
