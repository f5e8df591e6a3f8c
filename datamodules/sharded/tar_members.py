"""The samples of one tar, by WebDataset's key rule: a member's key is its path up to the first dot of its base name.

    cats/0001.jpg, cats/0001.cls  -->  key cats/0001: image of the ending jpg, label of the ending cls

The rest of the name is its ending, in lower case. The members of a sample may be anywhere in the tar. Folders, links, names without
an ending, names that begin with a dot and those like `__this__` are no members, and a key without image and label is no sample. A
tar must end with its end mark: one that was cut off between two members would else pass for a smaller one. Names are only compared:
nothing is ever written under them.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import defaultdict
from typing import BinaryIO, NamedTuple, cast

from datamodules.images.formats import EXTENSIONS
from datamodules.sharded.store import ShardError
from foundation.bounded.messages import one_line
from foundation.bounded.stream import BoundedStream
from foundation.bounded.text import parse_json

KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
META = re.compile(r"__[^/]*__($|/)")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
LONGEST_LABEL = 1 << 20  # bytes of a member with a label


class Place(NamedTuple):
    """Where a member lies in a tar.

    Attributes:
        name: Its name.
        offset: Place of its first byte.
        size: Its length in bytes.
    """

    name: str
    offset: int
    size: int


class Member(NamedTuple):
    """A sample of a tar.

    Attributes:
        image: Where its image lies.
        label: Its label as it is written: a number or the name of a class.
    """

    image: Place
    label: str


def key_of(name: str) -> tuple[str, str] | None:
    """Key and ending of a member; None if it belongs to no sample.

    >>> key_of("cats/0001.seg.PNG"), key_of("s_0.5.jpg"), key_of("cats/.hidden"), key_of("README")
    (('cats/0001', 'seg.png'), ('s_0', '5.jpg'), None, None)
    """
    found = KEY.fullmatch(name)
    if found is None or META.match(name):
        return None
    return found[1], found[2].lower()


def read_members(file: BinaryIO, address: str, field: str | None) -> list[Member]:
    """List the samples of a tar.

    Args:
        file: The tar, open.
        address: Its address, for messages.
        field: Field of the member `.json` with the label; None: the label is the member `.cls`.

    Returns:
        The samples in the order of their images.

    Raises:
        ShardError: The tar is cut off or damaged, or is none; a sample has no image, no label, or a member twice.
    """
    samples: dict[str, dict[str, Place]] = defaultdict(dict)
    for place in read_places(file, address):
        if (parts := key_of(place.name)) is None:
            continue
        key, ending = parts
        if ending in samples[key]:
            raise ShardError(
                f"{address}: two members have the key {key!r} and the ending .{ending}; keys must be unique in a shard"
            )
        samples[key][ending] = place
    found = []
    for key, members in samples.items():
        if not any(_is_part(ending, field) for ending in members):
            continue  # a README, a table
        image = _image(key, members, address)
        found.append(Member(image, _label(file, key, members, address, field)))
    if not found:
        raise ShardError(
            f"{address}: has no sample; expected members such as 0001.jpg and 0001.{'json' if field else 'cls'}"
        )
    return sorted(found, key=lambda one: one.image.offset)


def _is_part(ending: str, field: str | None) -> bool:
    """Whether an ending is, after its last dot, that of an image or of a label."""
    last = ending.rpartition(".")[2]
    return f".{last}" in EXTENSIONS or last == ("cls" if field is None else "json")


def read_places(file: BinaryIO, address: str) -> list[Place]:
    """List the regular files of a tar.

    Raises:
        ShardError: The tar is cut off or damaged, or is none.
    """
    file = cast(BinaryIO, BoundedStream(file))
    file.seek(0)
    start = file.read(512)
    if not start:
        raise ShardError(f"{address}: is empty (0 bytes)")
    if kind := next((kind for mark, kind in PACKED.items() if start.startswith(mark)), None):
        raise ShardError(
            f"{address}: is compressed ({kind}), so no sample in it can be reached by its place; unpack it first, and give the .tar"
        )
    file.seek(0)
    places: list[Place] = []
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            for member in tar:
                if member.isreg() and member.sparse is not None:
                    raise ShardError(
                        f"{address}: {member.name} is stored with holes (sparse); write the tar without them"
                    )
                if member.isreg():
                    places.append(Place(member.name, member.offset_data, member.size))
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, RecursionError, LookupError, OverflowError) as error:
        what = "is cut off or damaged" if places else "is no tar, or damaged"
        raise ShardError(
            f"{address}: {what} after {len(places):,} members ({one_line(str(error))[:200]}); fetch it again"
        ) from None
    file.seek(end)
    mark = file.read(512)
    if len(mark) < 512:
        raise ShardError(
            f"{address}: is cut off after {len(places):,} members: it has no end mark; fetch or write it again"
        )
    if mark.strip(b"\0"):
        raise ShardError(
            f"{address}: is damaged after {len(places):,} members: no header at byte {end:,}; fetch it again"
        )
    return places


def _image(key: str, members: dict[str, Place], address: str) -> Place:
    found = [ending for ending in members if f".{ending}" in EXTENSIONS]
    if len(found) == 1:
        return members[found[0]]
    if found:
        raise ShardError(
            f"{address}: two images have the key {key!r}: {members[found[0]].name} and {members[found[1]].name}"
        )
    dotted = [place.name for ending, place in members.items() if f".{ending.rpartition('.')[2]}" in EXTENSIONS]
    hint = ", since a name's ending begins at its first dot; write it without other dots" if dotted else ""
    shown = dotted or sorted(place.name for place in members.values())
    raise ShardError(f"{address}: the sample {key!r} has no image, only {', '.join(shown[:3])}{hint}")


def _label(file: BinaryIO, key: str, members: dict[str, Place], address: str, field: str | None) -> str:
    ending = "cls" if field is None else "json"
    if ending not in members:
        there = ", ".join(f".{one}" for one in sorted(members))
        other = "; is it in a .json? give --data.label_field" if field is None and "json" in members else ""
        raise ShardError(f"{address}: the sample {key!r} has no label: no member .{ending}, only {there}{other}")
    place = members[ending]
    file.seek(place.offset)
    try:
        content = file.read(min(place.size, LONGEST_LABEL))
        label = content.decode().strip() if field is None else _of_json(parse_json(content), field)
    except KeyError:
        raise ShardError(f"{address}: {place.name} has no field {field!r} (--data.label_field)") from None
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{address}: {place.name} is no label: {' '.join(str(error).split())[:100]}") from None
    if not label or "\n" in label:
        raise ShardError(f"{address}: {place.name} is no label: one number or class name is needed, got {label[:40]!r}")
    return label


def _of_json(content: object, field: str) -> str:
    for name in field.split("."):
        if not isinstance(content, dict) or name not in content:
            raise KeyError(field)
        content = content[name]
    if isinstance(content, bool) or not isinstance(content, int | str):
        raise ValueError(f"{field} is {json.dumps(content)[:60]}, but must be a number or a class name")
    return str(content).strip()
