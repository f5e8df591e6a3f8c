"""The command: counts, links and copies, what stays untouched, what a kill leaves, duplicates, groups, and every message."""

import csv
import errno
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import command_line
from tools.split_folder import __main__ as split_folder
from tools.split_folder.__main__ import main

Tree = dict[str, tuple[bytes, int]]


def make(folder: Path, **classes: int) -> Path:
    """A folder with so many files of each class, all different; every third one in a folder of its own."""
    for label, count in classes.items():
        (folder / label / "more").mkdir(parents=True)
        for number in range(count):
            name = f"more/{number}.PNG" if number % 3 == 0 else f"{number}.jpg"
            (folder / label / name).write_bytes(f"{label} {number}".encode())
    return folder


def tree(folder: Path) -> Tree:
    """Bytes and time of change of each file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def index(target: Path) -> dict[str, tuple[str, str]]:
    with (target / "split.csv").open(newline="") as file:
        return {row["file"]: (row["class"], row["split"]) for row in csv.DictReader(file)}


def counts(target: Path) -> Counter[tuple[str, str]]:
    return Counter(index(target).values())


def assert_split(source: Path, target: Path) -> None:
    """TARGET holds each image of SOURCE once, with its bytes, where the index says."""
    before = tree(source)
    assert {f"{split}/{file}" for file, (_, split) in index(target).items()} | {"split.csv"} == {*tree(target)}
    assert {*index(target)} == {*before}
    for file, (label, split) in index(target).items():
        assert file.startswith(f"{label}/")
        assert (target / split / file).read_bytes() == before[file][0]


@pytest.mark.parametrize(("mode", "cats"), [("link", 703), ("symlink", 73), ("copy", 73)])
def test_modes(tmp_path: Path, mode: str, cats: int, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    target.mkdir()  # an empty one is as good as none
    assert main([str(source), str(target), "--mode", "index"]) == 0
    assert [path.name for path in target.rglob("*")] == ["split.csv"]
    assert (target / "split.csv").read_text().splitlines()[0] == "file,class,split"
    assert counts(target)["cat", "train"] == 16


def test_a_share_of_zero_makes_no_split(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source", cat=20, dog=10), tmp_path / "target"
    assert main([str(source), str(target), "--shares", "0.8", "0.2", "0"]) == 0
    assert sorted(path.name for path in target.iterdir()) == ["split.csv", "train", "val"]


def test_every_split_has_every_class_folder(tmp_path: Path) -> None:
    """Readers number classes by the folders they see: without the empty one, zebra would be another class in test."""
    source, target = make(tmp_path / "source", ant=30, bee=1, zebra=30), tmp_path / "target"
    assert main([str(source), str(target)]) == 0
    assert all(sorted(os.listdir(target / s)) == ["ant", "bee", "zebra"] for s in ("train", "val", "test"))


def test_the_same_seed_gives_the_same_split_wherever_it_lies(tmp_path: Path) -> None:
    splits = []
    for place, seed in (("one", 4), ("two", 4), ("three", 5)):
        source = make(tmp_path / place / "source", cat=60, dog=30)
        assert main([str(source), str(tmp_path / place / "t"), "--seed", str(seed), "--mode", "index"]) == 0
        splits.append((tmp_path / place / "t" / "split.csv").read_bytes())
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("at", [0, 1, 17, 39])
def test_a_run_that_is_stopped_leaves_nothing(
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
    assert main([str(source), str(target)]) == 0  # what the killed one left beside it is in nobody's way
    assert_split(source, target)


def test_a_target_that_is_filled_meanwhile_is_kept(
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
def test_a_file_that_is_there_is_never_overwritten(tmp_path: Path, mode: str) -> None:
    """As happens where a file system takes A.jpg and a.jpg for one."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("old")
    new.write_text("new")
    with pytest.raises((FileExistsError, ValueError), match="File exists"):
        split_folder._put(old, new, mode)
    assert new.read_text() == "new"


