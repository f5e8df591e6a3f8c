"""tools/compare/picture.py: the dot of the best checkpoint, whole names in the legend, and curves that lie on each other."""

import json
from pathlib import Path

from tests.tools.test_compare import CLASSIFIER, curves, write_run
from tools.compare.picture import draw
from tools.compare.runs import Run, read_run


def test_the_dot_is_at_the_epoch_of_the_checkpoint(tmp_path: Path) -> None:
    rows = [
        {"epoch": n, "step": n, "val/acc": acc, "val/loss": 1 / n} for n, acc in enumerate((0.9, 0.5, 0.7), start=1)
    ]
    folder = write_run(tmp_path / "run", CLASSIFIER, rows)

    def dot(metric: str | None = None) -> list[list[float]]:
        points: list[list[float]] = draw([[read_run(folder, metric)]]).axes[0].get_lines()[1].get_xydata().tolist()  # type: ignore[union-attr]
        return points

    assert dot() == [[1, 0.9]], "no checkpoint: the best epoch"
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.json").write_text(json.dumps({"metric": "val/mcc", "value": 0.8, "epoch": 2}))
    assert dot() == [[2, 0.5]]
    assert dot("val/loss") == [[2, 0.5]]


def test_names_in_the_legend_are_whole(tmp_path: Path) -> None:
    name = "runs/experiments/cifar_ternary_with_a_long_name/configs_with_strong_regularisation/2026-11-22_10-00-00"
    best = {"val/acc": {"value": 0.5, "epoch": 1}}
    group = [Run(one, main="val/acc", curve=[(1, 0.5)], best=best) for one in (name, "other")]
    ((_, (label,)),) = curves(draw([group]))
    lines = label.split("\n")
    assert "".join(lines[:-1]) == name
    assert lines[-1] == "and 1 more with the same settings"
    assert max(map(len, lines)) <= 40


def test_equal_curves_are_both_seen() -> None:
    curve, other = [(1.0, 0.5), (2.0, 0.9)], [(1.0, 0.5), (2.0, 0.7)]
    best = {"val/acc": {"value": 0.9, "epoch": 2}}
    runs = [Run(str(n), main="val/acc", curve=one, best=best) for n, one in enumerate((curve, other, curve, curve))]
    lines = draw([[run] for run in runs]).axes[0].get_lines()
    assert [line.get_linestyle() for line in lines[::2]] == ["-", "-", "--", "--"], "the one below is seen in the gaps"
    sizes = [line.get_markersize() for line in lines[1::2]]
    assert sizes[0] == sizes[1] < sizes[2] < sizes[3], "a ring around the dot, and another around both"
