"""The shared part of the datamodules of signals in windows: splits by person, normalisation, images of signals on the device.

    files --read_part--> (N, S, T) float32 --whole persons--> InMemoryLoader --device--> augmentation (training) --> normalise
         --> `signal`; in the modes of images also --encode--> `image`

What a batch and a datamodule promise is in `datamodules`, what readers promise in `datamodules.signals.windows`.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import transforms
from datamodules.base import Batch, DataModule
from datamodules.extraction import Scalar, flat_settings
from datamodules.signals.augmentation import SignalAugmentation
from datamodules.signals.checkpoint_record import SignalRecord
from datamodules.signals.images import Mode, SignalImages
from datamodules.signals.windows import (
    check_apart,
    check_classes_trained,
    held_out_subjects,
    subjects_of,
    taken,
)
from transforms import Encoder

log = logging.getLogger(__name__)


class SignalDataModule(DataModule):
    """Windows of signals in memory, split by person.

    Args:
        batch_size: Training windows in a batch of one process.
        eval_batch_size: Windows in a batch of validation, test and predict; null means twice batch_size.
        val_subjects: Persons of the training data held out for validation: how many, 1 or more, or which share, below 1.
        val_subject_id: The one person who is held out for validation, in place of `val_subjects`: for leave-one-subject-out.
        split_seed: Seed of the draw of persons, apart from the training seed, so that all seeds are judged by the same people.
        drop_last: Leave out the last training batch of an epoch where it is not full.
        mode: What a batch holds besides `signal`: `signals`, nothing; `flatten`, an image of each signal; `grid`, one image with
            each signal as a tile; `channels`, one image of which each signal is a channel.
        encoder: How a signal becomes an image; each is a function of `transforms`.
        encoder_args: Settings of the encoder, by name.
        encoder_range: Values of a normalised signal, in its standard deviations from the mean, to which the encoder's scale reaches
            either way, above 0; null scales each window by its own least and greatest value, which hides how strong it is.
        image_size: Height and width of an image in pixels.
        image_channels: Channels of the grey images of `flatten` and `grid`: 1, or 3 equal ones for networks that take nothing else.
        image_mean: Mean of the pixels for their normalisation, in units of 0..1; null takes that of UCI HAR with this encoder.
        image_std: Their standard deviation, likewise.
        rotation: Largest angle in degrees by which the sensors' frame is turned in training, 0 to 180; the signals must then stand
            in triples x, y, z of one sensor, as for `scaling`.
        scaling: Standard deviation of the logarithm of the factor that each sensor is multiplied by, 0 or more.
        time_warp: Largest relative change of speed within a window, 0 to below 1.
        jitter: Standard deviation of added noise, as a share of that of the signal in its window, 0 or more.
        channel_dropout: Probability that a signal is replaced by its mean, 0 to 1.
        augment_prob: Probability of each of these changes for each window, 0 to 1.
        on_device: Move the windows to the accelerator once instead of a batch at a time (34 MB for UCI HAR).

    Raises:
        ValueError: A setting is out of its range.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        "batch_size",
        "val_subjects",
        "val_subject_id",
        "split_seed",
        "drop_last",
    )

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        val_subjects: int | float = 0.2,
        val_subject_id: int | None = None,
        split_seed: int = 0,
        drop_last: bool = True,
        mode: Mode = "signals",
        encoder: Encoder = "gramian_angular_field",
        encoder_args: dict[str, int | float | str] | None = None,
        encoder_range: float | None = 3.0,
        image_size: int = 64,
        image_channels: Literal[1, 3] = 1,
        image_mean: float | None = None,
        image_std: float | None = None,
        rotation: float = 0.0,
        scaling: float = 0.0,
        time_warp: float = 0.0,
        jitter: float = 0.0,
        channel_dropout: float = 0.0,
        augment_prob: float = 1.0,
        on_device: bool = False,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            split_seed=split_seed,
            drop_last=drop_last,
            on_device=on_device,
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

    # ---- the header ----

    @property
    @abstractmethod
    def signal_names(self) -> list[str]:
        """Names of the S signals, in their order; reads only headers."""

    @property
    @abstractmethod
    def window_length(self) -> int:
        """T, samples in a window; reads only headers."""

    @property
    def image_size(self) -> int:
        """Height and width of an image in pixels; in the mode `signals` the window's length."""
        return self.window_length if self.signal_images.mode == "signals" else self.signal_images.image_size

    @property
    def images_per_window(self) -> int:
        """Images of one window: S in the mode `flatten`, else 1."""
        return len(self.signal_names) if self.signal_images.mode == "flatten" else 1

    @property
    def in_channels(self) -> int:
        """Channels of an image; in the mode `signals` the number of signals."""
        grey = self.signal_images.mode in ("flatten", "grid")
        return self.signal_images.image_channels if grey else len(self.signal_names)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the images, in units of 0..1; in the mode `signals` 0, see `signal_scale`."""
        return (0.0 if self.signal_images.mode == "signals" else self.signal_images.pixels[0],) * self.in_channels

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the images, likewise; in the mode `signals` 1."""
        return (1.0 if self.signal_images.mode == "signals" else self.signal_images.pixels[1],) * self.in_channels

    # ---- splits ----

    @abstractmethod
    def has_training_data(self) -> bool:
        """Say whether the training part is there; a machine that only tests may do without."""

    @property
    def subjects(self) -> dict[str, list[int]]:
        """Split -> numbers of its persons, ascending; of the splits that setup has read."""
        return {name: subjects_of(windows) for name, windows in self.splits.items()}

    def setup(self, stage: str) -> None:
        """Read what the stage needs, once; before a test, check that nothing of it was trained on.

        Fit and validate open no file of the test part. Test and predict read the training part too, where it is there: for the
        check, and for the normalisation of a network that is tested without a checkpoint.
        """
        self._check_images()
        testing = stage not in ("fit", "validate") and "test" not in self.splits
        super().setup(stage)
        if testing and "test" in self.splits and self.has_training_data():  # an extraction may be of other splits alone
            if "train" not in self.splits:
                self._split_training_data()
            check_apart({self._named(name): self.splits[name] for name in ("train", "val", "test")})

    def _check_images(self) -> None:
        """Refuse settings that do not fit the signals, by trying them on a window of zeros."""
        zeros = torch.zeros(1, len(self.signal_names), self.window_length)
        try:
            self.signal_augmentation.physical(zeros, transforms.SampleRandom(0, 0, torch.tensor([0])))
            if self.signal_images.mode != "signals":
                self.signal_images(zeros, self.image_size)
        except (ValueError, TypeError) as error:
            raise MisconfigurationException(f"data: the settings do not fit the signals: {error}") from error

    def _split_training_data(self) -> None:
        data = self._checked_part("train")
        people = subjects_of(data)
        if self.val_subject_id is None:
            held_out = held_out_subjects(people, self.val_subjects, seed=self.split_seed, name="val")
        else:
            held_out = [self.val_subject_id]
            if self.val_subject_id not in people or len(people) == 1:
                raise MisconfigurationException(
                    f"--data.val_subject_id {self.val_subject_id}: the training data has the subjects "
                    f"{', '.join(map(str, people))}; name one of them, of two or more"
                )
        train, val = taken(data, set(people) - set(held_out)), taken(data, held_out)
        check_classes_trained(train["label"], self.class_names, subjects_of(train))
        check_apart({self._named("train"): train, self._named("val"): val})
        self.splits["train"], self.splits["val"] = train, val
        self._record = SignalRecord.of(train, val)
        log.info(
            f"data       validation on subjects {', '.join(map(str, held_out))}, trained on {len(subjects_of(train))} others"
        )

    @staticmethod
    def _named(split: str) -> str:
        return {"train": "the training split", "val": "the validation split", "test": "the test split"}[split]

    # ---- batches ----

    @property
    def signal_scale(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (S,) float32 of each signal over the training subjects, by which windows are normalised.

        Those of the checkpoint, where one was loaded; else known after setup.

        Raises:
            MisconfigurationException: There is neither.
        """
        if self._record is None:
            raise MisconfigurationException(
                "there is no training data to take the normalisation from; evaluate a checkpoint, which has it, or add the data"
            )
        return self._record.mean, self._record.std

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Return a batch as it is trained on: a function of the batch, the seed and the epoch (from 0) alone."""
        random = transforms.SampleRandom(self.seed, epoch, batch["index"])
        changes = self.signal_augmentation.at(self.strength)
        signal = changes.normalised(self._scaled(changes.physical(batch["signal"].float(), random)), random)
        return self._with_image({**batch, "signal": signal}, self.train_size)

    def prepared(self, signals: Tensor) -> Batch:
        """Raw windows (B, S, T), in physical units, as a network is given them in evaluation: `signal` and `image`, normalised."""
        return self._normalize({"signal": signals})

    def _normalize(self, batch: Batch) -> Batch:
        return self._with_image({**batch, "signal": self._scaled(batch["signal"].float())}, self.image_size)

    def _scaled(self, signal: Tensor) -> Tensor:
        mean, std = (values.to(signal.device)[:, None] for values in self.signal_scale)
        return (signal - mean) / std

    def _with_image(self, batch: Batch, size: int) -> Batch:
        images = self.signal_images
        return batch if images.mode == "signals" else {**batch, "image": images(batch["signal"], size)}

    def _view(self, batch: Batch, number: int) -> Tensor:
        """The images of a batch as epoch `number` has them, for a cache of features."""
        assert self.trainer is not None
        converted: Tensor = self.trainer.precision_plugin.convert_input(self.augment(batch, number)["image"])
        return converted

    # ---- what a cache of features is told ----

    @property
    def split_settings(self) -> dict[str, Scalar]:
        """Settings that decide which window is in which split."""
        return {name: getattr(self, name) for name in ("val_subjects", "val_subject_id", "split_seed")}

    @property
    def transform_settings(self) -> dict[str, Scalar]:
        """Settings that change what the network sees of a window in evaluation, apart from size, mean and standard deviation."""
        images = self.signal_images
        views = self.extraction is not None and self.extraction.views > 1
        return {
            **(flat_settings(asdict(self.signal_augmentation), "views.") if views else {}),
            "mode": images.mode,
            "encoder": images.encoder,
            "encoder_range": images.encoder_range,
            **flat_settings(images.encoder_args, "encoder."),
        }

    # ---- what a checkpoint was trained on ----

    def state_dict(self) -> dict[str, Any]:
        """The normalisation and the persons trained and validated on, as plain values."""
        return {} if self._record is None else self._record.as_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the normalisation that the network was trained with, and refuse a split that would judge it by what it has seen.

        Raises:
            MisconfigurationException: The persons trained on are others than the checkpoint's, or, to train on, the signals are.
        """
        before = SignalRecord.from_state(state_dict)
        if self._record is not None:
            training = self.trainer is None or self.trainer.state.fn == "fit"
            self._record.check_follows(before, training)
        self._record = before


def check_subjects(setting: str, value: int | float) -> None:
    """Check a number or a share of persons.

    Raises:
        ValueError: It is neither.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"{setting} is {value!r} but must be a whole number of subjects from 1, or a share above 0 and below 1"
        )
