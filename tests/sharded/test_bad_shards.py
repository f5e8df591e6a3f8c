"""Tests that every kind of wrong shard is said in one line, and that names in a tar are never written anywhere."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.sharded.store import ShardError
from datamodules.sharded.tar_members import key_of, read_members
from tests.sharded.shard_sets import Member, coded, data_of, sample, write_set, write_tar


def members(count: int = 3) -> list[Member]:
    return [one for number in range(count) for one in sample(number)]


def cut(path: Path, size: int) -> Path:
    os.truncate(path, size)
    return path


def ends(path: Path) -> list[int]:
    """Where each member begins."""
    import tarfile

    with tarfile.open(path) as tar:
        return [one.offset for one in tar]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut within a member": (lambda p: cut(write_tar(p, members()), 700), "is cut off or damaged|is no tar, or damaged"),
    "cut within the last": (
        lambda p: cut(write_tar(p, members()), ends(p)[-2] + 600),
        "is cut off or damaged after [45] members",
    ),
    "cut between members": (
        lambda p: cut(write_tar(p, members()), ends(p)[4]),
        "is cut off after 4 members: it has no end mark",
    ),
    "cut in a header": (
        lambda p: cut(write_tar(p, members()), ends(p)[4] + 100),
        "cut off (or damaged )?after 4 members",
    ),
    "empty": (lambda p: p.touch(), r"is empty \(0 bytes\)"),
    "gzip": (
        lambda p: p.write_bytes(gzip.compress(write_tar(p, members()).read_bytes())),
        r"is compressed \(gzip\).*unpack it",
    ),
    "zip": (lambda p: p.write_bytes(b"PK\x03\x04" + bytes(600)), r"is compressed \(zip\)"),
    "text": (lambda p: p.write_text("not a tar\n" * 200), "is no tar, or damaged"),
    "no sample": (
        lambda p: write_tar(p, [("README.md", b"x"), ("__meta__/a.cls", b"1")]),
        "has no sample; expected members such as",
    ),
    "no label": (
        lambda p: write_tar(p, [*members(), ("x.png", coded(1))]),
        r"'x' has no label: no member \.cls, only \.png",
    ),
    "label in json": (
        lambda p: write_tar(p, [("x.png", coded(1)), ("x.json", b'{"label": 1}')]),
        "is it in a .json\\? give --data.label_field",
    ),
    "no image": (lambda p: write_tar(p, [*members(), ("x.cls", b"1")]), "'x' has no image, only x.cls"),
    "dots": (
        lambda p: write_tar(p, [("s_0.5.png", coded(1)), ("s_0.cls", b"1")]),
        "'s_0' has no image.*begins at its first dot",
    ),
    "two members": (
        lambda p: write_tar(p, [*members(), ("00001.cls", b"2")]),
        "two members have the key '00001' and the ending .cls",
    ),
    "case": (lambda p: write_tar(p, [("x.png", coded(1)), ("x.PNG", coded(2))]), "two members have the key 'x'"),
    "two images": (
        lambda p: write_tar(p, [*members(), ("00001.jpg", coded(1, "jpeg"))]),
        "two images have the key '00001'",
    ),
    "label of bytes": (
        lambda p: write_tar(p, [sample(1)[0], ("00001.cls", b"\xff\xfe")]),
        "00001.cls is no label",
    ),
    "two lines": (lambda p: write_tar(p, sample(1, "1\n2")), "is no label: one number or class name"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_shard_is_said_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wrong.tar"
    make, line = WRONG[kind]
    make(path)
    with path.open("rb") as file, pytest.raises(ShardError, match=line) as caught:
        read_members(file, str(path), None)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_header_in_the_middle_does_not_end_the_shard(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members())
    with path.open("r+b") as file:
        file.seek(ends(path)[2])
        file.write(b"x" * 512)
    with path.open("rb") as file, pytest.raises(ShardError, match="is damaged after 2 members: no header at byte"):
        read_members(file, str(path), None)


def test_members_may_be_in_any_order_and_keys_are_webdatasets(tmp_path: Path) -> None:
    """All images first and all labels after; two folders with the same base names are two samples."""
    given = [*(one[0] for one in map(sample, range(3))), *(one[1] for one in map(sample, range(3)))]
    given += [
        (f"{folder}/a.{end}", content) for folder in "xy" for end, content in (("PNG", coded(9)), ("cls", b" 2\n"))
    ]
    given += [("x/a.seg.png", b"another member"), ("x/.hidden", b""), ("x/README", b"")]
    with write_tar(tmp_path / "a.tar", given).open("rb") as file:
        found = read_members(file, "a.tar", None)
    assert [(one.image.name, one.label) for one in found] == [
        *((f"{n:05}.png", str(n % 3)) for n in range(3)),
        ("x/a.PNG", "2"),
        ("y/a.PNG", "2"),
    ]
    assert key_of("a/b.c/d.e.f") == ("a/b.c/d", "e.f")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"label": 2}, None),
        ({"label": "cat"}, None),
        ({"other": 2}, "has no field 'label'"),
        ({"label": 2.5}, "must be a number or a class name"),
        ({"label": True}, "must be a number or a class name"),
        ({"label": [1]}, "must be a number or a class name"),
        ([1], "has no field 'label'"),
    ],
)
def test_labels_in_json(tmp_path: Path, content: object, line: str | None) -> None:
    given = [("a.png", coded(1)), ("a.json", json.dumps(content).encode())]
    with write_tar(tmp_path / "a.tar", given).open("rb") as file:
        if line is None:
            assert isinstance(content, dict)
            assert read_members(file, "a.tar", "label")[0].label == str(content["label"])
            return
        with pytest.raises(ShardError, match=line):
            read_members(file, "a.tar", "label")


def test_names_that_leave_the_folder_are_never_written(tmp_path: Path) -> None:
    names = ("../../evil", "/evil", "a/../../evil2")
    members = [(f"{name}.{end}", data) for name in names for end, data in (("png", coded(1)), ("cls", b"0"))]
    other = [one for number in range(4) for one in sample(number)]
    write_tar(tmp_path / "deep" / "set" / "0.tar", [*members, *other])
    write_set(tmp_path / "deep" / "val", [4])
    data = data_of(
        tmp_path / "deep" / "set",
        tmp_path / "deep" / "cache",
        val_shards=str(tmp_path / "deep" / "val"),
        test_fraction=0.0,
    )
    data.setup("fit")
    assert sum(len(batch["index"]) for batch in data.train_dataloader()) == 7
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in written if "evil" in name]
    assert not Path("/evil.png").exists()


def test_labels_out_of_range_and_unknown_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "set" / "0.tar", [*members(), *sample(7, "9")])
    write_set(tmp_path / "val", [3])
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl\n")
    given = {"val_shards": str(tmp_path / "val"), "test_fraction": 0.0, "classes": str(tmp_path / "classes.txt")}
    with pytest.raises(
        MisconfigurationException,
        match=r"0.tar: the label of 00007.png is '9', but must be 0 to 2: there are 3 classes",
    ):
        data_of(tmp_path / "set", tmp_path / "cache", **given).setup("fit")
    write_tar(tmp_path / "set" / "0.tar", [*sample(0, "cat"), *sample(1, "dgo"), *sample(2, "owl")])
    with pytest.raises(MisconfigurationException, match=r"'dgo', but there is no such class \(did you mean 'dog'\?\)"):
        data_of(tmp_path / "set", tmp_path / "cache", **given).setup("fit")


def test_a_shard_that_changes_in_training_is_said(tmp_path: Path) -> None:
    folder, val = write_set(tmp_path / "set", [6, 6]), write_set(tmp_path / "val", [3])
    data = data_of(folder, tmp_path / "cache", val_shards=str(val), test_fraction=0.0, shuffle_shards=1)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    write_set(folder, [6, 7])
    write_set(folder, [7])
    with pytest.raises(ShardError, match=r"has changed since it was indexed \(.*\); restore it to resume"):
        list(batches)
    (folder / "shard-000.tar").unlink()
    (folder / "shard-001.tar").unlink()
    with pytest.raises(ShardError, match="there is no such shard"):
        list(data.train_dataloader())


def test_images_that_cannot_be_decoded_are_left_out_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [("bad.png", coded(3)[:200]), ("bad.cls", b"0"), ("text.png", b"no image"), ("text.cls", b"1")]
    write_tar(tmp_path / "set" / "0.tar", [*members(6), *bad])
    val = write_set(tmp_path / "val", [3])
    given = {"val_shards": str(val), "test_fraction": 0.0}
    data = data_of(tmp_path / "set", tmp_path / "cache", **given)
    with caplog.at_level("WARNING"):
        data.setup("fit")
    assert "2 of the 8 images cannot be read" in caplog.text
    assert "0.tar/bad.png (damaged)" in caplog.text
    assert torch.cat([batch["index"] for batch in data.train_dataloader()]).sort().values.tolist() == list(range(6))
    with pytest.raises(MisconfigurationException, match=r"leave them out with --data\.unreadable skip"):
        data_of(tmp_path / "set", tmp_path / "cache", unreadable="refuse", **given).setup("fit")
