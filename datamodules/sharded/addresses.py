"""Turns shard settings into addresses: a folder, a pattern, braces, a list of these, on a disk or in a store.

shards/                             every *.tar in the folder, sorted
shards/train-*.tar                  a pattern
shards/train-{000..146}.tar         WebDataset's braces: numbers keep their leading zeros; {a,b} are alternatives
s3://bucket/shards/train-*.tar      any protocol of fsspec; over http only braces, as a web server lists nothing
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from datamodules.images.class_folders import listed
from datamodules.sharded.store import ShardError, asked, file_system, is_remote, local_path, within
from foundation.suggestions import nearest

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def with_braces(text: str) -> list[str]:
    """Expand braces.

    >>> with_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> with_braces("{x,y}/{0..1}")
    ['x/0', 'x/1', 'y/0', 'y/1']
    """
    parts = BRACES.split(text)  # text, content of braces, text, ...
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(one) for one in product(*choices)]


def _choices(content: str) -> list[str]:
    if found := RANGE.fullmatch(content):
        first, last = found.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        step = 1 if int(first) <= int(last) else -1
        return [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    return content.split(",") if "," in content else [f"{{{content}}}"]


def find_shards(setting: str, given: str | Sequence[str], patience_s: float) -> list[str]:
    """List the addresses of shards.

    Args:
        setting: Name of the setting, for messages.
        given: Its value; see the module.
        patience_s: Seconds after which a store without an answer is given up.

    Returns:
        Paths and URLs, in the order in which they are given; those of a folder or a pattern are sorted.

    Raises:
        ShardError: There is no shard, one is given twice, or one is compressed.
    """
    found: list[str] = []
    for one in [given] if isinstance(given, str) else given:
        if not one.strip():
            raise ShardError(f"--data.{setting}: a folder, a file, a pattern or a URL is needed, got an empty value")
        plain = not is_remote(one) and local_path(one).exists()
        for text in [one] if plain else with_braces(one):
            found += _matching(setting, text, patience_s)
    if not found:
        raise ShardError(f"--data.{setting}: no shard is given; expected a folder of .tar files, a pattern or a URL")
    if twice := sorted({one for one in found if found.count(one) > 1} if len(set(found)) < len(found) else ()):
        raise ShardError(f"--data.{setting}: given twice: {listed(twice)}")
    if packed := [one for one in found if one.endswith(COMPRESSED)]:
        raise ShardError(
            f"--data.{setting}: {packed[0]} is compressed, so no sample in it can be reached by its place; unpack it first (gunzip "
            "FILE.tar.gz) and give the .tar. Images are compressed already: a .tar is hardly larger"
        )
    return found


def _matching(setting: str, text: str, patience_s: float) -> list[str]:
    if is_remote(text):
        return _in_store(setting, text, patience_s)
    path = local_path(text)
    if path.is_dir():
        return _of_folder(setting, text, sorted(str(one) for one in path.iterdir() if one.is_file()))
    if path.exists():
        return [text.removeprefix("file://")]
    if not glob.has_magic(text):
        raise ShardError(f"--data.{setting} {text}: does not exist{nearest(path.name, _names(path.parent))}")
    names = sorted(glob.glob(str(path), recursive=True))
    if not names:
        raise ShardError(f"--data.{setting} {text}: no file has such a name")
    return names


def _names(folder: Path) -> list[str]:
    return [one.name for one in folder.iterdir()] if folder.is_dir() else []


def _in_store(setting: str, text: str, patience_s: float) -> list[str]:
    protocol = text.partition("://")[0]
    pattern = glob.has_magic(text)
    if not pattern and not text.endswith("/") and Path(text).suffix:
        return [text]
    if protocol in ("http", "https"):
        example = f"{text.rpartition('/')[0]}/shard-{{000..099}}.tar"
        raise ShardError(f"--data.{setting} {text}: a web server lists no files; name the shards, as in {example}")

    def ask() -> list[str]:
        system, path = file_system(text)
        try:
            limit = within(system, patience_s)
            names = system.glob(path, **limit) if pattern else system.ls(path.rstrip("/"), detail=False, **limit)
        except FileNotFoundError:
            raise ShardError(f"--data.{setting} {text}: there is no such folder in the store") from None
        return sorted(system.unstrip_protocol(name) for name in names)

    names = asked(text, ask, patience_s)
    if pattern and not names:
        raise ShardError(f"--data.{setting} {text}: no file has such a name")
    return names if pattern else _of_folder(setting, text, names)


def _of_folder(setting: str, folder: str, names: list[str]) -> list[str]:
    found = [name for name in names if name.endswith(".tar")]
    if not found:
        packed = [name for name in names if name.endswith(COMPRESSED)]
        hint = (
            f"; {len(packed):,} are compressed, such as {Path(packed[0]).name}: unpack them first (gunzip FILE.tar.gz)"
            if packed
            else ""
        )
        below = not is_remote(folder) and sorted(one.parent.name for one in local_path(folder).glob("*/*.tar"))
        hint += f"; there are some in {listed(sorted(set(below)))} below it" if below else ""
        raise ShardError(f"--data.{setting} {folder}: there is no .tar file in it{hint}")
    return found
