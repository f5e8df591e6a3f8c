"""--tta: its default, the results with one view next to those with all, their own folder, refusals."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli import main
from cli.app import configure_logging
from cli.run_flags import UsageError, split_flags
from cli.test_time import evaluate, result_name, use_views


@pytest.mark.parametrize(
    ("words", "views"),
    [
        (["--tta"], "flip"),
        (["--tta", "--name", "a"], "flip"),
        (["--tta", "shifts"], "shifts"),
        (["--tta=flips"], "flips"),
    ],
)
def test_value_of_the_flag(words: list[str], views: str) -> None:
    assert split_flags(["test", "--run", "runs/a", *words]).values["tta"] == views


@pytest.mark.parametrize(
    ("words", "images", "name"),
    [
        (["--tta"], None, "tta"),
        (["--tta", "--runtime", "packed"], None, "tta_packed"),
        (["--tta"], "my photos (2)", "tta_my_photos_2_"),
        (["--tta", "--name", "mine"], "photos", "mine"),
    ],
)
def test_name_of_the_results(words: list[str], images: str | None, name: str) -> None:
    data = SimpleNamespace(images=None if images is None else SimpleNamespace(name=images))
    flags = SimpleNamespace(values=split_flags(["test", "--run", "runs/a", *words]).values)
    assert result_name(flags, data) == name  # type: ignore[arg-type]


def test_only_evaluations_have_views() -> None:
    with pytest.raises(UsageError, match=r"--tta: is a flag of test, predict, not of fit"):
        split_flags(["fit", "--tta"])


def test_cached_features_have_no_views() -> None:
    model = SimpleNamespace(takes_signals=False, takes_masks=False, views="none")
    data = SimpleNamespace(feature_width=8, images=None)
    with pytest.raises(UsageError, match="--tta: the data are cached features"):
        use_views(model, data, split_flags(["test", "--tta"]))
    data.images = SimpleNamespace(name="photos")
    flags = split_flags(["predict", "--tta", "shifts"])
    assert use_views(model, data, flags)
    assert model.views == "shifts"
    assert result_name(flags, data) == "tta_photos"


def test_no_line_is_printed_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    log, model = (
        logging.getLogger("lightning_modules.some"),
        SimpleNamespace(takes_masks=True, takes_signals=False, views="none"),
    )

    def run() -> str:
        log.info("masks: those of the data")
        log.info(f"views {model.views}")
        return str(model.views)

    data: Any = SimpleNamespace(feature_width=None, images=None)
    assert evaluate(run, model, data, split_flags(["test", "--tta", "flip"])) == ("flip", "none")
    run()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["masks: those of the data", "views none", "views flip", "masks: those of the data", "views flip"]


@pytest.mark.slow
def test_gain_of_a_run(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    before = (run / "test_metrics.json").read_bytes()
    assert main(["test", "--run", str(run), "--tta", "--trainer.accelerator", "cpu"]) == 0
    output = capsys.readouterr().out
    own, content = json.loads(before), json.loads((run / "evaluations" / "tta" / "test_metrics.json").read_text())
    assert (run / "test_metrics.json").read_bytes() == before
    assert content["one_view"] == own["metrics"]
    assert content["metrics"]["test/loss"] != own["metrics"]["test/loss"]
    assert content["overrides"] == {"tta": ["none", "flip"]}
    one, both = (part["test/loss"] for part in (content["one_view"], content["metrics"]))
    assert f"gain  test/loss  {one:.6g} -> {both:.6g}  ({both - one:+.4g})" in output
