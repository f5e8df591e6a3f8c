"""`SignalDataModule`, the base class for signal windows: split by subject, normalisation and encoding as images on the device.

    files --read_part--> (N, S, T) float32 --split by subject--> InMemoryLoader --device--> augmentation (training) --> normalise
         --> `signal`; in the image modes also --encode--> `image`

In mode `signals`, `signal` is the network's input; with `asinh_scale` it has compressed signals too.

`datamodules` documents the contract of a batch and of a datamodule, `datamodules.signals.windows` that of a reader.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import transforms
from datamodules.base import Batch
from datamodules.extraction import Labelled, Scalar, flat_settings
from datamodules.signals.augmentation import SignalAugmentation
from datamodules.signals.checking import check_triples, check_windows
from datamodules.signals.checkpoint_record import SignalRecord
from datamodules.signals.header import SignalHeader
from datamodules.signals.images import Mode, SignalImages
from datamodules.signals.matching import SignalMatching
from datamodules.signals.windows import (
    as_scalar,
    check_apart,
    check_classes_recorded,
    check_classes_trained,
    check_subjects,
    held_out_subjects,
    subjects_of,
    taken,
)
from datamodules.trained_on import TrainedOn
from foundation.sizes import sides
from transforms import Encoder

log = logging.getLogger(__name__)


class SignalDataModule(SignalHeader):
    """In-memory signal windows, split by subject.

    Args:
        batch_size: Training windows in a batch of one process.
        eval_batch_size: Windows in a batch of validation, test and predict; null means twice batch_size.
        val_subjects: Training subjects held out for validation: their number, 1 or more, their share, above 0 and below 1, or a
            list of their names.
        val_subject_id: The only subject held out for validation, in place of `val_subjects`; for leave-one-subject-out.
        split_seed: Seed of the subject split, separate from the training seed, so that runs with different seeds share the split.
        drop_last: Drop the last training batch of an epoch if it is not full.
        sampling: `balanced` draws each class equally often in an epoch, see :class:`DataModule`.
        mode: Content of a batch in addition to `signal`: `signals`, nothing; `flatten`, one image per signal; `grid`, one image
            with each signal as a tile; `channels`, one image with each signal as a channel.
        encoder: Function of `transforms` that encodes a signal as an image.
        encoder_args: Arguments of the encoder, by name.
        encoder_range: Largest absolute value of a normalised signal that the encoder's scale covers, in standard deviations, above
            0; null scales each window by its own minimum and maximum, which hides the signal's amplitude.
        image_size: Height and width of an image in pixels.
        image_channels: Channels of the grey images of `flatten` and `grid`: 1, or 3 equal ones for networks that require RGB input.
        image_mean: Mean of the pixels for normalisation, in units of 0..1; null uses the value of UCI HAR for this encoder.
        image_std: Standard deviation of the pixels for normalisation; null uses the value of UCI HAR for this encoder.
        asinh_scale: Give each signal to the network a second time, without its mean in the window and compressed by asinh, so that
            small movements are seen: the value, in standard deviations of the signal, from which on it is compressed; null: once.
        rotation: Largest angle in degrees by which the sensor's frame is rotated in training, 0 to 180; the signals must then be
            ordered in triples x, y, z of one sensor, as for `scaling`.
        scaling: Standard deviation of the logarithm of the factor that each sensor is multiplied by, 0 or more.
        time_warp: Largest relative change of speed within a window, 0 to below 1.
        jitter: Standard deviation of added noise, relative to the signal's standard deviation in its window, 0 or more.
        channel_dropout: Probability that a signal is replaced by its mean, 0 to 1.
        augment_prob: Probability of each of these augmentations for each window, 0 to 1.
        on_device: Move the windows to the accelerator once instead of a batch at a time (34 MB for UCI HAR).
        fold: `2/5` tests the second of five parts of the training people, see :class:`DataModule`.

    Raises:
        ValueError: A setting is out of its range.
    """

    said_by_check: ClassVar[bool] = True
    sample_unit: ClassVar[str] = "windows"
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "val_subjects",
        "val_subject_id",
        "split_seed",
        "drop_last",
        "sampling",
        "fold",
    )

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_subjects: int | float | list[int | str] = 0.2,
        val_subject_id: int | None = None,
        split_seed: int = 0,
        drop_last: bool = True,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        mode: Mode = "signals",
        encoder: Encoder = "gramian_angular_field",
        encoder_args: dict[str, int | float | str] | None = None,
        encoder_range: float | None = 3.0,
        image_size: int = 64,
        image_channels: Literal[1, 3] = 1,
        image_mean: float | None = None,
        image_std: float | None = None,
        asinh_scale: float | None = None,
        rotation: float = 0.0,
        scaling: float = 0.0,
        time_warp: float = 0.0,
        jitter: float = 0.0,
        channel_dropout: float = 0.0,
        augment_prob: float = 1.0,
        on_device: bool = False,
        fold: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            split_seed=split_seed,
            drop_last=drop_last,
            sampling=sampling,
            on_device=on_device,
            fold=fold,
        )
        check_subjects("val_subjects", val_subjects)
        self.val_subjects, self.val_subject_id = val_subjects, val_subject_id
        self.signal_images = SignalImages(
            mode=mode,
            encoder=encoder,
            encoder_args=dict(encoder_args or {}),
            encoder_range=encoder_range,
            image_size=image_size,
            image_channels=image_channels,
            image_mean=image_mean,
            image_std=image_std,
            asinh_scale=asinh_scale,
        )
        self.signal_augmentation = SignalAugmentation(
            rotation=rotation,
            scaling=scaling,
            time_warp=time_warp,
            jitter=jitter,
            channel_dropout=channel_dropout,
            augment_prob=augment_prob,
        )
        self._record: SignalRecord | None = None
        self._matching: SignalMatching | None = None

    # ---- splits ----

    @property
    def tests_a_file(self) -> bool:
        """Whether the test split is data of its own, which is compared with a checkpoint's record and not with training data."""
        return False

    @abstractmethod
    def has_training_data(self) -> bool:
        """Return whether the training part exists; it is optional for testing."""

    @property
    def subjects(self) -> dict[str, list[int]]:
        """Numbers of the subjects of each split that setup has read, ascending."""
        return {name: subjects_of(windows) for name, windows in self.splits.items()}

    def setup(self, stage: str) -> None:
        """Read the splits that the stage needs, once; before a test, check that the splits share no subject and no window.

        Fit and validate open no file of the test part. Test and predict also read the training part if it exists: for the check,
        and for the normalisation when testing without a checkpoint.
        """
        self._check_images()
        testing = stage not in ("fit", "validate") and "test" not in self.splits
        super().setup(stage)
        elsewhere = self._matching is not None and self._matching.elsewhere  # the training data is not in this place
        # feature extraction may not include the test split
        if testing and not elsewhere and "test" in self.splits and self.has_training_data():
            if "train" not in self.splits:
                self._split_training_data()
            check_apart({self._named(name): self.splits[name] for name in ("train", "val", "test")})

    def _check_images(self) -> None:
        """Check that the settings fit the signals, by applying them to a window of zeros."""
        zeros = torch.zeros(1, len(self.signal_names), self.window_length)
        try:
            self.signal_augmentation.physical(zeros, transforms.SampleRandom(0, 0, torch.tensor([0])))
            self.signal_images(zeros, self.image_size)
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(
                f"data: the settings do not fit the signals: {error}; the signals are {', '.join(self.signal_names)}"
            ) from error
        if self.signal_augmentation.rotation or self.signal_augmentation.scaling:
            check_triples(self.signal_names)

    def _split_training_data(self) -> None:
        data = self._checked_part("train")
        people = subjects_of(data)
        if self.val_subject_id is None:
            held_out = self._held_out(people, self.val_subjects, "val")
        else:
            held_out = [self.val_subject_id]
            if self.val_subject_id not in people or len(people) == 1:
                raise MisconfigurationException(
                    f"--data.val_subject_id {self.val_subject_id}: the training data has the subjects "
                    f"{', '.join(map(str, people))}; choose one of them; at least two are needed"
                )
        check_classes_recorded(data["label"], self.class_names)
        train, val = taken(data, set(people) - set(held_out)), taken(data, held_out)
        if self.trained_on is None:
            check_classes_trained(train["label"], self.class_names, subjects_of(train))
        check_apart({self._named("train"): train, self._named("val"): val})
        self.splits["train"], self.splits["val"] = train, val
        if self._matching is None or not self._matching.elsewhere:
            self._record = SignalRecord.of(train, val)
        names = ", ".join(self.subject_name(number) for number in held_out)
        log.info(f"data       validation on subjects {names}, trained on {len(subjects_of(train))} others")

    def _held_out(self, people: list[int], wanted: int | float | list[int | str], name: str) -> list[int]:
        """Numbers of the subjects of a held-out split, of these numbers; see `held_out_subjects`."""
        known = {self.subject_name(number): number for number in people}
        return held_out_subjects(people, wanted, seed=self.split_seed, name=name, known=known)

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Check the windows of these splits; see `datamodules.signals.checking`."""
        check_windows({split: self.splits[split] for split in splits}, self.class_names, self.signal_names)
        self._check_variety(splits)

    @staticmethod
    def _named(split: str) -> str:
        return {"train": "the training split", "val": "the validation split", "test": "the test split"}[split]

    # ---- batches ----

    @property
    def signal_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (S,) float32 of each signal over the training subjects, used to normalise windows.

        Taken from the checkpoint if one was loaded; otherwise known after setup.

        Raises:
            MisconfigurationException: There is neither a checkpoint nor training data.
        """
        if self._record is None:
            raise MisconfigurationException(
                "there is no training data to compute the normalisation from; evaluate a checkpoint, which has it, or add the data"
            )
        return self._record.mean, self._record.std

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Augment and normalise a batch for training; depends only on batch, seed and epoch (from 0)."""
        random = transforms.SampleRandom(self.seed, epoch, batch.pop("drawn", batch["index"]))
        changes = self.signal_augmentation.at(self.strength)
        signal = changes.normalised(self._scaled(changes.physical(batch["signal"].float(), random)), random)
        return self._with_input({**batch, "signal": signal}, sides(self.train_size)[0])

    def prepared(self, signals: Tensor) -> Batch:
        """Normalise raw windows (B, S, T) in physical units as in evaluation; returns `signal` and, in the image modes, `image`."""
        return self._normalize({"signal": signals})

    def _normalize(self, batch: Batch) -> Batch:
        return self._with_input({**batch, "signal": self._scaled(batch["signal"].float())}, sides(self.image_size)[0])

    def _scaled(self, signal: Tensor) -> Tensor:
        mean, std = (values.to(signal.device)[:, None] for values in self.signal_scale)
        return (signal - mean) / std

    def _with_input(self, batch: Batch, size: int) -> Batch:
        name = "signal" if self.signal_images.mode == "signals" else "image"
        return {**batch, name: self.signal_images(batch["signal"], size)}

    def _view(self, batch: Batch, number: int) -> Tensor:
        """Augment and encode the images of a batch as in epoch `number`, for a feature cache."""
        assert self.trainer is not None
        converted: Tensor = self.trainer.precision_plugin.convert_input(self.augment(batch, number)["image"])
        return converted

    # ---- data of a checkpoint, and other data ----

    @property
    def own_record(self) -> dict[str, Any]:
        """Names, units and normalisation of the signals, and the length of a window."""
        return {
            "signal_names": self.signal_names,
            "signal_units": self.signal_units,
            "window_length": self.window_length,
            "sampling_rate": self.sampling_rate,
            "time_step": self.time_step,
            "signals": None if self._record is None else self._record.as_state(),
        }

    def group_names(self, split: str) -> list[str]:
        """Names of the people in a split, sorted."""
        return sorted(self.subject_name(number) for number in subjects_of(self.splits[split]))

    def match(self, record: TrainedOn, given: frozenset[str] = frozenset(), *, labelled: bool = True) -> None:
        """Also match the signals by name, compare their units, and normalise them as in training.

        Raises:
            MisconfigurationException: Classes, signals, units, window lengths or input settings differ.
        """
        elsewhere = self.tests_a_file or (type(self).__name__, self.place) != (record.datamodule, record.place)
        self._matching = SignalMatching.of(self, record.own, elsewhere and record.own.get("signals") is not None)
        if self._matching.elsewhere:
            self._record = SignalRecord.from_state(record.own["signals"])
        super().match(record, given, labelled=labelled)

    def _checked_part(self, part: Literal["train", "test"]) -> Batch:
        data = super()._checked_part(part)
        if self._matching is None:
            return data
        data = {**data, "signal": self._matching.in_order(data["signal"])}
        if self._matching.elsewhere:
            self._matching.check_scale(data["signal"], *self.signal_scale, self.place)
        return data

    # ---- description for a feature cache ----

    @property
    def split_settings(self) -> dict[str, Scalar]:
        """Settings that decide which window is in which split."""
        return {
            "val_subjects": as_scalar(self.val_subjects),
            "val_subject_id": self.val_subject_id,
            "split_seed": self.split_seed,
            **self._fold_settings(),
        }

    @property
    def transform_settings(self) -> dict[str, Scalar]:
        """Settings that change the network's input in evaluation, apart from size, mean and standard deviation."""
        images = self.signal_images
        views = self.extraction is not None and self.extraction.views > 1
        return {
            **(flat_settings(asdict(self.signal_augmentation), "views.") if views else {}),
            "mode": images.mode,
            "encoder": images.encoder,
            "encoder_range": images.encoder_range,
            **({} if images.asinh_scale is None else {"asinh_scale": images.asinh_scale}),
            **flat_settings(images.encoder_args, "encoder."),
        }

    # ---- state in the checkpoint ----

    def state_dict(self) -> dict[str, Any]:
        """Return the normalisation and the training and validation subjects, as plain values."""
        return {} if self._record is None else self._record.as_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the normalisation of the training run, and check that the split does not evaluate on subjects seen in training.

        Raises:
            MisconfigurationException: The training subjects differ from the checkpoint's, or, when training continues, the training
                signals differ.
        """
        before = SignalRecord.from_state(state_dict)
        if self._record is not None:
            training = self.trainer is None or self.trainer.state.fn == "fit"
            self._record.check_follows(before, training)
        self._record = before