def with_duplicates(folder: Path) -> Path:
    make(folder, cat=40, dog=40)
    for number in range(12):  # pairs of the same bytes, and one file that is there thirteen times
        (folder / "cat" / f"copy{number}.jpg").write_bytes((folder / "cat" / f"{3 * number + 1}.jpg").read_bytes())
        (folder / "dog" / f"copy{number}.bmp").write_bytes((folder / "dog" / "1.jpg").read_bytes())
    return folder


def test_duplicates_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = with_duplicates(tmp_path / "source"), tmp_path / "target"
    assert main([str(source), str(target)]) == 0
    assert_split(source, target)
    splits: dict[bytes, set[str]] = {}
    for file, (_, split) in index(target).items():
        splits.setdefault((source / file).read_bytes(), set()).add(split)
    assert len(splits) == 80
    assert all(len(of_bytes) == 1 for of_bytes in splits.values())
    printed = capsys.readouterr().out
    assert "duplicates 37 files of the same bytes as another, in 13 sets; a set stays in one split\n" in printed


def test_duplicates_are_dropped_but_for_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = with_duplicates(tmp_path / "source"), tmp_path / "target"
    before = tree(source)
    assert main([str(source), str(target), "--duplicates", "drop"]) == 0
    assert tree(source) == before
    assert {*index(target)} == {name for name in before if "copy" not in name}
    assert counts(target) == {
        (label, split): count for label in ("cat", "dog") for split, count in (("train", 32), ("val", 4), ("test", 4))
    }
    assert "in 13 sets; the first of a set is kept, 24 dropped\n" in capsys.readouterr().out


def test_the_same_bytes_in_two_classes_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source", cat=20, dog=20)
    (source / "dog" / "wrong.jpg").write_bytes(b"cat 1")
    (source / "cat" / "2b.jpg").write_bytes(b"cat 2")
    for extra in ([], ["--duplicates", "drop"]):
        assert main([str(source), str(tmp_path / "target"), *extra]) == 2
        assert capsys.readouterr().err == (
            f"error: {source}: the same bytes under different classes, once: cat/1.jpg = dog/wrong.jpg; remove the wrong ones\n"
        )
    for number in range(2, 9):
        (source / "dog" / f"wrong{number}.jpg").write_bytes(f"cat {number}".encode())
    assert main([str(source), str(tmp_path / "target")]) == 2
    message = capsys.readouterr().err
    assert "8 times: cat/1.jpg = dog/wrong.jpg, cat/2.jpg = cat/2b.jpg = dog/wrong2.jpg, " in message
    assert message.endswith(" and 3 more; remove the wrong ones\n")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("duplicates", ["keep_together", "drop"])
