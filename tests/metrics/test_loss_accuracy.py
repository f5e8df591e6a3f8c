"""Loss and accuracy sums: compared with torchmetrics; mixed samples, waiting batches, copies and resets of states."""

import copy
import pickle

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from metrics import ClassificationSums
from metrics.loss_accuracy import MOST_WAITING


def test_equals_torchmetrics_and_weighs_batches_by_size() -> None:
    torch.manual_seed(0)
    sums, accuracy = ClassificationSums(), MulticlassAccuracy(5, average="micro")
    losses, sizes = [], [8, 3, 1]
    for size in sizes:
        logits, label, loss = torch.randn(size, 5), torch.randint(5, (size,)), torch.rand(())
        sums.update(loss, logits, label)
        accuracy.update(logits, label)
        losses.append(float(loss) * size)
    metrics = sums.compute()
    assert metrics == {"loss": pytest.approx(sum(losses) / 12), "acc": pytest.approx(float(accuracy.compute()))}


def test_mixed_samples_count_by_their_shares_and_not_in_acc() -> None:
    sums = ClassificationSums()
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[0.7, 0.3], [1.0, 0.0], [1.0, 0.0]])
    sums.update(torch.tensor(1.0), logits, torch.tensor([0, 0, 0]), target)
    metrics = sums.compute()
    assert metrics["acc"] == 0.5
    assert metrics["acc_mix"] == pytest.approx((0.7 + 1.0 + 0.0) / 3)


def test_no_unmixed_sample_means_no_acc() -> None:
    sums = ClassificationSums()
    sums.update(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1]), torch.full((2, 2), 0.5))
    assert set(sums.compute()) == {"loss", "acc_mix"}
    sums.reset()
    assert not sums.update_called


def batches(count: int, mixed: bool) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(count)
    found = []
    for number in range(count):
        size = 1 + number % 7
        logits, label = torch.randn(size, 5, generator=generator), torch.randint(5, (size,), generator=generator)
        target = torch.rand(size, 5, generator=generator).softmax(dim=1) if mixed and number % 3 else None
        found.append((torch.rand((), generator=generator), logits, label, *([] if target is None else [target])))
    return found


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("count", [1, MOST_WAITING - 1, MOST_WAITING, 3 * MOST_WAITING + 2])
def test_a_state_does_not_depend_on_earlier_reads(count: int, mixed: bool) -> None:
    read, unread = ClassificationSums(), ClassificationSums()
    samples = 0
    for batch in batches(count, mixed):
        for sums in (read, unread):
            sums.update(*batch)
        samples += len(batch[2])
        assert read.samples == samples
    assert [getattr(read, name).tolist() for name in ("samples", "sums", "mixed")] == [
        getattr(unread, name).tolist() for name in ("samples", "sums", "mixed")
    ]
    assert unread.compute() == read.compute()
    assert unread.update_called


def test_counts_are_those_of_each_batch_by_itself() -> None:
    sums = ClassificationSums()
    expected = {"samples": 0.0, "loss": 0.0, "hits": 0.0}
    for loss, logits, label in batches(40, mixed=False):
        sums.update(loss, logits, label)
        expected["samples"] += len(label)
        expected["loss"] += float(loss) * len(label)
        expected["hits"] += int((logits.argmax(1) == label).sum())
        assert sums.compute()["loss"] == pytest.approx(expected["loss"] / expected["samples"])
    assert [sums.samples.item(), sums.sums[1].item()] == [expected["samples"], expected["hits"]]
    assert sums.sums[0].item() == pytest.approx(expected["loss"])


def test_a_state_that_is_set_is_not_added_to_by_what_came_before() -> None:
    sums = ClassificationSums()
    for batch in batches(3, mixed=False):
        sums.update(*batch)
    sums.reset()
    assert sums.samples == 0
    sums.update(*batches(3, mixed=False)[0])
    sums.samples = torch.tensor(100.0)
    sums.update(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1]))
    assert sums.samples == 102


def test_few_batches_wait_without_their_graph_and_logits() -> None:
    sums, weight = ClassificationSums(), torch.ones(3, requires_grad=True)
    for _ in range(MOST_WAITING - 1):
        sums.update(weight.sum(), weight * torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    assert len(sums._waiting) == MOST_WAITING - 1
    assert not any(loss.requires_grad for loss, *_ in sums._waiting)
    sums.update(weight.sum(), weight * torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    assert not sums._waiting


def test_learned_targets_leave_no_graph_in_the_sums() -> None:
    sums, target = ClassificationSums(), torch.full((2, 2), 0.5, requires_grad=True)
    sums.update(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1]), target)
    assert not sums.sums.requires_grad
    assert not sums.mixed.requires_grad


def test_batches_are_counted_at_once_on_an_accelerator() -> None:
    sums = ClassificationSums().to("meta")
    loss, logits, label = (values.to("meta") for values in (torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1])))
    sums.update(loss, logits, label)
    assert not sums._waiting


def test_logits_may_be_changed_once_they_were_given() -> None:
    sums, logits = ClassificationSums(), torch.eye(2)
    sums.update(torch.tensor(1.0), logits, torch.tensor([0, 1]))
    logits.neg_()
    assert sums.compute()["acc"] == 1


def test_a_copy_contains_waiting_batches() -> None:
    sums = ClassificationSums()
    for batch in batches(5, mixed=False):
        sums.update(*batch)
    twin = pickle.loads(pickle.dumps(sums))
    assert twin.compute() == copy.deepcopy(sums).compute() == sums.compute()
