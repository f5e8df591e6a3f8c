"""Checkpoint files: a checksum of every byte, and the copy before the last one, which a resume takes if the last is damaged.

    seal(path)                    right after torch.save, before the file gets its name
    keep_before(path)             last.ckpt.bak is the last.ckpt that is about to be replaced
    read_checkpoint(path)         torch.load of a file whose checksums are right
    last_or_before(folder)        last.ckpt, or the newest whole checkpoint before it and a line that says so

``torch.save`` writes a zip archive with a CRC-32 of each tensor, which ``torch.load`` does not check. So only the bytes between
the tensors (headers with the CRC-32s, names, padding) need a hash of our own: it is the comment at the end of the archive. It costs
no second pass over the tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

BACKUP = ".bak"
"""Ending of the copy of last.ckpt before the last one."""
UNREADABLE = (
    *(RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, struct.error, zipfile.BadZipFile),
)
"""What torch.load raises for truncated files and files that torch did not write."""
MARK = b"lvr1 "
SEAL_BYTES = len(MARK) + 32
HEADER, ENTRY, END = (
    30,
    46,
    22,
)  # bytes of a zip archive: a member's header and entry of the table before its name, the end
MOST = 0xFFFFFFFF
MOST_OBJECTS = 256 << 20  # bytes of a checkpoint without its tensors
PART = 1 << 22  # bytes that are read at a time

_checked: set[tuple[str, int, int, int]] = set()


class DamagedFileError(ValueError):
    """A checkpoint was cut short or changed after it was written; the message is one line with its path."""


class _Member(NamedTuple):
    name: bytes
    begin: int
    size: int
    crc: int


def seal(path: Path) -> None:
    """Append the hash of everything but the tensors to a file of ``torch.save``; read_checkpoint compares it.

    Args:
        path: A file without an archive comment.
    """
    with path.open("rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack("<H", SEAL_BYTES))  # part of what is hashed
        end = file.tell()
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            sealed = MARK + _hash(content, _members(content), end).encode()
        file.write(sealed)


def check_sums(path: Path) -> None:
    """Compare a checkpoint with its checksums; once for each file in a process.

    A checkpoint of an older version has only those of its tensors.

    Raises:
        DamagedFileError: A byte differs, or the file is cut short.
        OSError: The file cannot be opened or read.
    """
    status = path.stat()
    key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns)
    if key in _checked:
        return
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                place = _damaged_place(content)
        except (ValueError, OverflowError, struct.error):  # an empty file is a ValueError
            raise DamagedFileError(f"{path}: cannot be read, it is cut short or no checkpoint") from None
    if place is not None:
        raise DamagedFileError(f"{path}: is damaged, {place} differs from its checksum")
    _checked.add(key)


def is_sealed(path: Path) -> bool:
    """Whether a file ends with a hash of ours, so that it is a checkpoint of a run and not a file from elsewhere."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_BYTES))
        return file.read(len(MARK)) == MARK


def _members(content: mmap.mmap) -> list[_Member]:
    """The members of an archive in the order of the file: name, first byte, bytes and CRC-32 of the content.

    Raises:
        ValueError, struct.error: The table of members is damaged or missing.
    """
    end = content.rfind(b"PK\5\6", max(0, len(content) - END - SEAL_BYTES))
    if end < 0:
        raise ValueError("no end of an archive")
    count, position = struct.unpack_from("<10xH4xI", content, end)
    if content[end - 20 : end - 16] == b"PK\6\7":
        (big,) = struct.unpack_from("<8xQ", content, end - 20)
        count, position = struct.unpack_from("<32xQ8xQ", content, big)
    found = []
    for _ in range(count):
        mark, crc, size, full, name, extra, comment, begin = struct.unpack_from("<4s12xIIIHHH8xI", content, position)
        if mark != b"PK\1\2":
            raise ValueError("no entry of a table")
        after = position + ENTRY + name
        if MOST in (size, full, begin):  # 8-byte numbers for files of 4 GB or more, only of those that need them
            place = after + 4
            numbers = []
            for number in (full, size, begin):
                numbers.append(struct.unpack_from("<Q", content, place)[0] if number == MOST else number)
                place += 8 * (number == MOST)
            full, size, begin = numbers
        skipped = sum(struct.unpack_from("<26xHH", content, begin))
        found.append(_Member(content[position + ENTRY : after], begin + HEADER + skipped, size, crc))
        position = after + extra + comment
    found.sort(key=lambda member: member.begin)
    ends = [0, *(member.begin + member.size for member in found)]
    if any(member.begin < before for member, before in zip(found, ends, strict=False)) or ends[-1] > end:
        raise ValueError("its members do not follow each other within the file")
    return found


