"""Tests of lightning_modules/losses.py: equal loss for class ids and one-hot targets, class weights, soft targets."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses import classification_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 0, 1]), torch.tensor([0.2, 1.0, 3.0, 0.7])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hot_targets_and_class_ids_give_the_same_loss(
    batch: tuple[torch.Tensor, ...], smoothing: float, weighted: bool
) -> None:
    logits, label, weight = batch
    w = weight if weighted else None
    hard = classification_loss(logits, label, None, w, smoothing)
    soft = classification_loss(logits, label, F.one_hot(label, 4).float(), w, smoothing)
    torch.testing.assert_close(soft, hard)
    torch.testing.assert_close(hard, F.cross_entropy(logits, label, weight=w, label_smoothing=smoothing))


def test_torch_with_soft_targets_multiplies_the_loss(batch: tuple[torch.Tensor, ...]) -> None:
    logits, label, weight = batch
    one_hot = F.one_hot(label, 4).float()
    ratio = F.cross_entropy(logits, one_hot, weight=weight) / classification_loss(logits, label, one_hot, weight)
    torch.testing.assert_close(ratio, weight[label].mean())


def test_soft_targets_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    weight = torch.tensor([2.0, 4.0])
    # -log p is log 2 everywhere, so its weighted mean is log 2 for any weights
    assert classification_loss(logits, torch.zeros(2).long(), target, weight).item() == pytest.approx(0.6931472)
    logits = torch.tensor([[0.0, 1.0986123]])  # p = 1/4, 3/4
    loss = classification_loss(logits, torch.zeros(1).long(), target[:1], weight)
    expected = (2 * 0.25 * 1.3862944 + 4 * 0.75 * 0.2876821) / (2 * 0.25 + 4 * 0.75)
    assert loss.item() == pytest.approx(expected)
