"""`PromptedSegmentationDataModule`: images, masks and prompts of one or more data sets, with negative prompts and a grouped split.

file --worker: decode, squeeze to the canvas--> uint8 --device--> random resized crop to image_size, flip, normalise;  mask: nearest
     validation, test, predict: whole images at their stored size, normalise
"""

from __future__ import annotations

import logging
import os
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
from datamodules.images.canvases import CanvasCache
from datamodules.images.checking import levels_of
from datamodules.images.decoding import Levels
from datamodules.images.header import checked_size
from datamodules.images.labelled import readable
from datamodules.images.loader import cores_for_workers
from datamodules.images.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    check,
    check_levels,
    check_normalisation,
    check_turn_and_colours,
    check_workers,
    loading,
)
from datamodules.images.unlabelled import GivenImages, given_images
from datamodules.images.unreadable import DAMAGED, report_unreadable
from datamodules.images.whole_files import Look
from datamodules.segmentation.canvases import CanvasFiles, open_canvases
from datamodules.segmentation.generator import GENERATED_SETS
from datamodules.segmentation.listed_sets import ListedPromptSets
from datamodules.segmentation.loader import Questions, SegmentationFiles, SegmentationLoader
from datamodules.segmentation.masks import MaskError
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.positives import Positives
from datamodules.segmentation.prompt_sets import (
    Pair,
    PromptSet,
    are_prompts,
    by_object,
    check_sets,
    size_of,
)
from foundation.sizes import Size
from foundation.slug import slug

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "predict"]


