"""A segmenter on other labelled sets and on other pictures: what may be empty, and that no results are replaced by others'."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from tests.datamodules.segmentation_sets import write_pair
from tests.runs.killing import ROOT

pytestmark = pytest.mark.slow

TINY = str(ROOT / "tests" / "conf" / "segmentation_tiny.yaml")


def sets(**of_set: object) -> list[str]:
    return ["--data.generate", "null", "--data.sets", json.dumps([of_set])]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on `walls`; the sets `stairs` and `holes` are next to it, `holes` with masks of 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("sets")
    for name, count in (("walls", 14), ("stairs", 4), ("holes", 4)):
        for number in range(count):
            write_pair(folder / "data" / name, f"{name}{number:02}", shift=number)
    for path in (folder / "data" / "holes" / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[mask > 0], mask[0, 0] = 1, 2
        Image.fromarray(mask).save(path)
    walls = sets(folder="walls", prompts=["crack"])
    flags = ["--data.root", str(folder / "data"), "--trainer.max_epochs", "1", "--trainer.callbacks", "[]"]
    assert main(["fit", "--config", TINY, *walls, *flags, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def files_of(folder: Path) -> list[str]:
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all((folder / row["mask"]).is_file() for row in rows)
    return [row["file"] for row in rows]


def test_a_whole_other_set_is_tested_and_each_set_has_its_results(run: Path) -> None:
    holes = {"folder": "holes", "prompts": ["hole"], "split": "test"}
    for command, one in (
        ("test", {"folder": "stairs", "prompts": ["crack"], "split": "test"}),
        ("test", {**holes, "values": [1]}),
        ("test", {**holes, "values": [2]}),
        ("validate", {"folder": "stairs", "prompts": ["crack"], "split": "val"}),
    ):
        assert main([command, "--run", str(run), *sets(**one)]) == 0
    found = {path.parent.name: json.loads(path.read_text())["data"] for path in run.glob("evaluations/*/test_*.json")}
    root = run.parent / "data"
    assert {name: (data["place"], data["samples"]) for name, data in found.items()} == {
        "stairs": (f"{root / 'stairs'} (split test)", 4),
        "holes": (f"{root / 'holes'} (values [1], split test)", 4),
        "holes-2": (f"{root / 'holes'} (values [2], split test)", 4),
    }
    assert [path.parent.name for path in run.glob("evaluations/*/validate_*.json")] == ["stairs-2"]


def test_a_stage_without_images_says_which_are_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = sets(folder="stairs", prompts=["crack"], split="test")
    assert main(["validate", "--run", str(run), *one]) == 2
    assert "validate needs images, and no image is for val (0 train, 0 val, 4 test)" in capsys.readouterr().err


def test_predictions_of_other_pictures_are_kept(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    for name in ("one", "two"):
        Image.new("RGB", (32, 24), "grey").save(tmp_path / f"{name}.jpg")
    (tmp_path / "more").mkdir()
    shutil.copy(tmp_path / "two.jpg", tmp_path / "more" / "two.jpg")
    predict = ["predict", "--run", str(copy), "--data.images"]
    for given in ("one.jpg", "two.jpg", "more/two.jpg", "two.jpg"):
        assert main([*predict, str(tmp_path / given), "--data.prompts", "[crack, hole]"]) == 0
    assert f"one is in {copy / 'evaluations' / 'two'}" in "".join(capsys.readouterr())
    assert main([*predict, str(tmp_path / "one.jpg"), "--data.prompts", "[crack]"]) == 0
    assert files_of(copy) == ["one.jpg"] * 2, "other prompts leave the masks of the earlier ones"
    assert len(list((copy / "predictions" / "masks").iterdir())) == 2
    evaluations = {path.name: files_of(path) for path in (copy / "evaluations").iterdir()}
    assert evaluations == {
        "one": ["one.jpg"],
        "two_crack_hole": ["two.jpg"] * 2,
        "two_crack_hole-2": ["two.jpg"] * 2,
    }
    assert main([*predict, str(tmp_path / "one.jpg"), "--name", "two_crack_hole"]) == 2
    assert "--name two_crack_hole: " in capsys.readouterr().err


def test_masks_that_make_the_metrics_perfect_are_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fit reads all masks before its first step; test and validate say what theirs held."""
    data = run.parent / "data"
    shutil.copytree(data / "stairs", data / "bare")
    for path in (data / "bare" / "masks").iterdir():
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    for command, split in (("test", "test"), ("validate", "val")):
        capsys.readouterr()
        assert main([command, "--run", str(run), *sets(folder="bare", prompts=["crack"], split=split)]) == 0
        printed = capsys.readouterr()
        assert f"masks      'crack' 0.00% of the {split} pixels in 0 of 4 images" in printed.out + printed.err
        text = f"no positive pixel in the 4 {split} masks of 'crack'; a metric over them is perfect if nothing is predicted"
        assert (printed.out + printed.err).count(text) == 1
        assert main([command, "--run", str(run), *sets(folder="stairs", prompts=["crack"], split=split)]) == 0
        printed = capsys.readouterr()
        assert f"of the {split} pixels in 4 of 4 images" in printed.out + printed.err
        assert "positive pixel" not in printed.out + printed.err
        assert (
            main([command, "--run", str(run), *sets(folder="stairs", prompts=["tape"], masks="none", split=split)]) == 0
        )
        assert "no positive pixel" in "".join(capsys.readouterr())


def test_a_single_picture_that_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    before = sorted(run.rglob("*"))
    assert main(["predict", "--run", str(run), "--data.images", str(tmp_path / "notes.jpg")]) == 2
    printed = "".join(capsys.readouterr())
    assert "notes.jpg cannot be read as an image (no image); give another file" in printed
    assert "unreadable" not in printed, "there is no such setting, and nothing would be left"
    assert sorted(run.rglob("*")) == before


def test_an_image_of_two_sets_is_predicted_once(run: Path) -> None:
    """Two objects in the index masks of one folder: each of its images is asked for each prompt once."""
    objects = [
        {"folder": "holes", "prompts": [name], "values": [value], "split": "test"}
        for value, name in ((1, "hole"), (2, "rim"))
    ]
    flags = ["--data.generate", "null", "--data.sets", json.dumps(objects), "--data.prompts", "[hole, rim]"]
    assert main(["predict", "--run", str(run), *flags, "--name", "once"]) == 0
    with (run / "evaluations" / "once" / "predictions.csv").open(newline="") as file:
        rows = [(row["file"], row["prompt"]) for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 8
