"""Checksums of checkpoints: each cut and each changed byte is found; a damaged last.ckpt gives way to the one before."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation import checkpoint_files
from foundation.checkpoint_files import (
    DamagedFileError,
    check_sums,
    is_sealed,
    keep_before,
    last_or_before,
    read_checkpoint,
    seal,
)


def write(path: Path, step: int = 0, sealed: bool = True) -> Path:
    content: dict[str, Any] = {"state_dict": {f"w{i}": torch.arange(20.0) + i for i in range(4)}, "loops": {}}
    torch.save({**content, "global_step": step}, path)
    if sealed:
        seal(path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("whole") / "last.ckpt").read_bytes()


def test_a_sealed_checkpoint_is_read_as_before(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", 3)
    assert is_sealed(path)
    for content in (read_checkpoint(path), torch.load(path, weights_only=True)):
        assert content["global_step"] == 3
        assert torch.equal(content["state_dict"]["w2"], torch.arange(20.0) + 2)
    older = write(tmp_path / "older.ckpt", 4, sealed=False)  # written before there was a hash
    assert not is_sealed(older)
    assert read_checkpoint(older)["global_step"] == 4


@pytest.mark.parametrize("sixteenth", range(16))
def test_a_checkpoint_that_is_cut_is_named_in_one_line(tmp_path: Path, whole: bytes, sixteenth: int) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(DamagedFileError) as error:
        read_checkpoint(path)
    assert str(error.value) == f"{path}: cannot be read, it is cut short or no checkpoint"


def test_every_changed_byte_is_found(tmp_path: Path, whole: bytes) -> None:
    """Each byte in turn has one bit flipped: data, names, numbers of the tables, padding and the hash itself."""
    path, places = tmp_path / "last.ckpt", set()
    for position in range(0, len(whole), 23):
        checkpoint_files._checked.clear()  # files of one size, written within a tick of the clock
        changed = bytearray(whole)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        with pytest.raises(
            DamagedFileError, match=r"is damaged, .* differs from its checksum|is cut short or no"
        ) as error:
            read_checkpoint(path)
        places.add(str(error.value).removeprefix(f"{path}: "))
    assert {
        f"is damaged, {name} differs from its checksum" for name in ("data.pkl", "data/3", "the table of its parts")
    } <= places


def test_a_tensor_of_an_older_checkpoint_is_compared_too(tmp_path: Path) -> None:
    path = write(tmp_path / "older.ckpt", sealed=False)
    content = path.read_bytes()
    at = content.index((torch.arange(20.0) + 1).numpy().tobytes())
    path.write_bytes(content[: at + 8] + b"\x01" + content[at + 9 :])
    with pytest.raises(DamagedFileError, match="is damaged, data/1 differs"):
        check_sums(path)


def test_a_file_is_compared_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, compare = write(tmp_path / "a.ckpt"), checkpoint_files._damaged_place
    calls = list[int]()

    def counted(content: mmap.mmap) -> str | None:
        calls.append(len(content))
        return compare(content)

    monkeypatch.setattr(checkpoint_files, "_damaged_place", counted)
    read_checkpoint(path)
    read_checkpoint(path)
    assert len(calls) == 1
    path.unlink()
    write(path, 123456)
    assert read_checkpoint(path)["global_step"] == 123456
    assert len(calls) == 2


def test_the_one_before(tmp_path: Path) -> None:
    last = write(tmp_path / "last.ckpt", 1)
    for step in (2, 3):
        keep_before(last)
        keep_before(last)  # killed between the two writes, and started again
        last.unlink()
        write(last, step)
    assert last_or_before(tmp_path) == (last, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "last.ckpt.bak"]
    last.write_bytes(last.read_bytes()[:-100])
    path, note = last_or_before(tmp_path)
    assert path.name == "last.ckpt.bak"
    assert note == (
        f"{last}: cannot be read, it is cut short or no checkpoint; takes the one before, last.ckpt.bak (step 2)"
    )
    last.unlink()
    assert last_or_before(tmp_path)[1] == f"{last}: is missing; takes the one before, last.ckpt.bak (step 2)"


def test_without_the_one_before_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    last = write(tmp_path / "last.ckpt", 9)
    for name, step in (("best", 4), ("epoch=002", 6), ("epoch=003", 8)):
        write(tmp_path / f"{name}.ckpt", step)
    for path in (last, tmp_path / "epoch=003.ckpt"):
        path.write_bytes(path.read_bytes()[:500])
    path, note = last_or_before(tmp_path)
    assert (path.name, str(note).endswith("takes the one before, epoch=002.ckpt (step 6)")) == ("epoch=002.ckpt", True)
    for other in tmp_path.glob("[be]*.ckpt"):
        other.unlink()
    assert last_or_before(tmp_path) == (last, None)  # the caller says what is wrong with it
