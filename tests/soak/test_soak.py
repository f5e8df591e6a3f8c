"""Tests of the soak test: rows follow from their seed, and a difference is found."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.runs import pairs
from tests.runs.killing import Kill
from tests.soak import __main__ as soak_command
from tests.soak.rows import OF_SYSTEM, Row, draw


@pytest.mark.slow
def test_rows_follow_from_the_seed_and_reach_every_system() -> None:
    rows = [draw(seed) for seed in range(60)]
    assert rows == [draw(seed) for seed in range(60)]
    assert {row.system for row in rows} == set(OF_SYSTEM)
    assert len({(row.settings, row.kills) for row in rows}) > 55
    for row in rows:
        assert 2 <= len(row.settings) <= 4
        compatible = {frozenset(pair) for pair in pairs.pairs_of(OF_SYSTEM[row.system])}
        assert all(frozenset((a, b)) in compatible for a in row.settings for b in row.settings if a != b)


def test_a_stop_that_this_test_did_not_send_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A start that the kernel kills for want of memory is no stop of the row: its result would be that of half a run."""
    row = draw(47)
    assert [row.kills[0].signum] == [kill.signum for kill in row.kills] == [signal.SIGINT]
    (tmp_path / "log").write_text("epoch 1\nKilled\n")
    for codes, wrong in (
        ([0, 130, -9], "start 2 ended with -9: Killed"),
        ([0, 143], "start 1 ended with 143: Killed"),
        ([-9], "the unbroken run ended with -9: Killed"),
    ):
        starts = iter(codes)
        monkeypatch.setattr(soak_command, "forked", lambda *_, starts=starts, **__: next(starts))
        found = soak_command.soak(row, tmp_path / "config.yaml", tmp_path, 1)
        assert found is not None
        assert found.wrong == wrong


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "row",
    [  # a resume within an epoch trained with the accumulation of another one, and halved the counters
        pytest.param(draw(29), id="accumulation by epoch, seed 29"),
        pytest.param(draw(47), id="accumulation by epoch, seed 47"),
        # stopped in the last step of a run that ends within an epoch: the resume did not end that epoch, its metrics were lost
        pytest.param(
            Row(0, "image", ("EMA", "drop_last", "max_steps"), (Kill("backward", 3, signal.SIGTERM),)), id="last step"
        ),
        # killed before the first checkpoint after the finder's: Lightning counted a step that there was not
        pytest.param(Row(0, "image", ("finder", "max_steps"), (Kill("in_file", 2),)), id="after the finder"),
    ],
)
def test_rows_that_once_ended_differently(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_command, "draw", lambda seed, systems: row)
    assert soak_command.main(["--runs", "1"]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_that_does_not_go_on_exactly_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another seed of the random generators in resumed runs, dropout differs."""
    row = draw(2)._replace(settings=("EMA", "dropout"))
    monkeypatch.setattr(soak_command, "draw", lambda seed, systems: row)
    assert soak_command.main(["--runs", "1"]) == 0
    again = soak_command.again

    def with_another_rate(*arguments: object) -> tuple[list[str], bool]:
        words, fresh = again(*arguments)  # type: ignore[arg-type]
        return [*words, "--model.dropout", "0.3"], fresh

    monkeypatch.setattr(soak_command, "again", with_another_rate)
    assert soak_command.main(["--runs", "1"]) == 1
    assert "1 ended differently" in capsys.readouterr().out
