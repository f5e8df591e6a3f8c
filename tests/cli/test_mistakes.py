"""Usage errors: exit code 2, an error of at most five lines that names the setting and a correct value, no files written."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import main
from foundation.project import find_config
from tests.datamodules.pictures import write_classes

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = str(ROOT / "tests" / "conf" / "digits_ternary_tiny.yaml")


@pytest.fixture(autouse=True)
def _run_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must be rejected and return its error message; the working directory must be unchanged."""
    before = {str(path) for path in Path().rglob("*")}
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) <= 5, message
    assert {str(path) for path in Path().rglob("*")} == before
    return message


FLAGS = [
    (["--model.lrr", "0.1"], "model.lrr: no such setting, did you mean 'lr'?"),
    (["--data.batchsize", "8"], "data.batchsize: no such setting, did you mean 'batch_size'?"),
    (["--trainer.max_epochss", "3"], "--trainer.max_epochss: no such flag, did you mean 'trainer.max_epochs'?"),
    (["--resum", "x"], "--resum: no such flag, did you mean 'resume'?"),
    (["--model", "TernaryClasifier"], "model: no class 'TernaryClasifier', did you mean 'TernaryClassifier'?"),
    (["--data", "CIFAR10DataModul"], "data: no class 'CIFAR10DataModul', did you mean 'CIFAR10DataModule'?"),
    (["--model.lr", "abc"], "model.lr: a number is needed, got 'abc'"),
    (["--data.batch_size", "many"], "data.batch_size: a whole number is needed, got 'many'"),
    (
        ["--model.quantizer", "twm"],
        "model.quantizer: got 'twm', did you mean 'twn'?; one of twn, ttq, absmean, learned_",
    ),
    (["--checkpoint.mode", "up"], "checkpoint.mode: got 'up'; one of auto, min, max"),
    (
        ["--checkpoint.monitor", "val/loss", "--checkpoint.mode", "max"],
        "checkpoint.mode: lower values of val/loss are better",
    ),
    (["--trainer.precision", "bf16-mixd"], "trainer.precision: got 'bf16-mixd', did you mean 'bf16-mixed'?"),
    (["--model.lr", "-1"], "lr: a learning rate over 0, got -1.0"),
    (["--model.num_classes", "7"], "model.num_classes: 7 is given, but the data has 10"),
    (["--model.full_precision", "[stm]"], "did you mean"),
    (["--data.batch_size", "100000"], "--data.batch_size 100000 is larger than the training set of 129 samples"),
    (
        ["--data.batch_size", "64", "--data.drop_last", "false"],
        "--data.batch_size 64: the last batch of an epoch has one of the 129 training samples, and batch norm cannot",
    ),
    (["--checkpoint.monitor", "val/ac"], "checkpoint.monitor: no metric 'val/ac', did you mean 'val/acc'?"),
    (["--checkpoint.every_n_epochs", "-1"], "every_n_epochs: 0 or more, got -1"),
    (["--data", "CIFAR10DataModule", "--data.root", "nowhere"], "nowhere"),
    (["--config", "configs/nothing.yaml"], "--config configs/nothing.yaml: no such file"),
    (["--trainer.max_epochs", "-1"], "needs the length of the run"),
    (["--run_dir"], "--run_dir: needs a value"),
    (
        ["--model.schedule", "plateau", "--model.plateau_monitor", "val/los"],
        "plateau_monitor: no metric 'val/los', did",
    ),
    (
        ["--model.schedule", "plateau", "--model.plateau_monitor", "val/acc", "--model.plateau_mode", "min"],
        "plateau_mode: higher values of val/acc are better, got min; leave it out, or give max",
    ),
    (["--modl.lr", "0.1"], "--modl.lr: no such setting as 'modl', did you mean 'model.lr'?"),
    (["--trainer.max_epochs", "abc"], "trainer.max_epochs"),
    (["--checkpoint.monitor", "val_raw/acc"], "checkpoint.monitor: no metric 'val_raw/acc'"),
    (["--trainer.limit_val_batches", "0"], "EarlyStopping: monitors a validation metric, but there is no validation"),
    (
        ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"],
        "StochasticWeightAveraging replaces the schedule, and no checkpoint gets its average; take EMA",
    ),
    (
        ["--trainer.callbacks+=EMAWeightAveraging"],
        "trainer.callbacks: EMA and Lightning's WeightAveraging average the same weights; take one of them",
    ),
    (
        ["--trainer.precision", "bf16-true"],
        "EMA: trainer.precision bf16-true keeps the weights in half precision",
    ),
    (["--run", "x"], "--run: is a flag of validate, test, predict, not of fit"),
    (["--trainer.devices", "0"], "devices"),
    (["--trainer.accelerator", "gpux"], "accelerator"),
    (["--model.optimizer", "null"], "model.optimizer: null is no value of it; its default is sgd"),
    (["--model.lr", "null"], "model.lr: null is no value of it; its default is 0.1"),
    (["--model.schedule", "null"], "model.schedule: null is no value of it; its default is cosine"),
    (["--data.batch_size", "null"], "data.batch_size: null is no value of it; its default is 128"),
    (["--model.momentum", "nan"], "model.momentum: a number is needed, got 'nan'"),
    (["--model.momentum", "[1]"], "model.momentum: a number is needed, got '[1]'"),
    (["--data.eval_batch_size", "x"], "data.eval_batch_size: a whole number is needed, got 'x'"),
    (["--config", "configs/digits_ternary"], "no such file, did you mean 'configs/digits_ternary.yaml'?"),
]


