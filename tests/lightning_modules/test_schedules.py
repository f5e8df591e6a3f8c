"""Tests of lightning_modules/schedules.py: equality with torch's schedulers, warm-up, stages, resume."""

import math
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR, ReduceLROnPlateau

from lightning_modules.schedules import Schedule, ScheduleName, Shape, Stage, lr_share


def optimizer(lr: float = 0.1, momentum: float = 0.9) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(2))], lr=lr, momentum=momentum)


def momentum(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group["momentum"])


def values_of_steps(schedule: Schedule, steps: int) -> list[tuple[float, float]]:
    """(lr, momentum) of each optimiser step."""
    values = []
    for _ in range(steps):
        group = schedule.optimizer.param_groups[0]
        values.append((float(group["lr"]), momentum(group)))
        schedule.optimizer.step()
        schedule.step()
    return values


@pytest.mark.parametrize("steps", [10, 37, 100])
@pytest.mark.parametrize("adam", [False, True])
def test_one_cycle_equals_torch_with_momentum(steps: int, adam: bool) -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    make: list[Optimizer] = [
        AdamW([parameter], lr=0.1, betas=(0.95, 0.999)) if adam else SGD([parameter], lr=0.1, momentum=0.95)
        for _ in range(2)
    ]
    ours = Schedule(make[0], Shape("one_cycle"), [Stage(steps)], (0.85, 0.95))
    theirs = OneCycleLR(make[1], max_lr=0.1, total_steps=steps)
    for _ in range(steps):
        mine, other = make[0].param_groups[0], make[1].param_groups[0]
        assert mine["lr"] == pytest.approx(other["lr"], rel=1e-12)
        assert momentum(mine) == pytest.approx(momentum(other), rel=1e-12)
        make[0].step()
        ours.step()
        make[1].step()
        if theirs.last_epoch < steps - 1:  # torch raises one step later
            theirs.step()


def test_cosine_with_warmup_by_hand() -> None:
    schedule = Schedule(optimizer(lr=2.0), Shape("cosine", warmup_steps=4, end=0.1), [Stage(9)])
    lrs = [lr for lr, _ in values_of_steps(schedule, 9)]
    assert lrs[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert lrs[4:] == pytest.approx([0.2 + 1.8 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)])
    assert lrs[-1] == pytest.approx(0.2)


def test_step_equals_torch_multistep() -> None:
    ours = Schedule(optimizer(), Shape("step", milestones=(0.5, 0.75), gamma=0.1), [Stage(20)])
    other = optimizer()
    theirs = MultiStepLR(other, milestones=[10, 15], gamma=0.1)
    for lr, _ in values_of_steps(ours, 20):
        assert lr == pytest.approx(other.param_groups[0]["lr"])
        other.step()
        theirs.step()


def test_plateau_equals_torch() -> None:
    values = [1.0, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.6, 0.6, 0.6]
    ours = Schedule(optimizer(), Shape("plateau"), [Stage(100)], plateau=("min", 0.5, 1))
    other = optimizer()
    theirs = ReduceLROnPlateau(other, mode="min", factor=0.5, patience=1)
    for value in values:
        ours.observe(value)
        theirs.step(value)
        assert ours.optimizer.param_groups[0]["lr"] == pytest.approx(other.param_groups[0]["lr"])
    assert ours.optimizer.param_groups[0]["lr"] < 0.1


def test_warmup_and_plateau_multiply() -> None:
    schedule = Schedule(optimizer(lr=1.0), Shape("plateau", warmup_steps=2), [Stage(10)], plateau=("max", 0.1, 0))
    schedule.observe(1.0)
    schedule.observe(1.0)
    assert schedule.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1)


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "step", "none"])
def test_steps_beyond_the_end_keep_the_end_value(name: ScheduleName) -> None:
    schedule = Schedule(optimizer(), Shape(name), [Stage(5)], (0.8, 0.9))
    values = values_of_steps(schedule, 12)
    assert values[4:] == [values[4]] * 8


def test_each_stage_has_its_own_schedule() -> None:
    schedule = Schedule(optimizer(lr=1.0), Shape("cosine"), [Stage(3), Stage(4, 0.5)])
    lrs = [lr for lr, _ in values_of_steps(schedule, 7)]
    assert lrs == pytest.approx([1.0, 0.5, 0.0, 0.5, 0.375, 0.125, 0.0])
    assert schedule.total_steps == 7


def test_only_the_first_stage_warms_up() -> None:
    schedule = Schedule(optimizer(lr=1.0), Shape("cosine", warmup_steps=2), [Stage(5), Stage(3, 0.5)])
    lrs = [lr for lr, _ in values_of_steps(schedule, 8)]
    assert lrs == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0, 0.5, 0.25, 0.0])


def test_groups_keep_their_learning_rate_ratio() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    schedule = Schedule(SGD(groups, lr=1.0), Shape("cosine", warmup_steps=3), [Stage(8)])
    for _ in range(7):
        first, second = (group["lr"] for group in schedule.optimizer.param_groups)
        assert first == pytest.approx(10 * second)
        schedule.optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "step", "plateau", "none"])
def test_resume_continues_at_the_saved_step(name: ScheduleName) -> None:
    def make() -> Schedule:
        return Schedule(optimizer(), Shape(name, warmup_steps=2), [Stage(11)], (0.8, 0.9), ("min", 0.5, 0))

    whole, first, second = make(), make(), make()
    for schedule in (whole, first):
        for value in (1.0, 2.0):
            schedule.observe(value)
    unbroken = values_of_steps(whole, 11)
    assert values_of_steps(first, 4) == unbroken[:4]
    second.load_state_dict(first.state_dict())
    assert second.replaced is None
    assert values_of_steps(second, 7) == unbroken[4:]


def test_settings_of_the_run_take_precedence_over_the_checkpoint() -> None:
    old = Schedule(optimizer(lr=0.1), Shape("cosine"), [Stage(10)])
    values_of_steps(old, 5)
    new = Schedule(optimizer(lr=1.0), Shape("cosine"), [Stage(20)])
    new.load_state_dict(old.state_dict())
    assert new.replaced == [Stage(10)]
    assert new.optimizer.param_groups[0]["lr"] == pytest.approx(lr_share(Shape("cosine"), 5, 20))


def test_stages_without_steps_raise() -> None:
    with pytest.raises(ValueError, match="stages of at least one step"):
        Schedule(optimizer(), Shape(), [])
    with pytest.raises(ValueError, match="stages of at least one step"):
        Schedule(optimizer(), Shape(), [Stage(0)])
