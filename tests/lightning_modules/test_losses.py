"""Tests of lightning_modules/losses: a sample is weighted by its class before its label is smoothed; mixtures of samples."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses import balanced_weights, classification_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 0, 1]), torch.tensor([0.2, 1.0, 3.0, 0.7])


def expected(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Sum over samples and classes of share * class weight * smoothed loss, sample by sample with torch's unweighted loss."""
    total, weights = torch.zeros(()), torch.zeros(())
    for row, shares in zip(logits, target, strict=True):
        for c, share in enumerate(shares):
            loss = F.cross_entropy(row[None], torch.tensor([c]), label_smoothing=smoothing)
            total, weights = total + share * weight[c] * loss, weights + share * weight[c]
    return total / weights


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_a_sample_is_weighted_by_its_class_then_smoothed(batch: tuple[torch.Tensor, ...], smoothing: float) -> None:
    logits, label, weight = batch
    one_hot = F.one_hot(label, 4).float()
    mixed = torch.lerp(one_hot, one_hot.roll(1, 0), torch.linspace(0, 1, 7)[:, None])
    for target in (one_hot, mixed):
        loss = classification_loss(logits, label, target, weight, smoothing)
        torch.testing.assert_close(loss, expected(logits, target, weight, smoothing))
    ids = classification_loss(logits, label, None, weight, smoothing)
    torch.testing.assert_close(ids, expected(logits, one_hot, weight, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equal_weights_are_no_weights(batch: tuple[torch.Tensor, ...], smoothing: float) -> None:
    logits, label, _ = batch
    for target in (None, F.one_hot(label, 4).float().lerp(torch.full((7, 4), 0.25), 0.3)):
        plain = classification_loss(logits, label, target, None, smoothing)
        torch.testing.assert_close(
            plain, F.cross_entropy(logits, label if target is None else target, label_smoothing=smoothing)
        )
        torch.testing.assert_close(classification_loss(logits, label, target, torch.full((4,), 2.5), smoothing), plain)


def test_the_best_answer_stays_the_true_class_at_any_imbalance() -> None:
    """One logit vector per class, fitted freely: with torch's order of the two, class 0 would answer 1 beyond 19 to 1."""
    label = torch.tensor([0] * 200 + [1] * 4)
    weight = balanced_weights(label.bincount())
    torch.testing.assert_close(weight, torch.tensor([204 / 400, 204 / 8]))
    for smoothing, probability in ((0.1, 0.95), (0.3, 0.85)):
        logits = torch.zeros(2, 2, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

        def closure(logits: torch.Tensor = logits, smoothing: float = smoothing) -> torch.Tensor:
            logits.grad = None
            loss = classification_loss(logits[label], label, None, weight, smoothing)
            loss.backward()
            return loss

        optimizer.step(closure)
        answers = logits.detach().softmax(1)
        torch.testing.assert_close(answers.diagonal(), torch.full((2,), probability), atol=1e-3, rtol=0)


def test_torch_with_soft_targets_multiplies_the_loss(batch: tuple[torch.Tensor, ...]) -> None:
    logits, label, weight = batch
    one_hot = F.one_hot(label, 4).float()
    ratio = F.cross_entropy(logits, one_hot, weight=weight) / classification_loss(logits, label, one_hot, weight)
    torch.testing.assert_close(ratio, weight[label].mean())


def test_soft_targets_by_hand() -> None:
    target, weight = torch.tensor([[0.25, 0.75]]), torch.tensor([2.0, 4.0])
    logits = torch.tensor([[0.0, 1.0986123]])  # p = 1/4, 3/4
    loss = classification_loss(logits, torch.zeros(1).long(), target, weight)
    by_hand = (2 * 0.25 * 1.3862944 + 4 * 0.75 * 0.2876821) / (2 * 0.25 + 4 * 0.75)
    assert loss.item() == pytest.approx(by_hand)
    smoothed = classification_loss(logits, torch.zeros(1).long(), target, weight, 0.1)
    assert smoothed.item() == pytest.approx(0.9 * by_hand + 0.1 * (1.3862944 + 0.2876821) / 2)


def test_the_weights_keep_their_precision_under_autocast() -> None:
    """bf16 would round a weight of 25.5 times a share to three digits."""
    logits, label = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 1])
    target, weight = F.one_hot(label, 3).float().lerp(torch.full((4, 3), 1 / 3), 0.37), torch.tensor([0.51, 25.53, 1.7])
    with torch.autocast("cpu", torch.bfloat16):
        loss = classification_loss(logits, label, target, weight, 0.1)
    torch.testing.assert_close(loss, classification_loss(logits, label, target, weight, 0.1), rtol=1e-6, atol=1e-6)