@pytest.mark.every(7)
@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[" ".join(flags) for flags, _ in FLAGS])
def test_wrong_flag(flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in refuse(["fit", "--config", TINY, *flags], capsys)


CALLBACK = "trainer:\n  callbacks{plus}:\n    - class_path: {name}\n"
WITH = CALLBACK + "      init_args:\n        {setting}\n"
OVERLAYS = [
    (
        "model:\n  init_args:\n    label_smoothin: 0.1\n",
        "label_smoothin: no such setting, did you mean 'label_smoothing'?",
        3,
    ),
    ("modell:\n  init_args:\n    lr: 0.1\n", "modell: no such setting, did you mean 'model'?", 1),
    ("trainer:\n  max_epochs: [1,\n", "is no valid YAML", 3),
    (CALLBACK.format(plus="+", name="EarlyStoping"), "no class 'EarlyStoping', did you mean 'EarlyStopping'?", 3),
    (CALLBACK.format(plus="+", name="EarlyStopping"), "EarlyStopping: needs monitor", 3),
    (CALLBACK.format(plus="+", name="EMA"), "trainer.callbacks: EMA is given twice: ", None),
    (WITH.format(plus="", name="EMA", setting="decai: 0.9"), "decai: no such setting, did you mean 'decay'?", 5),
    (
        WITH.format(plus="", name="EMA", setting="decay: null"),
        "trainer.callbacks.EMA.decay: null is no value of it",
        None,
    ),
    (WITH.format(plus="", name="EMA", setting="decay: big"), "decay: a number is needed, got 'big'", 5),
    (WITH.format(plus="", name="EMA", setting="decay: 2"), "decay: at least 0 and under 1, got 2.0", None),
    (
        WITH.format(plus="+", name="EarlyStopping", setting="monitor: val/accuracy"),
        "EarlyStopping.monitor: no metric 'val/accuracy', did you mean 'val/acc'?",
        None,
    ),
    (
        WITH.format(plus="", name="lightning.pytorch.callbacks.EarlyStopping", setting="monitor: val/acc"),
        "EarlyStopping.mode: higher values of val/acc are better, got min; leave it out, or give max",
        None,
    ),
]


@pytest.mark.every(4)
@pytest.mark.parametrize(("text", "expected", "line"), OVERLAYS, ids=[expected[:40] for _, expected, _ in OVERLAYS])
def test_wrong_overlay(text: str, expected: str, line: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    Path("overlay.yaml").write_text(text)
    message = refuse(["fit", "--config", TINY, "--config", "overlay.yaml"], capsys)
    assert expected in message
    if line is not None:
        assert f"overlay.yaml:{line}" in message


@pytest.mark.slow
def test_an_overlay_that_the_experiment_contains_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for experiment, overlay, base in (
        ("cascade_cached", "calibration", ""),
        ("cascade_train", "calibration", ""),
        ("image_progressive", "flowers_cpu_progressive", ", or give it on configs/image_standard.yaml"),
    ):
        given = f"configs/{experiment}.yaml", f"configs/with/{overlay}.yaml"
        message = refuse(["fit", *(word for path in given for word in ("--config", path))], capsys)
        there = [find_config(path) for path in given]
        assert f"{there[0]} has it already, and {there[1]} adds it; leave out --config {there[1]}{base}; " in message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_data_made_by_a_refused_command_is_removed(capsys: pytest.CaptureFixture[str]) -> None:
    conf = Path(TINY).parent
    made = ["--data.root", "new/deeper", "--model.width", "3"]
    refuse(["fit", "--config", str(conf / "segmentation_tiny.yaml"), *made], capsys)
    Path("mine/har_generated/UCI HAR Dataset").mkdir(parents=True)
    flags = ["--data.root", "mine", "--data.generate", "true"]
    message = refuse(["fit", "--config", str(conf / "har_tiny.yaml"), *flags], capsys)
    assert "--data.generate: " in message
    assert "holds data that was not generated; it is not overwritten; give another --data.root" in message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_recordings_made_by_a_refused_command_are_removed(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(Path(TINY).parent / "har_tiny.yaml")
    made = ["--data.root", "new", "--data.generate", "true", "--data.batch_size", "90000"]
    assert "batch_size 90000 is larger" in refuse(["fit", "--config", config, *made], capsys)


def test_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give --config FILE (there: configs/cascade_cached.yaml, " in refuse(
        ["fit"], capsys
    )  # no folder configs here
    assert "no such command, did you mean 'fit'?" in refuse(["fitt"], capsys)
    assert "which run? give --run RUN_DIR" in refuse(["test"], capsys)


def test_images_in_one_folder_are_one_class(capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(Path("photos"), {"all of them": 3})
    message = refuse(["fit", "--config", "configs/image_standard.yaml", "--data.root", "photos"], capsys)
    assert (
        "photos: holds one class only, 'all of them', and a classifier needs two or more; give a folder for each"
        in message
    )


def test_run_folder_not_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("mine")
    message = refuse(["fit", "--config", TINY, "--run_dir", "full"], capsys)
    assert "run folder full is not empty: give another --run_dir, or continue its run with --resume full" in message
    assert Path("full/thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_empty_run_folder_made_by_the_user_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    refuse(["fit", "--config", TINY, "--run_dir", "mine", "--checkpoint.monitor", "nothing"], capsys)
    assert Path("mine").is_dir()


def cifar(folder: Path, label: int) -> None:
    """Write CIFAR-10's official file layout: 8 random images per file with labels 0 and 1, the last one with ``label``."""
    folder.mkdir()
    rows = np.random.default_rng(0).integers(0, 256, (8, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        with (folder / name).open("wb") as file:
            pickle.dump({b"data": rows, b"labels": [0, 1, 0, 1, 0, 1, 0, label]}, file)
    with (folder / "batches.meta").open("wb") as file:
        pickle.dump({b"label_names": [b"cat", b"dog"]}, file)


def test_label_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    cifar(Path("cifar-10-batches-py"), label=7)
    message = refuse(["fit", "--config", TINY, "--data", "CIFAR10DataModule", "--data.root", "."], capsys)
    assert "7" in message
    assert "label" in message


@pytest.mark.every(3)
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_broken_checkpoint(content: bytes | None, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("run")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text((finished / "config.yaml").read_text())
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    for name in ("last.ckpt", "best.ckpt"):
        (folder / "checkpoints" / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    message = refuse(["fit", "--resume", "run"], capsys)
    assert "last.ckpt: cannot be read, it is cut short or no checkpoint" in message


def test_file_is_not_a_training_checkpoint(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(1)}, "weights.ckpt")
    message = refuse(["test", "--run", str(finished), "--ckpt", "weights.ckpt"], capsys)
    assert "is no checkpoint of a training run" in message


def test_resume_target_does_not_exist(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder or checkpoint" in refuse(["fit", "--resume", "runs/none"], capsys)
    Path("empty").mkdir()
    assert "has no checkpoint last.ckpt (there: none)" in refuse(["fit", "--resume", "empty"], capsys)
    assert "a resumed run continues in its own folder" in refuse(
        ["fit", "--resume", str(finished), "--run_dir", "x"], capsys
    )
    assert "neither best, nor last, nor an existing file" in refuse(
        ["test", "--run", str(finished), "--ckpt", "first"], capsys
    )
    assert "did you mean 'best'?" in refuse(["test", "--run", str(finished), "--ckpt", "bets"], capsys)


FIXED = [
    ("--model.architecture", "resnet32"),
    ("--model.quantizer", "none"),
    ("--data.batch_size", "8"),
    ("--data.split_seed", "1"),
    ("--seed_everything", "9"),
    ("--trainer.accumulate_grad_batches", "1"),
    ("--model.optimizer", "adamw"),
]


@pytest.mark.slow
def test_checkpoint_of_another_network(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model.architecture", "resnet32", "--ckpt", str(finished / "checkpoints" / "best.ckpt")]
    assert "the checkpoint is of another network" in refuse(["test", "--config", TINY, *flags], capsys)


@pytest.mark.every(7)
@pytest.mark.parametrize(("flag", "value"), FIXED)
def test_fixed_setting_on_resume(flag: str, value: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(["fit", "--resume", str(finished), flag, value], capsys)
    assert f"{flag}: cannot change in a resumed run" in message
