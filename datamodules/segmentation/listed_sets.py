"""`ListedPromptSets`: lists the images of all data sets with their masks, divides them, and checks them before the first step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from datamodules.extraction import Labelled
from datamodules.images.class_folders import duplicate_groups, listed
from datamodules.images.decoding import Levels
from datamodules.images.whole_files import Look, look_at
from datamodules.sample_keys import LOOKED_AT, file_keys
from datamodules.segmentation.checking import check_images, check_masks
from datamodules.segmentation.description import DescribedPromptSets
from datamodules.segmentation.generator import write_generated
from datamodules.segmentation.grouping import group_names
from datamodules.segmentation.listing import check_once, read_pairs
from datamodules.segmentation.next_steps import no_sets
from datamodules.segmentation.notes import Notes
from datamodules.segmentation.prompt_sets import Pair, PromptSet, synonyms_of
from datamodules.segmentation.shipped import with_split
from datamodules.segmentation.splits import check_parts, divide
from datamodules.splitting.stratified import stratified_split
from foundation.made_folders import will_make
from foundation.places import close_to

log = logging.getLogger(__name__)


class ListedPromptSets(DescribedPromptSets):
    """Base class of the segmentation datamodule: its files and splits."""

    levels: Levels | None
    _notes: Notes
    _named: set[Path]
    said: set[str]

    @property
    def synonyms(self) -> list[list[str]]:
        """All prompts of each object, in the order of `class_names`."""
        return synonyms_of(self.present)

    @cached_property
    def present(self) -> list[PromptSet]:
        """The sets whose folders exist; all sets if none exists and predict reads `images`."""
        if self.generate is not None:
            will_make(self.root)
            write_generated(self.root, self.generate)
        found = [one for one in self.sets if (self.root / one.folder).is_dir()]
        if not found and self.images is not None:
            return self.sets
        if not found:
            raise FileNotFoundError(no_sets(self.root, self.sets))
        folders = [self.root / one.folder for one in self.sets if one not in found]
        absent = [f"{folder}{close_to(folder)}" for folder in folders]
        if absent:
            log.warning(f"missing data sets: {listed(absent)}; continuing with {listed([one.folder for one in found])}")
        return [part for one in found for part in with_split(self.root, one, self._notes)]

    # ---- files and splits ----

    @cached_property
    def pairs(self) -> list[Pair]:
        """All images, set by set; the sample with `index` i is the i-th."""
        return [pair for listing in self._listings for pair in listing]

    @cached_property
    def _listings(self) -> list[list[Pair]]:
        names = self.own_class_names
        listings = [read_pairs(self.root, one, names.index(one.prompts[0]), self._notes) for one in self.present]
        check_once(self.root, listings, names)
        return listings

    @cached_property
    def labelled(self) -> Tensor:
        """Whether each image of `pairs`, or a copy of it, is in a set of each object, (N, objects) bool."""
        first = {path: group[0] for group in duplicate_groups(self._images) for path in group}
        objects: dict[Path, set[int]] = {}
        for pair in self.pairs:
            objects.setdefault(first.get(pair.image, pair.image), set()).add(pair.prompt)
        found = torch.zeros(len(self.pairs), len(self.own_class_names), dtype=torch.bool)
        for place, pair in enumerate(self.pairs):
            found[place, list(objects[first.get(pair.image, pair.image)])] = True
        return found

    @property
    def _images(self) -> list[Path]:
        """The image files; one may be in several sets."""
        return list(dict.fromkeys(pair.image for pair in self.pairs))

    @cached_property
    def _drawn(self) -> dict[str, Tensor]:
        """Positions in `pairs` of the images of each split, ascending."""
        return divide(
            self.root,
            self.present,
            self._listings,
            group_names(self.root, self.present, self._listings, self.near_duplicates, self._notes),
            (self.val_fraction, self.test_fraction),
            self.split_seed,
            self._notes,
        )

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """List all training samples, including those of the validation split, or all test samples.

        Returns:
            `label` (N,) int64, the number of the object's prompt, and `index` (N,) int64, each image's position in `pairs`.
        """
        index = self._drawn["test"] if part == "test" else torch.cat([self._drawn["train"], self._drawn["val"]])
        return self._rows(index)

    def left_by_the_draw(self) -> tuple[int, Tensor, str]:
        """See `MatchedToCheckpoint`; the sets whose split is given have none."""
        if any(one.split is not None for one in self.present):
            return super().left_by_the_draw()
        left = [self.pairs[place].image for name in ("train", "val") for place in self._drawn[name].tolist()]
        return len(left), file_keys(left[:LOOKED_AT]), "give each set split: test"

    def _rows(self, index: Tensor) -> dict[str, Tensor]:
        labels = torch.tensor([self.pairs[place].prompt for place in index.tolist()], dtype=torch.int64)
        return {"label": labels, "index": index}

    def _split_training_data(self) -> None:
        train = self._rows(self._drawn["train"])
        used, _ = stratified_split(
            train["label"], 0.0, seed=self.split_seed, name="train_fraction", used=self.train_fraction
        )
        self.splits["train"] = {name: values[used] for name, values in train.items()}
        self.splits["val"] = self._rows(self._drawn["val"])

    def setup(self, stage: str) -> None:
        """List, check and split the images that the stage needs, once; no image is decoded."""
        try:
            drawn = self._drawn
        finally:
            self._notes.say()
        check_parts(self.root, drawn, stage)
        super().setup(stage)
        of_stage = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, ("test",))
        counts = " and ".join(self._counted(split) for split in of_stage)
        if counts not in self.said and log.isEnabledFor(logging.INFO):  # a test after a fit sets its split up twice
            log.info(f"data       {counts} of {listed([repr(name) for name in self.class_names])} in {self.root}")
            self.said.add(counts)

    def _counted(self, split: str) -> str:
        """Number of images of a split, and of their masks if an image has masks of several objects."""
        places = self.splits[split]["index"].tolist()
        images = len({self.pairs[place].image for place in places})
        pairs = f" with {len(places):,} masks" if len(places) > images else ""
        return f"{images:,} {split} images{pairs}"

    @cached_property
    def _looks(self) -> list[Look]:
        """What header and end of each image of `pairs` show."""
        looks = dict(zip(self._images, look_at(self._images, self.levels is not None), strict=True))
        return [looks[pair.image] for pair in self.pairs]

    def check_input(self, splits: Sequence[Labelled]) -> None:
        """Check the images and all masks of these splits; see `datamodules.segmentation.checking`."""
        places = {split: self.splits[split]["index"].tolist() for split in splits}
        chosen = [place for found in places.values() for place in found]
        check_images(self.root, [self.pairs[place] for place in chosen], [self._looks[place] for place in chosen])
        pairs: dict[str, list[Pair]] = {
            split: [self.pairs[place] for place in found] for split, found in places.items()
        }
        self._named |= check_masks(self.root, pairs, self.class_names)
        self.said |= {f"masks {split}" for split in splits}
