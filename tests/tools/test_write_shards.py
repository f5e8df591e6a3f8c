"""Tests the command that writes shards: the same bytes each time, also after a kill; its tables; wrong input."""

import csv
import hashlib
import os
from pathlib import Path

import pytest

from datamodules.sharded.tar_members import read_members
from tests.datamodules.pictures import write_classes
from tools.write_shards import __main__ as tool


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), {"cat": 9, "dog": 8, "owl": 10}, suffix=".jpg")


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(root: Path, out: Path, *more: str) -> int:
    return tool.main(["--data.root", str(root), "--output", str(out), *more])


def test_every_image_is_in_one_shard_with_its_class(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write(images, out) == 0
    names = (out / "classes.txt").read_text().split()
    assert names == ["cat", "dog", "owl"]
    rows = {(row["shard"], row["key"]): row for row in csv.DictReader((out / "files.csv").read_text().splitlines())}
    found = []
    shards = sorted(out.glob("*.tar"))
    assert len(shards) >= 20  # enough to hold some out
    for path in shards:
        with path.open("rb") as file:
            for member in read_members(file, str(path), None):
                row = rows[path.name, member.image.name.partition(".")[0]]
                file.seek(member.image.offset)
                assert file.read(member.image.size) == (images / row["file"]).read_bytes()
                assert names[int(member.label)] == row["class"] == row["file"].partition("/")[0]
                found.append(row["file"])
    assert sorted(found) == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
    assert found != sorted(found)  # shuffled


def test_a_killed_command_goes_on_to_the_same_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(images, tmp_path / "whole") == 0
    whole = digests(tmp_path / "whole")
    replace, count = Path.replace, 0

    def stops(self: Path, target: Path) -> Path:
        nonlocal count
        count += str(target).endswith(".tar")
        if count == 8:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    assert write(images, tmp_path / "broken") == 130
    monkeypatch.undo()
    assert len([*(tmp_path / "broken").glob("*.tar")]) == 7
    capsys.readouterr()
    assert write(images, tmp_path / "broken") == 0
    assert "; 7 were there" in capsys.readouterr().out
    assert digests(tmp_path / "broken") == whole


def test_split_folders_and_size(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val", "test"):
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / part).symlink_to(images)
    assert write(tmp_path / "split", tmp_path / "out", "--shard_mb", "0.02") == 0
    for part in ("train", "val", "test"):
        sizes = [path.stat().st_size for path in (tmp_path / "out" / part).glob("*.tar")]
        assert len(sizes) == 4  # 27 samples of 2.5 kB each
        assert max(sizes) <= 30720  # with the end of a tar
    said = capsys.readouterr().out
    start = "main.py fit --config configs/image_standard.yaml --config configs/with/shards.yaml"
    assert f"{start} --data.shards {tmp_path}/out/train --data.val_shards {tmp_path}/out/val" in said


def test_a_table_of_labels(images: Path, tmp_path: Path) -> None:
    files = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
    rows = [f"{file},{number % 3 + 9}" for number, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    assert write(images, tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 0
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["9", "10", "11"]  # numbers in their order
    classes = {
        row["file"]: row["class"] for row in csv.DictReader((tmp_path / "out" / "files.csv").read_text().splitlines())
    }
    assert classes == {file: str(number % 3 + 9) for number, file in enumerate(files)}


def test_a_table_with_splits_and_columns_of_other_names(images: Path, tmp_path: Path) -> None:
    """Test images of the table are in no training shard."""
    files = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
    rows = [f"{file},{number % 2},{('train', 'train', 'test')[number % 3]},x" for number, file in enumerate(files)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,what,split,kind", *rows]))
    table = ["--labels", str(tmp_path / "labels.csv"), "--data.label_column", "what"]
    assert write(images, tmp_path / "out", *table) == 0
    parts = {}
    for part in ("train", "test"):
        text = (tmp_path / "out" / part / "files.csv").read_text()
        parts[part] = sorted(row["file"] for row in csv.DictReader(text.splitlines()))
    assert parts == {
        "train": [file for number, file in enumerate(files) if number % 3 < 2],
        "test": files[2::3],
    }


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("image,label,split\ncat/000.jpg,a,test\n", "its column of splits has test but no train"),
        ("file,label,split\ncat/000.jpg,a,train\ncat/001.jpg,b,val\n", "there is no class 'b' in training"),
        ("file,label\ncat/000.jpg,a;b\n", "an image has several labels or none, and a sample of a shard has one class"),
        ("name,label\na,b\n", "1 of its 1 rows name no image in"),
        ("file,label\n", "has no row; expected a line with the names of the columns"),
        ("file,label\ncat/000.jpg,\n", "line 2: the column 'label' is empty"),
        ("file,label\ncat/000.jpg,a\ncat/000.jpg,b\n", "line 3: 'cat/000.jpg' is 'b' here and 'a' in line 2"),
        ("file,label\nnone.jpg,a\n", "1 of its 1 rows name no image in"),
        ("file,label\nlist.txt,a\n", "1 of its 1 rows name no image in"),
    ],
)
def test_wrong_tables(table: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_classes(tmp_path / "images", {"cat": 2}, suffix=".jpg")
    (tmp_path / "images" / "list.txt").touch()
    (tmp_path / "labels.csv").write_text(table)
    assert write(tmp_path / "images", tmp_path / "out", "--labels", str(tmp_path / "labels.csv")) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert write(images, tmp_path / "other") == 2
    assert "holds other files (thesis.txt)" in capsys.readouterr().err
    assert write(images, tmp_path / "out") == 0
    for more, line in ((["--seed", "1"], "--seed was 0"), (["--shard_mb", "1"], "--shard_mb was 64.0")):
        assert write(images, tmp_path / "out", *more) == 2
        assert f"holds shards of another plan ({line})" in capsys.readouterr().err
    assert write(images, images / "out") == 2
    assert "give a folder outside of the images" in capsys.readouterr().err
    assert write(images, tmp_path / "new", "--shard_mb", "0") == 2
    assert "must be above 0" in capsys.readouterr().err
    assert os.listdir(tmp_path / "other") == ["thesis.txt"]
