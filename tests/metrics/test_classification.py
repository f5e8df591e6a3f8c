import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from metrics import ClassificationSums


def test_equals_torchmetrics_and_weighs_batches_by_size() -> None:
    torch.manual_seed(0)
    sums, accuracy = ClassificationSums(), MulticlassAccuracy(5, average="micro")
    losses, sizes = [], [8, 3, 1]
    for size in sizes:
        logits, label, loss = torch.randn(size, 5), torch.randint(5, (size,)), torch.rand(())
        sums.update(loss, logits, label)
        accuracy.update(logits, label)
        losses.append(float(loss) * size)
    figures = sums.compute()
    assert figures == {"loss": pytest.approx(sum(losses) / 12), "acc": pytest.approx(float(accuracy.compute()))}


def test_mixed_samples_count_by_their_shares_and_not_in_acc() -> None:
    sums = ClassificationSums()
    logits = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[0.7, 0.3], [1.0, 0.0], [1.0, 0.0]])
    sums.update(torch.tensor(1.0), logits, torch.tensor([0, 0, 0]), target)
    figures = sums.compute()
    assert figures["acc"] == 0.5
    assert figures["acc_mix"] == pytest.approx((0.7 + 1.0 + 0.0) / 3)


def test_no_unmixed_sample_means_no_acc() -> None:
    sums = ClassificationSums()
    sums.update(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1]), torch.full((2, 2), 0.5))
    assert set(sums.compute()) == {"loss", "acc_mix"}
    sums.reset()
    assert not sums.update_called
