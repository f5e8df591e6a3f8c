"""The loader of every data set that fits in memory: whole batches are cut out of tensors, with no workers and no per-sample Python.

The order of an epoch is a function of (seed, epoch) and of nothing that was drawn before, and the place to begin in it is asked for
at the first batch, so a resumed run goes on with exactly the batches that were left. Over W ranks the order is dealt like cards:

    rank r takes order[r::W] and cuts it into batches of B, so batch b of all ranks together is order[b*W*B : (b+1)*W*B],

the same samples that one process with batch W*B takes as its batch b; no sample is taken twice and none is padded.
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

Keep = Literal["full", "equal", "all"]
"""Which batches of an epoch are served: `full`, only those that are full on every rank; `equal`, a short last one too, but the same
number on every rank, since a rank that waits for a gradient which no other rank sends waits forever (up to W - 1 samples are left
out); `all`, every sample exactly once, so that one rank may have one batch more than another (evaluation)."""


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose state is a function of `key`, the same in every process and on every machine.

    Args:
        key: What the numbers are for, such as `("order", seed, epoch)`. Keys that differ in any part give unrelated numbers.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)  # manual_seed takes 63 bits


def check_enough(num_samples: int, world_size: int) -> None:
    """Check that no process is left without a sample.

    Raises:
        MisconfigurationException: There are fewer samples than processes.
    """
    if num_samples < world_size:
        raise MisconfigurationException(
            f"{num_samples} samples cannot be shared by {world_size} processes without one having none; "
            f"use {num_samples} devices or fewer"
        )


def num_batches(n: int, batch_size: int, *, keep: Keep, rank: int = 0, world_size: int = 1, parts: int = 1) -> int:
    """Return how many batches `batch_indices` gives, without making them.

    Args:
        n: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: Batches that are kept or left out together where `keep` is `full`: they are one that was cut up (see
            `DataModule.parts`), and an epoch keeps the samples and the optimiser steps that it had. A short last batch needs no
            such rule: its first part alone makes as many steps as all of it.
    """
    if keep == "full":
        return n // (batch_size * parts * world_size) * parts
    own = n // world_size if keep == "equal" else len(range(rank, n, world_size))
    return -(-own // batch_size)


def batch_indices(
    n: int,
    batch_size: int,
    *,
    keep: Keep,
    shuffle: bool,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    parts: int = 1,
    device: torch.device | None = None,
) -> tuple[Tensor, ...]:
    """Return the batches of one epoch of one rank, each a tensor of places in the data set.

    Args:
        n: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        shuffle: Draw the order from (seed, epoch); otherwise it is 0, 1, 2, ... in every epoch.
        seed: Seed of the order.
        epoch: Epoch, from 0.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: As for `num_batches`.
        device: Where the indices are put, all with one copy; None for the CPU.

    Returns:
        Tensors of `batch_size` int64 indices; with keep `equal` or `all` the last one may be shorter.
    """
    order = torch.randperm(n, generator=seeded_generator("order", seed, epoch)) if shuffle else torch.arange(n)
    own = order[rank::world_size].to(device or torch.device("cpu"))
    count = num_batches(n, batch_size, keep=keep, rank=rank, world_size=world_size, parts=parts)
    return torch.split(own, batch_size)[:count]


def beginning() -> tuple[int, int]:
    """Return the place where an evaluation always begins: epoch 0, batch 0."""
    return 0, 0


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch that is being trained and the first of its batches that was not served yet.

    After a resume these counters are right only once the training loop has restored and adjusted them, which is after it has called
    `iter()` on the loader and before it asks for the first batch.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


class InMemoryLoader:
    """Serves dict batches from tensors that lie in memory or on the accelerator.

    It deliberately is no `torch.utils.data.DataLoader` and has neither `sampler` nor `dataset`: Lightning then leaves it as it is
    (no distributed sampler that pads, no replaced order) and every Trainer limit works through `len()`.

    Args:
        data: Tensors of equal first dimension, such as `image` (N, C, H, W) uint8, `label` (N,) int64, `index` (N,) int64.
            Batches are gathered on the device where these lie.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        shuffle: Draw a new order in every epoch from (seed, epoch).
        seed: Seed of the order.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: As for `num_batches`.
        position: Called at the first batch of every pass; returns the epoch and the batch to begin at.
        pin_memory: Gather into page-locked memory, from which the copy to a CUDA device does not hold up the host.

    Raises:
        MisconfigurationException: There are fewer samples than processes, so that one would have none.
    """

    def __init__(
        self,
        data: dict[str, Tensor],
        batch_size: int,
        *,
        keep: Keep,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        parts: int = 1,
        position: Callable[[], tuple[int, int]] = beginning,
        pin_memory: bool = False,
    ) -> None:
        self.data, self.batch_size, self.keep, self.shuffle, self.seed = data, batch_size, keep, shuffle, seed
        self.rank, self.world_size, self.parts = rank, world_size, parts
        self.position, self.pin_memory = position, pin_memory
        first = next(iter(data.values()))
        self.num_samples, self.device = len(first), first.device
        check_enough(self.num_samples, world_size)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, also where a resumed pass serves only the rest of it: Lightning counts so."""
        places = {"rank": self.rank, "world_size": self.world_size, "parts": self.parts}
        return num_batches(self.num_samples, self.batch_size, keep=self.keep, **places)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # A generator: nothing below runs before the first next(), when the counters behind `position` are right.
        for chosen in self.chosen():
            yield {name: self._gather(values, chosen) for name, values in self.data.items()}

    def chosen(self) -> tuple[Tensor, ...]:
        """Return the batches that are left of the epoch, each a tensor of places in the data, where the data lies."""
        epoch, start = self.position()
        batches = batch_indices(
            self.num_samples,
            self.batch_size,
            keep=self.keep,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
            parts=self.parts,
            device=self.device,
        )
        return batches[start:]

    def _gather(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Return a copy of the chosen rows; always a copy, so that a step may write into its batch."""
        if not self.pin_memory:
            return values.index_select(0, chosen)
        out = torch.empty((len(chosen), *values.shape[1:]), dtype=values.dtype, pin_memory=True)
        return torch.index_select(values, 0, chosen, out=out)

    # Order and place need no saved state (see the top of this file). These two exist because Lightning warns of a loader without
    # them that it cannot be resumed in mid-epoch; what they save is never used.
    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see the comment above."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state: see the comment above."""
