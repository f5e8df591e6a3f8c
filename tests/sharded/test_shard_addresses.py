"""Tests how shard settings become addresses, and which shards are held out."""

from pathlib import Path

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.sharded.addresses import find_shards, with_braces
from datamodules.sharded.settings import ShardSettings
from datamodules.sharded.store import ShardError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_braces_are_those_of_webdataset() -> None:
    assert with_braces("s3://b/{train,extra}-{8..10}.tar") == [
        f"s3://b/{part}-{n}.tar" for part in ("train", "extra") for n in (8, 9, 10)
    ]
    assert with_braces("a-{0008..0010}.tar") == ["a-0008.tar", "a-0009.tar", "a-0010.tar"]
    assert with_braces("plain.tar") == ["plain.tar"]
    assert with_braces("{odd}.tar") == ["{odd}.tar"]


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "b.tar", "a.tar", "readme.txt", "c.tar")
    every = [str(folder / f"{name}.tar") for name in "abc"]
    assert find_shards("shards", str(folder), 0) == every
    assert find_shards("shards", str(folder / "*.tar"), 0) == every
    assert find_shards("shards", f"{folder}/{{c,a}}.tar", 0) == [every[2], every[0]]  # in the order given
    assert find_shards("shards", [every[1], f"file://{every[0]}"], 0) == [every[1], every[0]]
    assert find_shards("shards", "s3://bucket/set/{0..1}.tar", 0) == ["s3://bucket/set/0.tar", "s3://bucket/set/1.tar"]


def test_a_folder_in_memory() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("1.tar", "0.tar", "x.txt"):
        system.pipe(f"/found/{name}", b"content")
    try:
        wanted = ["memory:///found/0.tar", "memory:///found/1.tar"]
        assert find_shards("shards", "memory://found", 0) == wanted
        assert find_shards("shards", "memory://found/*.tar", 0) == wanted
    finally:
        system.rm("/found", recursive=True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{0}/none", "does not exist"),
        ("{0}/fill", "does not exist, did you mean 'full'"),
        ("{0}/empty", "there is no .tar file in it"),
        ("{0}/packed", "2 are compressed, such as a.tar.gz: unpack them first"),
        ("{0}/packed/*.gz", "a.tar.gz is compressed, so no sample in it can be reached by its place"),
        ("{0}/parts", "there are some in train, val below it"),
        ("{0}/full/*.zip", "no file has such a name"),
        ("", "got an empty value"),
        ([], "no shard is given"),
        (["{0}/full/a.tar", "{0}/full"], "given twice: .*a.tar"),
        ("http://127.0.0.1:1/set/", "a web server lists no files; name the shards"),
    ],
)
def test_wrong_settings_are_said_in_a_line(tmp_path: Path, given: str | list[str], line: str) -> None:
    touch(tmp_path / "empty")
    touch(tmp_path / "packed", "a.tar.gz", "b.tgz")
    touch(tmp_path / "full", "a.tar")
    touch(tmp_path / "parts" / "train", "a.tar")
    touch(tmp_path / "parts" / "val", "a.tar")
    placed = given.format(tmp_path) if isinstance(given, str) else [one.format(tmp_path) for one in given]
    with pytest.raises(ShardError, match=line) as caught:
        find_shards("shards", placed, 0)
    assert "\n" not in str(caught.value)


def settings(folder: Path, **given: object) -> ShardSettings:
    names = ("val_shards", "test_shards")
    fractions = {"val_fraction": 0.2, "test_fraction": 0.1, "seed": 0, **dict.fromkeys(names)}
    return ShardSettings(shards=str(folder), **{**fractions, **given})  # type: ignore[arg-type]


def test_whole_shards_are_held_out_by_the_seed(tmp_path: Path) -> None:
    folder = touch(tmp_path, *(f"{n:02}.tar" for n in range(20)))
    parts = {split: settings(folder).find(split, 0) for split in ("train", "val", "test")}
    assert [len(parts[name]) for name in ("train", "val", "test")] == [14, 4, 2]
    assert sorted(one for found in parts.values() for one in found) == sorted(map(str, folder.iterdir()))
    assert parts["val"] != settings(folder, seed=1).find("val", 0)
    assert parts["val"] == settings(folder).find("val", 0)


def test_shards_that_cannot_be_divided(tmp_path: Path) -> None:
    folder = touch(tmp_path / "two", "0.tar", "1.tar")
    with pytest.raises(
        MisconfigurationException, match=r"2 shards cannot be divided into train and val and test.*--data\.val_shards"
    ):
        settings(folder).find("train", 0)
    own = settings(folder, val_shards=str(touch(tmp_path / "val", "a.tar")), test_fraction=0.0)
    assert len(own.find("train", 0)) == 2
    assert not own.has("test")
    with pytest.raises(MisconfigurationException, match="there are no test shards"):
        own.find("test", 0)
    with pytest.raises(MisconfigurationException, match=r"is in --data\.shards too"):
        settings(folder, val_shards=str(folder / "0.tar")).find("val", 0)
