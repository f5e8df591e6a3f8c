"""Data that a run was not trained on: matched by the names of classes and signals, results in a folder of their own."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from cli import main
from tests.datamodules.pictures import write_class
from tests.runs.killing import ROOT

pytestmark = pytest.mark.slow

IMAGES = str(ROOT / "tests" / "conf" / "image_folder_tiny.yaml")
QUICK = ["--trainer.max_epochs", "6", "--data.mixup_prob", "0", "--data.cutmix_prob", "0", "--data.erasing_prob", "0"]
QUICK += ["--data.workers", "0"]


def fit(*arguments: str, code: int = 0) -> None:
    assert main(["fit", *arguments]) == code


def metrics_of(folder: Path, command: str = "test") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{command}_metrics.json").read_text())
    return content


def colours(root: Path, names: dict[str, int], count: int = 6, first: int = 0) -> Path:
    """One folder per class with images of one colour channel, so that a tiny network learns them."""
    from PIL import Image

    for name, channel in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.random.default_rng(100 * channel + i + first).integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 190
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run on red, green and blue images; `data` and `run` are in it."""
    folder = tmp_path_factory.mktemp("images")
    colours(folder / "data" / "train", {"blue": 2, "green": 1, "red": 0}, 12)
    colours(folder / "data" / "test", {"blue": 2, "green": 1, "red": 0}, 4, first=50)
    fit("--config", IMAGES, *QUICK, "--data.root", str(folder / "data"), "--run_dir", str(folder / "run"))
    assert main(["test", "--run", str(folder / "run")]) == 0
    assert metrics_of(folder / "run")["metrics"]["test/acc"] == 1, "the tiny network has learnt the colours"
    return folder


def test_results_name_the_data(images: Path) -> None:
    content = metrics_of(images / "run")
    assert content["overrides"] == {}
    data = content["data"]
    assert data.pop("fingerprint")
    assert data == {
        "place": str(images / "data"),
        "datamodule": "ImageFolderDataModule",
        "split": "test",
        "samples": 12,
        "seen_in_training": 0,
        "own": True,
    }


def test_classes_are_matched_by_name_and_own_results_stay(images: Path, tmp_path: Path) -> None:
    own = (images / "run" / "test_metrics.json").read_bytes()
    # a folder with the test split only, with two of the three classes: red is number 1 here and number 2 in the checkpoint
    other = colours(tmp_path / "other" / "test", {"green": 1, "red": 0}, 3, first=80).parent
    assert main(["test", "--run", str(images / "run"), "--data.root", str(other)]) == 0
    assert (images / "run" / "test_metrics.json").read_bytes() == own
    content = metrics_of(images / "run" / "evaluations" / "other")
    assert content["metrics"]["test/acc"] == 1
    assert not content["data"]["own"]
    assert content["overrides"]["data.root"][1] == str(other)
    assert (images / "run" / "evaluations" / "other" / "plots" / "confusion_test.png").is_file()


