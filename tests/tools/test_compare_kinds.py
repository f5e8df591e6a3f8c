"""tools.compare of runs on different data, of runs that have not finished, and of folders that are no runs."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from tests.tools.test_compare import CLASSIFIER, SEGMENTER, epochs, write_run
from tools.compare.__main__ import main


def test_a_table_for_each_kind_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = {"model": {"class_path": "lightning_modules.CascadeHead", "init_args": {"lr": 0.1}}}
    images, cached = (
        write_run(
            tmp_path / name,
            {**CLASSIFIER, **head, "data": {"class_path": f"datamodules.{name}", "init_args": {setting: "x"}}},
            epochs("val/acc", value),
        )
        for name, setting, value in (("ImageFolderDataModule", "root", 0.3), ("CachedFeaturesDataModule", "cache", 0.4))
    )
    first = write_run(tmp_path / "a", CLASSIFIER, epochs("val/acc", 0.5, 0.9, 0.8))
    segmenter = write_run(tmp_path / "d", SEGMENTER, epochs("val/iou", 0.1, 0.4))
    assert main([str(first), str(images), str(segmenter), str(cached)]) == 0
    digits, folder, segments = capsys.readouterr().out.split("\n\n")
    assert digits.strip().startswith("DigitsDataModule")
    assert folder.startswith("ImageFolderDataModule, CachedFeaturesDataModule\n")
    assert segments.startswith("Prompted\n")
    assert "0.9 (2)" in digits
    assert "*" not in digits
    assert "0.4 (1) *" in folder  # a head on cached features and a network on the images
    assert "val/iou" not in folder
    assert "val/acc" not in segments
    assert "4 runs; best value (epoch)" in segments
    assert "3 tables, one for each kind of data: metrics on different data cannot be compared" in segments
    assert "data.root differs" not in segments


def test_runs_on_other_data_of_the_same_kind_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("flowers", "roads"):
        data = {"class_path": "datamodules.ImageFolderDataModule", "init_args": {"root": name}}
        write_run(tmp_path / name, {**CLASSIFIER, "data": data}, epochs("val/acc", 0.5))
    assert main([str(tmp_path / "flowers"), str(tmp_path / "roads")]) == 0
    assert "data.root differs: the best of a column may be of other data" in capsys.readouterr().out


def test_a_run_on_a_file_and_one_on_a_folder_are_of_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"HARDataModule": {"root": "data"}, "SignalFileDataModule": {"file": "mine.npz"}}
    for name, settings in given.items():
        data = {"class_path": f"datamodules.{name}", "init_args": settings}
        write_run(tmp_path / name, {**CLASSIFIER, "data": data}, epochs("val/acc", 0.5))
    assert main([str(tmp_path / name) for name in given]) == 0
    assert "data differs (HARDataModule, SignalFileDataModule): the best of a" in capsys.readouterr().out


def test_unfinished_runs_and_folders_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begun = write_run(tmp_path / "begun", CLASSIFIER, epochs("val/acc", 0.4), seed=7, seconds=None)
    (begun / "metrics.csv").unlink()
    torn = write_run(tmp_path / "torn", CLASSIFIER, epochs("val/acc", 0.4), seed=8, seconds=None)
    done = [
        write_run(tmp_path / f"seed{seed}", CLASSIFIER, epochs("val/acc", value), seed=seed)
        for seed, value in enumerate((0.9, 0.7))
    ]
    assert main([*map(str, [*done, tmp_path / "beg"])]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'beg'}: no such run folder, did you mean {str(begun)!r}?\n"
    assert main([*map(str, [*done, begun, torn, tmp_path])]) == 0
    output = capsys.readouterr().out
    assert output.count("│ unfinished │") == 2
    assert "broken" not in output
    assert "mean of 2 seeds" in output
    assert f"0.8 ± {statistics.stdev([0.9, 0.7]):.2g}" in output  # of the finished ones
    assert f"skipped, as it is no run: {tmp_path}; runs are in {tmp_path}/*" in output


def test_results_of_an_earlier_best_checkpoint_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", CLASSIFIER, epochs("val/acc", 0.5, 0.9), test={})
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.json").write_text('{"metric": "val/acc", "value": 0.9, "epoch": 2, "step": 20}')
    for step, shown in ((10, False), (20, True)):
        results = {"checkpoint": "best.ckpt", "epoch": step // 10, "step": step, "metrics": {"test/acc": 0.625}}
        (run / "test_metrics.json").write_text(json.dumps(results))
        assert main([str(run)]) == 0
        output = capsys.readouterr().out
        assert ("0.625" in output) is shown
        note = "test left out: it is of an earlier best.ckpt (epoch 1, now 2); evaluate it again"
        assert (note in output) is not shown
