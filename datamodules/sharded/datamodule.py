"""`ShardedImagesDataModule`: classes of images in WebDataset shards, on a disk or in any store that fsspec knows.

shard-00000.tar:  0001.jpg 0001.cls  0002.jpg 0002.cls ...          .cls: a number from 0, or the name of a class

shard --index, once--> offsets and labels --order (seed, epoch)--> workers: read from the local copy, decode --> the device
                                                                   (as `ImageFolderDataModule`: same bytes, same pixels)
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import DataModule
from datamodules.extraction import Labelled
from datamodules.images.checking import kinds_of, levels_of
from datamodules.images.decoding import FULL, Levels
from datamodules.images.header import EVAL_SHARE, Framing, GivenHeader
from datamodules.images.labelled import LabelledFiles, Unreadable, readable
from datamodules.images.loader import ImageFileLoader, ImageFiles
from datamodules.images.settings import check, check_levels, check_turn_and_colours, check_workers, loading
from datamodules.images.unlabelled import given_images
from datamodules.in_memory import InMemoryLoader
from datamodules.sharded.cache import ShardCache
from datamodules.sharded.listing import Reading, ShardedSamples, names_of_labels, read_class_names, read_indices
from datamodules.sharded.loader import ShardedImages, ShardLoader
from datamodules.sharded.settings import Given, ShardSettings
from datamodules.sharded.shard_index import ShardIndex
from datamodules.sharded.store import is_remote
from datamodules.splitting.stratified import stratified_split
from features import data_of_tensors

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "predict"]


class ShardedImagesDataModule(GivenHeader, DataModule):
    """Images with one class each, in WebDataset shards.

    Args:
        shards: Training shards: a folder of .tar files, a file, a pattern such as `shards/train-*.tar`, braces such as
            `s3://bucket/train-{000..146}.tar`, or a list of these.
        val_shards: Validation shards, given likewise; null holds out val_fraction of the training shards.
        test_shards: Test shards, given likewise; null holds out test_fraction of the training shards.
        test_fraction: Share of the training shards held out for testing if there are no test shards, 0 to below 1; 0: none.
        classes: File with the name of a class per line, for labels that are numbers from 0 or such names; null takes the classes
            from the labels of the training shards.
        label_field: Field of the member .json that holds the label, such as `label` or `annotation.class`; null: the label is the
            member .cls.
        shuffle_shards: Shards whose samples are shuffled together, 1 or more; also the number of shards that are read at a time.
        cache_folder: Folder for the index of each shard and for local copies of remote shards.
        cache_limit_gb: Largest size of the local copies of remote shards together, in units of 1e9 bytes; those unused for the
            longest time are removed.
        patience_s: Seconds for which a store that does not answer is asked again, 0 or more.
        image_size: Side of the network's square input images in pixels, or [HEIGHT, WIDTH].
        framing: How a picture gets to that size. `crop`: random crops in training, its central part in evaluation. `letterbox`:
            the whole picture keeps its proportions and is padded to the size; in training, random crops are cut of that.
        pad_value: Value of the border of `letterbox` in all channels, 0 (black) to 1 (white).
        canvas: Size that workers resize a training image to, as a multiple of the training size, 1 or more.
        crop_scale: Smallest share of the image area that the random resized crop covers, above 0, up to 1.
        crop_ratio: Largest ratio of the crop's longer side to its shorter side, 1 or more.
        eval_share: As for `ImageFolderDataModule`.
        flip: Mirror each training image left to right with probability one half.
        turn: Turn each square training image by 0, 90, 180 or 270 degrees, equally likely; for pictures without up and down.
        color_jitter: Strength x of random brightness, contrast and saturation, each a factor of 1 - x to 1 + x, and of a tint
            within a quarter of that, 0 to 1.
        erasing_prob: Probability of random erasing for each training image, 0 to 1 (arXiv:1708.04896).
        unreadable: Handling of images that cannot be read: `skip` logs and leaves them out, `refuse` aborts the run.
        channels: 3 reads images as RGB, 1 as grey.
        levels: Grey values that become black and white, for images of more than 8 bits; null: 0 and 65535.
        mean: Mean of each channel for normalisation, in units of 0..1; null uses ImageNet's.
        std: Standard deviation of each channel for normalisation, in units of 0..1; null uses ImageNet's.
        workers: Decoding processes per training process; null uses one for each available CPU core, at most 16.
        prefetch: Batches that each worker prepares ahead, 1 or more.
        persistent_workers: Keep the workers from one epoch to the next.
        pin_memory: Put batches into page-locked memory; null does so if the device is a CUDA device.
        **kwargs: Settings of every datamodule, see `DataModule`.

    Raises:
        ValueError: A setting is out of its range.
        MisconfigurationException: A shard is missing, damaged or cannot be read, or a label is no class (raised at the first access
            to the data, class names included).
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *DataModule.fixed_on_resume,
        "image_size",  # determines the grid of a transformer's position embeddings
        "framing",
        "pad_value",
        "test_fraction",
        "label_field",
        "shuffle_shards",
        "unreadable",
    )

    def __init__(
        self,
        shards: Given = None,
        val_shards: Given = None,
        test_shards: Given = None,
        test_fraction: float = 0.1,
        classes: str | None = None,
        label_field: str | None = None,
        shuffle_shards: int = 8,
        cache_folder: str = "caches/shards",
        cache_limit_gb: float = 20.0,
        patience_s: float = 60.0,
        image_size: int | list[int] = 224,
        framing: Framing = "crop",
        pad_value: float = 0.5,
        canvas: float = 1.15,
        crop_scale: float = 0.35,
        crop_ratio: float = 4 / 3,
        eval_share: float = EVAL_SHARE,
        flip: bool = True,
        turn: bool = False,
        color_jitter: float = 0.0,
        erasing_prob: float = 0.0,
        unreadable: Unreadable = "skip",
        channels: Literal[1, 3] = 3,
        levels: list[float] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        workers: int | None = None,
        prefetch: int = 4,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(crop_padding=0, shrink="resize", on_device=False, flip=flip, **kwargs)
        if self.fold is not None:
            raise ValueError(
                f"fold {self.fold}: shards are read as they were written, by split; fold the folder of images"
            )
        check_levels(levels)
        shape: dict[str, Any] = {"canvas": canvas, "eval_share": eval_share, "framing": framing, "pad_value": pad_value}
        self._give_header(image_size, channels, mean, std, **shape)
        check_workers(workers, prefetch)
        check(
            ("test_fraction", test_fraction, 0 <= test_fraction < 1, "at least 0 and below 1"),
            (
                "test_fraction",
                test_fraction,
                test_fraction + self.val_fraction < 1,
                f"below 1 with val_fraction {self.val_fraction:g}",
            ),
            # a sample drawn again would be read in another block of shards than the cache holds
            ("sampling", self.sampling, self.sampling == "shuffled", "shuffled: shards are read one block at a time"),
            ("shuffle_shards", shuffle_shards, shuffle_shards >= 1, "1 or more"),
            ("cache_limit_gb", cache_limit_gb, cache_limit_gb > 0, "above 0"),
            ("cache_folder", cache_folder, bool(cache_folder), "a folder"),
            ("patience_s", patience_s, patience_s >= 0, "0 or more"),
            ("label_field", label_field, label_field is None or bool(label_field), "the name of a field, or null"),
        )
        check_turn_and_colours(turn, color_jitter, self.image_size, channels)
        self.augmentation = replace(
            self.augmentation,
            erasing_prob=erasing_prob,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            turn=turn,
            color_jitter=color_jitter,
        )
        self._shards = ShardSettings(shards, val_shards, test_shards, self.val_fraction, test_fraction, self.split_seed)
        self.test_fraction, self.classes, self.label_field = test_fraction, classes, label_field
        self.shuffle_shards, self.patience_s, self.unreadable = shuffle_shards, patience_s, unreadable
        self.levels: Levels | None = (levels[0], levels[1]) if levels is not None else None
        self._cache = ShardCache(Path(cache_folder), round(cache_limit_gb * 1e9), patience_s)
        self.workers, self.prefetch = workers, prefetch
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
        self._samples: dict[Labelled, ShardedSamples] = {}
        self._read: dict[str, ShardIndex] = {}
        self._given: LabelledFiles | None = None

    # ---- the header ----

    @cached_property
    def class_names(self) -> list[str]:
        """Names from the file `classes`; else the labels of the training shards: sorted names, or the numbers 0 to the largest."""
        return names_of_labels(self._labelling()) if self.classes is None else read_class_names(self.classes)

    @property
    def place(self) -> str:
        """The training shards, or those tested; a path on this machine is absolute."""
        given = self._shards.shards or self._shards.test_shards or self._shards.val_shards
        first = given if isinstance(given, str) or given is None else given[0]
        return type(self).__name__ if first is None else first if is_remote(first) else str(Path(first).absolute())

    # ---- shards and splits ----

    @property
    def labelled_splits(self) -> tuple[Labelled, ...]:
        """The splits that the data has."""
        splits: tuple[Labelled, ...] = ("train", "val", "test")
        return tuple(split for split in splits if self._shards.has(split))

    def _indices(self, split: Labelled) -> list[ShardIndex]:
        addresses = self._shards.find(split, self.patience_s)
        if missing := [address for address in addresses if address not in self._read]:
            how = Reading(self._cache, self.label_field, self.levels is not None)
            rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            self._read.update(zip(missing, read_indices(missing, how, rank, world, split), strict=True))
        return [self._read[address] for address in addresses]

    def _labelling(self) -> list[ShardIndex]:
        """The shards whose labels say what the classes are: the training shards, or the others if there are none."""
        return self._indices(next(iter(self.labelled_splits), "train"))

    @cached_property
    def _numbers(self) -> bool:
        """Whether labels are numbers of classes."""
        return all(label.isascii() and label.isdigit() for index in self._labelling() for label in index.labels)

    def samples(self, split: Labelled) -> ShardedSamples:
        """The samples of the shards of a split; the sample with `index` i is the i-th."""
        if split not in self._samples:
            found = ShardedSamples(self._indices(split), self.own_class_names, self._numbers, self.unreadable)
            self._check_limit(found)
            self._samples[split] = found
        return self._samples[split]

    def _check_limit(self, samples: ShardedSamples) -> None:
        sizes = sorted((index.version.size for index in samples.indices if is_remote(index.address)), reverse=True)
        need = sum(sizes[: self.shuffle_shards])
        if need > self._cache.limit:
            raise MisconfigurationException(
                f"--data.cache_limit_gb {self._cache.limit / 1e9:g}: --data.shuffle_shards {self.shuffle_shards} "
                f"shards of this set take up to {need / 1e9:.3g}; raise the limit, or shuffle fewer shards together"
            )

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """List all samples of the training or test shards.

        Returns:
            `label` (N,) int64 and `index` (N,) int64, each sample's position in `samples`.
        """
        labels = self.samples(part).labels
        return {"label": labels, "index": torch.arange(len(labels))}

    def _split_training_data(self) -> None:
        labels = self.samples("train").labels
        used, _ = stratified_split(labels, 0.0, seed=self.split_seed, name="train_fraction", used=self.train_fraction)
        self.splits["train"] = {"label": self.as_trained(labels[used]), "index": used}
        labels = self.samples("val").labels
        self.splits["val"] = {"label": self.as_trained(labels), "index": torch.arange(len(labels))}
        if self.trained_on is None:
            _ = self.class_counts  # raises if a class has no training image

    @property
    def split_settings(self) -> dict[str, str | int | float | bool | None]:
        """Settings that decide which sample is in which split."""
        return {**super().split_settings, "test_fraction": self.test_fraction, **self._shards.identity(("val", "test"))}

    @property
    def transform_settings(self) -> dict[str, str | int | float | bool | None]:
        """See `ImageFolderDataModule`."""
        views = self.extraction.views if self.extraction is not None else 1
        levels = {} if self.levels is None else {"levels": "{:g} {:g}".format(*self.levels)}
        return {**self._evaluated_as, **levels, **({"views.canvas": self.canvas} if views > 1 else {})}

    def left_by_the_draw(self) -> tuple[int, Tensor, str]:
        """See `MatchedToCheckpoint`."""
        if self._shards.test_shards is not None:
            return super().left_by_the_draw()
        keys = torch.cat([self.samples(split).keys for split in ("train", "val")])
        return len(keys), keys, f"give --data.test_shards {shlex.quote(str(self._shards.shards))}"

    def sample_keys(self, split: str) -> Tensor:
        """Keys of a split's samples, (n,) int64: hashes of their images, equal to those of the same files in a folder."""
        return self.samples(split).keys[self.splits[split]["index"]]  # type: ignore[arg-type]

    def file_kinds(self, split: str) -> dict[str, float]:
        """Shares of grey images and of images with more than 8 bits in a split."""
        return kinds_of(self.samples(split).looks(self.splits[split]["index"]))  # type: ignore[arg-type]

    def _fingerprint(self) -> tuple[str, None]:
        samples = [self.samples(split) for split in self.labelled_splits]
        keys, labels = (torch.cat([getattr(one, name) for one in samples]) for name in ("keys", "labels"))
        return data_of_tensors({"key": keys, "label": labels}), None

    def unreadable_of(self, split: Labelled) -> int:
        """Return the number of samples of a split with a readable header that this process could not decode."""
        missed = torch.tensor(sorted(self.samples(split).missed))
        return int(torch.isin(self.splits[split]["index"], missed).sum())

    def files(self, split: Labelled) -> list[str]:
        """Shard and name in it of each sample; the sample with `index` i is the i-th."""
        samples = self.samples(split)
        return [samples.name(place) for place in range(len(samples))]

    def predicted_files(self) -> list[str]:
        """Files that predict serves; of the test split, shard and name in it."""
        if self.images is not None:
            assert self._given is not None
            return self._given.names
        return self.files("test")

    def setup(self, stage: str) -> None:
        """Index and split the shards that the stage needs, once; no image is decoded."""
        if stage == "predict" and self.extraction is None and self.images is not None:
            if self._given is None:
                folder, names = given_images(self.images, self.in_channels)
                looks = readable(folder, names, self.unreadable, self.levels is not None)
                self._given = LabelledFiles(folder, list(looks), torch.full((len(looks),), -1), [*looks.values()])
                self.splits["predict"] = {"index": torch.arange(len(looks))}
                log.info(f"data       {len(looks):,} picture{'s' * (len(looks) != 1)}, {self.framed}")
            return
        super().setup(stage)
        if stage == "predict" and self.extraction is not None:
            self.check_input(self.extraction.splits)
            return  # setup of each split has already logged its counts
        evaluated = ("train", "val") if self.extraction else ("val",)
        of_stage = {"fit": ("train", "val"), "validate": evaluated}.get(stage, ("test",))
        counts = " and ".join(f"{len(self.splits[split]['index']):,} {split}" for split in of_stage)
        log.info(f"data       {counts} images of {self.num_classes} classes in {self.place}, {self.framed}")

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Log what was checked when the shards were indexed, and what an epoch leaves out; see `DataModule`."""
        count = sum(len(self.samples(split)) for split in splits)
        shards = sum(len(self.samples(split).indices) for split in splits)
        log.info(
            f"checked    header and end of {count:,} images in {shards:,} shards; their pixels are decoded in the epochs"
        )
        self._check_variety(splits)

    # ---- loaders ----

    def _loader(self, split: Split) -> InMemoryLoader:
        training = split == "train" and (self.extraction is None or self.extraction.augments(split))
        how = {"channels": self.in_channels, **self.decoded_as(training, self.train_size)}
        workers = loading(self.trainer, self.workers, self.prefetch, self.persistent_workers, self.pin_memory)
        if split == "predict" and self._given is not None:
            given, levels = self._given, levels_of(self._given.looks, self.levels)
            files = ImageFiles(given.folder, given.names, None, levels=levels, **how)
            report = partial(given.leave_out, self.unreadable)
            return ImageFileLoader(
                files, self.splits["predict"]["index"], unreadable=report, **workers, **self._order(split)
            )
        of: Labelled = "test" if split == "predict" else split
        samples = self.samples(of)
        deep = (self.levels or FULL) if samples.deep else None
        labels = self.as_trained(samples.labels)
        images = ShardedImages(samples, self._cache, labels, levels=deep, **how)
        return ShardLoader(
            images,
            self.splits[of]["index"],
            block=self.shuffle_shards,
            unreadable=samples.leave_out,
            **workers,
            **self._order(split),
        )
