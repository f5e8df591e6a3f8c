"""Benchmark recordings: without a filter, the loop and `cut` give the same windows; a small run prints its table."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import recordings
from benchmarks.recordings import CUTTING, LABELS, RATE, WINDOW, frame_of, looped, recording
from datamodules.signals.recordings import Counts, cut


def test_both_sides_cut_the_same_windows() -> None:
    one = recording(12_000, rate=RATE)
    ours: dict[float, tuple[np.ndarray, str]] = {}
    for part in cut(one, CUTTING, Counts()):
        ours |= {round(s, 6): (w, LABELS[code]) for w, code, s in zip(part.signal, part.label, part.start, strict=True)}
    starts = one.time[0] + np.arange(150) * (WINDOW // 2) / RATE
    frame, same = frame_of(one, len(one.time)), 0
    for start in starts:
        for window, label in looped(frame, np.array([start])):
            if (
                found := ours.get(round(float(start), 6))
            ) is not None:  # at a change of label the rules differ by a sample
                np.testing.assert_allclose(found[0], window, atol=1e-5)
                assert found[1] == label
                same += 1
    assert same > 140


@pytest.mark.slow
def test_the_command_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--samples", "30000", "--loop", "5", "--repeats", "2", "--json", str(tmp_path / "result.json")]
    recordings.main(flags)
    assert "| cut " in capsys.readouterr().out
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["command"]["peak_gb"] > 0.1
    assert content["windows"] > 100
