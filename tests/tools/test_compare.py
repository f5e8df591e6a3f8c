"""Tests tools.compare: table, Markdown and plot against values read directly from run folders, also unfinished and broken ones."""

import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from tools.compare.__main__ import main
from tools.compare.picture import draw
from tools.compare.runs import Run, best_of, differing, flat, grouped, read_run
from tools.compare.table import _parts, columns_of

CLASSIFIER = {
    "model": {"class_path": "lightning_modules.TernaryClassifier", "init_args": {"lr": 0.1, "layers": ["stem"]}},
    "data": {"class_path": "datamodules.DigitsDataModule", "init_args": {"batch_size": 64}},
    "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}}]},
    "checkpoint": {"monitor": "val/acc"},
}
SEGMENTER = {
    "model": {"class_path": "lightning_modules.PromptedSegmenter", "init_args": {"lr": 0.1, "width": 8}},
    "data": {"class_path": "datamodules.Prompted", "init_args": {"batch_size": 4}},
    "trainer": {"max_epochs": 3},
    "checkpoint": {"monitor": "val/iou"},
}


def write_run(
    folder: Path,
    config: dict[str, Any],
    rows: list[dict[str, float]],
    seed: int = 0,
    seconds: float | None = 60.0,
    test: dict[str, float] | None = None,
    **model: Any,
) -> Path:
    """Write a run folder as fit does; without ``seconds`` the run is unfinished."""
    folder.mkdir(parents=True)
    init_args = {**config["model"]["init_args"], **model}
    config = {"seed_everything": seed, **config, "model": {**config["model"], "init_args": init_args}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    columns = sorted({name for row in rows for name in row})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    if seconds is not None:
        summary = {"time": {"seconds": seconds}, "environment": {"devices": 2}}
        (folder / "training_summary.json").write_text(json.dumps(summary))
    if test is not None:
        (folder / "test_metrics.json").write_text(json.dumps({"checkpoint": "best.ckpt", "metrics": test}))
    return folder


def epochs(name: str, *values: float, loss: float = 1.0) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for epoch, value in enumerate(values, start=1):
        timing = {"speed/images_per_s": 100.0 * epoch, "memory/gb": 1.0 + epoch}
        rows.append({"epoch": epoch, "step": 10 * epoch - 5, "train/loss_step": 9.0, **timing})
        rows.append({"epoch": epoch, "step": 10 * epoch, "train/loss": loss / epoch, name: value, **timing})
    return rows


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Six runs: two seeds, another learning rate, another system, an unfinished run, and a run with a damaged metrics.csv."""
    a = write_run(tmp_path / "a", CLASSIFIER, epochs("val/acc", 0.5, 0.9, 0.8), test={"test/acc": 0.85})
    b = write_run(tmp_path / "b", CLASSIFIER, epochs("val/acc", 0.6, 0.7, 0.7), seed=1, seconds=3600.0)
    c = write_run(tmp_path / "c", CLASSIFIER, epochs("val/acc", 0.2, 0.3, 0.4, loss=0.5), lr=0.01)
    d = write_run(tmp_path / "d", SEGMENTER, epochs("val/iou", 0.1, 0.4), test={"test/iou": 0.35})
    e = write_run(tmp_path / "e", CLASSIFIER, epochs("val/acc", 0.95), seconds=None, seed=2, lr=0.5)
    f = write_run(tmp_path / "f", CLASSIFIER, epochs("val/acc", 0.1), lr=0.2)
    (f / "metrics.csv").write_text("epoch,step,val/acc\n1,10,0.5\n2,20,zero")
    return [a, b, c, d, e, f]


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def by_hand(folder: Path) -> dict[str, Any]:
    """Expected values of a run, read without the code under test."""
    rows = [row for row in table(folder / "metrics.csv") if row["train/loss"]]
    expected: dict[str, Any] = {}
    for name in [name for name in rows[0] if name.startswith(("train/", "val/", "val_raw/"))]:
        if name == "train/loss_step":
            continue
        values = [(float(row[name]), int(row["epoch"])) for row in rows if row[name]]
        best = min(values, key=lambda pair: pair[0]) if "loss" in name else max(values, key=lambda pair: pair[0])
        if name == "val/acc":  # monitored: of equal epochs the one with the lowest loss
            equal = [row for row in rows if row[name] and float(row[name]) == best[0]]
            best = (best[0], int(min(equal, key=lambda row: float(row.get("val/loss") or 0))["epoch"]))
        expected |= {f"best/{name}": best[0], f"best_epoch/{name}": best[1], f"final/{name}": values[-1][0]}
    speeds = [float(r["speed/images_per_s"]) for r in table(folder / "metrics.csv") if r["speed/images_per_s"]]
    expected["images_per_s"] = statistics.median(speeds)
    expected["memory_gb"] = max(float(r["memory/gb"]) for r in table(folder / "metrics.csv") if r["memory/gb"])
    expected["epochs"] = int(rows[-1]["epoch"])
    if (folder / "test_metrics.json").exists():
        expected |= json.loads((folder / "test_metrics.json").read_text())["metrics"]
    return expected


def test_table_equals_values_read_directly(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    assert main([*map(str, runs), "--output", str(out), "--price", "1.5"]) == 0
    rows = table(out)
    assert [row["run"] for row in rows] == [str(folder) for folder in runs]
    for folder, row in zip(runs[:5], rows, strict=False):
        expected = by_hand(folder)
        metrics = {name: float(row[name]) for name in expected}
        assert metrics == pytest.approx(expected), folder.name
        known = {*expected, "run", "status", "group", "seed_everything", "device_hours", "cost"}
        others = {name for name, cell in row.items() if cell and name not in known}
        assert all(name.startswith(("model", "data", "trainer", "checkpoint")) for name in others)
    hours = [row["device_hours"] and float(row["device_hours"]) for row in rows[:5]]
    assert hours == [pytest.approx(2 / 60), 2.0, pytest.approx(2 / 60), pytest.approx(2 / 60), ""]
    assert float(rows[1]["cost"]) == 3.0
    assert [row["seed_everything"] for row in rows[:5]] == ["0", "1", "0", "0", "2"]
    assert [row["model.lr"] for row in rows[:5]] == ["0.1", "0.1", "0.01", "0.1", "0.5"]
    assert [row["group"] for row in rows] == ["1", "1", "2", "3", "4", "5"]
    assert [row["status"] for row in rows[:5]] == ["finished"] * 4 + ["unfinished"]
    assert rows[5]["status"].startswith("broken: metrics.csv cannot be read")
    assert rows[3]["best/val/acc"] == rows[0]["best/val/iou"] == ""


def test_a_real_run(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    assert main([str(finished), "--output", str(out)]) == 0
    (row,) = table(out)
    summary = json.loads((finished / "training_summary.json").read_text())
    for name, best in summary["best_metrics"].items():
        assert (float(row[f"best/{name}"]), int(row[f"best_epoch/{name}"])) == (best["value"], best["epoch"])
        assert float(row[f"final/{name}"]) == summary["final_metrics"][name]
    hours = summary["time"]["seconds"] * summary["environment"]["devices"] / 3600
    assert float(row["device_hours"]) == pytest.approx(hours)
    for name, value in json.loads((finished / "test_metrics.json").read_text())["metrics"].items():
        assert float(row[name]) == value
    assert int(row["epochs"]) == summary["total_epochs"]
    assert row["status"] == "finished"


def test_settings_come_from_the_last_resume(runs: list[Path]) -> None:
    config = yaml.safe_load((runs[0] / "config.yaml").read_text())
    for number, lr in ((2, 0.3), (10, 0.7)):
        config["model"]["init_args"]["lr"] = lr
        (runs[0] / f"config.resume-{number}.yaml").write_text(yaml.safe_dump(config))
    assert read_run(runs[0]).settings["model.lr"] == 0.7


def test_markdown_marks_the_best_and_averages_seeds(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    assert main([*map(str, runs[:4]), "--markdown", str(out)]) == 0
    text, others = out.read_text().removeprefix("## DigitsDataModule\n\n").split("\n## Prompted\n\n")
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()]
    rows = {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}
    assert list(rows) == ["a", "b", "mean of 2 seeds", "c"]
    assert rows["a"]["val/acc"] == "**0.9 (2)**"
    assert rows["b"]["val/acc"] == "0.7 (2)"
    assert rows["mean of 2 seeds"]["val/acc"] == f"0.8 ± {statistics.stdev([0.9, 0.7]):.2g}"
    assert rows["mean of 2 seeds"]["test/acc"] == "0.85 (n 1)"
    assert rows["mean of 2 seeds"]["model.lr"] == "0.1"
    assert rows["c"]["train/loss"] == "**0.1667 (3)**"  # the minimum is best
    assert "val/iou" not in rows["a"]  # the segmenter has a table of its own
    assert "| 0.4 (2) |" in others  # no mark: no other run has this metric


def test_terminal_table(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs[0]), str(runs[2]), str(runs[5]), str(runs[0] / "config.yaml")]) == 0
    output = capsys.readouterr().out
    assert "0.9 (2) *" in output
    assert "3 runs; best value (epoch)" in output
    header = [cell.strip() for line in output.splitlines() if "┃" in line for cell in line.strip("┃").split("┃")]
    assert {"val/", "acc", "device_hours"} <= {*header}, "names as in files and flags, in lines of their parts"
    assert output.endswith(f"skipped, as it is no run: {runs[0] / 'config.yaml'}\n")


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("damage", "status"),
    [
        (lambda run: (run / "config.yaml").write_text("a: [1"), "broken: config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").write_text("text"), "broken: config.yaml cannot be read"),
        (lambda run: (run / "config.yaml").unlink(), "broken: no config.yaml"),
        (lambda run: (run / "metrics.csv").unlink(), "broken: no metrics.csv"),
        (lambda run: (run / "metrics.csv").write_bytes(b"\xff\xfe"), "broken: metrics.csv cannot be read"),
        (lambda run: (run / "training_summary.json").write_text("{"), "broken: training_summary.json cannot be read"),
        (lambda run: (run / "training_summary.json").write_text("[]"), "broken: training_summary.json cannot be read"),
        (lambda run: (run / "test_metrics.json").write_text("{}"), "broken: test_metrics.json cannot be read"),
        (lambda run: (run / "training_summary.json").unlink(), "unfinished"),
        (lambda run: (run / "metrics.csv").write_text("epoch,step\n"), "finished"),
    ],
)
def test_a_damaged_run_is_still_a_row(runs: list[Path], tmp_path: Path, damage: Any, status: str) -> None:
    damage(runs[0])
    out = tmp_path / "table.csv"
    flags = ["--output", str(out), "--plot", str(tmp_path / "p.png"), "--markdown", str(tmp_path / "m.md")]
    assert main([str(runs[0]), str(runs[1]), *flags]) == 0
    rows = table(out)
    assert rows[0]["status"].startswith(status)
    assert rows[1]["status"] == "finished"


def test_settings_are_flattened_to_flag_names() -> None:
    settings = dict(flat(CLASSIFIER))
    assert settings["model"] == "TernaryClassifier"
    assert settings["trainer.callbacks.EMA.decay"] == 0.9
    assert settings["model.layers"] == '["stem"]'
    assert settings["checkpoint.monitor"] == "val/acc"


def test_data_sets_are_flattened_by_their_folders() -> None:
    """One readable value with all folders; the settings of a set have a name of their own, whatever their place in the list."""
    cracks = {"folder": "cracks", "prompts": ["crack"], "masks": None, "group_column": "group"}
    joints = {"folder": "joints", "prompts": ["tape"], "values": [2]}
    before, after = (
        dict(flat({"data": {"sets": sets}})) for sets in ([cracks, joints], [joints, {**cracks, "split": "train"}])
    )
    assert before["data.sets"] == "cracks, joints"
    assert before["data.sets.cracks.prompts"] == after["data.sets.cracks.prompts"] == '["crack"]'
    assert set(after) - set(before) == {"data.sets.cracks.split"}
    assert "data.sets.cracks.group_column" not in before, "a default, which nobody has set"
    again = dict(flat({"data": {"sets": [joints, {**joints, "values": [3]}]}}))
    assert [again[f"data.sets.{name}.values"] for name in ("joints", "joints(2)")] == ["[2]", "[3]"]


def test_groups_and_differing_settings() -> None:
    runs = [Run("a", settings={"model.lr": 1, "x": 1}), Run("b", settings={"model.lr": 1, "x": 1}), Run("c"), Run("d")]
    runs.append(Run("e", settings={"model.lr": 2, "x": 1}))
    assert [[run.name for run in group] for group in grouped(runs)] == [["a", "b"], ["c"], ["d"], ["e"]]
    assert differing(runs) == ["model.lr"]
    assert differing([runs[0], Run("f", settings={"x": 2, "z": 0})]) == ["x", "model.lr", "z"]


def test_best_value_of_a_column() -> None:
    assert best_of([0.1, None, 0.3, float("nan")], "val/acc") == 0.3
    assert best_of([0.1, 0.3], "val/loss") == 0.1
    assert best_of([0.1, None], "val/acc") is None  # a single value is not marked as best
    assert best_of([0.1, 0.3], "validate:val/ece_high_calibrated") == 0.1
    assert best_of([0.1, 0.3], "test/ece_floor") is None  # neither high nor low is better


def test_the_best_epoch_is_that_of_best_json_and_ties_go_to_the_lower_loss(tmp_path: Path) -> None:
    rows = [
        {"epoch": epoch, "step": epoch, "val/acc": acc, "val/loss": loss, "train/acc": acc, "train/loss": loss}
        for epoch, (acc, loss) in enumerate([(0.5, 0.3), (0.9, 0.4), (0.9, 0.2), (0.9, 0.2)], start=1)
    ]
    folder = write_run(tmp_path / "run", CLASSIFIER, rows)
    assert read_run(folder).best["val/acc"] == {"value": 0.9, "epoch": 3}
    # a run of an older version kept the first of equal epochs
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.json").write_text(json.dumps({"metric": "val/acc", "value": 0.9, "epoch": 2}))
    assert read_run(folder).best["val/acc"] == {"value": 0.9, "epoch": 2}
    assert read_run(folder).best["train/acc"] == {"value": 0.9, "epoch": 3}
    # the table of a run that goes on is ahead of best.json
    (folder / "checkpoints" / "best.json").write_text(json.dumps({"metric": "val/acc", "value": 0.5, "epoch": 1}))
    assert read_run(folder).best["val/acc"] == {"value": 0.9, "epoch": 3}


def test_a_table_wider_than_a_log_is_divided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _parts([4, 10, 10, 30, 5], 36) == [[1, 2], [3], [4]]  # 4 + 10 + 10 and 3 for each column less 1 are 32
    assert _parts([4, 10, 10], 31) == [[1], [2]]
    rows = epochs("val/acc", 0.5, 0.9)
    rows[-1] |= {f"val/a_metric_with_a_long_name_{n}": 0.1 * n for n in range(4)}
    files = {name: {"file": f"a_folder/{name}_{'x' * 40}"} for name in "ab"}
    data = {name: {"class_path": "datamodules.Digits", "init_args": files[name]} for name in files}
    runs = [
        write_run(tmp_path / name, {**CLASSIFIER, "data": data[name]}, rows, test={"test/acc": 0.5}) for name in "ab"
    ]
    assert main([*map(str, runs)]) == 0
    tables = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "┏┃│└"]
    assert 100 < max(map(len, tables)) <= 132
    assert sum(line.startswith("│a ") for line in tables) == 2, "each part has the name of the run"
    assert sum("memory_gb" in line for line in tables) == 1


def test_no_word_is_broken_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe has no width: every cell of a run is whole on one line, however long the names are."""
    rows: list[dict[str, float]] = [{"epoch": 1, "step": 5, "val/acc": 0.5}]
    name = "a_run_with_a_name_that_is_as_long_as_names_get_in_a_search"
    folders = [write_run(tmp_path / f"{name}_{i}_of_many_settings", CLASSIFIER, rows) for i in range(2)]
    assert main([str(folder) for folder in folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(folder.name in line for line in lines) for folder in folders)


def test_metrics_of_single_prompts_are_in_the_files_only() -> None:
    names = ("val/iou", "val/iou/crack", "val/iou/tape", "train/loss")
    run = Run("a", main="val/iou", best={name: {"value": 0.5, "epoch": 1} for name in names})
    assert [column.title for column in columns_of([run], None, 4, 4) if column.metric] == ["val/iou"]
    assert {column.title for column in columns_of([run], None) if column.metric} == {*names}


def curves(figure: Figure) -> list[tuple[str, list[str]]]:
    legends = [(axes.get_ylabel(), axes.get_legend()) for axes in figure.axes]
    return [(label, [text.get_text() for text in legend.get_texts()] if legend else []) for label, legend in legends]


def test_a_panel_for_each_metric_and_an_entry_for_each_group(runs: list[Path], tmp_path: Path) -> None:
    figure = draw(grouped([read_run(folder) for folder in runs[:4]]))
    (acc, classifiers), (iou, segmenters) = curves(figure)
    assert (acc, iou) == ("val/acc", "val/iou")
    assert [entry.endswith("and 1 more with the same settings") for entry in classifiers] == [True, False]
    assert len(segmenters) == 1
    lines = figure.axes[0].get_lines()
    assert lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.9], [3, 0.8]]  # type: ignore[union-attr]
    assert lines[1].get_xydata().tolist() == [[2, 0.9]]  # type: ignore[union-attr]
    assert main([*map(str, runs), "--plot", str(tmp_path / "p.png"), "--metric", "train/loss"]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--price", "-1"], "--price: the price of an hour must be 0 or more, got -1.0"),
        (["--metric", "val/f1"], "--metric val/f1: no run has this metric (available: val/acc, train/loss)"),
        (["--output", "nowhere/x.csv"], "nowhere/x.csv: must be a file in a folder that exists"),
        (["--price", "much"], "invalid float value: 'much'"),
    ],
)
def test_invalid_flags_end_in_one_line(
    runs: list[Path], capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(runs[0]), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_folders_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "none", ignore_errors=True)
    write_run(tmp_path / "runs" / "digits" / "a", CLASSIFIER, epochs("val/acc", 0.4))
    assert main([str(tmp_path / "runs")]) == 2
    assert f"a run folder has a config.yaml; runs are in {tmp_path / 'runs'}/*/*" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "other").mkdir()
    assert main([str(tmp_path), str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err == (
        f"error: no run among the 2 given ({tmp_path}, {tmp_path / 'other'}): a run folder has a config.yaml\n"
    )
    assert main([str(tmp_path), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such run folder; {tmp_path} has other\n"


def write_found(folder: Path, lr: float, configured: float, in_config: bool = True) -> None:
    """Write the record of LearningRateFinder."""
    content = {"lr": lr, "lr_configured": configured, "rule": "bottom", "reason": "", "suggestions": {"bottom": lr}}
    (folder / "lr_find.json").write_text(json.dumps({**content, "in_config": in_config}))


def test_a_rate_that_the_finder_chose_is_shown_and_is_no_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = write_run(tmp_path / "given", CLASSIFIER, epochs("val/acc", 0.5))
    first = write_run(tmp_path / "first", CLASSIFIER, epochs("val/acc", 0.6), lr=0.03)
    second = write_run(tmp_path / "second", CLASSIFIER, epochs("val/acc", 0.8), seed=1, lr=0.06)
    old = write_run(tmp_path / "old", SEGMENTER, epochs("val/iou", 0.4))  # its config.yaml has the configured rate
    write_found(first, 0.03, 0.1)
    write_found(second, 0.06, 0.1)
    write_found(old, 0.02, 0.1, in_config=False)
    assert [run.settings["model.lr"] for run in map(read_run, (given, first, second, old))] == [0.1, 0.03, 0.06, 0.02]
    assert main([*map(str, (given, first, second, old)), "--output", str(tmp_path / "out.csv")]) == 0
    rows = table(tmp_path / "out.csv")
    assert [row["lr_used"] for row in rows] == ["", "0.03", "0.06", "0.02"]
    assert [row["lr_configured"] for row in rows] == ["", "0.1", "0.1", "0.1"]
    assert [row["model.lr"] for row in rows] == ["0.1", "0.03", "0.06", "0.02"]
    assert [row["group"] for row in rows] == ["1", "2", "2", "3"]
    shown = capsys.readouterr().out
    assert "0.03, 0.1" in shown
    assert "mean of 2 seeds" in shown
    assert "0.03 to 0.06" in shown


def test_the_metric_that_people_look_for_is_the_first_column(tmp_path: Path) -> None:
    tested = dict.fromkeys(("test/absent_area", "test/area", "test/bce", "test/dice", "test/edge"), 0.5)
    runs = []
    for name, iou, cache in (("a", 0.3, "caches/a"), ("b", 0.4, None)):
        config = {
            **SEGMENTER,
            "data": {"class_path": "datamodules.Prompted", "init_args": {"canvas_cache": cache, "workers": 1}},
        }
        rows = [{**row, "val/f1": 0.0} for row in epochs("val/iou", iou)]
        runs.append(read_run(write_run(tmp_path / name, config, rows, test={**tested, "test/iou": iou})))
    assert differing(runs) == [], "the cache changes no result"
    titles = [column.title for column in columns_of(runs, None, 4, 4)]
    names = [title for title in titles if "/" in title]
    assert names == ["test/iou", "val/iou", "val/f1", "test/dice", "test/absent_area", "test/area"]
    assert best_of([0.0, 0.0], "val/f1") is None, "equal values: none is the best"
