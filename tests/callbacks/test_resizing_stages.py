"""callbacks/resizing_stages.py: valid settings, stretching, and the stages that a resumed run may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import ProgressiveResizing
from callbacks.resizing_stages import PlannedStage, ResizingStage, check_same, stretched
from tests.callbacks.stages import sized

A, B, C = sized(8, 32, 2), sized(12, 24, 3, 0.5), sized(16, 16, 2)
SAVED = [A, B, C]

# (stages of this start, epochs over, epochs begun)
ALLOWED = [
    (SAVED, 0, 0),
    (SAVED, 3, 4),
    ([C], 0, 0),  # no epoch has begun: the checkpoint before the first step
    ([replace(A, epochs=5, lr=0.3, strength=2.0), C], 0, 1),  # the first epoch has begun
    ([replace(A, epochs=1), B, C], 0, 1),
    ([A, C], 2, 2),  # stage 1 is over, stage 2 has not begun
    ([A, replace(B, epochs=2), C], 3, 4),
    ([A, replace(B, epochs=9, lr=1.0), replace(C, batch_size=1)], 4, 5),
    ([A, B, C, C], 7, 7),  # a finished run is extended
    ([A, B, replace(C, epochs=4)], 7, 7),
    ([A, B, replace(C, epochs=3), A], 6, 7),
]
REFUSED = [
    ([replace(A, epochs=1), B, C], 1, 2, 1),
    ([B, C], 0, 1, 1),
    ([replace(A, epochs=3), B, C], 2, 2, 1),  # stage 1 is over
    ([replace(A, lr=0.5), B, C], 2, 2, 1),
    ([replace(A, strength=0.5), B, C], 2, 3, 1),
    ([A, replace(B, size=10), C], 2, 3, 2),
    ([A, replace(B, batch_size=12), C], 3, 3, 2),
    ([A, replace(B, epochs=1), C], 3, 4, 2),
    ([A], 3, 4, 2),
    ([A, B, replace(C, epochs=1)], 7, 7, 3),
]


@pytest.mark.parametrize(("stages", "done", "begun"), ALLOWED)
def test_stages_that_have_not_begun_may_change(stages: list[PlannedStage], done: int, begun: int) -> None:
    check_same(stages, SAVED, done, begun)


@pytest.mark.parametrize(("stages", "done", "begun", "number"), REFUSED)
def test_trained_stages_must_not_change(stages: list[PlannedStage], done: int, begun: int, number: int) -> None:
    now = stages[number - 1] if number <= len(stages) else "missing"
    with pytest.raises(MisconfigurationException) as error:
        check_same(stages, SAVED, done, begun)
    assert str(error.value) == (
        f"stage {number} of ProgressiveResizing: cannot change in a resumed run after {begun} epochs have begun "
        f"(was {SAVED[number - 1]}; now {now}); change later stages, or start a new run"
    )


@pytest.mark.parametrize(
    ("lengths", "epochs", "expected"),
    [
        ([3, 12, 6], 21, [3, 12, 6]),
        ([3, 12, 6], 30, [4, 17, 9]),  # ends at 4.3 and 21.4
        ([25, 25, 25], 10, [3, 4, 3]),  # ends at 3.3 and 6.7
        ([3, 12, 6], 3, [0, 2, 1]),
        ([3, 12, 6], 1, [0, 0, 1]),
        ([30, 1], 5, [4, 1]),  # the last stage keeps an epoch
        ([4], 7, [7]),
    ],
)
def test_stretched_lengths(lengths: list[int], epochs: int, expected: list[int]) -> None:
    assert stretched(lengths, epochs) == expected


def test_pixels_and_description() -> None:
    assert C.pixels == 16 * 256
    assert str(replace(A, epochs=1, strength=1.5)) == "8 px, batch 32, 1 epoch, lr x 1, strength x 1.5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": []}, "stages: one or more, got none"),
        ({"stages": [sized(0, 8, 1)]}, r"size of stage 1: 1 pixel or more, or \[HEIGHT, WIDTH\], got 0"),
        ({"stages": [A, sized(8, 0, 1)]}, "batch_size of stage 2: 1 or more, got 0"),
        ({"stages": [ResizingStage(size=8, epochs=2, lr=-1.0)]}, r"lr of stage 1: a factor over 0, got -1\.0"),
        ({"stages": [sized(8, 8, 0)]}, "epochs of stage 1: 1 or more, got 0"),
        ({"stages": [sized(8, 8, 1, 0.0)]}, r"lr of stage 1: a factor over 0, got 0\.0"),
        ({"stages": [sized(8, 8, 1, 1.0, -1.0)]}, r"strength of stage 1: 0 or more, got -1\.0"),
        (
            {"stages": SAVED, "schedule": "whole"},
            r"lr of stage 2: 1 with schedule whole, one curve over all stages, got 0\.5",
        ),
        ({"stages": SAVED, "schedule": "each"}, "schedule: per_stage or whole, got each"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveResizing(**settings)
