"""The last lines of a fit name TensorBoard only if the run logs to it."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from callbacks import is_out_of_memory
from cli.evaluation import refuse_random_backbone
from cli.next_commands import next_commands
from cli.run_flags import UsageError, split_flags


def test_a_tested_run_needs_no_command_that_tests_it(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(loggers=[], callbacks=[], datamodule=None)
    for tested in (False, True):
        text = "\n".join(next_commands(trainer, tmp_path, tmp_path / "best.ckpt", None, tested))
        assert ("test it " in text, "use it " in text) == (not tested, True)


def lines(folder: Path, loggers: list[Any], **datamodule: Any) -> str:
    trainer: Any = SimpleNamespace(loggers=loggers, callbacks=[], datamodule=SimpleNamespace(**datamodule))
    return "\n".join(next_commands(trainer, folder, folder / "checkpoints" / "best.ckpt", None))


def test_tensorboard_is_named_if_it_has_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "plots").mkdir(parents=True)
    (run / "plots" / "curves.png").touch()
    assert f"view it      tensorboard --logdir {tmp_path}   or {run}/plots/curves.png" in lines(
        run, [TensorBoardLogger(run, name="", version="")]
    )
    for others in ([], [CSVLogger(tmp_path / "elsewhere")], [TensorBoardLogger(tmp_path / "elsewhere")]):
        text = lines(run, others)
        assert "--logdir" not in text
        assert f"{run}/plots/curves.png" in text
    assert f"test it      python main.py test --run {run}" in lines(run, [])


def test_a_test_of_an_earlier_best_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text('{"metric": "val/acc", "value": 0.9, "epoch": 4, "step": 32}')
    of_test = tmp_path / "test_metrics.json"
    for step, said in ((16, True), (32, False)):
        of_test.write_text(f'{{"checkpoint": "best.ckpt", "epoch": 2, "step": {step}, "metrics": {{}}}}')
        there = "(test_metrics.json is of an earlier best.ckpt (epoch 2, now 4))" in lines(tmp_path, [])
        assert there is said


def test_predictions_and_exports_of_an_earlier_best_checkpoint_are_said(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "best.json").write_text('{"metric": "val/acc", "value": 0.9, "epoch": 4, "step": 32}')
    (checkpoints / "best.ckpt").touch()
    written = (checkpoints / "best.ckpt").stat().st_mtime
    for step, there in ((16, True), (32, False)):
        record = {"source": "test split", "checkpoint": "best.ckpt", "epoch": 2, "step": step}
        (tmp_path / "predictions.json").write_text(json.dumps(record))
        text = lines(tmp_path, [])
        assert ("(predictions.csv is of an earlier best.ckpt (epoch 2, now 4))" in text) is there
        assert "export again" not in text
    for name, seconds in (("model.onnx", -60), ("packed_trits.lvr", -1), ("new.onnx", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (written + seconds, written + seconds))
    again = [line for line in lines(tmp_path, []).splitlines() if line.startswith("export again ")]
    assert again == ["export again model.onnx, packed_trits.lvr: older than best.ckpt"]


def test_data_without_a_test_split_is_tested_by_no_command(tmp_path: Path) -> None:
    assert "test it " in lines(tmp_path, [], labelled_splits=("train", "val", "test"))
    text = lines(tmp_path, [], labelled_splits=("train", "val"))
    assert "test it " not in text
    use = (
        f"use it       python main.py predict --run {tmp_path} --data.images FOLDER   (there is no test split; more in"
    )
    assert use in text


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["a.png"], "a.png"),
        (["a.png", "b c.png"], '["a.png", "b c.png"]'),
        (["photos/*.jpg"], "photos/*.jpg"),
    ],
)
def test_files_of_a_shell_pattern_are_one_value(words: list[str], images: str) -> None:
    flags = split_flags(["predict", "--run", "x", "--data.images", *words, "--data.batch_size", "3"])
    assert flags.rest == ["--data.images", images, "--data.batch_size", "3"]


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for a convolution forward propagation primitive", True),
        ("std::bad_alloc", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_errors_of_onednn_that_mean_out_of_memory(text: str, memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is memory


@pytest.mark.parametrize(
    ("place", "words", "refused"),
    [
        (None, [], True),
        (None, ["--model.pretrained=false"], False),
        (None, ["--model.pretrained", "false"], False),
        ({"file": "a.pt"}, [], False),
        ({"pretrained": "resnet50"}, [], False),
    ],
)
def test_features_of_a_random_backbone_must_be_asked_for(place: Any, words: list[str], refused: bool) -> None:
    flags = split_flags(["predict", "--config", "configs/cascade_extract.yaml", *words])
    model = SimpleNamespace(weights_from=place)
    with (
        pytest.raises(UsageError, match=r"give --model.weights FILE or --model.pretrained true")
        if refused
        else nullcontext()
    ):
        refuse_random_backbone(model, flags)
