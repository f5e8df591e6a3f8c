"""What a canvas cache refuses, in one line each: other files, settings and versions, damage, a full disk, no right to write."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import ImageFolderDataModule
from datamodules.images.canvases import CanvasCache, CanvasError, header, writer
from features.identity import json_hash
from tests.datamodules.canvas_sets import content, opened
from tests.datamodules.pictures import write_class


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_class(root, 17)
    return root


def test_the_one_thing_that_differs_is_named(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = shutil.copytree(pictures, tmp_path / "in"), tmp_path / "cache"
    opened(root, cache)
    moved = root.rename(tmp_path / "moved")
    opened(moved, cache)  # another place is no other data
    for settings, told in (
        ({"channels": 1}, "channels is 3 in the canvas cache, but 1 here"),
        ({"size": 17}, "size is 16 in the canvas cache, but 17 here"),
        ({"share": 0.5}, 'kind is "squeezed" in the canvas cache, but "central" here'),
    ):
        with pytest.raises(CanvasError, match=told):
            opened(moved, cache, **settings)
    opened(moved, tmp_path / "central", share=0.5)
    with pytest.raises(
        CanvasError, match=r"central: share is 0.5 in the canvas cache, but 0.75 here; delete this folder"
    ):
        opened(moved, tmp_path / "central", share=0.75)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.__version__", "1.2.3")
        with pytest.raises(CanvasError, match=r"cache: versions.pillow is \S+ in the canvas cache, but \"1.2.3\" here"):
            opened(moved, cache)
    (moved / "017.png").write_bytes(b"longer than before")
    (moved / "003.png").unlink()
    with pytest.raises(CanvasError, match=r"data is .*1 file added, 1 removed, the first is '003.png' \(removed\)\)"):
        opened(moved, cache)


def test_another_split_is_told_from_other_files(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"123")
    before, now = {"a.png": 1, "b.png": 3}, {"a.png": 1, "c.png": 3}
    told = header._other_split(before, now, tmp_path)
    assert told.startswith(
        "another split of the same data: 1 of its 2 files are in another part now, such as 'b.png'; --data.sets"
    )
    for other in ({"b.png": 4}, {"d.png": 1}):  # another size, and not there
        assert header._other_split(before | other, now, tmp_path) == ""
    assert header._other_split(before, now | {"a.png": 2}, tmp_path) == ""


def test_an_unfinished_set_refuses_too(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opened(pictures, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files.jsonl", "unfinished.json"]
    with pytest.raises(CanvasError, match="channels is 3 in the canvas cache, but 1 here"):
        opened(pictures, tmp_path, channels=1)


def test_damage_is_refused_and_mended_by_deleting(pictures: Path, tmp_path: Path) -> None:
    opened(pictures, tmp_path)
    whole, shard = content(tmp_path), tmp_path / "canvases-00002.safetensors"
    data = whole[shard.name]
    shard.write_bytes(data[:-7])
    with pytest.raises(
        CanvasError, match=rf"is {len(data) - 7:,} bytes long, but should be {len(data):,}: the shard is"
    ):
        opened(pictures, tmp_path)
    place = len(data) - 2 * 16 * 16 * 3
    shard.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    opened(pictures, tmp_path)
    with pytest.raises(
        CanvasError, match=r"00002.safetensors: its checksum is wrong: the shard is damaged; delete it and"
    ):
        opened(pictures, tmp_path, verify=True)
    shard.unlink()
    opened(pictures, tmp_path, verify=True)  # written again
    assert content(tmp_path) == whole
    shutil.copy(tmp_path / "canvases-00001.safetensors", shard)
    with pytest.raises(CanvasError, match="is a shard of other canvases"):
        opened(pictures, tmp_path)
    shard.write_bytes(data)
    (tmp_path / header.HEADER).write_bytes(whole["header.json"].replace(b'"rows": 5', b'"rows": 6'))
    with pytest.raises(CanvasError, match=r"header.json: the header is damaged; delete the folder"):
        opened(pictures, tmp_path)


def test_another_version_of_the_format(pictures: Path, tmp_path: Path) -> None:
    opened(pictures, tmp_path)
    text = json.loads((tmp_path / header.HEADER).read_text()) | {"schema": 2}
    del text["checksum"]
    (tmp_path / header.HEADER).write_text(json.dumps(text | {"checksum": json_hash(text)}))
    with pytest.raises(CanvasError, match=r"header.json: version 2 of the format, but 1 here; delete the folder"):
        opened(pictures, tmp_path)


def test_an_image_that_changed_without_changing_its_size(pictures: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pictures, tmp_path / "in")
    opened(root, tmp_path / "cache")
    data = bytearray((root / "001.png").read_bytes())
    Image.new("RGB", (5, 5), "red").save(root / "001.png")
    small = (root / "001.png").read_bytes()
    (root / "001.png").write_bytes(small + b"\0" * (len(data) - len(small)))
    opened(root, tmp_path / "cache")  # names and sizes are the same: not noticed
    (tmp_path / "cache" / "canvases-00000.safetensors").unlink()
    with pytest.raises(CanvasError, match="written again, it has other pixels than before: image files have changed"):
        opened(root, tmp_path / "cache")
    assert not (tmp_path / "cache" / "canvases-00000.safetensors").exists()


def test_a_full_disk(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12_000))
        with pytest.raises(
            CanvasError, match=r"17 canvases of 16 x 16 x 3 need 0.0 MB, but 0.0 MB is free on the disk"
        ):
            opened(pictures, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with monkeypatch.context() as patch:  # filled by others meanwhile
        write, count = Path.write_bytes, 0

        def full(path: Path, data: bytes) -> int:
            nonlocal count
            count += 1
            if count == 4:
                raise OSError(28, "No space left on device")
            return write(path, data)

        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CanvasError, match=r"00001.safetensors: cannot be written \(No space left on device\)"):
            opened(pictures, tmp_path / "cache")
    assert torch.equal(opened(pictures, tmp_path / "cache").images, opened(pictures, tmp_path / "other").images)


def test_a_folder_that_cannot_be_written(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CanvasError, match=r"canvas_cache .*file: set cannot be written there \(Not a directory\); give a"
    ):
        opened(pictures, tmp_path / "file" / "set")
    opened(pictures, tmp_path / "cache")
    refused = PermissionError(13, "Permission denied")
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(refused))
    opened(pictures, tmp_path / "cache")  # a finished set may be read-only
    with pytest.raises(CanvasError, match=r"canvas_cache .*: other cannot be written there \(Permission denied\)"):
        opened(pictures, tmp_path / "other")


@pytest.mark.parametrize("place", ["", "in", "in/cache"])
def test_a_cache_among_the_images_would_be_a_class(tmp_path: Path, place: str) -> None:
    given = str(tmp_path / place) if place else ""
    with pytest.raises(ValueError, match=r"canvas_cache is '.*' but must be a folder outside of the images in"):
        CanvasCache(given, False, tmp_path / "in")
    CanvasCache(str(tmp_path / "in" / ".cache"), False, tmp_path / "in")


def test_verifying_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="verify_canvases is True but must be false without canvas_cache"):
        ImageFolderDataModule(root=str(tmp_path), verify_canvases=True)
