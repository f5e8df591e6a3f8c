"""One folder per class: listed and skipped files, byte-identical duplicates, groups from a CSV, and every error message."""

import os
import random
from pathlib import Path

import pytest

from datamodules.images.class_folders import duplicate_groups, read_groups, scan


def write(folder: Path, *names: str, content: bytes = b"x") -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def found(folder: Path) -> list[tuple[str, str]]:
    return [(path.relative_to(folder).as_posix(), name) for path, name in scan(folder).images]


def test_images_of_every_format_at_any_depth(tmp_path: Path) -> None:
    names = [
        *("b/1.jpg", "b/2.JPEG", "b/3.Png", "b/deep/er/4.webp", "b/5.bmp", "b/6.tif"),
        *("a/7.tiff", "a/8.GIF", "a/sub.jpg/9.jpg"),
    ]
    write(tmp_path, *names)
    assert found(tmp_path) == sorted((name, name[0]) for name in names)
    assert scan(tmp_path).class_names == ["a", "b"]
    assert scan(tmp_path).left_out == {}


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a/1.jpg", "b/1.jpg", "groups.csv", "a/notes.txt", "a/1.jpg.bak", "b/.hidden.jpg", "b/._1.jpg")
    write(tmp_path, ".git/x.jpg", "__MACOSX/a/1.jpg", "a/.thumbnails/t.jpg")
    write(tmp_path, "a/empty.png", content=b"")
    (tmp_path / "b/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert found(tmp_path) == [("a/1.jpg", "a"), ("b/1.jpg", "b")]
    left_out = {
        reason: [path.relative_to(tmp_path).as_posix() for path in paths]
        for reason, paths in scan(tmp_path).left_out.items()
    }
    assert left_out == {
        "hidden": [".git", "__MACOSX", "a/.thumbnails", "b/._1.jpg", "b/.hidden.jpg"],
        "not an image": ["a/1.jpg.bak", "a/notes.txt", "groups.csv"],
        "image of 0 bytes": ["a/empty.png"],
        "broken link": ["b/gone.jpg"],
    }


def test_files_are_sorted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"{label}/{number}.jpg" for label in "abc" for number in range(20)]
    random.Random(0).shuffle(names)
    write(tmp_path, *names)
    expected = found(tmp_path)
    assert expected == sorted((name, name[0]) for name in names)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    assert found(tmp_path) == expected


def test_links_are_followed_but_cycles_end(tmp_path: Path) -> None:
    write(tmp_path / "store", "cats/1.jpg", "cats/in/2.jpg")
    write(tmp_path / "data", "dog/1.jpg")
    (tmp_path / "data/cat").symlink_to(tmp_path / "store/cats")
    (tmp_path / "data/dog/2.jpg").symlink_to(tmp_path / "store/cats/1.jpg")
    assert [name for name, _ in found(tmp_path / "data")] == ["cat/1.jpg", "cat/in/2.jpg", "dog/1.jpg", "dog/2.jpg"]
    (tmp_path / "data/dog/round").symlink_to(tmp_path / "data/dog")
    with pytest.raises(
        ValueError, match=r"dog/round: this link leads back to a folder that it lies in; remove the link"
    ):
        scan(tmp_path / "data")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "there is no class folder in it; expected FOLDER/CLASS/IMAGE"),
        (["table.csv", ".git/a.jpg"], "there is no class folder in it"),
        (["1.jpg", "a/1.jpg", "b/1.jpg"], r"1 image directly in it, which has no class: 1.jpg; expected FOLDER/CLASS"),
        (
            [f"{i}.jpg" for i in range(7)],
            r"7 images directly in it, which have no class: 0.jpg, .*, 4.jpg and 2 more; exp",
        ),
        (["a/1.jpg", "b/1.jpg", "c/x.txt"], r"1 class folder without an image \(.jpg, .*: c; add images or remove"),
        (["a/1.jpg", "b/x.csv", "c/x.txt"], r"2 class folders without an image \(.*: b, c; add"),
        (["a/1.jpg", "notes.txt"], "there is one class only, 'a'; at least two are needed"),
        (["train/a/1.jpg", "Val/a/1.jpg"], r"holds splits \(Val, train\), not classes; give one of them"),
    ],
)
def test_errors_for_invalid_folders(tmp_path: Path, names: list[str], message: str) -> None:
    write(tmp_path / "data").mkdir()
    write(tmp_path / "data", *names)
    with pytest.raises(ValueError, match=message) as caught:
        scan(tmp_path / "data")
    assert str(caught.value).startswith(f"{tmp_path / 'data'}: ")
    assert "\n" not in str(caught.value)


