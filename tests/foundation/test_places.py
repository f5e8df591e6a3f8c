"""What is said of a path that is not what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest

from foundation.places import LOOKED_AT, absence, close_to, instead, meant, near
from foundation.project import ROOT


@pytest.fixture(autouse=True)
def _tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder sets/photos2/cat, file sets/notes.txt and hidden folder sets/.photos; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    for folder in ("sets/photos2/cat", "sets/.photos"):
        Path(folder).mkdir(parents=True)
    Path("sets/notes.txt").touch()


@pytest.mark.parametrize(
    ("path", "file", "expected"),
    [
        ("sets/photos", False, "does not exist, did you mean 'sets/photos2'?"),
        ("set/photos2/cat", False, "does not exist, did you mean 'sets/photos2/cat'?"),
        ("set/other", False, "does not exist, did you mean 'sets'?"),
        ("sets/note.txt", True, "does not exist, did you mean 'sets/notes.txt'?"),
        ("sets/note.txt", False, "does not exist; sets has photos2"),
        ("sets/notes.txt", False, "is a file, a folder is needed"),
        ("sets/notes.txt/cat", False, "does not exist, sets/notes.txt is a file, a folder is needed"),
        ("sets/photos2", True, "is a folder, a file is needed"),
        ("sets/photos2/cat/x", False, "does not exist; sets/photos2/cat is empty"),
        ("x", False, "does not exist; the working folder has sets"),
        (".", True, "is a folder, a file is needed"),
    ],
)
def test_absence(path: str, file: bool, expected: str) -> None:
    assert absence(Path(path), file) == expected


def test_an_absolute_path_is_named_as_given(tmp_path: Path) -> None:
    assert close_to(tmp_path / "sets" / "photos") == f", did you mean {str(tmp_path / 'sets' / 'photos2')!r}?"
    assert close_to(tmp_path / "sets") == close_to(tmp_path / "xyz") == ""


def has_cat(folder: Path) -> bool:
    return (folder / "cat").is_dir()


@pytest.mark.parametrize("path", ["sets", ".", "sets/photos2/cat", "sets/notes.txt"])
def test_the_folder_that_was_meant(path: str) -> None:
    assert meant(Path(path), has_cat) == ", did you mean 'sets/photos2'?"


def test_a_folder_above_is_named_only_where_it_may_be_meant() -> None:
    assert near(Path("sets/photos2/cat"), has_cat, above=False) is None
    assert near(Path("sets/photos2/none"), has_cat) == Path("sets/photos2")


def test_only_so_many_folders_are_looked_into() -> None:
    for number in range(LOOKED_AT):
        Path("sets", f"a{number:03}").mkdir()
    assert near(Path("sets"), has_cat) is None


def test_instead() -> None:
    assert instead(Path("sets/photos2/cat"), has_cat) == ", did you mean 'sets/photos2'?"
    assert instead(Path("sets/photos"), has_cat) == ", which does not exist, did you mean 'sets/photos2'?"
    assert instead(Path("sets/notes.txt"), has_cat) == (
        ", which is a file, a folder is needed, did you mean 'sets/photos2'?"
    )


def test_the_code_of_the_project_is_never_meant(tmp_path: Path) -> None:
    (tmp_path / "datamodules").mkdir()
    (tmp_path / "datamodules" / "__init__.py").touch()
    assert absence(tmp_path / "data") == f"does not exist; {tmp_path} has sets"
    assert absence(ROOT / "docz").partition(";")[0] == "does not exist"
