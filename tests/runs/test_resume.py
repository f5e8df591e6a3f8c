"""Exact resume: a run killed at any moment and resumed gives the same results, to the bit, as an uninterrupted run."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.runs.killing import MOMENTS, TINY, Kill, differences, forked, outcome

# how often the uninterrupted tiny run reaches each phase: 4 epochs (early stopping) of 8 batches, five validation batches
TIMES = {
    "batch_start": 32,
    "backward": 32,
    "batch_end": 32,
    "val": 20,
    "epoch_end": 4,
    "between": 17,
    "after_last": 17,
    "in_file": 20,
}

TWICE = ["fit", "--config", TINY, "--trainer.max_epochs", "2", "--trainer.val_check_interval", "4"]


@pytest.fixture(scope="module")
def unbroken(finished: Path) -> dict[str, Any]:
    return outcome(finished)


def broken(folder: Path, kills: list[Kill | float]) -> dict[str, Any]:
    """Start a run, kill it, resume it and kill it again, then let it end."""
    log = folder.parent / "log"
    arguments = ["fit", "--config", TINY, "--run_dir", str(folder)]
    for kill in kills:
        timed = isinstance(kill, float)
        code = forked(arguments, None if timed else kill, log, kill if timed else None)  # type: ignore[arg-type]
        assert code in (0, -9), log.read_text()
        if not (folder / "checkpoints" / "last.ckpt").exists():  # killed before the first checkpoint: start again
            folder = folder.with_name(folder.name + "x")
            arguments[-1] = str(folder)
        else:
            arguments = ["fit", "--resume", str(folder)]
    assert forked(arguments, log=log) == 0, log.read_text()
    return outcome(folder)


def check(unbroken: dict[str, Any], folder: Path, kills: list[Kill | float]) -> None:
    found = differences(unbroken, broken(folder, kills))
    assert not found, f"after {kills}: {found[:10]}"


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param([Kill("backward", 13), Kill("val", 2)], marks=pytest.mark.slow),
        [Kill("in_file", 4), Kill("epoch_end", 1)],
    ],
    ids=str,
)
def test_killed_and_resumed_equals_unbroken(
    unbroken: dict[str, Any], tmp_path: Path, kills: list[Kill | float]
) -> None:
    check(unbroken, tmp_path / "run", kills)


@pytest.fixture(scope="module")
def validated_twice(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with a validation in the middle of each epoch, at the moment when last.ckpt is due."""
    folder = tmp_path_factory.mktemp("twice") / "run"
    log = folder.parent / "log"
    assert forked([*TWICE, "--run_dir", str(folder)], log=log) == 0, log.read_text()
    return outcome(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kill",
    [
        Kill("after_last", 2),
        Kill("val", 2),
        Kill("batch_end", 4, signal.SIGTERM),
        Kill("batch_end", 5),
        Kill("val", 7, signal.SIGTERM),
    ],
    ids=str,
)
def test_a_validation_within_an_epoch_is_not_left_out(
    validated_twice: dict[str, Any], tmp_path: Path, kill: Kill
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    assert forked([*TWICE, "--run_dir", str(folder)], kill, log) in (-9, 143), log.read_text()
    assert forked(["fit", "--resume", str(folder)], log=log) == 0, log.read_text()
    assert not differences(validated_twice, outcome(folder))[:10]


def random_kills(seed: int) -> list[Kill | float]:
    draw = random.Random(seed)
    kills: list[Kill | float] = []
    for _ in range(draw.choice([1, 2, 3])):
        phase = draw.choice([*MOMENTS, "time"])
        kills.append(draw.uniform(0.2, 3.0) if phase == "time" else Kill(phase, draw.randint(1, TIMES[phase])))
    return kills


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24))
def test_killed_at_random_moments(unbroken: dict[str, Any], tmp_path: Path, seed: int) -> None:
    check(unbroken, tmp_path / "run", random_kills(seed))
