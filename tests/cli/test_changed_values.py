"""What a resume prints of changed settings: the entries of lists that differ, never the same text twice."""

import pytest

from cli.changed_values import differences
from cli.evaluation import shown_difference

EMA = {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9, "start_step": 0}}
SHARES = {"class_path": "callbacks.TernaryShares"}
LONG = ", ".join(f"photo_{number}.png" for number in range(50))


def test_one_entry_of_a_long_list() -> None:
    was = [EMA, SHARES, {"folder": "walls", "prompts": ["crack"]}]
    now = [
        {**EMA, "init_args": {"decay": 0.5, "start_step": 0}},
        SHARES,
        {"folder": "walls", "prompts": ["crack", "gap"]},
    ]
    assert differences("x", was, now) == [
        ("x[EMA].decay", "0.9", "0.5"),
        ("x[walls].prompts[2]", "not there", "gap"),
    ]


def test_items_added_taken_away_and_moved() -> None:
    assert differences("x", [EMA, SHARES], [EMA]) == [("x[TernaryShares]", str(SHARES), "not there")]
    assert differences("x", [EMA, EMA], [EMA, EMA, SHARES]) == [("x[TernaryShares]", "not there", str(SHARES))]
    assert differences("x", [1, 2], [1, 3]) == [("x[2]", "2", "3")]
    assert differences("x", [EMA, SHARES], [SHARES, EMA])[0][1] != differences("x", [EMA, SHARES], [SHARES, EMA])[0][2]
    assert differences("x", [EMA], [EMA]) == []


@pytest.mark.parametrize(("was", "now"), [(LONG, LONG + "!"), (LONG, LONG.replace("_30", "_31")), ("a", LONG)])
def test_long_values_are_shown_where_they_differ(was: str, now: str) -> None:
    ((name, old, new),) = differences("x", was, now)
    assert name == "x"
    assert old != new
    assert max(len(old), len(new)) <= 130


def test_other_kinds_of_values() -> None:
    assert differences("x", None, [1]) == [("x", "None", "[1]")]
    assert differences("x", {"a": 1, "b": 2}, {"a": 1, "b": 3}) == [("x.b", "2", "3")]


def test_the_last_setting_of_a_long_item_is_shown() -> None:
    """An override by sets of one's own, in place of those of a configuration with long prompts, shows their masks."""
    prompts = ["segment taping area", "segment joint tape", "segment drywall seam"]
    was = [{"folder": name, "prompts": prompts, "groups": "groups.csv", "masks": None} for name in ("taping", "cracks")]
    now = [{"folder": "walls", "prompts": prompts[::-1], "groups": "a.csv", "masks": "masks/*_crack.png"}]
    shown, before = shown_difference(now, was)
    assert shown.endswith("groups: a.csv, masks: masks/*_crack.png}]")
    assert "folder: cracks" in before
    assert shown_difference(
        [{"class_path": "EMA", "decay": 0.9, "every": 1}], [{"class_path": "EMA", "decay": 0.5, "every": 1}]
    ) == (
        "[{class_path: EMA, decay: 0.9}]",
        "[{class_path: EMA, decay: 0.5}]",
    )
