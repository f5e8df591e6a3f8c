"""`DataModule`, the base class of all datamodules: splits, loaders, and augmentation of whole batches on the device.

A subclass defines its class names and image format and implements `read_part`. `datamodules` documents the contract of a batch and
of a datamodule.

    disk --read_part--> uint8 tensors --stratified split--> InMemoryLoader --device--> policy, crop, flip, resize to train_size
         (uint8) --> normalise (float32) --> mixup or cutmix (adds `target`)        (validation, test, predict: normalise only)
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import transforms
from datamodules.augmentation import Augmentation
from datamodules.balanced import balanced_draw
from datamodules.checkpoint_data import MatchedToCheckpoint
from datamodules.extraction import Extractable, Labelled, views_of
from datamodules.images.unlabelled import GivenImages, read_images
from datamodules.in_memory import InMemoryLoader, Keep, beginning, check_enough, num_batches, processes
from datamodules.in_memory import training_position as position
from datamodules.splitting.folds import Fold
from datamodules.splitting.stratified import check_labels, count_classes, stratified_split
from foundation.sizes import Size

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class DataModule(MatchedToCheckpoint, Extractable, ABC):
    """In-memory images with a stratified validation split and seeded augmentation on the device.

    Args:
        batch_size: Training samples in a batch of one process.
        eval_batch_size: Samples in a batch of validation, test and predict; null: twice batch_size, since no gradients are kept.
        val_fraction: Share of every class of the training data held out for validation, above 0 and below 1.
        train_fraction: Share of the remaining samples that is used for training, above 0, up to 1; the validation split does not
            depend on it, and a smaller share is a subset of a larger one.
        split_seed: Seed of the splits, separate from the training seed, so that runs with different seeds use the same splits.
        drop_last: Drop the last training batch of an epoch if it is not full.
        sampling: `balanced` draws each class equally often in an epoch, which keeps its length: samples of a rare class several
            times, each newly augmented, of a frequent one a new part in each epoch. `shuffled` takes each training sample once.
        crop_padding: Pixels of padding added on each side before a random crop of the image's original size; 0 disables the crop.
        flip: Mirror each training image left to right with probability one half.
        policy: Automatic augmentation: randaugment (arXiv:1909.13719) or autoaugment (its CIFAR-10 policy, arXiv:1805.09501).
        randaugment_ops: Operations that RandAugment applies to an image, from 1.
        randaugment_magnitude: Strength of RandAugment's operations, 0 to 30.
        mixup_alpha: Both parameters of the Beta distribution of mixup's share (arXiv:1710.09412), above 0.
        mixup_prob: Probability of mixup for each image, 0 to 1; if mixup and cutmix are both drawn, a fair coin picks one.
        cutmix_alpha: Both parameters of the Beta distribution of cutmix's area (arXiv:1905.04899), above 0.
        cutmix_prob: Probability of cutmix for each image, 0 to 1.
        shrink: How images are made smaller where `train_size` is below their size: resize scales them down; crop cuts a window out
            of the padded image at its original scale, which is better for small images.
        on_device: Move the data to the accelerator once instead of a batch at a time; uses its memory (0.2 GB for CIFAR-10).
        images: What predict reads in place of the test split: a folder of image files without labels, subfolders included, a file,
            a pattern such as `photos/*.jpg`, or a list of these; each whole image is resized with antialiasing and converted to
            the size and channels that the network was trained on.
        fold: `2/5` tests the second of five parts of the training data, by whole groups and stratified by class, and trains on the
            others; `tools.experiments --folds 5` runs all. A test split of the data stays apart. null: no folds.

    Raises:
        ValueError: A setting is out of its range.
    """

    seed: int = 0
    """Seed of the training order and of the augmentation; main.py sets it from --seed_everything."""

    strength: float = 1.0
    """Factor, 0 or more, of RandAugment's magnitude and of the probabilities of mixup, cutmix and erasing, which stay at most 1."""

    parts: int = 1
    """Number of training batches that each configured batch was cut into after running out of memory (cli/out_of_memory.py)."""

    turns: int = 1
    """Processes of the original run whose training batches each process of a resumed run serves (cli/processes.py)."""

    _train_size: Size | None = None

    said_by_check: ClassVar[bool] = False  # whether `check_input` is quick and logs the counts that setup does not
    sample_unit: ClassVar[str] = "img"  # what a sample is, in lines of the speed
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *("batch_size", "val_fraction", "train_fraction", "split_seed", "drop_last", "sampling", "fold"),
    )
    """Settings that must not change when a run is resumed: they determine the length of an epoch and the held-out samples."""

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        train_fraction: float = 1.0,
        split_seed: int = 0,
        drop_last: bool = True,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        crop_padding: int = 0,
        flip: bool = False,
        policy: Literal["none", "randaugment", "autoaugment"] = "none",
        randaugment_ops: int = 2,
        randaugment_magnitude: int = 9,
        mixup_alpha: float = 1.0,
        mixup_prob: float = 0.0,
        cutmix_alpha: float = 1.0,
        cutmix_prob: float = 0.0,
        shrink: Literal["resize", "crop"] = "resize",
        on_device: bool = False,
        images: str | list[str] | None = None,
        fold: str | None = None,
    ) -> None:
        super().__init__()
        eval_batch_size = eval_batch_size if eval_batch_size is not None else 2 * batch_size
        for name, value, good, wanted in (
            ("batch_size", batch_size, batch_size >= 1, "1 or more"),
            ("eval_batch_size", eval_batch_size, eval_batch_size >= 1, "1 or more"),
            ("val_fraction", val_fraction, 0 < val_fraction < 1, "above 0 and below 1"),
            ("train_fraction", train_fraction, 0 < train_fraction <= 1, "above 0, up to 1"),
        ):
            if not good:
                raise ValueError(f"{name} is {value!r} but must be {wanted}")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.drop_last, self.on_device, self.sampling = drop_last, on_device, sampling
        self.val_fraction, self.train_fraction, self.split_seed = val_fraction, train_fraction, split_seed
        self._keep_in_training: Keep = "full" if drop_last else "equal"
        self.augmentation = Augmentation(
            crop_padding=crop_padding,
            flip=flip,
            policy=policy,
            randaugment_ops=randaugment_ops,
            randaugment_magnitude=randaugment_magnitude,
            mixup_alpha=mixup_alpha,
            mixup_prob=mixup_prob,
            cutmix_alpha=cutmix_alpha,
            cutmix_prob=cutmix_prob,
            shrink=shrink,
        )
        self.images, self.fold = GivenImages.of(images), Fold.of(fold)
        self._files: list[str] | None = None
        self.splits: dict[str, Batch] = {}
        self.seen: dict[str, int] = {}  # split -> samples of it that the checkpoint was trained on

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels; reads only headers."""

    @property
    @abstractmethod
    def image_size(self) -> Size:
        """Side of a square image in pixels, or height and width; reads only headers."""

    @property
    def train_size(self) -> Size:
        """Size in pixels of the network's input in training: `image_size` unless progressive resizing changed it.

        May be set between epochs and then applies to loaders made afterwards. Evaluation always uses `image_size`.
        """
        return self.image_size if self._train_size is None else self._train_size

    @train_size.setter
    def train_size(self, size: Size) -> None:
        self._train_size = size

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """Channels of an image."""

    @property
    @abstractmethod
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel of the training images, in units of 0..1."""

    @property
    @abstractmethod
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel of the training images, in units of 0..1."""

    @property
    def feature_width(self) -> int | None:
        """Length of a feature vector if the datamodule serves cached features; None if it serves images."""
        return None

    @property
    def signals(self) -> int | None:
        """Number of signals of a window; None if the datamodule serves no signals."""
        return None

    @abstractmethod
    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Read all training samples, including those of the validation split, or all test samples.

        Returns:
            `image` (N, C, H, W) uint8, `label` (N,) int64 and `index` (N,) int64, each sample's position in its data set.
        """

    @property
    def num_classes(self) -> int:
        """Number of classes; reads only headers."""
        return len(self.class_names)

    @property
    def class_counts(self) -> Tensor:
        """Number of training samples of each class, (K,) int64, without the validation split; known after setup("fit")."""
        return count_classes(self.splits["train"]["label"].cpu(), self.class_names)

    def setup(self, stage: str) -> None:
        """Read the splits of a stage, once: train and val for fit and validate, test for test and predict, or predict's images."""
        if stage in ("fit", "validate"):
            if "train" not in self.splits:
                self._split_training_data()
            if stage == "fit":
                self.num_train_batches()  # raises early if the batch size leaves no full batch
        elif stage == "predict" and self.extraction is not None:
            for name in {"validate" if split != "test" else "test": None for split in self.extraction.splits}:
                self.setup(name)
        elif stage == "predict" and self.images is not None:
            if self._files is None:
                size, channels, inputs = self.image_size, self.in_channels, self.transform_settings
                self._files, image = read_images(self.images, size, channels, inputs)
                self.splits["predict"] = {"image": image, "index": torch.arange(len(image))}
        elif "test" not in self.splits:
            self.splits["test"] = self._checked_part("test")
        self._count_seen(stage)

    def _count_seen(self, stage: str) -> None:
        """Count once the samples to be evaluated that the checkpoint was trained on; in a fit, say how many an epoch leaves out."""
        if stage == "fit":
            n = len(self.splits["train"]["label"])
            left = n - self.num_train_batches() * self.batch_size * processes(self.trainer)
            if left > 0.1 * n and self._keep_in_training == "full":
                log.info(f"data       {left:,} of {n:,} training samples are left out of each epoch (--data.drop_last)")
        split = {"validate": "val", "test": "test"}.get(stage)
        if split == "test" and len(self.splits["test"]["index"]) == 0:
            raise MisconfigurationException(f"{self.place}: the test split has no sample; is --data.test_fraction 0?")
        if split is not None and split not in self.seen:
            self.seen[split] = self.seen_in_training(split)

    def _split_training_data(self) -> None:
        data = self._checked_part("train")
        train, val = stratified_split(
            data["label"], self.val_fraction, seed=self.split_seed, name="val", used=self.train_fraction
        )
        if len(val) == 0:
            raise MisconfigurationException(
                f"--data.val_fraction {self.val_fraction} of {len(data['label'])} training samples, rounded per class, "
                "gives no validation sample; raise it"
            )
        if self.trained_on is None:
            count_classes(data["label"][train], self.class_names)
        self.splits["train"] = {name: values.index_select(0, train) for name, values in data.items()}
        self.splits["val"] = {name: values.index_select(0, val) for name, values in data.items()}

    def _checked_part(self, part: Literal["train", "test"]) -> Batch:
        with self.own_values():
            data = self._read_split(part)
            if "label" not in data:  # to be predicted
                return data
            check_labels(data["label"], len(self.class_names), f"the {part} data")
        return {**data, "label": self.as_trained(data["label"])}

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Judge the samples of these splits before the first step, and log one line about them; call after setup.

        Labels, shapes and files have been checked by setup. A split of one class only is said: its metrics can be perfect without
        a network that has learnt anything.

        Raises:
            MisconfigurationException: All training samples are of one class.
        """
        counts = " and ".join(f"{len(self.splits[split]['label']):,} {split}" for split in splits)
        log.info(f"data       {counts} samples of {self.num_classes} classes")
        self._check_variety(splits)

    def _check_variety(self, splits: Sequence[Labelled]) -> None:
        for split in splits:
            label = self.splits[split]["label"]
            there = label.unique().tolist() if label.ndim == 1 else []
            if len(there) != 1 or self.num_classes < 2:
                continue
            text = f"all {len(self.splits[split]['label']):,} samples of {split} are of class {self.class_names[there[0]]!r}"
            if split == "train":
                raise MisconfigurationException(f"{text}; there is nothing to learn")
            log.warning(f"{text}: its metrics say little")

    def prepare_sizes(self, sizes: Sequence[Size]) -> None:
        """Called before the first step with the training sizes to come, in pixels; for data that writes files for each size."""

    def num_train_batches(self, batch_size: int | None = None) -> int:
        """Count the training batches of an epoch on one process, without building a loader; call after setup("fit").

        Args:
            batch_size: Samples in a batch of one process; None means the datamodule's `batch_size`.

        Raises:
            MisconfigurationException: There is less than one batch per process.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        n, world_size = len(self.splits["train"]["label"]), processes(self.trainer) * self.turns
        count = num_batches(n, batch_size, keep=self._keep_in_training, world_size=world_size, parts=self.parts)
        check_enough(n, world_size, batch_size, count)
        return count * self.turns

    def last_train_batch(self, batch_size: int | None = None) -> int:
        """Samples in the last training batch of an epoch on each process; call after setup("fit"), as `num_train_batches`."""
        batch_size = self.batch_size if batch_size is None else batch_size
        own = len(self.splits["train"]["label"]) // (processes(self.trainer) * self.turns)
        return batch_size if self._keep_in_training == "full" else own % batch_size or batch_size

    def train_dataloader(self) -> InMemoryLoader:
        """Serve the training split in an order drawn from (seed, epoch), or unshuffled under Trainer(overfit_batches)."""
        return self._loader("train")

    def val_dataloader(self) -> InMemoryLoader:
        """Serve the validation split in the order of the data set."""
        return self._loader("val")

    def test_dataloader(self) -> InMemoryLoader:
        """Serve the test split in the order of the data set."""
        return self._loader("test")

    def predict_dataloader(self) -> InMemoryLoader | list[InMemoryLoader]:
        """Serve `images` by name, or the test split in order; in an extraction: a loader for each split that has samples left."""
        if self.extraction is not None:
            return self._extraction_loaders(self.extraction)
        return self._loader("test" if self.images is None else "predict")

    def predicted_files(self) -> list[str] | None:
        """Files that predict serves; `index` is a position in this list. None for a test split whose samples are no files.

        Known after setup("predict").
        """
        return self._files

    def _loader(self, split: Literal["train", "val", "test", "predict"]) -> InMemoryLoader:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        if self.on_device:
            self.splits[split] = {name: values.to(device) for name, values in self.splits[split].items()}
        pin_memory = device.type == "cuda" and not self.on_device
        return InMemoryLoader(self.splits[split], pin_memory=pin_memory, **self._order(split))

    def _order(self, split: Literal["train", "val", "test", "predict"]) -> dict[str, Any]:
        """Arguments that define the batches of a split and their order, for any loader; see `InMemoryLoader`."""
        trainer, training = self.trainer, split == "train" and self.extraction is None
        shuffle = training and not (trainer and trainer.overfit_batches)  # type: ignore[attr-defined]
        balanced = shuffle and self.sampling == "balanced"
        return {
            "batch_size": self.batch_size if training else self.eval_batch_size,
            "keep": self._keep_in_training if training else "all",
            "shuffle": shuffle,
            "resample": partial(balanced_draw, self.splits["train"]["label"], self.seed) if balanced else None,
            "seed": self.seed,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": processes(self.trainer),
            "parts": self.parts if training else 1,
            "turns": self.turns if training else 1,
            "position": partial(position, trainer) if trainer and training else beginning,
        }

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches and normalise all others, then convert float tensors to the dtype of Trainer(precision)."""
        assert self.trainer is not None
        if self.extraction is not None and self.extraction.augments(self.extraction.served[dataloader_idx]):
            images = {name: values for name, values in batch.items() if name != "image"}
            return {**images, "views": views_of(batch, self._view, self.extraction.views)}  # type: ignore[dict-item]
        training = self.trainer.training  # False in fit's validation and sanity check
        batch = self.augment(batch, self.trainer.current_epoch) if training else self._normalize(batch)
        # Lightning converts before this hook, when the images are still uint8.
        converted: Batch = self.trainer.precision_plugin.convert_input(batch)
        return converted

    def _view(self, batch: Batch, number: int) -> Tensor:
        """Augment each image as in epoch `number`, without mixup and cutmix, since each feature vector has one hard label."""
        assert self.trainer is not None
        random = transforms.SampleRandom(self.seed, number, batch["index"])
        unmixed = replace(self.augmentation, mixup_prob=0.0, cutmix_prob=0.0)
        viewed = unmixed(
            batch, random, num_classes=self.num_classes, mean=self.mean, std=self.std, size=self.train_size
        )
        converted: Tensor = self.trainer.precision_plugin.convert_input(viewed["image"])
        return converted

    def _normalize(self, batch: Batch) -> Batch:
        return {**batch, "image": transforms.normalize(batch["image"], self.mean, self.std)}

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Augment and normalise a batch of uint8 images for training; depends only on batch, seed and epoch (from 0)."""
        random = transforms.SampleRandom(self.seed, epoch, batch.pop("drawn", batch["index"]))
        return self.augmentation.at(self.strength)(
            batch, random, num_classes=self.num_classes, mean=self.mean, std=self.std, size=self.train_size
        )
