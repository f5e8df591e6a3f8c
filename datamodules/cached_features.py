"""`CachedFeaturesDataModule` serves features of a frozen backbone from a cache on disk, so that a head trains in seconds.

CACHE/header.json + shards (`features`) --map--> labels, indices; features on the device if they fit, else memory-mapped
    --order of (seed, epoch)--> rows of a batch: `features` (B, D) float32, `label`, `index`

Splits, class names, image size, mean and standard deviation are read from the cache. If a training sample has several views, each
epoch uses a different one until all have been used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import Batch, DataModule
from datamodules.extraction import Labelled
from datamodules.feature_loader import CachedFeaturesLoader
from datamodules.folded_cache import FoldedSplit, PooledSplits, check_foldable
from datamodules.in_memory import InMemoryLoader
from datamodules.sample_keys import row_keys
from datamodules.splitting.stratified import count_classes
from features import (
    MEANING,
    CachedSplit,
    CacheError,
    Header,
    Identity,
    check_fits,
    names_by_index,
    read_header,
    read_names,
)
from features.header import HEADER, UNFINISHED
from foundation.memory import free_memory
from foundation.places import absence, meant
from foundation.project import MAIN
from foundation.sizes import Size

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
P = ParamSpec("P")
T = TypeVar("T")


class CachedFeaturesDataModule(DataModule):
    """Features from a cache that `main.py predict` wrote.

    Args:
        cache: Folder of the cache, with header.json and the shards.
        batch_size: Training samples in a batch of one process.
        eval_batch_size: Samples in a batch of validation, test and predict; null: twice batch_size, since no gradients are kept.
        drop_last: Drop the last training batch of an epoch if it is not full.
        sampling: `balanced` draws each class equally often in an epoch, see :class:`DataModule`.
        on_device: Copy the features to the accelerator once, or to memory if there is no accelerator. null copies if the features
            take at most half of the free memory, and otherwise memory-maps the files, so that only the rows in use are read.
        verify: Read every shard once in setup and compare its checksum; if false, damage within a shard is not detected.
        images: What predict classifies in place of the test split, through the backbone, whose weights the model reads; as for
            :class:`DataModule`. null: the cached test features.
        backbone: Name of the backbone that must have computed the features; null accepts any.
        fold: `2/5` tests the second of five parts of all samples of the cache, see :class:`DataModule`; not for a cache that was
            split by groups or people, which it does not hold. A tenth of the others is for validation.
        weights_hash: Hash of the backbone weights that must have computed the features, as in header.json; null accepts any.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: There is no such folder (found when the header is first needed).
        MisconfigurationException: The cache is unfinished, damaged, or from another backbone.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = ("batch_size", "drop_last", "sampling", "fold")
    """Does not include `cache`: the folder may be moved, because the checkpoint stores the identity of the cache."""

    def __init__(
        self,
        cache: str = "cache",
        batch_size: int = 1024,
        eval_batch_size: int | None = None,
        drop_last: bool = True,
        sampling: Literal["shuffled", "balanced"] = "shuffled",
        on_device: bool | None = None,
        verify: bool = True,
        images: str | list[str] | None = None,
        backbone: str | None = None,
        weights_hash: str | None = None,
        fold: str | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            drop_last=drop_last,
            sampling=sampling,
            images=images,
            fold=fold,
        )
        self.cache, self.verify, self._resident = Path(cache), verify, on_device
        self._expected = {"backbone": backbone, "weights_hash": weights_hash}
        self._features: dict[str, CachedSplit | FoldedSplit] = {}
        self._copies: dict[str, Tensor] = {}

    # ---- the header ----

    @cached_property
    def header(self) -> Header:
        """The header of the cache; reads one small file."""
        if not self.cache.is_dir():
            raise FileNotFoundError(
                f"--data.cache {self.cache} {absence(self.cache)}; expected a folder with header.json and shards, as the "
                f"feature writer of {MAIN} predict makes it"
            )
        if not _holds_cache(self.cache) and (hint := meant(self.cache, _holds_cache)):
            raise FileNotFoundError(f"--data.cache {self.cache}: there is no feature cache{hint}")
        header = _readable(read_header, self.cache)
        for name, wanted in self._expected.items():
            if wanted is not None and (found := getattr(header.identity, name)) != wanted:
                raise MisconfigurationException(
                    f"--data.{name} is {wanted!r}, but {self.cache} has features from {found!r}; use a matching cache"
                )
        return header

    @property
    def identity(self) -> Identity:
        """How the features were produced: backbone, weights, layers, images and the other fields of `features.Identity`."""
        return self.header.identity

    @property
    def feature_width(self) -> int:
        """D, length of a feature vector."""
        return self.identity.feature_width

    @property
    def views(self) -> int:
        """Number of feature vectors of each training sample."""
        return self.identity.views

    @property
    def class_names(self) -> list[str]:
        """Names of the classes."""
        return list(self.identity.class_names)

    @property
    def labelled_splits(self) -> tuple[Labelled, ...]:
        """The splits that the cache has; reads only the header."""
        splits: tuple[Labelled, ...] = ("train", "val", "test")
        return splits if self.fold is not None else tuple(split for split in splits if split in self.header.splits)

    @property
    def class_counts(self) -> Tensor:
        """Number of training samples of each class, (K,) int64; reads only the header."""
        return torch.tensor(self.header.splits["train"].class_counts) if self.fold is None else super().class_counts

    @property
    def image_size(self) -> Size:
        """Side, or height and width, in pixels of the backbone's input images."""
        return self.identity.image_size

    @property
    def reads_stacks(self) -> bool:
        """Whether the images were of a folder, whose files may have any number of channels."""
        return not {"eval_share", "framing"}.isdisjoint(self.identity.transform)

    @property
    def in_channels(self) -> int:
        """Channels of the backbone's input images."""
        return len(self.identity.mean)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel used to normalise the images, in units of 0..1."""
        return self.identity.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel used to normalise the images, in units of 0..1."""
        return self.identity.std

    @property
    def transform_settings(self) -> dict[str, Any]:
        """Settings of the extraction that changed the backbone's input in evaluation."""
        return {name: value for name, value in self.identity.transform.items() if not name.startswith("views.")}

    # ---- splits ----

    def setup(self, stage: str) -> None:
        """Open the splits that the stage needs, once: train and val for fit, val for validate, else test; `verify` checks them.

        If `images` is set, predict reads that folder instead.
        """
        if stage == "predict" and self.images is not None:
            if "encoder" in self.identity.transform:
                raise MisconfigurationException(
                    f"--data.images {self.images}: {self.cache} has features of sensor signals, not of image files"
                )
            super().setup(stage)
            return
        wanted: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in wanted.get(stage, ("test",)):
            self._open(split)
        if stage == "fit":
            count_classes(self.splits["train"]["label"].cpu(), self.class_names)  # raises if a class has no sample
            self.num_train_batches()  # raises if the batch size leaves no full batch
        self._count_seen(stage)

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """See `DataModule`; the counts have been logged when the splits were opened."""
        self._check_variety(splits)

    @cached_property
    def _names(self) -> dict[str, dict[int, str]]:
        """Names of the samples by index, by split; empty if the cache has none."""
        return read_names(self.cache) or {}

    def files(self, split: Split) -> list[str] | None:
        """Names that the images of a split had in the extraction; the sample with `index` i has place i, other places hold "".

        None if the samples were no files, or the cache is of a version that did not store them.
        """
        pooled = {index: name for names in self._names.values() for index, name in names.items()}
        names = self._names.get(split, {}) if self.fold is None else pooled
        return names_by_index(self._open(split).index, names)

    def predicted_files(self) -> list[str] | None:
        """See `DataModule`; those of the test split as `files` names them."""
        return self.files("test") if self.images is None else super().predicted_files()

    def sample_keys(self, split: str) -> Tensor:
        """Keys of a split's samples, (n,) int64: hashes of the features, of the first view."""
        return row_keys(self.vectors(split, torch.arange(len(self._open(split).index))))  # type: ignore[arg-type]

    def vectors(self, split: str, places: Tensor) -> Tensor:
        """Feature vectors (m, D) of the first view, of the samples of a split at these places, (m,) int64."""
        opened = self._open(split)  # type: ignore[arg-type]
        return opened.take(places * opened.views)

    @cached_property
    def _folded(self) -> dict[str, FoldedSplit]:
        assert self.fold is not None
        check_foldable(self.cache, self.identity, self.fold)
        splits: dict[str, CachedSplit] = {
            split: _readable(CachedSplit, self.cache, self.header, split, verify=self.verify)
            for split in ("train", "val", "test")
            if split in self.header.splits
        }
        return PooledSplits(self.cache, splits).parts(self.fold, self.val_fraction, self.split_seed)

    def _opened(self, split: Split) -> CachedSplit | FoldedSplit:
        if self.fold is not None:
            return self._folded[split]
        return _readable(CachedSplit, self.cache, self.header, split, verify=self.verify)

    def _open(self, split: Split) -> CachedSplit | FoldedSplit:
        if split not in self._features:
            opened = self._opened(split)
            self._features[split] = opened
            self.splits[split] = {"label": self.as_trained(opened.label), "index": opened.index}
            log.info(f"data       {len(opened.index):,} {split} features of width {opened.width} in {self.cache}")
        return self._features[split]

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Return labels and indices of the training and validation splits, or of the test split; see `DataModule.read_part`."""
        opened = [self._open(split) for split in (("train", "val") if part == "train" else ("test",))]
        return {name: torch.cat([getattr(split, name) for split in opened]) for name in ("label", "index")}

    # ---- loaders ----

    def _loader(self, split: Literal["train", "val", "test", "predict"]) -> InMemoryLoader:
        if split == "predict":
            return super()._loader(split)
        trainer, opened = self.trainer, self._features[split]
        device = trainer.strategy.root_device if trainer else torch.device("cpu")
        resident = self._fits(opened.bytes, device) if self._resident is None else self._resident
        if resident:
            copied = self._copies.get(split)
            self._copies[split] = opened.whole(device) if copied is None else copied.to(device)
            self.splits[split] = {name: values.to(device) for name, values in self.splits[split].items()}
        copy = self._copies[split] if resident else None
        return CachedFeaturesLoader(
            opened.take if copy is None else partial(copy.index_select, 0),
            opened.views,
            self.splits[split],
            pin_memory=device.type == "cuda" and copy is None,
            **self._order(split),
        )

    def _fits(self, size: int, device: torch.device) -> bool:
        """Whether `size` bytes are at most half of the free memory of the device, or of the host if the device is not CUDA."""
        if device.type == "cuda":
            return 2 * size <= torch.cuda.mem_get_info(device)[0]
        processes = len(getattr(self.trainer.strategy, "parallel_devices", None) or [0]) if self.trainer else 1
        return 2 * size * processes <= free_memory()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Convert the features to the dtype of Trainer(precision); see `DataModule` for images."""
        if "features" not in batch:
            return super().on_after_batch_transfer(batch, dataloader_idx)
        assert self.trainer is not None
        converted: Batch = self.trainer.precision_plugin.convert_input(batch)
        return converted

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Return the batch unchanged: the images were augmented before extraction, and the loader chooses the view."""
        return batch

    # ---- which cache a checkpoint was trained on ----

    def state_dict(self) -> dict[str, Any]:
        """The identity of the cache, as plain values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.identity).items()
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint was trained on features produced the same way; for evaluation the images may differ.

        Raises:
            MisconfigurationException: The cache differs from the checkpoint's; the message names the first differing field.
        """
        known = {field.name for field in fields(Identity)}
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in state_dict.items()
            if name in known
        }
        trained_on = _readable(Identity, **values)
        if self.trainer is None or self.trainer.state.fn == "fit":
            _readable(check_fits, self.identity, trained_on, self.cache)
        else:  # only training samples have augmented views
            fields_compared = [name for name in MEANING if name != "class_names"]  # `match` compares these by name
            _readable(check_fits, _as_evaluated(self.identity), _as_evaluated(trained_on), self.cache, fields_compared)


def _holds_cache(folder: Path) -> bool:
    return (folder / HEADER).is_file() or (folder / UNFINISHED).is_file()


def _as_evaluated(identity: Identity) -> Identity:
    plain = {name: value for name, value in identity.transform.items() if not name.startswith("views.")}
    return replace(identity, transform=plain)


def _readable(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call `function` and convert a `CacheError` to a MisconfigurationException, which the command line shows as one line."""
    try:
        return function(*arguments, **named)
    except CacheError as error:
        raise MisconfigurationException(str(error)) from error
