"""Slow tests of settings given two at a time, on tiny runs: both keep their effect, or one line refuses or names one.

The settings are those of tests/runs/pairs.py. Each system runs a drawn fortieth of them, the same in every run of the
tests: a tenth took nearly a third of all tests' time. `LVR_PAIRS=10` runs the tenth, `LVR_PAIRS=1` every pair.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.runs.pairs import SETTINGS, Outcome, Setting, data_of, pairs_of, run, verdict, write_base


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", SETTINGS)
def test_two_settings_at_a_time(system: str, tmp_path: Path) -> None:
    config = write_base(system, tmp_path, **data_of(system, tmp_path))
    settings = SETTINGS[system]

    def outcome(chosen: list[Setting]) -> Outcome:
        found = run(config, tmp_path / "run", chosen)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return found

    pairs = pairs_of(settings)
    pairs = random.Random(0).sample(pairs, len(pairs) // int(os.environ.get("LVR_PAIRS", "40")))
    plain = outcome([])
    assert plain.code == 0, plain.error
    alone = {name: outcome([settings[name]]) for name in sorted({name for pair in pairs for name in pair})}
    problems = []
    for one, other in pairs:
        chosen = {name: settings[name] for name in (one, other)}
        if found := verdict(chosen, plain, alone, outcome(list(chosen.values()))):
            problems.append(f"{one} + {other}: {found}")
    assert not problems, "\n".join(problems)


RUN = Outcome(0, "", "", "a", False, True, True)
A, B = Setting(("--model.lr_end", "0.5")), Setting(("--model.schedule", "one_cycle"))
VERDICTS: list[tuple[Outcome, str | None]] = [
    (RUN._replace(weights="both"), None),
    (RUN._replace(weights="b"), "A has no effect beside B, and no line says so"),
    (RUN._replace(weights="b", printed="without effect: lr_end 0.5 (schedule one_cycle)\n"), None),
    (RUN._replace(weights="both", finite=False), "a loss is not finite"),
    (RUN._replace(code=2, error="error: lr_end: not with one_cycle\n", folder=False), None),
    (RUN._replace(code=2, error="error: lr_end: not with one_cycle\n"), "refused, but the run folder stays"),
    (RUN._replace(code=2, error="error: no\n", folder=False), "refused without naming a setting"),
    (RUN._replace(code=2, error="error: lr_end\nmore\n", folder=False), "refused in 2 lines"),
    (RUN._replace(code=1, error="Traceback"), "exit code 1"),
]


@pytest.mark.parametrize(
    ("both", "expected"), VERDICTS, ids=[str(expected) + str(i) for i, (_, expected) in enumerate(VERDICTS)]
)
def test_verdict(both: Outcome, expected: str | None) -> None:
    alone = {"A": RUN._replace(weights="a"), "B": RUN._replace(weights="b")}
    found = verdict({"A": A, "B": B}, RUN._replace(weights="plain"), alone, both)
    assert found == expected if expected is None else found is not None and found.startswith(expected)


def test_an_average_that_is_missing_is_noticed() -> None:
    alone = {"A": RUN._replace(weights="a"), "B": RUN._replace(weights="b")}
    both = RUN._replace(weights="both")
    pair = {"A": A, "B": Setting(("--trainer.callbacks+=EMA",), "average")}
    assert verdict(pair, RUN, alone, both) == "B has no effect beside A, and no line says so"
    assert verdict(pair, RUN, alone, both._replace(averages=True)) is None


def test_settings_of_one_flag_make_no_pair() -> None:
    table = {
        "A": A,
        "B": B,
        "C": Setting(("--model.schedule", "step")),
        "D": Setting(("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.5")),
    }
    assert pairs_of(table) == [("A", "B"), ("A", "C"), ("A", "D"), ("B", "D"), ("C", "D")]
