"""Tests tools.split_folder: shares, modes, the table, empty splits and classes, seeds, progress lines, error messages, --help."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools.split_helpers import assert_split, counts, index, make, tree
from tools import command_line
from tools.split_folder.__main__ import main


@pytest.mark.every(3)
@pytest.mark.parametrize(("mode", "cats"), [("link", 703), ("symlink", 73), ("copy", 73)])
def test_link_symlink_and_copy(tmp_path: Path, mode: str, cats: int, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = make(tmp_path / "source", cat=cats, dog=290, fox=7), tmp_path / "new" / "target"
    before = tree(source)
    assert main([str(source), str(target), "--mode", mode]) == 0
    assert tree(source) == before
    assert_split(source, target)
    assert [*tmp_path.glob("new/.*")] == []
    for label, size in (("cat", cats), ("dog", 290), ("fox", 7)):
        for split, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
            assert abs(counts(target)[label, split] - share * size) < 1
    file, (_, split) = next(iter(index(target).items()))
    old, new = source / file, target / split / file
    assert new.is_symlink() == (mode == "symlink")
    assert os.path.samefile(old, new) == (mode != "copy")
    assert new.stat().st_mtime_ns == old.stat().st_mtime_ns
    printed = capsys.readouterr().out
    assert f"source     {cats + 297:,} images of 3 classes; left out: nothing\n" in printed
    assert "duplicates none\n" in printed
    assert f"written    {target}: {cats + 297:,} " in printed


def test_printed_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source", cat=1000, dog=10)
    assert main([str(source), str(tmp_path / "target"), "--mode", "index", "--shares", "0.75", "0.2", "0.05"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[2:7]] == [
        [],
        ["class", "images", "train", "val", "test"],
        ["cat", "1,000", "750", "75.0%", "200", "20.0%", "50", "5.0%"],
        ["dog", "10", "8", "80.0%", "2", "20.0%", "0", "0.0%"],
        ["all", "1,010", "758", "75.0%", "202", "20.0%", "50", "5.0%"],
    ]
    assert "largest deviation from the shares: 0.5 images (dog in train)" in lines
    assert "warning: classes without an image: dog in test; they have too few images or groups" in lines


@pytest.mark.slow
def test_ten_thousand_files(tmp_path: Path) -> None:
    sizes = {"a": 6001, "b": 2500, "c": 1337, "d": 155, "e": 7}
    source, target = make(tmp_path / "source", **sizes), tmp_path / "target"
    before = tree(source)
    assert main([str(source), str(target), "--shares", "0.7", "0.15", "0.15"]) == 0
    assert tree(source) == before
    assert_split(source, target)
    for label, size in sizes.items():
        for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
            assert abs(counts(target)[label, split] - share * size) < 1
    assert main([str(source), str(target)]) == 2
    assert tree(source) == before


def test_index_mode_writes_one_file(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=10), tmp_path / "target"
    target.mkdir()  # an empty TARGET is allowed
    assert main([str(source), str(target), "--mode", "index"]) == 0
    assert [path.name for path in target.rglob("*")] == ["split.csv"]
    assert (target / "split.csv").read_text().splitlines()[0] == "file,class,split"
    assert counts(target)["cat", "train"] == 16


def test_a_share_of_zero_creates_no_split(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=10), tmp_path / "target"
    assert main([str(source), str(target), "--shares", "0.8", "0.2", "0"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["split.csv", "train", "val"]


def test_every_split_has_every_class_folder(tmp_path: Path) -> None:
    """Readers number the classes by the folders they find: without the empty folder, zebra would have another number in test."""
    source, target = make(tmp_path / "source", ant=30, bee=1, zebra=30), tmp_path / "target"
    assert main([str(source), str(target)]) == 0
    assert all(sorted(os.listdir(target / s)) == ["ant", "bee", "zebra"] for s in ("train", "val", "test"))


def test_the_split_depends_on_the_seed_and_not_on_the_location(tmp_path: Path) -> None:
    splits = []
    for place, seed in (("one", 4), ("two", 4), ("three", 5)):
        source = make(tmp_path / place / "source", cat=60, dog=30)
        assert main([str(source), str(tmp_path / place / "t"), "--seed", str(seed), "--mode", "index"]) == 0
        splits.append((tmp_path / place / "t" / "split.csv").read_bytes())
    assert splits[0] == splits[1] != splits[2]


def test_images_that_are_symbolic_links(tmp_path: Path) -> None:
    store = make(tmp_path / "store", cat=10, dog=10)
    source, target = tmp_path / "source", tmp_path / "target"
    for label in ("cat", "dog"):
        (source / label).mkdir(parents=True)
        for path in (store / label).glob("*.jpg"):
            (source / label / path.name).symlink_to(Path("../../store") / label / path.name)
    assert main([str(source), str(target), "--shares", "0.5", "0.25", "0.25"]) == 0
    assert_split(source, target)
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_progress_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command_line, "EVERY_S", 0.0)
    assert main([str(make(tmp_path / "source", cat=10, dog=10)), str(tmp_path / "target")]) == 0
    printed = capsys.readouterr().out
    assert "read       1 of 20 files, 0:00 left\n" in printed
    assert "written    19 of 20 files, 0:00 left\n" in printed


def prepare_file(folder: Path) -> None:
    (folder / "target").write_text("mine")


def prepare_full(folder: Path) -> None:
    (folder / "target").mkdir()
    (folder / "target" / ".mine").write_text("mine")


def prepare_link(folder: Path) -> None:
    (folder / "target").symlink_to(folder / "source" / "cat")


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (None, ["nowhere", "target"], "expected FOLDER/CLASS/IMAGE, as in FOLDER/cat/1.jpg"),
        (None, ["source/cat", "target"], "images directly in it, which have no class: "),
        (None, ["source", "source"], "lies in SOURCE"),
        (None, ["source", "source/split"], "lies in SOURCE"),
        (None, ["source", "source/../source/cat/new"], "lies in SOURCE"),
        (prepare_link, ["source", "target"], "lies in SOURCE"),
        (prepare_file, ["source", "target"], "target is a file: give a folder that is empty or does not exist"),
        (prepare_full, ["source", "target"], "target is not empty and nothing is overwritten: give another folder, or empty"),
        (None, ["source", "source/cat/1.jpg/x"], "lies in SOURCE"),
        (None, ["source", "other/1.txt/target"], "other/1.txt"),
        (None, ["source", "target", "--shares", "0.8", "0.1", "0.2"],
         "shares 0.8 0.1 0.2: expected two or more values from 0 to 1"),
        (None, ["source", "target", "--shares", "0.99", "0", "0.01"], "split 3 of 3 (share 0.01) would have no sample"),
        (None, ["source", "target", "--shares", "0.8", "0.2"], "--shares: expected 3 arguments; see python -m tools.split"),
        (None, ["source", "target", "--mode", "move"], "argument --mode: invalid choice: 'move' (choose from"),
        (None, ["source", "target", "--groups", "g.csv"], "--groups and --group_column: give both, a CSV and its column"),
        (None, ["source", "target", "--group_column", "g"], "--groups and --group_column: give both"),
        (None, ["source", "target", "--groups", "g.csv", "--group_column", "g"], "g.csv: no such file, also not in source; exp"),
        (None, ["source"], "the following arguments are required: TARGET; see python -m tools.split_folder --help"),
        (None, ["source", "target", "--sed", "1"], "unrecognized arguments: --sed 1, did you mean '--seed'?; see"),
    ],
)  # fmt: skip
def test_error_messages(
    tmp_path: Path,
    prepare: Callable[[Path], None] | None,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / "source", cat=10, dog=10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/1.txt").write_text("a file")
    if prepare:
        prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert tree(tmp_path) == before


def test_help_is_quick_and_lists_every_flag() -> None:
    program = (
        "import sys; from tools.split_folder.__main__ import main; "
        "assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for flag in ("--shares TRAIN VAL TEST", "--seed", "--mode", "--groups CSV", "--group_column", "--duplicates"):
        assert flag in done.stdout
    assert "{link,symlink,copy,index}" in done.stdout
