"""Accuracy per group: compared with a count by hand and with a computation over all samples at once."""

import torch

from metrics import GroupAccuracy, GroupSums, group_accuracies


def test_by_hand() -> None:
    sums = GroupSums()
    logits = torch.eye(3)
    sums.update(logits, torch.tensor([0, 1, 0]), torch.tensor([5, 5, 900_001]))
    sums.update(logits[:1], torch.tensor([2]), torch.tensor([5]))
    found = sums.compute()
    assert found == {5: GroupAccuracy(3, 2), 900_001: GroupAccuracy(1, 0)}
    assert found[5].accuracy == 2 / 3
    sums.reset()
    sums.update(logits, torch.tensor([0, 1, 2]), torch.tensor([4, 4, 4]))
    assert sums.compute() == {4: GroupAccuracy(3, 3)}


def test_samples_without_a_group_are_not_counted() -> None:
    sums = GroupSums()
    sums.update(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor([-1, 5, -3]))
    assert sums.compute() == {5: GroupAccuracy(1, 1)}
    sums.reset()
    sums.update(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor([-1, -1, -1]))
    assert sums.compute() == {}


def test_batches_add_up() -> None:
    random = torch.Generator().manual_seed(0)
    logits, label = torch.randn(100, 6, generator=random), torch.randint(0, 6, (100,), generator=random)
    group = torch.randint(0, 9, (100,), generator=random)
    sums = GroupSums()
    for places in torch.randperm(100, generator=random).split(7):
        sums.update(logits[places], label[places], group[places])
    found = sums.compute()
    hits = logits.argmax(1) == label
    assert found == group_accuracies(group, hits)
    for number, one in found.items():
        assert one == GroupAccuracy(int((group == number).sum()), int(hits[group == number].sum()))
