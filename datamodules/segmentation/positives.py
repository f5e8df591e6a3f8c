"""Draws images that show their object more often than they occur, for data sets in which most images are empty.

    images of an object in an epoch = images of the object in the training split, whatever is drawn
    share of them that show it      = max(share in the data, wanted share)

Each image with the object is drawn equally often (give or take one). The remaining places go to images without it, without
repetition and new in every epoch. What is drawn is a function of (seed, epoch). A network that sees the object in few images soon
predicts nothing at all; nnU-Net (Isensee et al. 2021) therefore draws at least a third of its patches with the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor

from datamodules.in_memory import seeded_generator
from datamodules.segmentation.masks import mask_of
from datamodules.segmentation.prompt_sets import Pair

THREADS = 8  # decoding a mask releases the interpreter's lock


class Positives:
    """Knows which training images show their object, and draws the images of an epoch.

    Reads the masks when it is first asked.

    Args:
        pairs: The N images of the data sets with their masks.
        places: (n,) int64, positions of the training images among them.
    """

    def __init__(self, pairs: Sequence[Pair], places: Tensor) -> None:
        self.pairs, self.places = pairs, places
        self.labels = torch.tensor([pairs[place].prompt for place in places.tolist()], dtype=torch.int64)

    @cached_property
    def shows(self) -> Tensor:
        """Whether the mask of each training image has a pixel of the object, (n,) bool; an unreadable mask counts as empty."""
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(_shows, [self.pairs[place] for place in self.places.tolist()]))
        return torch.tensor(found, dtype=torch.bool)

    def shares(self, objects: int) -> list[float]:
        """Share of the training images of each object that show it, 0 to 1; 0 for an object without images."""
        of_objects = [self.shows[self.labels == number] for number in range(objects)]
        return [float(shows.float().mean()) if len(shows) else 0.0 for shows in of_objects]

    def draw(self, share: float, seed: int, epoch: int) -> Tensor:
        """Indices that the places of an epoch serve, (n,) int64: position + N times the number of earlier draws in the epoch."""
        place, copy = draw(self.labels, self.shows, share, seed, epoch)
        return self.places[place] + copy * len(self.pairs)


def _shows(pair: Pair) -> bool:
    if pair.shapes is not None and not pair.shapes:
        return False
    try:
        mask, _ = mask_of(pair)
    except MemoryError:
        raise
    except Exception:  # a damaged file can make a decoder raise anything; the loader reports it
        return False
    return mask is not None and bool(mask.any())


def draw(labels: Tensor, shows: Tensor, share: float, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw the images of an epoch.

    Args:
        labels: Number of the object of each image (N,).
        shows: Whether each image shows its object (N,), bool.
        share: Share of an object's places, 0 to 1, that at least go to images that show it, if there is one.
        seed: Seed of the run.
        epoch: Epoch, from 0.

    Returns:
        Places 0 to N - 1 of the drawn images (N,), grouped as in `labels`: entry i has the object of image i; and how often each
        one was drawn before in this epoch (N,), 0 for its first time.

    >>> labels, shows = torch.zeros(6, dtype=torch.int64), torch.tensor([True, False, False, False, False, False])
    >>> place, copy = draw(labels, shows, 0.5, seed=0, epoch=0)
    >>> sorted(place.tolist())[:3], sorted(copy.tolist())
    ([0, 0, 0], [0, 0, 0, 0, 1, 2])
    """
    place, copy = torch.arange(len(labels)), torch.zeros(len(labels), dtype=torch.int64)
    for number in labels.unique().tolist():
        own = (labels == number).nonzero().flatten()
        positive, empty = own[shows[own]], own[~shows[own]]
        wanted = -int(-share * len(own) // 1)  # rounded up
        if len(positive) == 0 or len(positive) >= wanted:
            continue
        generator = seeded_generator("positives", seed, epoch, number)
        again = torch.randperm(len(positive), generator=generator)
        times = torch.arange(wanted)
        kept = torch.randperm(len(empty), generator=generator)[: len(own) - wanted]
        place[own] = torch.cat([positive[again[times % len(positive)]], empty[kept]])
        copy[own] = torch.cat([times // len(positive), torch.zeros(len(kept), dtype=torch.int64)])
    return place, copy