def test_errors_for_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; expected FOLDER/CLASS/IMAGE, as in"):
        scan(tmp_path / "nowhere")
    write(tmp_path, "file")
    with pytest.raises(FileNotFoundError, match="file: not a folder; expected"):
        scan(tmp_path / "file")


def test_duplicates_are_byte_identical_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    paths = [tmp_path / f"{number:03}" for number in range(200)]
    for path in paths:
        path.write_bytes(bytes(rng.choices(b"ab", k=rng.randrange(1, 6))))
    unique = write(tmp_path, "alone", content=b"longer than all others") / "alone"
    read: list[Path] = []

    def watch(doubtful: list[Path]) -> list[Path]:
        read.extend(doubtful)
        return doubtful

    expected: dict[bytes, list[Path]] = {}
    for path in paths:
        expected.setdefault(path.read_bytes(), []).append(path)
    assert duplicate_groups([*paths, unique], watch) == [same for same in expected.values() if len(same) > 1]
    assert set(read) == set(paths)  # a file with a unique size is not read


FILES = ["cat/a.jpg", "cat/in/b.jpg", "dog/a.jpg", "dog/c.d.png"]


def table(folder: Path, text: str) -> Path:
    path = folder / "groups.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "file,who\ncat/a.jpg,x\nb.jpg,y\ndog/a.jpg,x\nc.d.png,z\n",
        "who,file\nx,./cat/a.jpg\ny,cat\\in\\b.jpg\nx,dog/a\nz,c.d\n",  # without extensions; the file column is found by its name
        "id,age,who\ncat/a,1,x\nb,2, y \ndog/a,3,x\nc.d,4,z\nunknown.jpg,5,\nb.jpg,6,y\n",  # rows for unknown files; one row twice
        "\ufeffname,who\r\ncat/a.jpg,x\r\nb,y\r\ndog/a.jpg,x\r\nc.d,z\r\n",  # as spreadsheets write it
    ],
)
def test_groups_by_path_or_name(tmp_path: Path, text: str) -> None:
    assert read_groups(table(tmp_path, text), "who", FILES) == ["x", "y", "x", "z"]


def test_the_file_column_can_be_set(tmp_path: Path) -> None:
    text = "task,name,group\nt,cat/a,1\nt,b,2\nt,dog/a,3\nt,c.d,4\n"
    assert read_groups(table(tmp_path, text), "group", FILES, "name") == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no column 'who'; its columns are none"),
        ("file,Who\ncat/a.jpg,x\n", r"there is no column 'who', did you mean 'Who'\?; its columns are file, Who"),
        (
            "file,who\na.jpg,x\n",
            r"groups.csv, line 2: 'a.jpg' is the name of 2 images: cat/a.jpg, dog/a.jpg; give the path",
        ),
        ("file,who\n\ncat/a.jpg,\n", "line 3: no who is given for cat/a.jpg"),
        (
            "file,who\nb,x\ncat/in/b.jpg,y\n",
            "line 3: cat/in/b.jpg is in 'y' here and in 'x' above; an image has one group",
        ),
        ("file,who\nb,x\ndog/a.jpg,y\n", "2 of the 4 images are not in its column 'file': cat/a.jpg, dog/c.d.png"),
        ("file,who,who\nb,x,y\n", "groups.csv: two columns are called 'who'; rename one"),
        ("who;file\nx;b\n", "3 of the 4 images are not in its column 'file'"),
    ],
)
def test_errors_for_invalid_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_groups(table(tmp_path, text), "who", FILES)


def test_errors_for_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.csv: no such file; expected a CSV with the columns file and who"):
        read_groups(tmp_path / "no.csv", "who", FILES)
    (tmp_path / "t.csv").write_bytes(f"file,who\n{FILES[0]},Jörg\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"t.csv, line 2: is not in UTF-8; save it as UTF-8"):
        read_groups(tmp_path / "t.csv", "who", FILES)
    with pytest.raises(ValueError, match="there is no column 'image'; its columns are file, who"):
        read_groups(table(tmp_path, "file,who\n"), "who", FILES, "image")
