"""Tests the duplicates and groups of tools.split_folder: files that belong together are in one split."""

import csv
from pathlib import Path

import pytest

from tests.tools.split_helpers import assert_split, counts, index, make, tree
from tools.split_folder.__main__ import main


def with_duplicates(folder: Path) -> Path:
    make(folder, cat=40, dog=40)
    for number in range(12):  # 12 pairs with the same bytes, and one file that exists 13 times
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


def test_only_the_first_duplicate_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
def test_groups_are_not_divided(tmp_path: Path, duplicates: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A table as for road images: ids without extension, groups with images of both classes, two roads that share an image."""
    source, target = make(tmp_path / "source", clear=200, pothole=70), tmp_path / "target"
    road = {
        label: [f"R{number // 9 if label == 'clear' else number % 22}" for number in range(200)]
        for label in ("clear", "pothole")
    }
    (source / "clear" / "again.jpg").write_bytes(b"clear 100")  # clear/100 belongs to road 11, this copy to road 3
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