def _hash(content: mmap.mmap, members: list[_Member], end: int) -> str:
    """Hash of all bytes before `end` that are not the content of a member."""
    digest, position = hashlib.blake2b(digest_size=16), 0
    for member in members:
        digest.update(content[position : member.begin])
        position = member.begin + member.size
    digest.update(content[position:end])
    return digest.hexdigest()


def _damaged_place(content: mmap.mmap) -> str | None:
    """The part of a checkpoint that differs from its checksum; None if there is none."""
    members, end = _members(content), len(content) - SEAL_BYTES
    older = content[-END : 4 - END] == b"PK\5\6"  # a file of an older version has no comment
    if not older and content[end:] != MARK + _hash(content, members, end).encode():
        return "the table of its parts"
    for name, begin, size, crc in members:
        now = 0
        for place in range(begin, begin + size, PART):
            now = zlib.crc32(content[place : min(place + PART, begin + size)], now)
        if now != crc:
            return name.decode(errors="replace").partition("/")[2]
    return None


def read_checkpoint(path: Path) -> Any:
    """Load a checkpoint to the CPU, without running code from the file; tensors are mapped, not read twice.

    Raises:
        DamagedFileError: It is damaged, or no file of ``torch.save``.
        FileNotFoundError: There is no such file.
    """
    check_sums(path)
    try:
        check_pickle(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # no fault of the file's content
            raise
        raise DamagedFileError(f"{path}: cannot be read, it is cut short or no checkpoint") from error


def check_pickle(path: Path) -> None:
    """Refuse a file of ``torch.save`` that is not as torch.save writes it.

    Raises:
        ValueError: Its objects are larger than `MOST_OBJECTS`, its table gives them two sizes, or one of them is made by a call
            that is not expected.
        zipfile.BadZipFile: The archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, which torch.save does not do")
            if member.filename.endswith("/data.pkl"):
                if member.file_size > MOST_OBJECTS:
                    raise ValueError(f"it describes its objects in {member.file_size:,} bytes")
                if member.compress_size != member.file_size:  # zipfile would take memory for either
                    raise ValueError("its table of contents is damaged")
                if b"bytearray" in archive.read(member):
                    raise ValueError("it makes an object by a call that is not expected")


def keep_before(path: Path) -> None:
    """Keep a checkpoint that is about to be replaced as ``NAME.bak``, in place of the one kept before.

    It is a second name of the same file, so nothing is copied. Where the file system has no such names, nothing is kept.
    """
    before = path.with_name(path.name + BACKUP)
    temporary = before.with_name(f".{before.name}.tmp")
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(before)
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)  # two names of one file: to replace one by the other does nothing


def why_damaged(path: Path) -> str | None:
    """Why a checkpoint cannot be used, in one line; None if it is whole."""
    try:
        read_checkpoint(path)
    except (DamagedFileError, FileNotFoundError) as error:
        return str(error)
    return None


def last_or_before(folder: Path) -> tuple[Path, str | None]:
    """The last checkpoint of a run; if it is damaged, the one before it.

    Args:
        folder: Folder of the checkpoints.

    Returns:
        The file, and a line that says why it is not last.ckpt (None if it is). Without any whole checkpoint it is last.ckpt, which
        the caller cannot read.
    """
    last = folder / "last.ckpt"
    before = last.with_name(last.name + BACKUP)
    if not last.is_file() and not before.is_file():
        return last, None
    if (reason := why_damaged(last) if last.is_file() else f"{last}: is missing") is None:
        return last, None
    others = [(_step_of(path), path) for path in folder.glob("*.ckpt") if path != last]
    newest = [path for step, path in sorted(others, reverse=True) if step >= 0]
    for path in (before, *newest):
        if path.is_file() and (step := _step_of(path)) >= 0:
            return path, f"{reason}; takes the one before, {path.name} (step {step})"
    return last, None


def _step_of(path: Path) -> int:
    """Optimiser step of a checkpoint; -1 if it is damaged or no checkpoint of a training run."""
    try:
        content = read_checkpoint(path)
        return int(content["global_step"]) if {"state_dict", "loops"} <= content.keys() else -1
    except (DamagedFileError, OSError, KeyError, TypeError, AttributeError):
        return -1
