"""Tests that tools.split_folder overwrites nothing and leaves no partial TARGET after Ctrl-C, SIGKILL or a file error."""

import errno
import os
import signal
from pathlib import Path

import pytest

from tests.tools.split_helpers import assert_split, make, tree
from tools.split_folder import __main__ as split_folder
from tools.split_folder.__main__ import main


@pytest.mark.parametrize("at", [0, 1, 17, 39])
def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=20), tmp_path / "target"
    before, link, calls = tree(source), os.link, iter(range(40))

    def stopping(old: str, new: Path) -> None:
        if next(calls) == at:
            raise KeyboardInterrupt
        link(old, new)

    monkeypatch.setattr(os, "link", stopping)
    assert main([str(source), str(target)]) == 130
    assert capsys.readouterr().err == "stopped; TARGET was not written\n"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    assert tree(source) == before


def test_a_killed_run_leaves_nothing_at_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=20), tmp_path / "target"
    before, link, calls = tree(source), os.link, iter(range(40))

    def killing(old: str, new: Path) -> None:
        if next(calls) == 25:
            os.kill(os.getpid(), signal.SIGKILL)
        link(old, new)

    monkeypatch.setattr(os, "link", killing)
    child = os.fork()
    if child == 0:
        main([str(source), str(target)])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    assert not target.exists()
    assert tree(source) == before
    assert main([str(source), str(target)]) == 0  # the temporary folder of the killed run does not interfere
    assert_split(source, target)


def test_a_target_filled_during_the_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=20), tmp_path / "target"
    link = os.link

    def meanwhile(old: str, new: Path) -> None:
        target.mkdir(exist_ok=True)
        (target / "precious").write_text("mine")
        link(old, new)

    monkeypatch.setattr(os, "link", meanwhile)
    assert main([str(source), str(target)]) == 2
    assert [path.name for path in target.rglob("*")] == ["precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["link", "symlink", "copy"])
def test_an_existing_file_is_never_overwritten(tmp_path: Path, mode: str) -> None:
    """This happens on a file system that treats A.jpg and a.jpg as the same file."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    with pytest.raises((FileExistsError, ValueError), match="File exists"):
        split_folder._put(old, new, mode)
    assert new.read_text() == "new"


def no_space(old: str, new: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))


def other_disk(old: str, new: Path) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), old, None, str(new))


def test_a_hard_link_to_another_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make(tmp_path / "source", cat=10, dog=10)
    monkeypatch.setattr(os, "link", other_disk)
    assert main([str(source), str(tmp_path / "target")]) == 2
    assert capsys.readouterr().err == (
        f"error: {source}/cat/1.jpg: no hard link can be made in TARGET (Invalid cross-device link); "
        "use --mode symlink or --mode copy\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source", cat=10, dog=10)
    monkeypatch.setattr(Path, "symlink_to", lambda new, old: no_space(old, new))
    assert main([str(source), str(tmp_path / "target"), "--mode", "symlink"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