def test_other_classes_are_refused_by_name(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = colours(tmp_path / "test", {"green": 1, "rose": 0, "blue": 2}, 3).parent
    for command in ("test", "validate"):
        assert main([command, "--run", str(images / "run"), "--data.root", str(other)]) == 2
        error = capsys.readouterr().err
        assert "the class rose, but the checkpoint was trained on blue, green, red" in error, error
    assert not list((images / "run").glob("evaluations/*test*"))


def test_copies_of_training_images_are_reported(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "copied" / "test"
    colours(other, {"blue": 2, "green": 1, "red": 0}, 3, first=80)
    for i in range(12):
        shutil.copy(images / "data" / "train" / "red" / f"{i}.png", other / "red" / f"other_name_{i}.png")
    assert main(["test", "--run", str(images / "run"), "--data.root", str(other.parent), "--name", "mine"]) == 0
    seen = metrics_of(images / "run" / "evaluations" / "mine")["data"]["seen_in_training"]
    assert seen == 12, "those in the validation split count too"
    assert f"{seen} of the 21 test samples are train or val samples" in "".join(capsys.readouterr())


def test_grey_files_for_a_network_of_colours_are_reported(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    other = colours(tmp_path / "grey" / "test", {"green": 1, "red": 0}, 3, first=80)
    for path in other.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert main(["test", "--run", str(images / "run"), "--data.root", str(other.parent)]) == 0
    assert "100% of the test images are grey, of the training images 0%" in "".join(capsys.readouterr())


def test_a_checkpoint_by_itself_is_compared_with_the_settings(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = images / "run"
    test = ["test", "--config", str(run / "config.yaml"), "--ckpt", str(run / "checkpoints" / "best.ckpt")]
    assert main(test) == 0
    assert " with model." not in "".join(capsys.readouterr())
    assert main([*test, "--model.dropout", "0.7"]) == 0
    assert "with model.dropout 0.7 (the run: 0.2)" in "".join(capsys.readouterr())


def test_moved_data_is_the_runs_own(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    shutil.copytree(images / "data", tmp_path / "elsewhere")
    assert main(["test", "--run", str(tmp_path / "run"), "--data.root", str(tmp_path / "elsewhere")]) == 0
    assert metrics_of(tmp_path / "run")["data"]["place"] == str(tmp_path / "elsewhere")
    assert not (tmp_path / "run" / "evaluations").exists()


def test_overrides_are_recorded(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(images / "run", tmp_path / "run")
    assert main(["test", "--run", str(run), "--data.eval_share", "0.5", "--data.eval_batch_size", "3"]) == 0
    assert metrics_of(run)["overrides"] == {"data.eval_share": [0.875, 0.5]}
    assert "eval_share is 0.5, as given; the checkpoint was trained with 0.875" in "".join(capsys.readouterr())


def test_the_checkpoint_normalises_other_datamodules(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [f"--data.{name}={value}" for name, value in (("mean", "[0.1, 0.1, 0.1]"), ("root", images / "data"))]
    assert main(["test", "--run", str(images / "run"), *other]) == 2
    assert "--data.mean: the checkpoint was trained with mean [0.485" in "".join(capsys.readouterr())
    # a mean in the configuration that the run was not trained with, without a flag: the checkpoint's is used
    config = tmp_path / "other.yaml"
    config.write_text("data:\n  class_path: tests.runs.test_other_data.Shifted\n")
    assert main(["test", "--run", str(images / "run"), "--config", str(config), "--name", "shifted"]) == 0
    shifted = metrics_of(images / "run" / "evaluations" / "shifted")["metrics"]
    assert shifted == metrics_of(images / "run")["metrics"]


def test_data_replaced_in_its_place_and_another_checkpoint_keep_the_runs_results(images: Path, tmp_path: Path) -> None:
    run = shutil.copytree(images / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    data = shutil.copytree(images / "data", tmp_path / "moved")
    own = (run / "test_metrics.json").read_bytes()
    # the classes of two folders are exchanged: the same pictures, other labels
    for part in ("train", "test"):
        (data / part / "red").rename(data / part / "x")
        (data / part / "blue").rename(data / part / "red")
        (data / part / "x").rename(data / part / "blue")
    assert main(["test", "--run", str(run), "--data.root", str(data)]) == 0
    assert metrics_of(run / "evaluations" / "moved")["metrics"]["test/acc"] < 0.5
    other = str(images / "run" / "checkpoints" / "last.ckpt")
    assert main(["test", "--run", str(run), "--ckpt", other]) == 0
    assert metrics_of(run / "evaluations" / "run_last")["checkpoint"] == other
    assert (run / "test_metrics.json").read_bytes() == own
    assert main(["fit", "--resume", str(run), "--data.root", str(data), "--trainer.max_epochs", "7"]) == 2


def test_a_resume_on_changed_data_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, data = shutil.copytree(images / "run", tmp_path / "run"), shutil.copytree(images / "data", tmp_path / "data")
    more = ["fit", "--resume", str(run), "--data.root", str(data), "--trainer.max_epochs", "7"]
    write_class(data / "train" / "red", 1, 7, "_new.png")
    assert main(more) == 2
    assert "data has changed since the run began" in "".join(capsys.readouterr())
    (data / "train" / "red" / "000_new.png").unlink()
    assert main(more) == 0


# ---- signals ----


def windows(path: Path, **changes: Any) -> Path:
    """Ten people, three signals, two activities that differ in the level of the first signal."""
    random = np.random.default_rng(3)
    label, subject = np.tile([0, 1], 40), np.repeat(np.arange(10) + changes.pop("first", 1), 8)
    signal = random.normal(0, 0.1, (80, 3, 16)) + np.arange(3)[:, None]
    signal[:, 0] += 2.0 * label[:, None]
    content: dict[str, Any] = {"signal": signal.astype(np.float32), "label": label, "subject": subject}
    names = {"class_names": np.array(["rest", "run"]), "signal_names": np.array(["acc", "gyro", "mag"])}
    np.savez(path, **{**content, **names, **{k: v(content) if callable(v) else v for k, v in changes.items()}})
    return path


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run on `train.npz`."""
    folder = tmp_path_factory.mktemp("signals")
    config = folder / "signals.yaml"
    config.write_text(
        "trainer: {accelerator: cpu, max_epochs: 6, log_every_n_steps: 1}\n"
        "model: {class_path: HARClassifier, init_args: {architecture: signal_resnet, hidden: [], lr: 0.02}}\n"
        "data: {class_path: SignalFileDataModule, init_args: {batch_size: 8}}\n"
    )
    file = windows(folder / "train.npz")
    run = str(folder / "run")
    fit("--config", str(config), "--data.file", str(file), "--run_dir", run, "--model.signals", "3")
    assert main(["test", "--run", run]) == 0
    assert metrics_of(folder / "run")["metrics"]["test/acc"] == 1
    return folder


ORDER = [2, 0, 1]


@pytest.mark.parametrize(
    ("changes", "accuracy", "said"),
    [
        (
            {"class_names": np.array(["run", "rest"]), "label": lambda c: 1 - c["label"]},
            1.0,
            "classes are matched by name",
        ),
        (
            {"signal": lambda c: c["signal"][:, ORDER], "signal_names": np.array(["mag", "acc", "gyro"])},
            1.0,
            "signals are matched by name",
        ),
        ({"signal": lambda c: 9.81 * c["signal"]}, None, "other units?"),
        ({"first": 2}, 1.0, "people or groups of the test data have the names of some"),
        ({"class_names": np.array(["rest", "swim"])}, 2, "class swim"),
        ({"signal_names": np.array(["acc", "gyro", "baro"])}, 2, "lacks mag and has also baro"),
        ({"signal": lambda c: c["signal"][:, :2], "signal_names": np.array(["acc", "gyro"])}, 2, "lacks mag"),
        ({"signal": lambda c: c["signal"][..., :8]}, 2, "windows of 8 samples"),
    ],
)
def test_other_recordings(
    signals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    accuracy: float | None,
    said: str,
) -> None:
    changes = {"first": 100, **changes}
    file = windows(tmp_path / "other.npz", **changes)
    code = main(["test", "--run", str(signals / "run"), "--data.file", str(file), "--name", tmp_path.name])
    output = "".join(capsys.readouterr())
    assert said in output
    assert code == (2 if accuracy == 2 else 0)
    if accuracy != 2 and accuracy is not None:
        assert metrics_of(signals / "run" / "evaluations" / tmp_path.name)["metrics"]["test/acc"] == accuracy


def test_predict_takes_data_with_other_classes(signals: Path, tmp_path: Path) -> None:
    file = windows(tmp_path / "other.npz", class_names=np.array(["rest", "swim"]), first=100)
    predict = ["predict", "--run", str(signals / "run"), "--data.file", str(file), "--name", tmp_path.name]
    assert main(predict) == 0
    lines = (signals / "run" / "evaluations" / tmp_path.name / "predictions.csv").read_text().splitlines()
    assert {line.split(",")[1] for line in lines[1:]} == {"rest", "run"}


def test_units_are_compared_where_known(tmp_path: Path, signals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(signals / "run", tmp_path / "run")
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["trained_on"]["own"]["signal_units"] = ["g", "rad/s", "T"]
        torch.save(content, path)
    file = windows(tmp_path / "other.npz", signal_units=np.array(["m/s2", "rad/s", "T"]), first=100)
    assert main(["test", "--run", str(run), "--data.file", str(file)]) == 2
    assert "acc is in m/s2, but the checkpoint was trained on g" in "".join(capsys.readouterr())


def test_a_checkpoint_without_a_record_is_matched_by_its_hyperparameters(
    signals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(signals / "run", tmp_path / "run")
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        del content["trained_on"]
        torch.save(content, path)
    file = windows(tmp_path / "a.npz", class_names=np.array(["run", "rest"]), label=lambda c: 1 - c["label"], first=100)
    assert main(["test", "--run", str(run), "--data.file", str(file), "--name", "a"]) == 0
    assert metrics_of(run / "evaluations" / "a")["metrics"]["test/acc"] == 1
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs", "7"]) == 0


def test_predictions_on_images_need_no_training_data(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "run", tmp_path / "run")
    new = colours(tmp_path / "new", {"unsorted": 0}, 2, first=90)
    absent = ["--data.root", str(tmp_path / "gone"), "--data.images", str(new), "--name", "new"]
    assert main(["predict", "--run", str(tmp_path / "run"), *absent]) == 0
    lines = (tmp_path / "run" / "evaluations" / "new" / "predictions.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == ["red", "red"]


def test_names_of_evaluations(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = ["test", "--run", str(images / "run"), "--name"]
    assert main([*test, "../up"]) == 2
    assert "letters, digits" in "".join(capsys.readouterr())
    for place in ("one", "two"):
        colours(tmp_path / place / "test", {"red": 0, "green": 1}, 2, first=70)
    assert main([*test, "same", "--data.root", str(tmp_path / "one")]) == 0
    assert main([*test, "same", "--data.root", str(tmp_path / "two")]) == 2
    assert "give another name" in "".join(capsys.readouterr())


def __getattr__(name: str) -> Any:
    """The class `Shifted`, created when the configuration names it: an image folder with another mean by default."""
    if name != "Shifted":
        raise AttributeError(name)
    from datamodules import ImageFolderDataModule

    class Shifted(ImageFolderDataModule):
        """Image folder normalised with a mean of 0.9."""

        @property
        def mean(self) -> tuple[float, ...]:
            """Mean of each channel."""
            return (0.9, 0.9, 0.9)

    Shifted.__module__, Shifted.__qualname__ = __name__, "Shifted"
    globals()["Shifted"] = Shifted
    return Shifted


def test_predictions_of_files_and_of_a_split_name_the_files(images: Path, tmp_path: Path) -> None:
    run = shutil.copytree(images / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    test = images / "data" / "test"
    some = [str(test / "red" / "0.png"), str(test / "blue" / "1.png")]

    def files(*flags: str) -> list[str]:
        assert main(["predict", "--run", str(run), "--name", "it", *flags]) == 0
        with (run / "evaluations" / "it" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        shutil.rmtree(run / "evaluations")
        assert all(row["file"].startswith(row["class"]) for row in rows if "/" in row["file"])
        return [row["file"] for row in rows]

    assert files("--data.images", *some) == ["red/0.png", "blue/1.png"]
    assert files("--data.images", f"{test}/red/[01].png") == ["0.png", "1.png"]
    assert sorted(files()) == sorted(f"{name}/{i}.png" for name in ("blue", "green", "red") for i in range(4))


def test_a_setting_that_a_resume_changed_is_the_runs_own(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(
        images / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations", "test_metrics.json")
    )
    epochs = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_epochs"] + 1
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs", str(epochs), "--data.eval_share", "0.5"]) == 0
    assert "changed   data.eval_share: 0.875 -> 0.5" in capsys.readouterr().out
    assert main(["test", "--run", str(run)]) == 0  # the command that the resume prints
    capsys.readouterr()
    before = shutil.copy(images / "run" / "checkpoints" / "best.ckpt", run / "checkpoints" / "before.ckpt")
    assert main(["test", "--run", str(run), "--ckpt", str(before)]) == 0  # best.ckpt may be of the epoch that was added
    assert "eval_share is 0.5, as given; the checkpoint was trained with" in capsys.readouterr().out


def test_a_limited_test_says_so_and_counts_what_it_saw(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(images / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    flags = ["--trainer.limit_test_batches", "2", "--data.eval_batch_size", "5"]
    assert main(["test", "--run", str(run), *flags]) == 0
    assert "only 2 of 3 batches were evaluated (trainer.limit_test_batches)" in "".join(capsys.readouterr())
    assert metrics_of(run)["data"]["samples"] == 10
    assert main(["test", "--run", str(run)]) == 0
    assert "batches were evaluated" not in "".join(capsys.readouterr())
    assert metrics_of(run)["data"]["samples"] == 12
