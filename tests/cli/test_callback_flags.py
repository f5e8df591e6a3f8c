"""Flags that set one callback of the list by its class; their mistakes are in test_messages.py."""

from __future__ import annotations

import pytest

from tests.cli.test_lists import STAGES, parsed


@pytest.mark.slow
def test_a_flag_changes_one_callback_wherever_it_is_in_the_list() -> None:
    stages = "[{size: 40, epochs: 1}, {size: 64, epochs: 2, strength: 0.5}]"
    arguments = ["--trainer.callbacks.EMA.decay=0.5", "--trainer.callbacks.ProgressiveResizing.stages", stages]
    arguments += ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.EarlyStopping.monitor", "val/loss"]
    before, found = (parsed(*STAGES, *words)["trainer"]["callbacks"] for words in ([], arguments))
    names = [entry["class_path"].rpartition(".")[2] for entry in found]
    assert names == ["EMA", "ProgressiveResizing", "ConfusionMatrix", "WorstMistakes", "EarlyStopping"]
    assert found[0]["init_args"] == {**before[0]["init_args"], "decay": 0.5}
    resizing = found[1]["init_args"]
    assert [(stage["size"], stage["epochs"], stage["strength"]) for stage in resizing["stages"]] == [
        (40, 1, 1.0),
        (64, 2, 0.5),
    ]
    assert {**resizing, "stages": None} == {**before[1]["init_args"], "stages": None}
    assert found[2:4] == before[2:]
    assert found[4]["init_args"]["monitor"] == "val/loss"
