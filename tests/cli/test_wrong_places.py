"""A folder of the data that is missing, a file, or above or below the right one: the message names the one that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_mistakes import refuse

SETS = [
    "--data.generate",
    "null",
    "--data.sets",
    "[{folder: walls, prompts: [crack]}, {folder: boards, prompts: [tape]}]",
]
CIFAR = ["--data", "CIFAR10DataModule"]


@pytest.fixture
def places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_data: dict[str, dict[str, str]]
) -> dict[str, list[str]]:
    """Arguments of each system with its tiny configuration, without its data, which lies below ``sets`` of the working folder."""
    (tmp_path / "sets").mkdir()
    for name, system in (("photos2", "image_folder"), ("cache", "cascade_cached"), ("har", "har")):
        (tmp_path / "sets" / name).symlink_to(next(iter(system_data[system].values())))
    for name in ("walls/images", "walls/masks", "cifar/cifar-10-batches-py"):
        (tmp_path / "sets" / name).mkdir(parents=True)
    (tmp_path / "sets" / "cifar" / "cifar-10-batches-py" / "batches.meta").touch()
    (tmp_path / "sets" / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    conf = Path(__file__).resolve().parent.parent / "conf"
    return {path.stem.removesuffix("_tiny"): ["--config", str(path)] for path in conf.glob("*_tiny.yaml")}


CASES = [
    ("image_folder", "root", "sets/photos", "does not exist, did you mean 'sets/photos2'?"),
    ("image_folder", "root", "set/photos2", "does not exist, did you mean 'sets/photos2'?"),
    ("image_folder", "root", "sets/photos2/cat", "there is no class folder in it, did you mean 'sets/photos2'?"),
    ("image_folder", "root", "sets/notes.txt", "--data.root sets/notes.txt is a file, a folder is needed"),
    ("image_folder", "root", "sets/cifar", "its only folder 'cifar-10-batches-py' is no class, no image is in it; exp"),
    ("image_folder", "root", "sets/cifar", "it holds the layout of CIFAR-10: give --data CIFAR10DataModule"),
    ("digits_ternary", "root", "sets/photos2", "the class folders in it are read with --data ImageFolderDataModule"),
    (
        "har",
        "root",
        "sets/ha",
        "sets/ha, which does not exist, did you mean 'sets/har'?; expected UCI HAR Dataset/ with",
    ),
    ("har", "root", "sets/har/test", "sets/har/test, did you mean 'sets/har'?; expected UCI HAR Dataset/ with"),
    ("har", "root", "sets/photos2", "sets/photos2; expected UCI HAR Dataset/ with activity_labels.txt"),
    ("cascade_cached", "cache", "sets/cach", "sets/cach does not exist, did you mean 'sets/cache'?; expected a folder"),
    ("cascade_cached", "cache", "sets", "--data.cache sets: there is no feature cache, did you mean 'sets/cache'?"),
    ("digits_ternary", "root", "sets/cifa", "sets/cifa, which does not exist, did you mean 'sets/cifar'?; expected"),
    ("digits_ternary", "root", "sets", "sets, did you mean 'sets/cifar'?; expected cifar-10-batches-py/"),
    (
        "segmentation",
        "root",
        "set",
        "--data.root set does not exist, did you mean 'sets'?; expected walls, boards in it",
    ),
    ("segmentation", "root", "sets/walls", "sets/walls/boards; sets has them: give --data.root sets"),
    ("segmentation", "root", ".", "none of the data sets exists: walls, boards; sets has them: give --data.root sets"),
    ("segmentation", "root", "sets/notes.txt", "--data.root sets/notes.txt is a file, a folder is needed; expected"),
]


@pytest.mark.every(4)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("system", "setting", "given", "expected"), CASES, ids=[f"{system} {given}" for system, _, given, _ in CASES]
)
def test_message(
    system: str,
    setting: str,
    given: str,
    expected: str,
    places: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = {"segmentation": SETS, "digits_ternary": CIFAR}.get(system, [])
    assert expected in refuse(["fit", *places[system], *more, f"--data.{setting}", given], capsys)


@pytest.mark.slow
def test_names_of_sets_that_are_close(places: dict[str, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["--data.generate", "null", "--data.root", "sets", "--data.sets"]
    message = refuse(["fit", *places["segmentation"], *sets, "[{folder: wals, prompts: [crack]}]"], capsys)
    assert (
        "sets/wals, did you mean 'sets/walls'?; sets has the set walls: give --data.sets \"[{folder: walls," in message
    )
    for given, expected in (
        ("[walls]", "data.sets: each item is written {folder: ..., prompts: ...}, got 'walls'"),
        (
            "[{folder: walls, prompts: a b}]",
            "data.sets.prompts: a list, written [a b], is needed, got 'a b' (the set 'walls')\n",
        ),
        ("[{prompts: [a]}]", "data.sets: each item needs folder, as in [{folder: ..., prompts: ...}]"),
    ):
        assert expected in refuse(["fit", *places["segmentation"], *sets, given], capsys)
