"""`DescribedPromptSets`: sizes, split and samples of segmentation data, and the match of its objects to those of a checkpoint."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import statistics
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import DataModule
from datamodules.images.checking import kinds_of
from datamodules.images.class_folders import listed
from datamodules.images.decoding import Levels
from datamodules.images.whole_files import Look
from datamodules.sample_keys import file_keys, text_keys
from datamodules.segmentation.grouping import group_names
from datamodules.segmentation.polygons import Contour, Shape
from datamodules.segmentation.prompt_sets import Pair, PromptSet, settings_of
from datamodules.trained_on import TrainedOn
from foundation.sizes import pixels_of_size
from foundation.slug import slug

log = logging.getLogger(__name__)


class DescribedPromptSets(DataModule):
    """Base class of the segmentation datamodule; `MatchedToCheckpoint` describes its methods."""

    numbers_classes = False  # a network is asked by prompt, not by number
    root: Path
    sets: list[PromptSet]
    generate: int | None
    test_fraction: float
    levels: Levels | None
    near_duplicates: int | None

    @property
    @abstractmethod
    def _looks(self) -> list[Look]:
        """What header and end of each image show."""

    @property
    @abstractmethod
    def pairs(self) -> list[Pair]:
        """All images, set by set."""

    @property
    @abstractmethod
    def present(self) -> list[PromptSet]:
        """The sets that are there."""

    @property
    @abstractmethod
    def synonyms(self) -> list[list[str]]:
        """All prompts of each object."""

    @property
    @abstractmethod
    def _listings(self) -> list[list[Pair]]:
        """The images of each set."""

    @property
    def place(self) -> str:
        """Folders of the sets, each with the settings that say which of its images and objects it is."""
        root = Path(os.path.abspath(self.root))
        there = [one for one in self.sets if (root / one.folder).is_dir()] if self.generate is None else []
        names = list(dict.fromkeys(f"{one.folder}{_chosen(one)}" for one in there))
        if not names:
            return str(root)
        return str(root / names[0]) if len(names) == 1 else f"{root}: {', '.join(names)}"

    @property
    def place_name(self) -> str:
        """The folders of the sets, joined by +; the name of `root` for several sets of a folder that is `root` itself."""
        there = [one.folder for one in self.sets if (self.root / one.folder).is_dir()] if self.generate is None else []
        folders = dict.fromkeys(Path(folder).as_posix() for folder in there)
        return "+".join(self.root.absolute().name if folder == "." else folder for folder in folders) or self.root.stem

    @property
    def own_record(self) -> dict[str, Any]:
        """All prompts of each object, and the grey levels of files of more than 8 bits, if they are set."""
        return {"synonyms": self.synonyms, "levels": "{:g} {:g}".format(*self.levels) if self.levels else None}

    def match(self, record: TrainedOn, given: frozenset[str] = frozenset(), *, labelled: bool = True) -> None:
        """Normalise as in training, and name the prompts that the checkpoint does not know; see `MatchedToCheckpoint.match`.

        Objects are matched by their prompts: one that shares a prompt with an object of the training has its name and threshold.
        Others are evaluated too, since a network with a pretrained text encoder can know them.

        Raises:
            MisconfigurationException: An object has prompts of two objects of the training, or two objects have those of one.
        """
        synonyms = [[name] for name in record.class_names] if "synonyms" not in record.own else record.own["synonyms"]
        known = {slug(text): texts[0] for texts in synonyms for text in texts}
        names = [
            next((known[slug(text)] for text in texts if slug(text) in known), texts[0]) for texts in self.synonyms
        ]
        for texts in self.synonyms:
            if len(several := {known[slug(text)] for text in texts if slug(text) in known}) > 1:
                raise MisconfigurationException(
                    f"the prompts {listed(texts)} of one object belong to {len(several)} objects of the checkpoint: "
                    f"{listed(sorted(several))}; give the prompts of one of them"
                )
        if double := [name for name in names if names.count(name) > 1]:
            raise MisconfigurationException(
                f"{names.count(double[0])} objects of the data have prompts of {double[0]!r}, which is one object of the "
                "checkpoint; give their sets the same first prompt"
            )
        if labelled and (new := [name for name in names if name not in record.class_names]):
            log.warning(
                f"prompts that the checkpoint was not trained on: {listed(new)} (it was on {listed(record.class_names)}); "
                "they use the threshold 0.5"
            )
        super().match(record._replace(class_names=names, image_size=self.image_size), given, labelled=False)

    def sample_keys(self, split: str) -> Tensor:
        """Keys of a split's samples, (n,) int64: hashes of the image files."""
        return file_keys([self.pairs[i].image for i in self.splits[split]["index"].tolist()])

    def file_kinds(self, split: str) -> dict[str, float]:
        """Shares of grey images and of images with more than 8 bits in a split."""
        return kinds_of([self._looks[i] for i in self.splits[split]["index"].tolist()])

    def target_keys(self, split: str) -> Tensor:
        """Keys of a split's objects and masks, (n,) int64: hashes of the prompts, and of the mask files or the shapes."""
        pairs = [self.pairs[i] for i in self.splits[split]["index"].tolist()]
        values = ["" if pair.values is None else f" {pair.values}" for pair in pairs]
        shapes = [f"{self.class_names[pair.prompt]} {_text_of(pair.shapes)}" for pair in pairs]
        names = text_keys([f"{shape}{value}" for shape, value in zip(shapes, values, strict=True)])
        of_files = [place for place, pair in enumerate(pairs) if pair.shapes is None]
        names[of_files] ^= file_keys([pairs[place].mask for place in of_files])
        return names

    def sample_groups(self, split: str) -> list[str]:
        """Group of each of a split's images that has one, from the tables of the sets."""
        pairs, tables = self.pairs, {self.root / one.folder: one for one in self.present if one.groups is not None}
        if not tables:
            return []
        groups = group_names(self.root, self.present, self._listings, None)
        bare = {f"{one.folder}/" for one in self.present if one.groups is None}
        chosen = [groups[i] for i in self.splits[split]["index"].tolist() if pairs[i].prompt >= 0]
        return [name for name in chosen if not name.startswith(tuple(bare))]

    @property
    def split_settings(self) -> dict[str, str | int | float | bool | None]:
        """Settings that decide which sample is in which split."""
        files = [name for one in self.present for name in (one.groups, one.annotations) if name is not None]
        tables = {name: _bytes_of(self.root / name) for name in files}
        sets = repr([settings_of(one) for one in self.present]).encode() + b"".join(tables.values())
        named = hashlib.sha256(sets).hexdigest()[:16]
        own = {"test_fraction": self.test_fraction, "near_duplicates": self.near_duplicates}
        return {**super().split_settings, **own, "sets": named}

    @property
    def longer_side(self) -> int:
        """Median of the longer sides of the training images in pixels; known after setup("fit")."""
        longer = [max(self.pairs[place].size) for place in self.splits["train"]["index"].tolist()]
        middle: int = round(statistics.median(longer))
        return middle

    @property
    def training_scale(self) -> float:
        """How large an object is in an average training crop, relative to the stored image of `longer_side`."""
        share = (1 + self.augmentation.crop_scale) / 2 if self.augmentation.crop_scale is not None else 1.0
        return math.sqrt(pixels_of_size(self.image_size)) / (self.longer_side * math.sqrt(share))


def _text_of(shapes: tuple[Shape | Contour, ...] | None) -> str:
    """Text of shapes; numpy shortens that of long arrays, which are therefore hashed too."""
    text = repr(shapes)
    arrays = [shape.points if isinstance(shape, Contour) else shape for shape in shapes or ()]
    long = [array.tobytes() for array in arrays if array.size > np.get_printoptions()["threshold"]]
    return f"{text} {hashlib.sha256(b''.join(long)).hexdigest()}" if long else text


def _chosen(one: PromptSet) -> str:
    """The settings of a set that select its images and its object, as in " (values [1], split test)"."""
    given = {name: getattr(one, name) for name in ("masks", "values", "annotations", "categories", "split")}
    shown = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    return f" ({shown})" if shown else ""


def _bytes_of(table: Path) -> bytes:
    """Content of a file; of a folder, the names of its files, whose contents `target_keys` covers."""
    if table.is_dir():
        return "\n".join(sorted(path.relative_to(table).as_posix() for path in table.rglob("*"))).encode()
    return table.read_bytes()
