"""`CIFAR10DataModule`: CIFAR-10 (Krizhevsky, 2009) or your own data in its layout.

CIFAR-10 has 50,000 training and 10,000 test colour images of 32 px in ten classes. The training data are the data batches in the
order of their numbers. A seeded part of them is held out for validation. The test split is the official one.
`datamodules.cifar_reader` describes the layout.
"""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from datamodules.base import DataModule
from datamodules.cifar_reader import FOLDER, Header, find_folder, read_batch, read_header
from datamodules.extraction import Labelled
from datamodules.images.labelled import is_root
from datamodules.images.settings import check_normalisation
from foundation.places import instead

log = logging.getLogger(__name__)

OFFICIAL = Header(
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"], image_size=32
)

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Over the pixels of CIFAR-10's training images, red, green and blue."""


def _holds_cifar(folder: Path) -> bool:
    return any((inner / "batches.meta").is_file() for inner in (folder, folder / FOLDER))


class CIFAR10DataModule(DataModule):
    """CIFAR-10, or images of your own in the same layout with any number of classes and any square size.

    Args:
        root: Folder that holds cifar-10-batches-py (or cifar10/cifar-10-batches-py), or that folder itself.
        download: Download the official archive into `root` if the data is missing or damaged; the checksum is verified.
        crop_padding: Pixels of padding added on each side before a random crop of the image's original size; 0 disables the crop.
        flip: Mirror each training image left to right with probability one half.
        mean: Mean of red, green and blue for normalisation, in units of 0..1; null: those of CIFAR-10's training images. Weights
            trained elsewhere may need others: pytorch_resnet_cifar10 used ImageNet's.
        std: Standard deviation of red, green and blue for normalisation, in units of 0..1; null: CIFAR-10's.
        **kwargs: Settings of every datamodule, see `DataModule`.

    Raises:
        FileNotFoundError: The data is missing (raised at the first access to the data, headers included).
        MisconfigurationException: A file is damaged or does not fit the others.
    """

    said_by_check: ClassVar[bool] = True

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        crop_padding: int = 4,
        flip: bool = True,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(crop_padding=crop_padding, flip=flip, **kwargs)
        self.root, self.download = Path(root), download
        self._mean, self._std = list(mean or MEAN), list(std or STD)
        check_normalisation(3, self._mean, self._std)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of red, green and blue used for normalisation."""
        return tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of red, green and blue used for normalisation."""
        return tuple(self._std)

    @property
    def in_channels(self) -> int:
        """Three: red, green, blue."""
        return 3

    @property
    def class_names(self) -> list[str]:
        """Names of the classes from batches.meta."""
        return self._header.class_names

    @property
    def image_size(self) -> int:
        """Height and width of an image from batches.meta."""
        return self._header.image_size

    @cached_property
    def _header(self) -> Header:
        if self.download and find_folder(self.root) is None:
            return OFFICIAL  # prepare_data will download it
        return read_header(self._folder())

    def _folder(self) -> Path:
        folder = find_folder(self.root)
        if folder is None:
            raise FileNotFoundError(
                f"no CIFAR-10 in {self.root.absolute()}{instead(self.root, _holds_cifar)}; expected {FOLDER}/ with batches.meta, "
                "data_batch_1 to data_batch_5 and test_batch; download it with --data.download true, name another folder with "
                "--data.root, or use the embedded data with --data DigitsDataModule"
                + (
                    "; the class folders in it are read with --data ImageFolderDataModule"
                    if self.root.is_dir() and is_root(self.root)
                    else ""
                )
            )
        return folder

    def prepare_data(self) -> None:
        """Download the archive if `download` is set and the data is missing or damaged; Lightning calls this once per machine."""
        folder = find_folder(self.root)
        if not self.download or (folder and self._is_whole(folder)):
            return
        archive, target = datasets.CIFAR10, folder.parent if folder else self.root
        try:
            download_and_extract_archive(archive.url, str(target), filename=archive.filename, md5=archive.tgz_md5)
        except (OSError, RuntimeError) as error:  # no network, or another checksum
            raise FileNotFoundError(
                f"could not download {archive.url} ({error}); obtain {archive.filename} or the folder {FOLDER} another way "
                f"and put it into {target.absolute()}"
            ) from error

    @staticmethod
    def _is_whole(folder: Path) -> bool:
        """Whether the official files match their checksums, for example after an interrupted extraction; True for your own data."""
        archive = datasets.CIFAR10
        files = [*archive.train_list, *archive.test_list, (archive.meta["filename"], archive.meta["md5"])]
        own = folder.name != FOLDER or read_header(folder) != OFFICIAL
        return own or all(check_integrity(folder / name, md5) for name, md5 in files)

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Log the samples of these splits, and the folder that they are read from where ``root`` is not it or just above it."""
        super().check_input(splits)
        if (folder := self._folder()) not in (self.root, self.root / FOLDER):
            log.info(f"data       read from {folder}")

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Read the data batches or the test batch; see `DataModule.read_part`."""
        folder = self._folder()
        names = self._train_files(folder) if part == "train" else ["test_batch"]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{', '.join(missing)} missing in {folder.absolute()}")
        images, labels = zip(*(read_batch(folder / name, self._header) for name in names), strict=True)
        label = torch.from_numpy(np.concatenate(labels))
        return {"image": torch.from_numpy(np.concatenate(images)), "label": label, "index": torch.arange(len(label))}

    def _train_files(self, folder: Path) -> list[str]:
        """Return data_batch_1 to data_batch_N, where N is the largest number present, at least 5 for the classes of CIFAR-10."""
        numbers = [path.name.removeprefix("data_batch_") for path in folder.glob("data_batch_*")]
        least = 5 if self._header.class_names == OFFICIAL.class_names else 1
        return [f"data_batch_{i + 1}" for i in range(max([int(n) for n in numbers if n.isdecimal()] + [least]))]
