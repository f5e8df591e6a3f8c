"""`ImageFolderDataModule`: image files in one folder per class, in train/val/test folders or in one folder that is split here.

ROOT/train/CLASS/IMAGE  ROOT/val/CLASS/IMAGE  ROOT/test/CLASS/IMAGE     without val/, validation images are held out from train/
ROOT/CLASS/IMAGE                                                        val and test are held out
ROOT/IMAGE with a table of labels                                       see `datamodules.images.table_files`

file --worker: decode, squeeze to the canvas--> uint8 --device--> random resized crop to train_size, flip, policy, normalise,
     erasing, mixup or cutmix;        validation, test, predict: the central part at image_size, normalise
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import DataModule
from datamodules.extraction import Labelled
from datamodules.images.canvases import CanvasCache, CanvasLoader
from datamodules.images.checking import TABLES, check_decoding, check_expected, expected_of, levels_of
from datamodules.images.decoding import Levels
from datamodules.images.header import EVAL_SHARE, MEAN, STD, Framing, GivenHeader
from datamodules.images.label_table import Columns
from datamodules.images.labelled import LabelledFiles, readable
from datamodules.images.loader import ImageFileLoader, ImageFiles, cores_for_workers
from datamodules.images.settings import check, check_levels, check_turn_and_colours, check_workers, loading
from datamodules.images.split_files import Split, SplitFiles
from datamodules.images.table_files import TableFiles
from datamodules.images.unlabelled import given_images
from datamodules.in_memory import InMemoryLoader
from foundation.sizes import Size

log = logging.getLogger(__name__)


class ImageFolderDataModule(GivenHeader, SplitFiles):
    """Image files in one folder per class, or with a table of labels.

    Args:
        root: Folder with train/ and optionally val/ and test/, each with a folder per class; or with one folder per class. With
            `labels`, images at any depth.
        image_size: Side of the network's square input images in pixels, or [HEIGHT, WIDTH].
        framing: How a picture gets to that size. `crop`: random crops in training, its central part in evaluation. `letterbox`:
            the whole picture keeps its proportions and is padded to the size; in training, random crops are cut of that.
        pad_value: Value of the border of `letterbox` in all channels, 0 (black) to 1 (white).
        canvas: Size that workers resize a training image to, as a multiple of the training size, 1 or more. A larger
            canvas keeps more detail for small crops and costs time and memory.
        crop_scale: Smallest share of the image area that the random resized crop covers, above 0, up to 1.
        crop_ratio: Largest ratio of the crop's longer side to its shorter side, 1 or more.
        eval_share: Side of the central square used in evaluation, as a share of the image's shorter side, above 0, up to 1; of
            [HEIGHT, WIDTH]: both sides, as a share of the largest part of these proportions. Only for `crop`.
        flip: Mirror each training image left to right with probability one half.
        turn: Turn each square training image by 0, 90, 180 or 270 degrees, equally likely; for pictures without up and down.
        color_jitter: Strength x of random brightness, contrast and saturation, each a factor of 1 - x to 1 + x, and of a tint
            within a quarter of that, 0 to 1.
        erasing_prob: Probability of random erasing for each training image, 0 to 1 (arXiv:1708.04896).
        test_fraction: Share of every class held out for testing if `root` directly contains the class folders, 0 to below 1.
        labels: CSV file with the labels of the images, one row an image; its path may begin in `root`. Or the name of a CSV in each
            of train/, val/ and test/. null: the folder is the label.
        file_column: Its column with the file; null: the column `file`, `filename`, `image`, `id` or the like, else the first one.
        label_column: Its column with the label, or a list of columns, one for each class, with 0 or 1. null: the column `label`,
            `class`, `category` or the like; else the only other column; else all other columns, if they hold 0 and 1.
        split_column: Its column with train, val or test; null: the column `split`, if there is one.
        label_separator: What divides several labels in a cell, such as `;`; an empty cell then means none of the classes. `none`:
            each cell is one label. null: `;` or `|`, if it occurs.
        groups: CSV file that assigns images to groups, such as all images of one person; a group is never divided between splits.
        group_column: Column of the CSV with the group; the column `file`, or else the first one, names the image.
        unreadable: Handling of files that cannot be read as images: `skip` logs and leaves them out, `refuse` aborts the run.
        channels: 3 reads images as RGB, 1 as grey. Any other number: TIFF stacks, arrays (.npy) and other files of so many
            channels, as they are stored. No policy then, which knows only grey and RGB.
        levels: Grey values that become black and white, for grey files of more than 8 bits, which keep their levels; null: 0 and
            65535. Values outside lie on the same line; nothing is clipped.
        mean: Mean of each channel for normalisation, in units of 0..1; null uses ImageNet's.
        std: Standard deviation of each channel for normalisation, in units of 0..1; null uses ImageNet's. For other channels than
            1 and 3, null is a mean of 0.5 and a std of 0.25.
        workers: Decoding processes per training process; null uses one for each available CPU core, at most 16.
        prefetch: Batches that each worker prepares ahead, 1 or more.
        persistent_workers: Keep the workers from one epoch to the next.
        pin_memory: Put batches into page-locked memory, from which copies to a CUDA device do not block the host; null does so if
            the device is a CUDA device.
        canvas_cache: Folder to which a fit writes its decoded and shrunk images, once for each size; every later epoch and run then
            reads them there, without workers. null: files are decoded in every epoch.
        verify_canvases: Read the canvas cache once before the first step and compare its checksums; lengths are always compared.
        canvas_quality: JPEG quality of the training images in the canvas cache, 1 to 100, which loses detail; null stores pixels.
        expected: What a fit must find, or it is refused before training: `class_names` as JSON, and the hashes of the tables
            `labels` and `groups`, null for none. `tools.sweep_heads` writes it for the final run; null: nothing is expected.
        **kwargs: Settings of every datamodule, see `DataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: The data is missing (raised at the first access to the data, class names included).
        MisconfigurationException: The folder does not have the layout above, or files cannot be read.
    """

    reads_stacks = True
    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *DataModule.fixed_on_resume,
        "image_size",  # determines the grid of a transformer's position embeddings
        *("framing", "pad_value"),
        *("labels", "file_column", "label_column", "split_column", "label_separator"),
        *("test_fraction", "groups", "group_column", "unreadable", "canvas_quality"),
    )

    def __init__(
        self,
        root: str = "data",
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
        test_fraction: float = 0.1,
        labels: str | None = None,
        file_column: str | None = None,
        label_column: str | list[str] | None = None,
        split_column: str | None = None,
        label_separator: str | None = None,
        groups: str | None = None,
        group_column: str | None = None,
        unreadable: Literal["skip", "refuse"] = "skip",
        channels: int = 3,
        levels: list[float] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        workers: int | None = None,
        prefetch: int = 4,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        canvas_cache: str | None = None,
        verify_canvases: bool = False,
        canvas_quality: int | None = None,
        expected: dict[str, str | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(crop_padding=0, shrink="resize", on_device=False, flip=flip, **kwargs)
        check_levels(levels)
        shape: dict[str, Any] = {"canvas": canvas, "eval_share": eval_share, "framing": framing, "pad_value": pad_value}
        self._give_header(image_size, channels, mean, std, **shape)
        check_workers(workers, prefetch)
        pictures = channels in (1, 3)
        policy = self.augmentation.policy
        check(
            (
                "policy",
                policy,
                pictures or policy == "none",
                f"none with channels {channels}: it knows only grey and RGB",
            ),
            (
                "canvas_quality",
                canvas_quality,
                pictures or canvas_quality is None,
                f"null with channels {channels}: JPEG has 1 or 3",
            ),
            ("test_fraction", test_fraction, 0 <= test_fraction < 1, "at least 0 and below 1"),
            (
                "test_fraction",
                test_fraction,
                test_fraction + self.val_fraction < 1,
                f"below 1 with val_fraction {self.val_fraction:g}",
            ),
        )
        if (groups is None) != (group_column is None):
            raise ValueError("groups and group_column must be set together: a CSV file, and its column with the group")
        check_turn_and_colours(turn, color_jitter, self.image_size, channels)
        self.augmentation = replace(
            self.augmentation,
            erasing_prob=erasing_prob,
            crop_scale=crop_scale,
            crop_ratio=crop_ratio,
            turn=turn,
            color_jitter=color_jitter,
        )
        columns = Columns(file_column, label_column, split_column, label_separator)
        if labels is None and (
            given := [f"{name}_column" for name in ("file", "label", "split") if getattr(columns, name)]
        ):
            raise ValueError(f"{given[0]} is a column of the table of labels, which is not given; give it as labels")
        self.root = Path(root)
        self.table = None if labels is None else TableFiles(self.root, labels, columns)
        self.levels: Levels | None = (levels[0], levels[1]) if levels is not None else None
        self.test_fraction = test_fraction
        self.groups, self.group_column = Path(groups) if groups else None, group_column
        self.workers, self.prefetch, self.unreadable = workers, prefetch, unreadable
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
        if canvas_cache is not None and self.fold is not None:
            canvas_cache = f"{canvas_cache}/fold-{self.fold.number}-of-{self.fold.count}"  # other files in each split
        self.canvas_cache = CanvasCache.of(canvas_cache, verify_canvases, self.root, canvas_quality)
        if unknown := sorted({*(expected or {})} - {"class_names", *TABLES}):
            raise ValueError(f"expected holds {unknown[0]!r} but can hold only class_names, labels and groups")
        self.expected = expected
        self._lists, self._held_out = {}, None
        self._said: list[tuple[str, ...]] = []

    # ---- the header ----

    @property
    def transform_settings(self) -> dict[str, str | int | float | bool | None]:
        """The share of the image used in evaluation and, with augmented views, the canvas size they are cropped from."""
        views = self.extraction.views if self.extraction is not None else 1
        levels = {} if self.levels is None else {"levels": "{:g} {:g}".format(*self.levels)}
        return {**self._evaluated_as, **levels, **({"views.canvas": self.canvas} if views > 1 else {})}

    def setup(self, stage: str) -> None:
        """List and split the files that the stage needs, once; no image is decoded."""
        if stage == "predict" and self.extraction is None and self.images is not None:
            if self._files is None:
                folder, names = given_images(self.images)
                looks = readable(folder, names, self.unreadable, self.levels is not None, self.in_channels)
                self._files, none = list(looks), torch.full((len(looks),), -1)
                self._lists["predict"] = LabelledFiles(folder, self._files, none, [*looks.values()])
                self.splits["predict"] = {"index": torch.arange(len(looks))}
                log.info(f"data       {len(looks):,} picture{'s' * (len(looks) != 1)}, {self.framed}")
            return
        if stage == "fit" and self.expected is not None:
            check_expected(self.expected, expected_of(self.own_class_names, self.split_settings))
        super().setup(stage)
        if stage == "predict" and self.extraction is not None:
            self.check_input(self.extraction.splits)
            return  # setup of each split has already logged its counts
        evaluated = ("train", "val") if self.extraction else ("val",)
        of_stage = {"fit": ("train", "val"), "validate": evaluated}.get(stage, ("test",))
        counts = " and ".join(f"{len(self.splits[split]['index']):,} {split}" for split in of_stage)
        if of_stage not in self._said:  # a test after the fit has said it at its start
            self._said.append(of_stage)
            log.info(f"data       {counts} images of {self.num_classes} classes in {self.root}, {self.framed}")

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Judge the image files of these splits, and log one line of what was checked; see `datamodules.images.whole_files`.

        Raises:
            MisconfigurationException: `unreadable` is `refuse` and a file cannot be decoded, or no training image of a class can.
        """
        places: dict[str, list[int]] = {part: [] for part in map(self._part_of, splits)}
        for split in splits:
            places[self._part_of(split)] += self.splits[split]["index"].tolist()
        files = [(self._list(part), place) for part, found in places.items() for place in found]
        found = check_decoding(files, self.levels, self.augmentation.policy, self.in_channels, self.root)
        for part in places:
            listing = self._list(part)
            if missing := [files[k][1] for k in found.wrong if files[k][0] is listing]:
                listing.report(self.unreadable, missing)
        self._check_variety(splits)
        if not self.given_scale and self.in_channels not in (1, 3):
            log.info(
                f"data       mean {MEAN} and std {STD} are used for all {self.in_channels} channels; python -m tools.inspect_data "
                "measures them"
            )
        if "train" in splits:
            damaged = torch.tensor(sorted(self._list(self._part_of("train")).named), dtype=torch.int64)
            train = self.splits["train"]
            left = train["label"][~torch.isin(train["index"], damaged)]
            bare = [k for k in range(self.num_classes) if not _has(left, k) and _has(train["label"], k)]
            if bare:
                raise MisconfigurationException(
                    f"{self.root}: no training image of class {self.class_names[bare[0]]!r} can be decoded"
                )
            self.prepare_sizes([self.train_size])

    # ---- loaders ----

    def prepare_sizes(self, sizes: Sequence[Size]) -> None:
        """Open the canvases of val and of train at these training sizes, in pixels; write them first if they are not there."""
        if self.canvas_cache is not None and self.extraction is None:
            for split, size in [("train", size) for size in sizes] + [("val", self.image_size)]:
                self._open_canvases(self.canvas_cache, split, *self._source(split, size))  # type: ignore[arg-type]

    def _source(self, split: Split, train_size: Size) -> tuple[ImageFiles, Tensor, Callable[[Sequence[int]], None]]:
        """The files of a split as they are decoded, the places of its samples, and what reports files that cannot be."""
        training = split == "train" and (self.extraction is None or self.extraction.augments(split))
        listing = self._list(self._part_of(split))
        given = split == "predict" and self.images is not None
        files = ImageFiles(
            listing.folder,
            listing.names,
            None if given else self.as_trained(listing.labels),
            channels=self.in_channels,
            levels=levels_of(listing.looks, self.levels),
            **self.decoded_as(training, train_size),
        )
        places = self.splits["test" if split == "predict" and not given else split]["index"]
        return files, places, partial(listing.leave_out, self.unreadable)

    def _open_canvases(self, cache: CanvasCache, split: Split, *source: Any) -> None:
        first = self.trainer is None or self.trainer.local_rank == 0
        cache.open(split, *source, workers=cores_for_workers() if self.workers is None else self.workers, first=first)

    def _loader(self, split: Split) -> InMemoryLoader:
        files, places, unreadable = self._source(split, self.train_size)
        order = {"unreadable": unreadable, **self._order(split)}
        workers = loading(self.trainer, self.workers, self.prefetch, self.persistent_workers, self.pin_memory)
        if self.canvas_cache is not None and split in ("train", "val") and self.extraction is None:
            if self.trainer is not None and self.trainer.state.fn == "fit":
                self._open_canvases(self.canvas_cache, split, files, places, unreadable)
            if (canvases := self.canvas_cache.opened(split, files)) is not None:
                return CanvasLoader(canvases, files, places, pin_memory=workers["pin_memory"], **order)
        return ImageFileLoader(files, places, **workers, **order)


def _has(labels: Tensor, number: int) -> bool:
    """Whether any of the samples with labels (N,) or (N, K) is of a class."""
    return bool((labels == number).any() if labels.ndim == 1 else labels[:, number].any())
