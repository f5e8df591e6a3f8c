"""`check_changes`: which settings a resumed run may change, also those of items in a list that an older version wrote."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from cli.config_files import weights_win
from cli.resume import RunCheckpoint, check_changes
from cli.run_flags import RunFlags, UsageError

OLD = {"folder": "walls", "prompts": ["crack"], "groups": None}


def config(*sets: dict[str, Any]) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {"accumulate_grad_batches": 1, "callbacks": None},
        "model": {"class_path": "lightning_modules.PromptedSegmenter", "init_args": {}},
        "data": {
            "class_path": "datamodules.PromptedSegmentationDataModule",
            "init_args": {"batch_size": 4, "sets": list(sets)},
        },
    }


def changes(folder: Path, new: dict[str, Any]) -> None:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config(OLD)))
    source = RunCheckpoint(folder, folder / "last.ckpt", path, 1, 1, False, 1)
    check_changes(source, config(new), RunFlags("fit"))


def test_settings_of_a_set_that_came_later_are_no_change_if_null(tmp_path: Path) -> None:
    changes(tmp_path, {**OLD, "masks": None, "values": None})


def test_sets_cannot_change(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data.sets: cannot change in a resumed run"):
        changes(tmp_path, {**OLD, "masks": None, "values": [1]})


def test_settings_that_came_later_have_their_default_unless_they_are_given(tmp_path: Path) -> None:
    old = config(OLD)
    (path := tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    source = RunCheckpoint(tmp_path, tmp_path / "last.ckpt", path, 1, 1, False, 1)
    new = {**old, "data": {**old["data"], "init_args": {**old["data"]["init_args"], "split_seed": 0}}}
    check_changes(source, new, RunFlags("fit"))
    with pytest.raises(UsageError, match=r"--data.split_seed: cannot change in a resumed run \(was None, now 0\)"):
        check_changes(source, new, RunFlags("fit", rest=["--data.split_seed", "0"]))


@pytest.mark.parametrize(
    ("words", "pretrained"),
    [
        (["--model.weights", "w.pt"], False),
        (["--model.init_args.weights=w.pt"], False),
        (["--model.weights", "w.pt", "--model.pretrained", "true"], True),
        ([], True),
    ],
)
def test_weights_of_the_command_line_replace_pretrained_ones_of_a_configuration(
    words: list[str], pretrained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given = Namespace(model=Namespace(init_args=Namespace(pretrained=True, weights="w.pt")))  # type: ignore[no-untyped-call]
    with caplog.at_level("INFO"):
        weights_win(given, words)
    assert given.model.init_args.pretrained is pretrained
    assert ("model.pretrained is false, since --model.weights w.pt is given" in caplog.text) is not pretrained
