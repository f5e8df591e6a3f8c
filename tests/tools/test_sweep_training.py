"""Tests of training heads together, against a plain torch training loop for each head by itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.ema import effective_decay
from lightning_modules.schedules import Shape, lr_share
from networks.mlp_head import MLPHead
from tools.sweep_heads.batched_metrics import metrics
from tools.sweep_heads.head_groups import Head, Outcome, Recipe, blocks_of
from tools.sweep_heads.report import picture, settings_of
from tools.sweep_heads.training import train

D, K, N, B = 12, 3, 70, 16
CPU = torch.device("cpu")
draw = torch.Generator().manual_seed(0)
FEATURES = torch.randn(N, D, generator=draw)
LABELS = (FEATURES[:, :K] + torch.randn(N, K, generator=draw)).argmax(dim=1)
VAL, VAL_LABELS = torch.randn(40, D, generator=draw), torch.arange(40) % K
GRID = [
    *(Head(lr, wd, 0.0, (), seed) for lr in (1e-3, 3e-2) for wd in (0.0, 0.1) for seed in (0, 1)),
    *(Head(3e-3, 0.05, p, (8,), seed) for p in (0.0, 0.3, 0.6) for seed in (0, 1)),
    *(Head(1e-2, 0.01, 0.3, (8, 5), seed) for seed in (0, 5)),
    Head(1e-2, 0.1, 0.2, (1,), 0),  # its first weight is a vector, which gets no weight decay
]
RECIPES = {
    "plain": Recipe(4, 5, Shape("cosine")),
    "all": Recipe(
        4,
        5,
        Shape("cosine", warmup_steps=3, end=0.01),
        label_smoothing=0.1,
        class_weight=torch.tensor([0.5, 2.0, 1.0]),
        clip=0.3,
        ema=(0.9, True, 2),
    ),
    "one_cycle": Recipe(4, 5, Shape("one_cycle"), momentum_low=0.8, clip=0.01, clip_by="value"),
}


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a different order every epoch; the last one is smaller."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
    for chosen in order.split(B):
        yield FEATURES[chosen], LABELS[chosen]


def validation(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield VAL[:25], VAL_LABELS[:25]
    yield VAL[25:], VAL_LABELS[25:]


def train_one(head: Head, recipe: Recipe) -> tuple[MLPHead, list[float]]:
    """Train one head with torch's own optimiser and clipping; return it and its validation loss after each epoch."""
    module = MLPHead(D, K, head.hidden, head.dropout, head.seed).train()
    decayed = [p for p in module.parameters() if p.numel() != max(p.shape)]
    others = [p for p in module.parameters() if p.numel() == max(p.shape)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": head.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=head.lr
    )
    average, losses, step, updates = copy.deepcopy(module), [], 0, 0
    cycle = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(cycle, 1.0, 20, base_momentum=0.8, max_momentum=0.9)
    for epoch in range(recipe.epochs):
        for features, label in batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = head.lr * lr_share(recipe.shape, step, 20)
                if recipe.shape.name == "one_cycle":
                    group["betas"] = (cycle.param_groups[0]["momentum"], 0.999)
            each = F.cross_entropy(module(features), label, label_smoothing=recipe.label_smoothing, reduction="none")
            of = torch.ones(len(label)) if recipe.class_weight is None else recipe.class_weight[label]
            loss = (of * each).sum() / of.sum()
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip is not None and recipe.clip_by == "norm":
                torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
            elif recipe.clip is not None:
                torch.nn.utils.clip_grad_value_(module.parameters(), recipe.clip)
            optimizer.step()
            cycle.step()
            if step < 19:
                one_cycle.step()
            step += 1
            decay, warmup, start = recipe.ema or (0.0, True, 10**9)
            if step > start:
                decay, updates = effective_decay(decay, updates, warmup), updates + 1
            else:
                decay = 0.0
            with torch.no_grad():
                for mean, p in zip(average.parameters(), module.parameters(), strict=True):
                    mean.lerp_(p, 1 - decay)
        losses.append(F.cross_entropy(average.eval()(VAL), VAL_LABELS).item())
    average.forwards.copy_(module.forwards)
    return average, losses


def together(heads: list[Head], recipe: Recipe, monitor: str = "loss") -> list[Outcome]:
    made = [make() for make in blocks_of(heads, D, K, recipe, B, CPU)]
    return [outcome for _, outcome in sorted(train(made, batches, validation, recipe, monitor), key=lambda o: o[0])]


