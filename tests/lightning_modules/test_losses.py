"""Tests of lightning_modules/losses: a sample is weighted by its class before its label is smoothed; mixtures of samples."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.losses import balanced_weights, classification_loss, weights_by_name
from lightning_modules.losses.multilabel import multilabel_loss, positive_weights


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


# ---- focal loss and weights ----


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_by_hand(batch: tuple[torch.Tensor, ...], gamma: float, smoothing: float) -> None:
    logits, label, weight = batch
    p = logits.double().softmax(dim=1)
    each = -((1 - p) ** gamma) * p.log()
    mixed = torch.lerp(F.one_hot(label, 4).float(), F.one_hot(label, 4).float().roll(1, 0), 0.3)
    for target in (F.one_hot(label, 4).float(), mixed):
        smoothed = (1 - smoothing) * each + smoothing * each.mean(dim=1, keepdim=True)
        shares = target.double() * weight
        value = (shares * smoothed).sum() / shares.sum()
        loss = classification_loss(logits, label, target, weight, smoothing, gamma)
        torch.testing.assert_close(loss.double(), value, rtol=1e-5, atol=1e-6)
    ids = classification_loss(logits, label, None, weight, smoothing, gamma)
    torch.testing.assert_close(
        ids, classification_loss(logits, label, F.one_hot(label, 4).float(), weight, smoothing, gamma)
    )


def test_focal_without_gamma_is_cross_entropy(batch: tuple[torch.Tensor, ...]) -> None:
    logits, label, _ = batch
    close = classification_loss(logits, label, focal_gamma=1e-6)
    torch.testing.assert_close(close, F.cross_entropy(logits, label), rtol=1e-4, atol=1e-5)


def test_focal_of_large_logits_has_a_gradient() -> None:
    logits = torch.tensor([[30.0, -30.0], [-30.0, 30.0]], requires_grad=True)
    loss = classification_loss(logits, torch.tensor([0, 0]), focal_gamma=0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(30, abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    multi = logits.detach().requires_grad_()
    multilabel_loss(multi, torch.tensor([[1, 0], [1, 1]]), focal_gamma=0.5).backward()
    assert multi.grad is not None
    assert multi.grad.isfinite().all()


def test_focal_of_several_labels_is_torchvisions() -> None:
    from torchvision.ops import sigmoid_focal_loss

    torch.manual_seed(1)
    logits, target = torch.randn(6, 3), (torch.rand(6, 3) < 0.4).float()
    expected = sigmoid_focal_loss(logits, target, alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(multilabel_loss(logits, target, focal_gamma=2.0), expected)


def test_weights_by_power_and_by_name() -> None:
    counts = torch.tensor([90, 10])
    torch.testing.assert_close(balanced_weights(counts, 0.0), torch.ones(2))
    half = balanced_weights(counts, 0.5)
    assert float(half[1] / half[0]) == pytest.approx(3.0)
    assert float((half * counts).sum() / counts.sum()) == pytest.approx(1.0)
    assert positive_weights(counts, 100, 0.5).tolist() == pytest.approx([1 / 3, 3.0])
    assert weights_by_name({"owl": 4}, ["cat", "owl"]).tolist() == [1.0, 4.0]
    with pytest.raises(ValueError, match=r"there is no 'olw' \(did you mean 'owl'\?\); there are cat, owl"):
        weights_by_name({"olw": 4}, ["cat", "owl"])
    with pytest.raises(ValueError, match="class_weights: owl: a number above 0, got 0"):
        weights_by_name({"owl": 0}, ["cat", "owl"])
