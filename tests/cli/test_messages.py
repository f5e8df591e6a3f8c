"""Messages of wrong settings in all systems: the hint is right for the chosen classes, and nothing is cut off."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cli import main
from cli.app import _outcome
from cli.run_flags import UsageError, split_flags
from cli.trainer.checks import trainer_error
from tests.cli.test_lists import STAGES, parsed
from tests.cli.test_mistakes import TINY, refuse

DIGITS, IMAGES, HAR, SEGMENTS, CACHED = "digits_ternary", "image_folder", "har", "segmentation", "cascade_cached"
NO_DATA = "DigitsDataModule has no such setting; CIFAR10DataModule, ImageFolderDataModule"


@pytest.fixture(autouse=True)
def _run_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


WRONG = [
    # settings of another class, another section, or of the data itself
    (DIGITS, "--data.mean 0.5", "data.mean: no such setting of DigitsDataModule; it is computed from the data"),
    (DIGITS, "--data.root x", f"data.root: {NO_DATA}"),
    (DIGITS, "--data.images x", "data.images: is a setting of predict, fit does not read it; leave it out"),
    (
        HAR,
        "--data.images x",
        "data.images: HARDataModule has no such setting; signals have no pictures; python -m tools.cut_windows cuts new",
    ),
    (
        DIGITS,
        "--model.weights x",
        "model.weights: TernaryClassifier has no such setting; --model.init_from RUN_DIR starts from",
    ),
    (HAR, "--data.file x", "data.file: HARDataModule has no such setting; SignalFileDataModule has it (--data CLASS)"),
    (
        IMAGES,
        "--data.test_file x",
        "data.test_file: ImageFolderDataModule has no such setting; --data.root FOLDER gives",
    ),
    (
        IMAGES,
        "--data.mode signals",
        "data.mode: ImageFolderDataModule has no such setting; SignalFileDataModule, HARDataModule",
    ),
    (DIGITS, "--data.lr 1", "data.lr: no such setting, did you mean 'model.lr'?"),
    (DIGITS, "--trainer.lr 1", "--trainer.lr: no such flag, did you mean 'model.lr'?"),
    (DIGITS, "--lr 0.01", "--lr: no such flag, did you mean 'model.lr'?"),
    (DIGITS, "--epochs 3", "--epochs: no such flag, did you mean 'trainer.max_epochs'?"),
    (
        DIGITS,
        "--decay 0.9",
        "--decay: no such flag; the callback EMA in trainer.callbacks has it: --trainer.callbacks.EMA.decay",
    ),
    (DIGITS, "--model.unfreeze_epoch 1", "TernaryClassifier has no such setting; HARClassifier has it (--model CLASS)"),
    (DIGITS, "--model.optimizer.x 3", "model.optimizer.x: no such setting, model.optimizer is one value"),
    (
        SEGMENTS,
        "--data.sets [{folder:\u00a0a,promts:\u00a0[x]}]",
        "data.sets.promts: no such setting, did you mean 'prompts'?",
    ),
    (
        DIGITS,
        "--trainer.callbacks.decay 0.5",
        "is a setting of EMA, not of the last callback; give --trainer.callbacks.EMA.decay",
    ),
    (DIGITS, "--trainer.callbacks.ema.decay 0.5", "--trainer.callbacks.EMA.decay"),
    (DIGITS, "--trainer.callbacks.EMA.decya 0.5", "EMA.decya: no such setting of EMA, did you mean 'decay'?"),
    (DIGITS, "--trainer.callbacks.EMA.decay", "--trainer.callbacks.EMA.decay: needs a value"),
    (DIGITS, "--trainer.callbacks.EMA.decay abc", "decay: a number is needed, got 'abc'"),
    (DIGITS, "--trainer.callbacks.EMA.decay 2", "error: trainer.callbacks.EMA.decay: at least 0 and under 1, got 2.0"),
    (
        IMAGES,
        "--trainer.callbacks.WorstMistakes.count 0",
        "error: trainer.callbacks.WorstMistakes.count",
    ),
    (HAR, "--progress.every_s 0", "error: progress.every_s: more than 0 seconds"),
    (SEGMENTS, "--checkpoint.every_n_epochs -1", "error: checkpoint.every_n_epochs: 0 or more"),
    (CACHED, "--model.hidden wide", "model.hidden: a list of whole numbers, such as [256,128], is needed, got 'wide'"),
    (
        SEGMENTS,
        "--data.sets [{folder:a,prompts:[b}]",
        "error: data.sets: ']' is missing before '}' at character 22: '[' at",
    ),
    (
        SEGMENTS,
        "--data.sets {a:{b:c}",
        "error: data.sets: '}' is missing: '{' at character 1 is not closed, in '{a:{b:c}'",
    ),
    (CACHED, "--cache x", "--cache: is a flag of predict, not of fit; --data.cache CACHE reads a feature cache"),
    (DIGITS, "--trainer.accelerator tpu", "trainer.accelerator: this machine has no tpu; give auto or "),
    (IMAGES, "--model.weights no.safetensors", "error: model.weights: no.safetensors: no such file of weights"),
    (CACHED, ".", "error: .: belongs to no flag; is --data.cache . meant?"),
    (SEGMENTS, ".", "error: .: belongs to no flag; is --data.root . meant?"),
    (
        DIGITS,
        "--trainer.callbacks.Calibration.bins 5",
        "no Calibration in trainer.callbacks; there are EMA",
    ),
    (
        IMAGES,
        "--data DataModule",
        "data: DataModule is only the base of other classes; take one of CIFAR10DataModule, C",
    ),
    (
        IMAGES,
        "--model.class_weights blanced",
        "model.class_weights: got 'blanced', did you mean 'balanced'?; one of none, balanced, or '{NAME: NUMBER, ..}' in quotes",
    ),
    (IMAGES, "--model BaseModule", "model: BaseModule is only the base of other classes; take one of CascadeHead"),
    # misspelt, or called as other programs call it: only settings that the chosen class has
    (
        DIGITS,
        "--data.chache x",
        "data.chache: DigitsDataModule has no such setting; is 'cache' meant? CachedFeaturesDataM",
    ),
    (CACHED, "--data.chache x", "data.chache: no such setting, did you mean 'cache'?"),
    (HAR, "--model.drop 0.1", "model.drop: HARClassifier has no such setting, did you mean 'model.dropout'?"),
    (SEGMENTS, "--model.drop 0.1", "model.drop: no such setting of PromptedSegmenter; for all settings: "),
    (SEGMENTS, "--model.backbone x", "PromptedSegmenter has no such setting, did you mean 'model.encoder'?"),
    (
        SEGMENTS,
        "--data.encoder line_plot",
        "data.encoder: no such setting of PromptedSegmentationDataModule; SignalFileDataModule, HARDataModule have it "
        "(--data CLASS), did you mean 'model.encoder'?",
    ),
    (IMAGES, "--model.backbone x", "ImageClassifier has no such setting, did you mean 'model.architecture'?"),
    (IMAGES, "--model.model x", "model.model: ImageClassifier has no such setting, did you mean 'model.architecture'?"),
    (IMAGES, "--data.num_workers 1", "ImageFolderDataModule has no such setting, did you mean 'data.workers'?"),
    (
        DIGITS,
        "--data.num_workers 1",
        "DigitsDataModule has no such setting; its data is in memory and needs no workers",
    ),
    (CACHED, "--data.path x", "CachedFeaturesDataModule has no such setting, did you mean 'data.cache'?"),
    (SEGMENTS, "--data.folder x", "PromptedSegmentationDataModule has no such setting, did you mean 'data.root'?"),
    (DIGITS, "--data.path x", "data.path: no such setting of DigitsDataModule; for all settings: python main.py fit"),
    (DIGITS, "--model.epochs 3", "TernaryClassifier has no such setting, did you mean 'trainer.max_epochs'?"),
    (DIGITS, "--trainer.epochs 3", "--trainer.epochs: no such flag, did you mean 'trainer.max_epochs'?"),
    (DIGITS, "--trainer.gpus 1", "--trainer.gpus: no such flag, did you mean 'trainer.devices'?"),
    (DIGITS, "--device cpu", "--device: no such flag, did you mean 'trainer.accelerator'?"),
    (
        DIGITS,
        "--trainer.patience 1",
        "--trainer.patience: no such flag; --config configs/with/early_stopping.yaml stops",
    ),
    (
        DIGITS,
        "--checkpoint.save_top_k 1",
        "--checkpoint.save_top_k: no such flag; the best and the last checkpoint are",
    ),
    (DIGITS, "--model.ema 0.9", "TernaryClassifier has no such setting; the callback EMA in trainer.callbacks does it"),
    (IMAGES, "--model.ema 0.9", "ImageClassifier has no such setting; the callback EMA"),
    (DIGITS, "--model.optimizer.lr 1", "model.optimizer.lr: no such setting, model.optimizer is one value"),
    # abbreviations
    (DIGITS, "--trainer.max_epoc 3", "--trainer.max_epoc: no such flag, did you mean 'trainer.max_epochs'?"),
    (DIGITS, "--seed_every 3", "--seed_every: no such flag, did you mean 'seed_everything'?"),
    (DIGITS, "--checkpoint.moni x", "--checkpoint.moni: no such flag, did you mean 'checkpoint.monitor'?"),
    (DIGITS, "--model.lab 0.1", "model.lab: no such setting, did you mean 'label_smoothing'?"),
    # lists and dictionaries
    (DIGITS, "--model.full_precision stem", "model.full_precision: a list, written [stem], is needed, got 'stem'"),
    (DIGITS, "--model.step_milestones 100,150", "a list of numbers, written [100,150], is needed, got '100,150'"),
    (
        SEGMENTS,
        "--data.prompts segment\u00a0crack",
        "data.prompts: a list, written [segment crack], is needed, got",
    ),
    (
        SEGMENTS,
        "--data.sets abc",
        "data.sets: a list, written [{folder: ..., prompts: ...}, ...], is needed, got 'abc'",
    ),
    (CACHED, "--model.hidden 256-128", "model.hidden: a list of whole numbers, written [256,128], is needed"),
    (CACHED, "--model.hidden 3", "model.hidden: a list of whole numbers, written [3], is needed, got '3'"),
    (IMAGES, "--model.network_args 3", "model.network_args: a dictionary, written {NAME: VALUE}, is needed, got '3'"),
    (DIGITS, "--progress []", "progress: settings are needed, as in --progress.SETTING VALUE, got '[]'"),
    # values without their setting, and settings without a value
    (DIGITS, "--model.lr", "--model.lr: needs a value"),
    (DIGITS, "--data.batch_size --model.lr 1", "--data.batch_size: needs a value"),
    (DIGITS, "--config", "--config: needs a file"),
    (DIGITS, "--model.lr 0.1 0.2", "0.2: belongs to no flag, each takes one value; a list is written [A, B]"),
    (DIGITS, "configs/with/quick.yaml", "a configuration is given with its flag, --config configs/with/quick.yaml"),
    (HAR, "--data.rotation yes", "data.rotation: a number is needed, got 'yes'"),
    # ranges, with the section in front
    (DIGITS, "--model.momentum 2", "error: model.momentum: a value of at least 0 and under 1, got 2.0"),
    (IMAGES, "--data.image_size 0", "error: data.image_size is 0 but must be 1 pixel or more"),
    (SEGMENTS, "--model.width 0", "error: model.width: an even number of channels is needed, got 0"),
    (IMAGES, "--model.weights nowhere", "error: model.weights: nowhere: no such run folder, checkpoint or file"),
    (DIGITS, "--seed_everything -3", "seed_everything: 0 to 4294967295 is needed, got -3"),
    (DIGITS, "--trainer.accumulate_grad_batches 0", "trainer.accumulate_grad_batches: 1 or more is needed, got 0"),
    (DIGITS, "--trainer.gradient_clip_val -1", "trainer.gradient_clip_val: 0 or more is needed, got -1"),
    (DIGITS, "--trainer.val_check_interval 100", "trainer: `val_check_interval` (100) must be less than or equal to"),
    (DIGITS, "--trainer.max_time x", "trainer.max_time: `Timer(duration='x')` is not a valid duration"),
    (DIGITS, "--trainer.strategy dpp", "trainer.strategy: You selected an invalid strategy name"),
    (
        DIGITS,
        "--model torch.nn.Linear",
        "model: torch.nn.Linear is of another kind, a subclass of BaseModule is needed",
    ),
    (IMAGES, "--data.test_fraction 0 --test_after_fit", "the test split has no sample; is --data.test_fraction 0?"),
    (HAR, "--data.mode signals", "architecture: test_resnet, but the data serves no images; take --data.mode channels"),
    (
        HAR,
        "--model.fusion features --data.mode channels",
        "fusion: features joins the images of a window; take --data.mode",
    ),
]


@pytest.mark.every(7)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("system", "flags", "expected"), WRONG, ids=[f"{system} {flags}" for system, flags, _ in WRONG]
)
def test_message(
    system: str, flags: str, expected: str, of_system: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("\u00a0", " ") for word in flags.split(" ")]
    assert expected in refuse(["fit", *of_system[system], *words], capsys)


FILES = [
    ("trainer: [1, 2]\n", "trainer: settings are needed, written NAME: VALUE, got [1, 2] (own.yaml:1)"),
    ("model:\n  init_args: [1]\n", "model.init_args: settings are needed, written NAME: VALUE, got [1] (own.yaml:2)"),
    (
        "data:\n  lr: 1\n  init_args: {}\n",
        "data.lr: no such setting; settings of the class are written below data.init_args (own",
    ),
    (
        "model:\n  init_arg: {}\n  class_path: X\n",
        "model.init_arg: no such setting, did you mean 'init_args'? (own.yaml:2)",
    ),
    (
        "trainer: {callbacks: {a: 1}}\n",
        "trainer.callbacks: a list of callbacks is needed, each a NAME or {class_path: NAME,",
    ),
    ("1: 2\n", "own.yaml: 1: no such setting, the name of a section is needed"),
    ("a: \x00\n", "own.yaml: is no valid YAML: it has characters that are no text"),
]


@pytest.mark.parametrize(("text", "expected"), FILES, ids=[text[:20] for text, _ in FILES])
def test_message_of_a_file(text: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(text)
    assert expected in refuse(["fit", "--config", TINY, "--config", "own.yaml"], capsys)


def test_an_overlay_alone_names_its_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    for overlay, experiment in (
        ("configs/with/twin.yaml", "configs/digits_ternary.yaml or configs/cifar_ternary.yaml"),
        ("configs/with/har_best.yaml", "configs/har_vit.yaml"),
        ("configs/experiments/light_size_192.yaml", "configs/prompt_segmentation_light.yaml"),
    ):
        message = refuse(["fit", "--config", overlay], capsys)
        assert (
            f"{overlay} is an overlay on {experiment}; give both: --config {experiment.split()[0]} --config" in message
        )
    message = refuse(["fit", "--config", "configs/with/early_stopping.yaml"], capsys)
    assert "names none; give the experiment first, as in --config configs/digits_ternary.yaml --config" in message


def test_an_overlay_before_its_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("model: {init_args: {lr: 0.1}}\n")
    for overlay in ("configs/with/twin.yaml", "configs/with/early_stopping.yaml", "own.yaml"):
        message = refuse(["fit", "--config", overlay, "--config", TINY], capsys)
        assert "an overlay changes the experiment before it; give it later: --config " in message
        assert f"--config {TINY} --config " in message
    Path("trainer.yaml").write_text("trainer: {max_epochs: 1}\n")  # settings that no class needs may come first
    assert "model.lr" in refuse(["fit", "--config", "trainer.yaml", "--config", TINY, "--model.lr", "-1"], capsys)


def test_a_missing_class_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(["fit", "--model", "ImageClassifier", "--data.root", "x"], capsys)
    assert message.startswith("error: no data: give --config FILE (there: ")
    assert message.endswith("; name its class with --data CLASS\n")
    Path("own.yaml").write_text("data: {init_args: {root: x}}\n")
    message = refuse(["fit", "--model", "ImageClassifier", "--config", "own.yaml"], capsys)
    assert (
        "no data: own.yaml names none; name its class with --data CLASS, or give an experiment first, as in" in message
    )


def test_the_class_may_come_after_its_settings() -> None:
    flags = split_flags(["fit", "--data.root", "x", "--data", "ImageFolderDataModule", "--model=ImageClassifier"])
    assert flags.rest == ["--data", "ImageFolderDataModule", "--model=ImageClassifier", "--data.root", "x"]


@pytest.mark.slow
def test_entries_of_a_dictionary_that_a_file_drops_are_said(
    of_system: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, args in (("a", {"pad_type": "same", "drop_rate": 0.2}), ("b", {"drop_rate": 0.1})):
        Path(f"{name}.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"network_args": args}}}))
    both = ["--config", "a.yaml", "--config", "b.yaml"]
    model = parsed(*of_system[IMAGES], *both)["model"]["init_args"]
    assert model["network_args"] == {"drop_rate": 0.1}
    one_more = parsed(*of_system[IMAGES], *both, "--model.network_args.pad_type", "same")["model"]["init_args"]
    assert one_more["network_args"] == {"drop_rate": 0.1, "pad_type": "same"}
    assert main(["fit", *of_system[IMAGES], *both, "--model.lr", "-1"]) == 2
    assert (
        "warning: model.network_args: b.yaml replaces the entries of a.yaml, so pad_type: same is no longer there; repeat what is"
        in capsys.readouterr().out
    )


def test_run_that_is_none(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("runs/har/first", "runs/har/second", "runs/digits/third"):
        Path(run, "checkpoints").mkdir(parents=True)
        shutil.copy(finished / "config.yaml", Path(run, "config.yaml"))
    assert "runs/har/secnd: no such run folder or checkpoint; did you mean runs/har/second?" in refuse(
        ["test", "--run", "runs/har/secnd"], capsys
    )
    message = refuse(["test", "--run", "runs/harr/second"], capsys)
    assert "; the newest run in runs/har is runs/har/" in message
    message = refuse(["test", "--run", "runs"], capsys)
    assert "runs: is a folder of runs, not a run; in it are runs/" in message
    assert all(run in message for run in ("runs/har/first", "runs/har/second", "runs/digits/third"))
    message = refuse(["test", "--run", "runs/har/ninth"], capsys)
    assert "; in runs/har are runs/har/" in message
    assert "give its run, runs/har/first" in refuse(["test", "--run", "runs/har/first/checkpoints"], capsys)
    assert "is no checkpoint; give its run, runs/har/first" in refuse(
        ["test", "--run", "runs/har/first/config.yaml"], capsys
    )


@pytest.mark.slow
def test_an_evaluation_asks_for_its_weights_before_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("test", "validate", "predict"):
        assert f"error: {command}: which weights? give --run RUN_DIR" in refuse([command, "--config", TINY], capsys)
    assert "--ckpt no.ckpt: no such checkpoint" in refuse(["test", "--config", TINY, "--ckpt", "no.ckpt"], capsys)


def test_weights_of_another_kind_are_refused_before_the_data(
    of_system: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels.csv").write_text("file,label\n")
    line = refuse(["fit", *of_system[IMAGES], "--model.weights", "labels.csv"], capsys)
    assert line.startswith(
        "error: model.weights: labels.csv: is a table, not weights; give a run folder, a checkpoint (.ckpt)"
    )


def test_an_accelerator_that_the_machine_lacks() -> None:
    for text in ("No supported gpu backend found!", "`MPSAccelerator` can not run on your system since"):
        found = str(trainer_error(ValueError(text), {"accelerator": "gpu", "devices": "auto"}))
        assert found.startswith("trainer.accelerator: this machine has no gpu; give auto or cpu")


@pytest.mark.slow
def test_a_list_of_a_callback_that_is_none() -> None:
    for wrong in ("64", "[64]"):
        with pytest.raises(
            UsageError, match=r"callbacks.ProgressiveResizing.stages: a list, such as '\[{size: 128, epochs: 12}"
        ):
            parsed(*STAGES, "--trainer.callbacks.ProgressiveResizing.stages", wrong)


def test_a_command_to_type_has_the_run_that_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    """Data do not know the run: in their messages it is RUN_DIR."""
    error = MisconfigurationException("no labels; predict it: main.py predict --run RUN_DIR --data.test_file a.npz")

    def fail() -> None:
        raise error

    for values, run in (({"run": "my runs/har"}, "'my runs/har'"), ({}, "RUN_DIR")):
        flags = SimpleNamespace(values=values)
        cli: Any = SimpleNamespace(flags=flags, run=fail, has_begun=False, discard=lambda: None, classes={})
        assert _outcome(cli) == 2
        assert f"predict --run {run} --data.test_file a.npz" in capsys.readouterr().err