class PromptedSegmentationDataModule(ListedPromptSets):
    """Data sets of images, masks and prompts. Batches are described in docs/prompted_segmentation.md.

    Args:
        root: Folder that contains the folders of the data sets.
        sets: Data sets, each with `folder`, `prompts` and the settings of `PromptSet`: masks, or `annotations` of a tool that
            replace them. A set whose folder is missing is left out with a warning. null: use the images that `generate` writes.
        generate: Write this number N of synthetic images of each of two kinds, cracks on a wall and taped joints on a board, to
            segmentation_generated_N in `root`, and use only these; null: use `sets`.
        image_size: Side of the square training crops in pixels, or [HEIGHT, WIDTH]; evaluation takes images in their own sizes.
        canvas: Side in pixels of the square that a training image is squeezed to before it is cropped; null uses the median of the
            images' longer sides, so that objects are about as large in training as in evaluation.
        crop_scale: Smallest share of the image area that the random resized crop covers, above 0, up to 1.
        crop_ratio: Largest ratio of the crop's longer side to its shorter side, 1 or more.
        flip: Mirror each training image left to right with probability one half.
        turn: Turn each square training crop by 0, 90, 180 or 270 degrees, equally likely; for pictures without up and down.
        color_jitter: Strength x of random brightness, contrast and saturation, each a factor of 1 - x to 1 + x, and of a tint
            within a quarter of that, 0 to 1.
        negatives: Probability that a training image also gets a negative prompt: the object of another set, with an empty mask as
            target. If above 0, each validation and test image gets one negative prompt. Objects whose sets have the image, or a
            copy of it, are left out. Valid only if no image shows an object of a set that it is not in; otherwise set it to 0.
        positive_share: In training, draw images that show their object so often that they are at least this share of the images of
            each object, 0 to 1; the number of images in an epoch stays. 0: draw each image once.
        near_duplicates: Keep images that look alike in one split: largest Hamming distance between the hashes of two such images,
            in bits, 0 to 64; 2 is strict. null: only byte-identical files are kept together.
        test_fraction: Share of each object's images held out for testing, above 0 and below 1.
        levels: Grey values that become black and white, for grey images of more than 8 bits, which keep their levels; null: 0 and
            65535.
        mean: Mean of each channel for normalisation, in units of 0..1; null uses ImageNet's.
        std: Standard deviation of each channel for normalisation, in units of 0..1; null uses ImageNet's.
        prompts: Prompts that predict uses for each image, known from training or not; null uses the first prompt of each object.
        workers: Decoding processes per training process; null uses one for each available CPU core, at most 16.
        prefetch: Batches that each worker prepares ahead, 1 or more.
        persistent_workers: Keep the workers from one epoch to the next.
        pin_memory: Put batches into page-locked memory, from which copies to a CUDA device do not block the host; null does so if
            the device is a CUDA device.
        canvas_cache: Folder to which a fit writes its squeezed training images and masks once; every later epoch and run then reads
            them there, without workers. null: files are decoded in every epoch.
        verify_canvases: Read the canvas cache once before the first step and compare its checksums; lengths are always compared.
        canvas_quality: JPEG quality of the training images in the canvas cache, 1 to 100, which loses detail; null stores pixels.
        batch_size: Training images in a batch of one process.
        eval_batch_size: Images in a batch of validation, test and predict, all of one size; null means `batch_size`.
        val_fraction: Share of each object's images held out for validation, above 0 and below 1.
        train_fraction: Share of the remaining images that is used for training, above 0, up to 1.
        split_seed: Seed of the split, separate from the training seed.
        drop_last: Drop the last training batch of an epoch if it is not full.
        images: Folder of images, or one image file, that predict reads in place of the test split, each at its own size.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: None of the sets exists.
        MisconfigurationException: A set does not have the expected layout, or files cannot be read.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        *DataModule.fixed_on_resume,
        "root",
        "sets",
        "generate",
        "near_duplicates",
        "test_fraction",
        "canvas_quality",
    )

    def __init__(
        self,
        root: str = "data",
        sets: list[PromptSet] | None = None,
        generate: int | None = None,
        image_size: int | list[int] = 256,
        canvas: int | None = None,
        crop_scale: float = 0.35,
        crop_ratio: float = 4 / 3,
        flip: bool = True,
        turn: bool = False,
        color_jitter: float = 0.0,
        negatives: float = 0.25,
        positive_share: float = 0.5,
        near_duplicates: int | None = None,
        test_fraction: float = 0.15,
        levels: list[float] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        prompts: list[str] | None = None,
        workers: int | None = None,
        prefetch: int = 2,
        persistent_workers: bool = True,
        pin_memory: bool | None = None,
        canvas_cache: str | None = None,
        verify_canvases: bool = False,
        canvas_quality: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.15,
        train_fraction: float = 1.0,
        split_seed: int = 0,
        drop_last: bool = True,
        images: str | list[str] | None = None,
    ) -> None:
        mean, std = list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD)
        check_normalisation(3, mean, std)
        check_workers(workers, prefetch)
        check_levels(levels)
        check(
            ("canvas", canvas, canvas is None or canvas >= 1, "1 pixel or more, or null"),
            ("generate", generate, generate is None or generate >= 1, "1 image of each kind or more, or null"),
            ("negatives", negatives, 0 <= negatives <= 1, "a probability, 0 to 1"),
            ("positive_share", positive_share, 0 <= positive_share <= 1, "a share, 0 to 1"),
            ("near_duplicates", near_duplicates, near_duplicates is None or 0 <= near_duplicates <= 64, "0 to 64 bits, or null"),
            ("val_fraction", val_fraction, 0 < val_fraction < 1, "above 0 and below 1"),
            ("test_fraction", test_fraction, 0 < test_fraction < 1, "above 0 and below 1"),
            ("test_fraction", test_fraction, test_fraction + val_fraction < 1, f"below 1 with val_fraction {val_fraction:g}"),
            ("prompts", prompts, prompts is None or are_prompts(prompts), "different texts with a letter or a digit, at least one"),
            ("prompts", prompts, len({*map(slug, prompts or [])}) == len(prompts or []), "texts that differ in more than case"),
        )  # fmt: skip
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=batch_size if eval_batch_size is None else eval_batch_size,
            val_fraction=val_fraction,
            train_fraction=train_fraction,
            split_seed=split_seed,
            drop_last=drop_last,
            flip=flip,
            images=images,
        )
        if generate is not None:
            self.root, self.sets = Path(root) / f"segmentation_generated_{generate}", list(GENERATED_SETS)
        elif sets is None:
            raise ValueError("sets: give at least one data set, a folder with its prompts (or use --data.generate 40)")
        else:
            self.root, self.sets = Path(root), [part for one in sets for part in by_object(one)]
        check_sets(self.sets)
        self.augmentation = replace(
            self.augmentation, crop_scale=crop_scale, crop_ratio=crop_ratio, turn=turn, color_jitter=color_jitter
        )
        self.generate, self.canvas, self._mean, self._std = generate, canvas, mean, std
        self._image_size = checked_size(image_size)
        check_turn_and_colours(turn, color_jitter, self._image_size)
        self.negatives, self.positive_share = negatives, positive_share
        self.near_duplicates, self.test_fraction = near_duplicates, test_fraction
        self.prompts, self.workers, self.prefetch = prompts, workers, prefetch
        self.persistent_workers, self.pin_memory = persistent_workers, pin_memory
        self.canvas_cache = CanvasCache.of(canvas_cache, verify_canvases, self.root, canvas_quality)
        self._cached: CanvasFiles | None = None
        self._named: set[Path] = set()  # masks with unexpected values that have been reported in a warning
        self.said: set[str] = set()  # lines about the splits, and splits whose masks a line has described
        self._notes = Notes(held=True)
        self._predicted: list[Pair] = []
        self._predicted_looks: list[Look] = []
        self.levels: Levels | None = (levels[0], levels[1]) if levels is not None else None

    # ---- the header ----

    @property
    def image_size(self) -> Size:
        """Side of a square training crop in pixels, or its height and width; evaluation uses the images' own sizes."""
        return self._image_size

    @property
    def in_channels(self) -> int:
        """Three: images are read as RGB."""
        return 3

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel used for normalisation."""
        return tuple(self._mean)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel used for normalisation."""
        return tuple(self._std)

    @property
    def class_names(self) -> list[str]:
        """The first prompt of each object, in the order of the present sets."""
        return [texts[0] for texts in self.synonyms]

    def setup(self, stage: str) -> None:
        """List, check and split the images that the stage needs, once; no image is decoded."""
        if stage == "predict" and self.images is not None:
            if self._files is None:
                self._list_images(self.images)
            return
        super().setup(stage)

    def _list_images(self, given: GivenImages) -> None:
        self._folder, names = folder, _ = given_images(given, 3)
        looks = readable(folder, names, "skip", self.levels is not None)
        self._files, self._predicted_looks = list(looks), [*looks.values()]
        # these images have no mask and no object
        self._predicted = [Pair(folder / name, Path(), -1, size_of(folder / name) or (0, 0)) for name in self._files]
        self.splits["predict"] = {"index": torch.arange(len(self._files))}

    def predicted_files(self) -> list[str]:
        """Files that predict serves, relative to `images`, or to `root` for the test split (or what contains all sets)."""
        return self._files if self._files is not None else self.files()

    def files(self, split: str = "test") -> list[str]:
        """Image of each sample of any split, by its `index`, relative to `root` (or what contains all sets). Known after setup."""
        paths = [Path(os.path.normpath(pair.image.absolute())) for pair in self.pairs]
        root = Path(os.path.normpath(self.root.absolute()))
        if not all(path.is_relative_to(root) for path in paths):  # a set may lie elsewhere: folder: ../walls
            root = Path(os.path.commonpath([path.parent for path in paths]))
        return [path.relative_to(root).as_posix() for path in paths]

    # ---- loaders ----

    def _canvas(self) -> int:
        return self.canvas if self.canvas is not None else self.longer_side

    @cached_property
    def _positives(self) -> Positives:
        return Positives(self.pairs, self.splits["train"]["index"])

    @property
    def object_shares(self) -> list[float]:
        """Share of the training images of each object that show it, in the order of `class_names`; known after setup("fit")."""
        return self._positives.shares(self.num_classes)

    def augment(self, batch: dict[str, Any], epoch: int) -> dict[str, Any]:
        """Augment and normalise a batch of uint8 images for training; an image drawn twice in an epoch is augmented in two ways."""
        index, drawn = batch["index"], batch.pop("drawn", batch["index"])
        return {**super().augment({**batch, "index": drawn}, epoch), "index": index}

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Check the images and all masks of these splits, and open the canvases of train."""
        super().check_input(splits)
        if "train" in splits:
            self.prepare_sizes([self.train_size])

    def prepare_sizes(self, sizes: Sequence[Size]) -> None:
        """Open the canvases of train, which are those of every training size; write them first if they are not there."""
        if self.canvas_cache is None or self.extraction is not None or self._cached is not None:
            return
        self._cached = open_canvases(
            self.canvas_cache,
            self.root,
            self.pairs,
            self.splits["train"]["index"].tolist(),
            self._canvas(),
            levels_of(self._looks, self.levels),
            unreadable=partial(self._report_unreadable, False),
            odd=self._report_odd,
            workers=cores_for_workers() if self.workers is None else self.workers,
            first=self.trainer is None or self.trainer.local_rank == 0,
        )

    def _training_files(self, settings: dict[str, Any]) -> tuple[SegmentationFiles, dict[str, Any]]:
        """The squeezed images and masks, from the cache if it is open or a fit needs it, and the settings of their workers."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self.prepare_sizes([self.train_size])
        if self._cached is not None:
            return self._cached, {**settings, "workers": 0}
        return SegmentationFiles(self.pairs, self._canvas(), levels_of(self._looks, self.levels)), settings

    def _loader(self, split: Split) -> SegmentationLoader:
        trainer, training, of_folder = self.trainer, split == "train", split == "predict" and self.images is not None
        served: Split = "test" if split == "predict" and not of_folder else split
        predicting = trainer is not None and trainer.predicting
        fixed, order = (self.prompts or self.class_names) if predicting or of_folder else None, self._order(split)
        drawing = order["shuffle"] and self.positive_share > 0
        pairs, looks = (self._predicted, self._predicted_looks) if of_folder else (self.pairs, self._looks)
        settings = loading(trainer, self.workers, self.prefetch, self.persistent_workers, self.pin_memory)
        if training:
            files, settings = self._training_files(settings)
        else:
            files = SegmentationFiles(pairs, None, levels_of(looks, self.levels))
        return SegmentationLoader(
            files,
            self._each_image_once(self.splits[served]["index"], pairs)
            if fixed is not None
            else self.splits[served]["index"],
            questions=Questions(
                self.synonyms,
                self.negatives,
                training,
                fixed,
                self.labelled if fixed is None and self.negatives > 0 and len(self.synonyms) > 1 else None,
            ),
            odd=self._report_odd,
            draw=partial(self._positives.draw, self.positive_share, self.seed) if drawing else None,
            unreadable=partial(self._report_unreadable, of_folder),
            **settings,
            **order,
        )

    @staticmethod
    def _each_image_once(index: Tensor, pairs: Sequence[Pair]) -> Tensor:
        """Positions of the first pair of each image, as the same prompts are asked of every image."""
        first: dict[Path, int] = {}
        for place in index.tolist():
            first.setdefault(pairs[place].image, place)
        return torch.tensor(list(first.values()), dtype=torch.int64)

    def _report_unreadable(self, of_folder: bool, missing: Sequence[int]) -> None:
        files = self.predicted_files()
        wrong = {files[i]: DAMAGED if of_folder else "the image or its mask is damaged" for i in missing}
        folder = self._folder if of_folder else self.root
        report_unreadable(folder, wrong, len({*files}), None if of_folder else "repair or remove them")

    def _report_odd(self, odd: dict[int, str | MaskError]) -> None:
        for index, reason in odd.items():
            mask = self.pairs[index].mask
            if isinstance(reason, MaskError):
                raise MisconfigurationException(f"{mask}: {reason}")
            if mask not in self._named:
                self._named.add(mask)
                log.warning(f"{mask}: {reason}")

    # ---- batches on the device ----

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Augment or normalise the images, then build the mask of each prompt."""
        return self.of_prompts(super().on_after_batch_transfer(batch, dataloader_idx))

    @staticmethod
    def of_prompts(batch: dict[str, Any]) -> dict[str, Any]:
        """Expand the masks from one per image to one per prompt: the image's mask, or an empty one for a negative prompt."""
        if "mask" in batch:
            mask = batch["mask"][batch["image_index"]] * batch["positive"].view(-1, 1, 1, 1)
            batch = {**batch, "mask": mask}
        return batch
