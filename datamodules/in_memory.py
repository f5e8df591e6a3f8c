"""`InMemoryLoader`: the loader for data sets in memory. Gathers whole batches from tensors, without workers or per-sample Python.

The order of an epoch depends only on (seed, epoch), not on earlier random draws. The start position is read at the first batch, so
a resumed run continues with exactly the remaining batches. W ranks share the order in a round-robin way:

    rank r takes order[r::W] and cuts it into batches of B, so batch b of all ranks together is order[b*W*B : (b+1)*W*B],

which are the samples of batch b of a single process with batch size W*B. No sample is used twice, and nothing is padded.

A run that goes on with fewer processes keeps these batches: each process serves those of several ranks in turn (`turns`).
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

Keep = Literal["full", "equal", "all"]
"""Which batches of an epoch are served:
`full`: only batches that are full on every rank;
`equal`: also a short last batch, with the same number of batches on every rank, because a rank without a partner for its gradient
synchronisation would wait forever (up to W - 1 samples are left out);
`all`: every sample exactly once, so that one rank may have one batch more than another (for evaluation)."""


MOST = (1 << 32) - 1
"""Largest position in a data set; the bits above it count how often a sample was drawn before in its epoch."""


def seeded_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose state is a function of `key`, the same in every process and on every machine.

    Args:
        key: Purpose of the random numbers, such as `("order", seed, epoch)`. Keys that differ in any part give unrelated numbers.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)  # manual_seed takes 63 bits


def check_enough(num_samples: int, world_size: int, batch_size: int = 1, batches: int = 1) -> None:
    """Check that every process gets at least one sample and, in training, one batch.

    Args:
        num_samples: Samples in the data set.
        world_size: Number of processes.
        batch_size: Samples in a batch of one process.
        batches: Batches of an epoch on one process.

    Raises:
        MisconfigurationException: There are fewer samples than processes, or no batch.
    """
    if num_samples < world_size:
        raise MisconfigurationException(
            f"{num_samples} samples cannot be shared by {world_size} processes without one having none; "
            f"use {num_samples} devices or fewer"
        )
    if batches == 0:
        devices = f" shared by {world_size} devices" if world_size > 1 else ""
        raise MisconfigurationException(
            f"--data.batch_size {batch_size} is larger than the training set of {num_samples} samples{devices}, so no batch is "
            f"full; the largest value that works is {num_samples // world_size}; a smaller batch needs a lower --model.lr, "
            "with SGD in proportion, with Adam and AdamW about as its square root"
        )


def num_batches(n: int, batch_size: int, *, keep: Keep, rank: int = 0, world_size: int = 1, parts: int = 1) -> int:
    """Return the number of batches that `batch_indices` would return, without building them.

    Args:
        n: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: Number of consecutive batches that are kept or dropped together if `keep` is `full`. These are the parts of one
            originally configured batch (see `DataModule.parts`), so an epoch keeps its samples and its optimiser steps. A short
            last batch needs no such rule: its first part by itself makes as many optimiser steps as all of its parts.
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
    order: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the batches of one epoch and one rank, each a tensor of positions in the data set.

    Args:
        n: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        shuffle: Draw the order from (seed, epoch); otherwise the order is 0, 1, 2, ... in every epoch.
        seed: Seed of the order.
        epoch: Epoch, from 0.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: As for `num_batches`.
        device: Device of the returned indices, moved with one copy; None for the CPU.
        order: (n,) int64, the order of the epoch if it is not the one described above.

    Returns:
        Tensors of `batch_size` int64 indices; with keep `equal` or `all` the last one may be shorter.
    """
    if order is None:
        order = torch.randperm(n, generator=seeded_generator("order", seed, epoch)) if shuffle else torch.arange(n)
    own = order[rank::world_size].to(device or torch.device("cpu"))
    count = num_batches(n, batch_size, keep=keep, rank=rank, world_size=world_size, parts=parts)
    return torch.split(own, batch_size)[:count]


def beginning() -> tuple[int, int]:
    """Return the start position of every evaluation: epoch 0, batch 0."""
    return 0, 0


def training_position(trainer: Trainer) -> tuple[int, int]:
    """Return the current training epoch and the number of its first batch that has not been served yet.

    After a resume these counters are correct only once the training loop has restored and adjusted them, which is after it has
    called `iter()` on the loader and before it requests the first batch.
    """
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


def batches_in_turn(
    n: int, batch_size: int, *, rank: int, world_size: int, turns: int, **order: Any
) -> tuple[Tensor, ...]:
    """Return the batches of one epoch that a process serves for `turns` ranks: batch 0 of each of them, batch 1 of each, and so on.

    The ranks are those of `world_size * turns` processes; this process takes `rank`, `rank + world_size`, and so on.

    Args:
        n: Samples in the data set.
        batch_size: Samples in a batch of one rank.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        turns: Ranks for each process.
        **order: As for `batch_indices`, with `keep` `full` or `equal` if there are several turns.

    >>> [batch.tolist() for batch in batches_in_turn(8, 2, rank=0, world_size=1, turns=2, keep="full", shuffle=False)]
    [[0, 2], [1, 3], [4, 6], [5, 7]]
    """
    ranks = range(rank, world_size * turns, world_size)
    of_each = [batch_indices(n, batch_size, rank=one, world_size=world_size * turns, **order) for one in ranks]
    return tuple(batch for together in zip(*of_each, strict=True) for batch in together)


def processes(trainer: Trainer | None) -> int:
    """Return the number of processes that train, 1 without a Trainer."""
    return trainer.world_size if trainer is not None else 1


class InMemoryLoader:
    """Serves dict batches from tensors in memory or on the accelerator.

    This class deliberately is not a `torch.utils.data.DataLoader` and has neither `sampler` nor `dataset`. Lightning therefore does
    not modify it (no padding distributed sampler, no replaced order), and every Trainer limit works through `len()`.

    Args:
        data: Tensors of equal first dimension, such as `image` (N, C, H, W) uint8, `label` (N,) int64, `index` (N,) int64.
            Batches are gathered on the device of these tensors.
        batch_size: Samples in a batch of one rank.
        keep: Which batches are served, see `Keep`.
        shuffle: Draw a new order in every epoch from (seed, epoch).
        seed: Seed of the order.
        rank: This process, 0 to `world_size - 1`.
        world_size: Number of processes.
        parts: As for `num_batches`.
        turns: Ranks whose batches this process serves, see `batches_in_turn`.
        position: Called at the first batch of every pass; returns the epoch and the batch to start from.
        pin_memory: Gather into page-locked memory, from which copies to a CUDA device do not block the host.
        resample: Returns the samples of an epoch in place of all of them, (n,) int64: position + 2^32 * earlier draws in the epoch.
            A batch then has `drawn` (B,) int64, its `index` with the same addition, for its augmentation. None: each sample once.

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
        turns: int = 1,
        position: Callable[[], tuple[int, int]] = beginning,
        pin_memory: bool = False,
        resample: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.resample = resample
        self.data, self.batch_size, self.keep, self.shuffle, self.seed = data, batch_size, keep, shuffle, seed
        self.rank, self.world_size, self.parts, self.turns = rank, world_size, parts, turns
        self.position, self.pin_memory = position, pin_memory
        first = next(iter(data.values()))
        self.num_samples, self.device = len(first), first.device
        check_enough(self.num_samples, world_size * turns)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, even if a resumed pass serves only the rest, as Lightning expects."""
        places = {"rank": self.rank, "world_size": self.world_size * self.turns, "parts": self.parts}
        return self.turns * num_batches(self.num_samples, self.batch_size, keep=self.keep, **places)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # This is a generator: nothing below runs before the first next(), when the counters that `position` reads are correct.
        for chosen, again in self.drawn():
            batch = {name: self._gather(values, chosen) for name, values in self.data.items()}
            yield batch if again is None else {**batch, "drawn": batch["index"] + again}

    def drawn(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return the remaining batches of the epoch: `chosen`, and what is added to the `index` of samples drawn again, or None."""
        batches = self.chosen()
        if self.resample is None:
            return [(chosen, None) for chosen in batches]
        drawn = self.resample(self.position()[0]).to(self.device)
        own = [drawn[chosen] for chosen in batches]
        return [(numbers & MOST, numbers & ~MOST) for numbers in own]

    def chosen(self) -> tuple[Tensor, ...]:
        """Return the remaining batches of the epoch, each a tensor of places in the epoch, on the device of the data.

        Without `resample` these are positions in the data.
        """
        epoch, start = self.position()
        batches = batches_in_turn(
            self.num_samples,
            self.batch_size,
            keep=self.keep,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
            turns=self.turns,
            parts=self.parts,
            device=self.device,
            order=self.epoch_order(epoch) if self.shuffle else None,
        )
        return batches[start:]

    def epoch_order(self, epoch: int) -> Tensor | None:
        """Return the order of a shuffled epoch, (n,) int64 positions in the data; None for the one of `batch_indices`."""
        return None

    def _gather(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Return a copy of the chosen rows; never a view, so that a training step may modify its batch in place."""
        if not self.pin_memory:
            return values.index_select(0, chosen)
        out = torch.empty((len(chosen), *values.shape[1:]), dtype=values.dtype, pin_memory=True)
        return torch.index_select(values, 0, chosen, out=out)

    # Order and position need no saved state (see the module docstring). These two methods exist because Lightning otherwise warns
    # that the loader cannot be resumed in mid-epoch; the saved state is never used.
    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see the comment above."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the state: see the comment above."""
