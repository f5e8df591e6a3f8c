"""Feature extraction from the data side: which samples `main.py predict` serves, and the data description for the cache's header.

splits --left(split, index)--> samples that are not on disk yet, in the order of the data set --> batches as in evaluation, or
                               with `views`: V augmented images of each training sample, made one at a time
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.augmentation import Augmentation
from datamodules.images.unlabelled import GivenImages
from datamodules.in_memory import InMemoryLoader
from datamodules.splitting.folds import Fold
from features import data_of_tensors

Labelled = Literal["train", "val", "test"]
Scalar = str | int | float | bool | None


def everything(split: Labelled, index: Tensor) -> Tensor:
    """Default of `Extraction.left`: every sample still has to be extracted."""
    return torch.ones_like(index, dtype=torch.bool)


@dataclass
class Extraction:
    """What predict serves during feature extraction, in place of the test split.

    Args:
        splits: The labelled splits, one loader each, in this order.
        views: Number of augmented images of each training sample; 1 means the image as in evaluation.
        left: Returns which samples of a split still have to be extracted, (m,) int64 positions in the data set -> (m,) bool.
            Called once for each split, when the loaders are made.

    Attributes:
        served: The splits that have samples left, in the order of predict's loaders.
    """

    splits: tuple[Labelled, ...]
    views: int = 1
    left: Callable[[Labelled, Tensor], Tensor] = everything
    served: list[Labelled] = field(default_factory=list)

    def augments(self, split: str) -> bool:
        """Whether the images of a split are augmented."""
        return split == "train" and self.views > 1

    def places(self, split: Labelled, index: Tensor, world_size: int) -> Tensor:
        """Return the positions within a split of the samples to serve: (n,) int64, none or at least one for each process.

        Args:
            split: The split.
            index: (m,) int64, positions of the split's samples in the data set.
            world_size: Number of processes; if fewer samples are left, already extracted samples are added to reach this number.
        """
        left = self.left(split, index.cpu())
        places = left.nonzero().flatten()
        if 0 < len(places) < world_size:
            places = torch.cat([places, (~left).nonzero().flatten()[: world_size - len(places)]]).sort().values
        return places


class DataIdentity(NamedTuple):
    """Description of the data in a cache's header.

    Args:
        data: Fingerprint of the samples of all splits.
        files: Size in bytes of each file by name, if the samples are files; else None.
        split: Settings that decide which sample is in which split.
        transform: Settings that change the network's input; names of settings of augmented views begin with `views.`.
    """

    data: str
    files: Mapping[str, int] | None
    split: dict[str, Scalar]
    transform: dict[str, Scalar]


def views_of(
    batch: dict[str, Tensor], view: Callable[[dict[str, Tensor], int], Tensor], count: int
) -> Iterator[Tensor]:
    """Generate the augmented images of a batch lazily, because all views together may not fit in memory.

    Args:
        batch: Images as the loader serves them.
        view: Makes the n-th view of the batch, n from 0.
        count: Number of views.
    """
    return (view(batch, number) for number in range(count))


def flat_settings(settings: Mapping[str, Any], prefix: str) -> dict[str, Scalar]:
    """Add a common prefix to the names of settings, for a header of plain values.

    >>> flat_settings({"flip": True, "crop_scale": 0.35}, "views.")
    {'views.flip': True, 'views.crop_scale': 0.35}
    """
    return {f"{prefix}{name}": value for name, value in settings.items()}


class Extractable(LightningDataModule):
    """Base class that lets predict serve labelled splits for feature extraction and describes their data."""

    extraction: Extraction | None = None
    """What predict serves during feature extraction, set by `extract`; None otherwise."""

    images: GivenImages | None
    seed: int
    splits: dict[str, dict[str, Tensor]]
    augmentation: Augmentation

    @property
    def labelled_splits(self) -> tuple[Labelled, ...]:
        """The splits that the data has; reads only headers."""
        return ("train", "val", "test")

    def extract(
        self, splits: Sequence[Labelled] | None, views: int, left: Callable[[Labelled, Tensor], Tensor]
    ) -> Extraction:
        """Let predict serve labelled splits for feature extraction; call before setup("predict").

        Args:
            splits: The splits; None means all splits of the data.
            views: Number of augmented images of each training sample; 1 means the image as in evaluation.
            left: See `Extraction`.

        Raises:
            MisconfigurationException: The data has no such split, or `images` is set.
        """
        there = self.labelled_splits
        chosen = there if splits is None else tuple(split for split in there if split in splits)
        if absent := [split for split in splits or () if split not in there]:
            raise MisconfigurationException(f"splits: the data has no {absent[0]!r}; there are {', '.join(there)}")
        if self.images is not None:
            raise MisconfigurationException(
                f"--data.images {self.images}: features are extracted from the labelled splits; remove this setting"
            )
        self.extraction = Extraction(chosen, views, left)
        return self.extraction

    def identity_of_data(self) -> DataIdentity:
        """Return the description of samples and image transforms for a cache's header; call after `extract`."""
        views = self.extraction.views if self.extraction is not None else 1
        augmented = {**asdict(self.augmentation), "seed": self.seed} if views > 1 else {}
        data, files = self._fingerprint()
        transform = {**self.transform_settings, **flat_settings(augmented, "views.")}
        return DataIdentity(data, files, self.split_settings, transform)

    @property
    def split_settings(self) -> dict[str, Scalar]:
        """Settings that decide which sample is in which split."""
        own = {name: getattr(self, name) for name in ("val_fraction", "train_fraction", "split_seed")}
        return own | self._fold_settings()

    def _read_split(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Read a part of the data; with a fold, the test part is the fold of the training data."""
        fold: Fold | None = getattr(self, "fold", None)
        if fold is None:
            return self.read_part(part)
        return fold.part(self.read_part("train"), part, self.split_seed)  # type: ignore[attr-defined]

    def _fold_settings(self) -> dict[str, Scalar]:
        fold = getattr(self, "fold", None)
        return {} if fold is None else {"fold": str(fold)}

    @property
    def transform_settings(self) -> dict[str, Scalar]:
        """Settings that change the network's input in evaluation, apart from size, mean and standard deviation."""
        return {}

    def _fingerprint(self) -> tuple[str, dict[str, int] | None]:
        """Return the fingerprint of all samples, and the file sizes by name if the samples are files."""
        names: dict[Literal["train", "test"], None] = {
            "test" if s == "test" else "train": None for s in self.labelled_splits
        }
        parts = [self.read_part(name) for name in names]
        samples = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        # sort by index, so that the fingerprint does not depend on how the test split was drawn
        order = samples.pop("index").argsort(stable=True)
        tensors = {name: values[order] for name, values in samples.items()}
        return data_of_tensors(tensors), None

    def _extraction_loaders(self, extraction: Extraction) -> list[InMemoryLoader]:
        world_size = self.trainer.world_size if self.trainer else 1
        extraction.served, loaders = [], []
        for split in extraction.splits:
            whole = self.splits[split]
            places = extraction.places(split, whole["index"], world_size)
            if len(places):
                extraction.served.append(split)
                self.splits[split] = {
                    name: values.index_select(0, places.to(values.device)) for name, values in whole.items()
                }
                loaders.append(self._loader(split))
                self.splits[split] = whole
        return loaders

    def unreadable_of(self, split: Labelled) -> int:
        """Return the number of samples of a split that this process could not serve because their files are unreadable."""
        return 0

    @abstractmethod
    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Read all samples of a part; see `DataModule.read_part`."""

    @abstractmethod
    def _loader(self, split: Literal["train", "val", "test", "predict"]) -> InMemoryLoader:
        """Make the loader of a split."""
