"""Tests the order of an epoch against a plain statement of it."""

import pytest
import torch

from datamodules.in_memory import num_batches, seeded_generator
from datamodules.sharded.order import shard_order


def plain(shards: list[int], block: int, seed: int, epoch: int) -> list[int]:
    """Shuffle the shards; take k at a time; a block's samples come in the order in which a shuffle of all samples has them."""
    names = sorted(set(shards))
    turn = torch.randperm(len(names), generator=seeded_generator("order of shards", seed, epoch)).tolist()
    samples = torch.randperm(len(shards), generator=seeded_generator("order of samples", seed, epoch)).tolist()
    found: list[int] = []
    for start in range(0, len(turn), block):
        taken = {names[number] for number in turn[start : start + block]}
        found += [sample for sample in samples if shards[sample] in taken]
    return found


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_the_order_is_that_of_the_plain_statement(block: int) -> None:
    shards = [0] * 5 + [2] * 1 + [3] * 7 + [4] * 4 + [9] * 3
    for epoch in range(3):
        order = shard_order(torch.tensor(shards), block, 7, epoch).tolist()
        assert order == plain(shards, block, 7, epoch)
        assert sorted(order) == list(range(20))
        of_shard = [shards[sample] for sample in order]
        seen = list(dict.fromkeys(of_shard))
        for start in range(0, len(seen), block):  # no shard is needed before or after its block
            places = [place for place, shard in enumerate(of_shard) if shard in seen[start : start + block]]
            assert places == list(range(places[0], places[-1] + 1)) or block > 1
    orders = [shard_order(torch.tensor(shards), block, seed, epoch).tolist() for seed in (7, 8) for epoch in (0, 1)]
    assert len({*map(tuple, orders)}) == 4


def test_ranks_share_the_order_of_one_process() -> None:
    """The batches of W ranks are those of one process with W times the batch: position + r, + W, ..."""
    from datamodules.in_memory import batch_indices

    shards = torch.arange(7).repeat_interleave(13)
    order = shard_order(shards, 3, 0, 2)
    one = batch_indices(91, 8, keep="full", shuffle=True, order=order)
    two = [batch_indices(91, 4, keep="full", shuffle=True, order=order, rank=r, world_size=2) for r in (0, 1)]
    assert len(one) == len(two[0]) == num_batches(91, 4, keep="full", world_size=2) == 11
    for whole, *parts in zip(one, *two, strict=True):
        assert torch.stack(parts, dim=1).flatten().tolist() == whole.tolist()
