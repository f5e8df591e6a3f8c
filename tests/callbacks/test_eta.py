"""callbacks/progress/eta.py: hand-computed cases of the remaining time and of the measured pace."""

from __future__ import annotations

import math

import pytest

from callbacks.progress.eta import Eta, Later, Pace, Stretch, estimate, later_epochs, steps_left
from foundation.durations import clock_time

INF = math.inf


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # step, steps, epoch, epochs, optimizer_steps, max_steps, accumulate
        ((0, 352, 1, 18, 0, INF, 1), 18 * 352),
        ((120, 352, 4, 18, 0, INF, 1), 14 * 352 + 232),
        ((352, 352, 18, 18, 0, INF, 1), 0),
        ((10, 352, 1, INF, 10, 1000, 1), 990),  # only max_steps
        ((10, 352, 1, INF, 5, 1000, 2), 1990),  # two batches per optimiser step
        ((10, 100, 1, 2, 10, 50, 1), 40),  # max_steps comes first
        ((10, 100, 1, 2, 10, 5000, 1), 190),  # max_epochs comes first
        ((10, INF, 1, 18, 10, INF, 1), INF),  # a loader of unknown length
        ((10, INF, 18, 18, 10, INF, 1), INF),  # 0 epochs left of unknown length
        ((10, INF, 1, 18, 10, 25, 1), 15),
        ((0, 100, 1, INF, 0, INF, 1), INF),
        ((100, 90, 2, 2, 0, INF, 1), 0),  # never negative
    ],
)
def test_steps_left(arguments: tuple[int, float, int, float, int, float, int], expected: float) -> None:
    assert steps_left(*arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # step, steps, left, step_s, pause_s, paused_s
        ((0, 100, 1000, None, 5.0, 0.0), Eta(None, None)),  # nothing measured yet
        ((20, 100, 80, 0.25, 0.0, 0.0), Eta(20.0, 20.0)),  # last epoch, no validation
        ((20, 100, 80, 0.25, 7.0, 0.0), Eta(27.0, 27.0)),
        ((20, 100, 280, 0.25, 7.0, 0.0), Eta(27.0, 27.0 + 200 * 0.25 + 2 * 7.0)),
        ((100, 100, 200, 0.25, 7.0, 3.0), Eta(4.0, 4.0 + 50.0 + 14.0)),  # during validation
        ((100, 100, 0, 0.25, 7.0, 9.0), Eta(0.0, 0.0)),  # the pause takes longer than before
        ((20, 100, 30, 0.5, 0.0, 0.0), Eta(15.0, 15.0)),  # max_steps ends within this epoch
        ((20, 100, 130, 0.5, 8.0, 0.0), Eta(48.0, 48.0 + 25.0 + 8.0)),  # max_steps ends within the next epoch
        ((20, INF, INF, 0.5, 8.0, 0.0), Eta(None, None)),  # unknown length
        ((20, INF, 30, 0.5, 0.0, 0.0), Eta(15.0, 15.0)),  # unknown length, but max_steps leaves 30 batches
        ((20, 100, INF, 0.5, 8.0, 0.0), Eta(48.0, None)),  # trained until stopped
    ],
)
def test_estimate(arguments: tuple[int, float, float, float | None, float, float], expected: Eta) -> None:
    assert estimate(*arguments) == expected


STRETCHES = [Stretch(2, 10, 1.0), Stretch(1, 20, 4.0), Stretch(3, 8, 16.0)]


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (1, Later(5, 10 + 20 + 24, 10 + 20 * 4 + 24 * 16)),
        (2, Later(4, 20 + 24, 20 * 4 + 24 * 16)),
        (3, Later(3, 24, 24 * 4)),
        (4, Later(2, 16, 16)),
        (6, Later(0, 0, 0)),
    ],
)
def test_later_epochs_are_weighted_by_their_cost(epoch: int, expected: Later) -> None:
    assert later_epochs(STRETCHES, epoch) == expected


def test_estimate_with_later_epochs_of_another_length() -> None:
    # 8 of 10 batches are left at 0.5 s each, then 44 with the cost of 464 of them; 4 + 1 pauses of 5 s
    eta = estimate(2, 10, 8 + 44, 0.5, 5.0, 0.0, later_epochs(STRETCHES, 2))
    assert eta == Eta(8 * 0.5 + 5.0, 8 * 0.5 + 5.0 + 464 * 0.5 + 4 * 5.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (130, "2:10"), (3599.7, "1:00:00"), (100_000, "27:46:40")],
)
def test_duration(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_the_first_step_is_not_measured() -> None:
    pace = Pace()
    pace.step(60.0)  # compiled for a minute
    pace.measure(60.0)
    assert pace.step_s is None
    for now in (62.0, 64.0, 66.0):
        pace.step(now)
    pace.measure(66.0)
    assert pace.step_s == 2.0


def test_new_measurements_have_weight_three_tenths() -> None:
    pace = Pace()
    for now in (0.0, 1.0, 2.0):
        pace.step(now)
    pace.measure(2.0)
    pace.step(7.0)
    pace.measure(7.0)
    assert pace.step_s == pytest.approx(0.7 * 1.0 + 0.3 * 5.0)


def test_pauses_are_measured_separately() -> None:
    pace = Pace()
    for now in (0.0, 1.0, 2.0):
        pace.step(now)
    pace.pause(2.0)  # a mid-epoch validation of 4 s
    assert pace.paused_s(5.0) == 3.0
    pace.measure(5.0)  # the bar is redrawn during the pause
    assert pace.step_s == 1.0
    pace.resume(6.0)
    assert (pace.pause_s, pace.paused_s(6.5)) == (None, 4.0)  # the mean is unknown before the epoch has ended
    pace.step(7.0)
    pace.pause(7.0)  # the validation at the end of the epoch
    pace.pause(9.0, epoch_over=True)  # still the same pause
    assert pace.paused_s(10.0) == 7.0
    pace.resume(17.0)  # first batch of the next epoch
    assert (pace.pause_s, pace.paused_s(17.0)) == (14.0, 0.0)
    pace.step(18.0)
    pace.measure(18.0)
    assert pace.step_s == 1.0
    pace.pause(18.0, epoch_over=True)
    pace.resume(20.0)
    assert pace.pause_s == (14.0 + 2.0) / 2


def test_resume_without_a_pause() -> None:
    pace = Pace()
    pace.step(0.0)
    pace.resume(0.5)
    pace.step(1.0)
    pace.measure(1.0)
    assert pace.step_s == 1.0


def test_a_pause_before_the_first_step_is_not_measured() -> None:
    """A run that was stopped during a validation resumes with that validation."""
    pace = Pace()
    pace.pause(0.0)
    pace.resume(50.0)
    for now in (51.0, 52.0, 53.0):
        pace.step(now)
    pace.measure(53.0)
    assert pace.step_s == 1.0
