"""lightning_modules/optimizers.py: every optimiser of the table trains, resumes to the bit and takes its momentum."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from foundation.param_groups import get_momentum, set_momentum
from lightning_modules import TernaryClassifier
from lightning_modules.optimizers import (
    build_optimizer,
    default_momentum,
    has_momentum,
    optimizer_names,
)

LR = 1e-2
COMMON = ("sgd", "adamw", "adam", "nadamw", "lion", "muon", "nadamuon", "lamb", "adan", "adopt", "madgrad", "adafactor")
NAMES = [name if name in COMMON else pytest.param(name, marks=pytest.mark.slow) for name in optimizer_names()]
IMAGES = torch.randn(8, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 4, (8, 16), generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))


def optimizer_of(name: str, net: nn.Module, fused: bool = False, momentum: float | None = None) -> Optimizer:
    weights = [p for p in net.parameters() if p.ndim > 1]
    vectors = [p for p in net.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "name": "weights", "weight_decay": 0.05},
        {"params": vectors, "name": "vectors", "weight_decay": 0.0, "lr": LR / 2},
    ]
    return build_optimizer(name, groups, LR, default_momentum(name) if momentum is None else momentum, fused)


def train(net: nn.Module, optimizer: Optimizer, steps: range, closure: bool = False) -> list[float]:
    losses = []

    def loss_of(step: int) -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(IMAGES[step]), LABELS[step])
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for step in steps:
        if closure:
            optimizer.step(lambda step=step: loss_of(step))  # type: ignore[arg-type, misc]
        else:
            loss_of(step)
            optimizer.step()
    return losses


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_resumes_to_the_bit_from_a_checkpoint_without_pickled_code(name: str) -> None:
    whole = network()
    losses = train(whole, optimizer_of(name, whole), range(8))
    assert all(torch.tensor(losses).isfinite())
    assert not equal(whole, network())
    first = network()
    first_optimizer = optimizer_of(name, first)
    train(first, first_optimizer, range(4))
    file = io.BytesIO()
    state = {
        "network": first.state_dict(),
        "optimizer": first_optimizer.state_dict(),
        "generator": torch.get_rng_state(),
    }
    torch.save(state, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    torch.manual_seed(99)
    second = network()
    second_optimizer = optimizer_of(name, second)
    second.load_state_dict(saved["network"])
    second_optimizer.load_state_dict(saved["optimizer"])
    train(second, second_optimizer, range(4, 8))
    assert equal(whole, second)


@pytest.mark.parametrize("name", NAMES)
def test_a_closure_is_called_first_as_the_fast_loop_assumes(name: str) -> None:
    plain, closed = network(), network()
    train(plain, optimizer_of(name, plain), range(4))
    train(closed, optimizer_of(name, closed), range(4), closure=True)
    assert equal(plain, closed)


def test_sgd_and_adamw_are_torchs_with_nesterov_momentum() -> None:
    nets = [network() for _ in range(4)]
    ours = [optimizer_of(name, net) for name, net in zip(("sgd", "adamw"), nets, strict=False)]
    theirs = [
        SGD(ours_groups(nets[2]), lr=LR, momentum=0.9, nesterov=True),
        AdamW(ours_groups(nets[3]), lr=LR, betas=(0.9, 0.999)),
    ]
    for net, optimizer in zip(nets, [*ours, *theirs], strict=True):
        train(net, optimizer, range(4))
    assert type(ours[0]) is SGD
    assert type(ours[1]) is AdamW
    assert equal(nets[0], nets[2])
    assert equal(nets[1], nets[3])


def ours_groups(net: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0, "lr": LR / 2},
    ]


@pytest.mark.parametrize(
    ("name", "momentum"),
    [("sgd", 0.9), ("adamw", 0.9), ("lion", 0.9), ("muon", 0.95), ("adan", 0.98), ("novograd", 0.95), ("adagrad", 0.0)],
)
def test_default_momentum(name: str, momentum: float) -> None:
    assert default_momentum(name) == momentum
    group = optimizer_of(name, network()).param_groups[0]
    assert get_momentum(group) == (momentum if has_momentum(name) else None)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "adan", "adagrad"])
def test_momentum_is_set_where_the_optimiser_reads_it(name: str) -> None:
    group = optimizer_of(name, network()).param_groups[0]
    others = (group.get("betas") or (0.0,))[1:]
    set_momentum(group, 0.7)
    assert get_momentum(group) == (0.7 if has_momentum(name) else None)
    assert (group.get("betas") or (0.0,))[1:] == others
    assert build_optimizer(
        name, [{"params": [nn.Parameter(torch.ones(1))]}], LR, 0.0, False
    )  # no Nesterov without momentum


def test_fused_is_given_to_those_that_have_it() -> None:
    assert optimizer_of("adamw", network(), fused=True).param_groups[0]["fused"]
    assert "fused" not in optimizer_of("lion", network(), fused=True).param_groups[0]
    assert not optimizer_of("adagrad", network(), fused=True).param_groups[0]["fused"]  # only for parameters on a CPU


def test_what_cannot_be_trained_is_not_in_the_table() -> None:
    assert {"sgd", "adamw", "lion", "muon", "nadamuon", "lamb", "adan"} <= set(optimizer_names())
    assert not {"adahessian", "kron", "fusedadam", "bnbadamw8bit"} & set(optimizer_names())


def test_wrong_settings_name_what_would_be_right() -> None:
    with pytest.raises(ValueError, match=r"^optimizer: got 'adamm', did you mean 'adam'\?; sgd, adamw, .*nadamuon"):
        TernaryClassifier(num_classes=10, in_channels=1, optimizer="adamm")
    with pytest.raises(ValueError, match=r"^momentum: adagrad has none, got 0.9; leave it out"):
        TernaryClassifier(num_classes=10, in_channels=1, optimizer="adagrad", momentum=0.9)