def test_groups_do_not_straddle_splits(tmp_path: Path, duplicates: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As road images with their table: ids without extension, groups over both classes, roads with a picture in common."""
    source, target = make(tmp_path / "source", clear=200, pothole=70), tmp_path / "target"
    road = {
        label: [f"R{number // 9 if label == 'clear' else number % 22}" for number in range(200)]
        for label in ("clear", "pothole")
    }
    (source / "clear" / "again.jpg").write_bytes(b"clear 100")  # of road 11; this file is of road 3
    with (source / "groups.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "road"])
        rows.writerow(["clear/again", "R3"])
        for label, count in (("clear", 200), ("pothole", 70)):
            for n in range(count):
                rows.writerow([f"{label}/{'more/' * (n % 3 == 0)}{n}", road[label][n]])
    arguments = [str(source), str(target), "--groups", str(source / "groups.csv"), "--group_column", "road"]
    assert main([*arguments, "--duplicates", duplicates]) == 0
    splits: dict[str, set[str]] = {}
    for image, (label, split) in index(target).items():
        number = Path(image).stem
        splits.setdefault("R3" if number == "again" else road[label][int(number)], set()).add(split)
    assert len(splits) == 23
    assert all(len(of_road) == 1 for of_road in splits.values())
    assert splits["R3"] == splits["R11"]
    printed = capsys.readouterr().out
    assert f"groups     23 of road in {source / 'groups.csv'}; the largest is R3 with 14 images\n" in printed
    assert "left out: 1 not an image\n" in printed


def test_images_that_are_links_themselves(tmp_path: Path) -> None:
    store = make(tmp_path / "store", cat=10, dog=10)
    source, target = tmp_path / "source", tmp_path / "target"
    for label in ("cat", "dog"):
        (source / label).mkdir(parents=True)
        for path in (store / label).glob("*.jpg"):
            (source / label / path.name).symlink_to(Path("../../store") / label / path.name)
    assert main([str(source), str(target), "--shares", "0.5", "0.25", "0.25"]) == 0
    assert_split(source, target)
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_progress_is_said_in_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "EVERY_S", 0.0)
    assert main([str(make(tmp_path / "source", cat=10, dog=10)), str(tmp_path / "target")]) == 0
    printed = capsys.readouterr().out
    assert "read       1 of 20 files, 0:00 left\n" in printed
    assert "written    19 of 20 files, 0:00 left\n" in printed


def no_space(old: str, new: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))


def other_disk(old: str, new: Path) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), old, None, str(new))


def test_a_link_to_another_file_system(
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
        (None, ["nowhere", "target"], "nowhere: no such folder; expected FOLDER/CLASS/IMAGE, as in FOLDER/cat/1.jpg"),
        (None, ["source/cat", "target"], "images directly in it, which have no class: "),
        (None, ["source", "source"], "lies in SOURCE"),
        (None, ["source", "source/split"], "lies in SOURCE"),
        (None, ["source", "source/../source/cat/new"], "lies in SOURCE"),
        (prepare_link, ["source", "target"], "lies in SOURCE"),
        (prepare_file, ["source", "target"], "target is a file: give a folder that does not exist or is empty"),
        (prepare_full, ["source", "target"], "target is not empty and nothing is overwritten: give another, or empty it"),
        (None, ["source", "source/cat/1.jpg/x"], "lies in SOURCE"),
        (None, ["source", "other/1.txt/target"], "other/1.txt"),
        (None, ["source", "target", "--shares", "0.8", "0.1", "0.2"], "shares 0.8 0.1 0.2: expected two or more from 0 to 1"),
        (None, ["source", "target", "--shares", "0.99", "0", "0.01"], "split 3 of 3 (share 0.01) would have no sample"),
        (None, ["source", "target", "--shares", "0.8", "0.2"], "--shares: expected 3 arguments; see python -m tools.split"),
        (None, ["source", "target", "--mode", "move"], "argument --mode: invalid choice: 'move' (choose from"),
        (None, ["source", "target", "--groups", "g.csv"], "--groups and --group_column belong together: a CSV, and its col"),
        (None, ["source", "target", "--group_column", "g"], "--groups and --group_column belong together"),
        (None, ["source", "target", "--groups", "g.csv", "--group_column", "g"], "g.csv: no such file; expected a CSV with"),
        (None, ["source"], "the following arguments are required: TARGET; see python -m tools.split_folder --help"),
        (None, ["source", "target", "--sed", "1"], "unrecognized arguments: --sed 1; see"),
    ],
)  # fmt: skip
def test_messages(
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


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = make(tmp_path / "source", cat=10, dog=10)
    monkeypatch.setattr(Path, "symlink_to", lambda new, old: no_space(old, new))
    assert main([str(source), str(tmp_path / "target"), "--mode", "symlink"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_help_is_quick_and_lists_every_flag() -> None:
    program = (
        "import sys; from tools.split_folder.__main__ import main; "
        "assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for flag in ("--shares TRAIN VAL TEST", "--seed", "--mode", "--groups CSV", "--group_column", "--duplicates"):
        assert flag in done.stdout
    assert "{link,symlink,copy,index}" in done.stdout
