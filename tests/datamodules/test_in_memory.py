"""`InMemoryLoader` and `batch_indices` without Lightning; `test_base_in_trainer.py` tests the loader with a Trainer."""

import hashlib
from collections.abc import Iterable
from itertools import chain, product
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.in_memory import (
    InMemoryLoader,
    Keep,
    batch_indices,
    batches_in_turn,
    num_batches,
    seeded_generator,
)


def served(n: int, batch_size: int, **settings: Any) -> list[list[int]]:
    return [batch.tolist() for batch in batch_indices(n, batch_size, **settings)]


def joined(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


@pytest.mark.parametrize(
    ("keep", "rank", "world_size", "expected"),
    [
        ("full", 0, 1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
        ("equal", 0, 1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]),
        ("all", 0, 1, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]),
        ("full", 0, 2, [[0, 2], [4, 6]]),
        ("full", 1, 2, [[1, 3], [5, 7]]),
        ("equal", 0, 2, [[0, 2], [4, 6], [8, 10]]),
        ("equal", 1, 2, [[1, 3], [5, 7], [9]]),
        ("equal", 0, 5, [[0, 5]]),  # only rank 0 would have a second batch, with sample 10
        ("all", 0, 5, [[0, 5], [10]]),
        ("all", 4, 5, [[4, 9]]),
    ],
)
def test_eleven_samples_by_hand(keep: Keep, rank: int, world_size: int, expected: list[list[int]]) -> None:
    assert served(11, 2, keep=keep, shuffle=False, rank=rank, world_size=world_size) == expected


def test_order_depends_on_seed_and_epoch() -> None:
    orders = {}
    for seed, epoch in product(range(3), range(3)):
        (order,) = served(50, 50, keep="all", shuffle=True, seed=seed, epoch=epoch)
        torch.rand(7)  # the global generator has no influence
        assert served(50, 50, keep="all", shuffle=True, seed=seed, epoch=epoch) == [order]
        assert sorted(order) == list(range(50))
        orders[tuple(order)] = (seed, epoch)
    assert len(orders) == 9


def test_generator_is_the_same_in_every_process() -> None:
    digest = hashlib.blake2b(b"('order', 3, 7)", digest_size=8).digest()
    assert seeded_generator("order", 3, 7).initial_seed() == int.from_bytes(digest, "little") // 2


@pytest.mark.parametrize(("batch_size", "world_size"), list(product([1, 4, 5], [2, 3, 4])))
def test_global_batches_equal_those_of_one_process(batch_size: int, world_size: int) -> None:
    settings: dict[str, Any] = {"keep": "full", "shuffle": True, "seed": 1, "epoch": 2}
    one_process = served(101, batch_size * world_size, **settings)
    ranks = [served(101, batch_size, rank=rank, world_size=world_size, **settings) for rank in range(world_size)]
    together = [joined(batches) for batches in zip(*ranks, strict=True)]
    assert [set(batch) for batch in together] == [set(batch) for batch in one_process]
    assert [len(batch) for batch in together] == [batch_size * world_size] * (101 // (batch_size * world_size))


@pytest.mark.parametrize(("world_size", "batch_size"), list(product([1, 2, 3, 4], [1, 2, 5, 30])))
def test_evaluation_serves_21_samples_once_each(world_size: int, batch_size: int) -> None:
    ranks = [
        served(21, batch_size, keep="all", shuffle=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert sorted(joined(chain.from_iterable(ranks))) == list(range(21))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_equal_gives_every_rank_the_same_number_of_batches_without_repeats(world_size: int) -> None:
    for n in range(4, 40):
        ranks = [
            served(n, 4, keep="equal", shuffle=True, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        samples = joined(chain.from_iterable(ranks))
        assert len({len(batches) for batches in ranks}) == 1
        assert len(set(samples)) == len(samples) > n - world_size


def test_num_batches_is_the_number_of_batches() -> None:
    keeps: list[Keep] = ["full", "equal", "all"]
    for keep, n, batch_size, world_size in product(keeps, range(1, 20), (1, 3, 8), (1, 2, 3)):
        for rank in range(world_size):
            batches = served(n, batch_size, keep=keep, shuffle=False, rank=rank, world_size=world_size)
            assert num_batches(n, batch_size, keep=keep, rank=rank, world_size=world_size) == len(batches)


def test_rows_stay_together_and_are_copies() -> None:
    data = {"image": torch.arange(60, dtype=torch.uint8).reshape(10, 1, 2, 3), "label": torch.arange(10) % 3}
    data["index"] = torch.arange(100, 110)
    before = {name: values.clone() for name, values in data.items()}
    for batch in InMemoryLoader(data, 4, keep="all", shuffle=True, seed=5):
        rows = batch["index"] - 100
        assert torch.equal(batch["image"], before["image"][rows])
        assert torch.equal(batch["label"], before["label"][rows])
        assert batch["image"].dtype == torch.uint8
        batch["image"].zero_()
    assert all(torch.equal(data[name], before[name]) for name in data)


def test_a_pass_starts_at_the_position_read_at_the_first_batch() -> None:
    position = [0, 0]
    loader = InMemoryLoader(
        {"index": torch.arange(20)},
        3,
        keep="full",
        shuffle=True,
        seed=4,
        position=lambda: (position[0], position[1]),
    )
    iterator = iter(loader)
    position[:] = [2, 4]  # as Lightning does: the counters are restored after iter()
    rest = [batch["index"].tolist() for batch in iterator]
    assert rest == served(20, 3, keep="full", shuffle=True, seed=4, epoch=2)[4:]
    assert (len(rest), len(loader)) == (2, 6)  # len() is still the length of the whole epoch


def test_fewer_samples_than_processes_are_an_error() -> None:
    with pytest.raises(MisconfigurationException, match="3 samples cannot be shared by 4 processes"):
        InMemoryLoader({"index": torch.arange(3)}, 1, keep="all", world_size=4)


def test_state_is_empty_because_order_and_position_are_computed() -> None:
    loader = InMemoryLoader({"index": torch.arange(6)}, 2, keep="all", shuffle=True)
    before = [batch["index"].tolist() for batch in loader]
    assert loader.state_dict() == {}
    loader.load_state_dict({"anything": 1})
    assert [batch["index"].tolist() for batch in loader] == before


@pytest.mark.parametrize("keep", ["full", "equal"])
@pytest.mark.parametrize(("world_size", "turns"), [(1, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize("parts", [1, 2])
def test_processes_that_take_turns_serve_the_batches_of_all_ranks(
    keep: Any, world_size: int, turns: int, parts: int
) -> None:
    order: dict[str, Any] = {"keep": keep, "shuffle": True, "seed": 3, "epoch": 1, "parts": parts}
    n, all_ranks = 47, world_size * turns
    of_rank = [batch_indices(n, 3, rank=rank, world_size=all_ranks, **order) for rank in range(all_ranks)]
    for rank in range(world_size):
        served = batches_in_turn(n, 3, rank=rank, world_size=world_size, turns=turns, **order)
        for number, batch in enumerate(served):
            assert torch.equal(batch, of_rank[rank + number % turns * world_size][number // turns])
        loader = InMemoryLoader(
            {"index": torch.arange(n)},
            3,
            keep=keep,
            shuffle=True,
            seed=3,
            rank=rank,
            world_size=world_size,
            parts=parts,
            turns=turns,
            position=lambda: (1, 2),
        )
        assert len(served) == len(loader) == turns * len(of_rank[0])
        assert [batch["index"].tolist() for batch in loader] == [batch.tolist() for batch in served[2:]]