@pytest.mark.every(3)
@pytest.mark.parametrize("name", RECIPES)
def test_each_head_equals_the_head_trained_by_itself(name: str) -> None:
    outcomes = together(GRID, RECIPES[name])
    assert [outcome.head for outcome in outcomes] == GRID
    for outcome in outcomes:
        module, losses = train_one(outcome.head, RECIPES[name])
        loaded = MLPHead(D, K, outcome.head.hidden, outcome.head.dropout, outcome.head.seed)
        loaded.load_state_dict(outcome.weights)
        for name_, expected in module.state_dict().items():
            assert torch.allclose(outcome.weights[name_], expected, rtol=0, atol=2e-6), (outcome.head, name_)
        assert outcome.final["loss"] == pytest.approx(losses[-1], abs=1e-5)
        assert outcome.best_epoch == losses.index(min(losses))
        assert outcome.best["loss"] == pytest.approx(min(losses), abs=1e-5)


@pytest.mark.slow
def test_settings_of_this_file_change_the_heads() -> None:
    """Clipping, seeds, dropout and weight decay each change a head, so the test above would notice a mix-up of heads."""
    clipped, free = (together(GRID[:1], RECIPES[name])[0].weights for name in ("all", "plain"))
    assert not torch.allclose(clipped["layers.0.weight"], free["layers.0.weight"], atol=1e-3)
    weights = [outcome.weights["layers.0.weight"] for outcome in together(GRID, RECIPES["all"])]
    for i, one in enumerate(weights):
        for other in weights[:i]:
            assert one.shape != other.shape or (one - other).abs().max() > 1e-4


def test_diverging_head_does_not_change_the_others() -> None:
    wild = Head(1e38, 0.0, 0.0, (8,), 0)
    heads = [GRID[8], wild, GRID[10]]
    outcomes, calm = together(heads, RECIPES["all"]), together([heads[0], heads[2]], RECIPES["all"])
    assert [outcome.diverged for outcome in outcomes] == [False, True, False]
    assert all(math.isnan(value) for value in outcomes[1].final.values())
    for outcome, expected in zip((outcomes[0], outcomes[2]), calm, strict=True):
        for name, values in expected.weights.items():
            assert torch.allclose(outcome.weights[name], values, rtol=0, atol=1e-6)


def test_blocks_have_one_hidden_size_and_one_seed_if_possible() -> None:
    heads = [Head(1e-3 * i, 0.0, 0.1, (256,), seed) for i in range(1, 5) for seed in (0, 1)]
    made = [make() for make in blocks_of(heads, D, K, RECIPES["plain"], 512, CPU)]
    assert [sorted({head.seed for head in block.heads}) for block in made] == [[0], [0], [1], [1]]
    assert sorted(place for block in made for place in block.places) == list(range(8))


def test_best_epoch_is_selected_by_the_monitored_metric() -> None:
    outcome = together(GRID[2:3], RECIPES["plain"], "acc")[0]
    module, _ = train_one(GRID[2], RECIPES["plain"])
    assert outcome.final["acc"] == (module(VAL).argmax(1) == VAL_LABELS).double().mean().item()
    assert outcome.best["acc"] >= outcome.final["acc"]
    assert set(metrics(torch.zeros(1, 4, 2), torch.tensor([0, 1, 0, 1]), ["auroc"])) == {"auroc"}


def test_ties_of_the_monitored_metric_go_to_the_lower_loss_then_to_the_earlier_epoch() -> None:
    (block,) = (make() for make in blocks_of([GRID[0], GRID[1]], D, K, RECIPES["plain"], B, CPU))
    logits = torch.zeros(2, 4, K)
    for epoch, (values, losses) in enumerate(
        [((0.5, 0.5), (0.3, 0.3)), ((0.5, 0.5), (0.2, 0.4)), ((0.5, 0.4), (0.2, 0.1)), ((0.5, 0.5), (0.2, 0.2))]
    ):
        block.keep_best(
            epoch, logits + epoch, torch.tensor(values).double(), torch.tensor(losses).double(), lower=False
        )
    assert block.best_epoch.tolist() == [1, 3]
    assert block.best is not None
    assert block.best[:, 0, 0].tolist() == [1, 3]
    results = [{"acc": 0.5, "loss": 0.4}, {"acc": 0.5, "loss": 0.3}, {"acc": 0.6, "loss": 0.9}]
    outcomes = [Outcome(head, result, result, 0, {}) for head, result in zip(GRID[:5:2], results, strict=True)]
    assert [setting.outcomes[0].best for setting in settings_of(outcomes, "acc")] == [
        results[2],
        results[1],
        results[0],
    ]


def test_a_panel_only_where_a_setting_was_swept() -> None:
    def panels(*heads: Head) -> list[str]:
        best = {"loss": 1.0, "acc": 0.5}
        outcomes = [Outcome(head, best, best, 0, {}) for head in heads]
        return [axes.get_xlabel() for axes in picture(settings_of(outcomes, "acc"), "acc").axes]

    linear, deep = Head(1e-3, 0.1, 0.0, (), 0), Head(1e-3, 0.1, 0.3, (64,), 0)
    assert panels(linear, deep) == ["hidden sizes"], "a linear head has no dropout"
    assert panels(linear, deep, deep._replace(dropout=0.5)) == ["dropout", "hidden sizes"]
    assert panels(linear) == ["learning rate"]
