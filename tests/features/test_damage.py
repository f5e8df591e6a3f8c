"""Damaged feature caches: reading either raises a CacheError that names the file, or returns correct data."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from features import CachedSplit, CacheError, CacheWriter, read_header
from features.identity import json_hash
from tests.features.caches import WIDTH, by_index, identity, samples, sizes_for, write

DATA = samples(10)
SHARD = "train-r000-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undamaged cache; tests must not write to it."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    write(folder, identity(), {"train": DATA})
    return folder


@pytest.fixture
def cache(whole: Path, tmp_path: Path) -> Path:
    """A writable copy of the undamaged cache."""
    return Path(shutil.copytree(whole, tmp_path / "cache"))


def damage(data: bytes, draw: random.Random) -> bytes:
    """Damages a file in one of several random ways."""
    place, other = sorted(draw.sample(range(len(data)), 2))
    noise = draw.randbytes(draw.randrange(1, 30))
    flipped = bytes([data[place] ^ draw.randrange(1, 256)])
    actions: list[Callable[[], bytes]] = [
        lambda: data[:place] + flipped + data[place + 1 :],
        lambda: data[:place] + flipped + data[place + 1 :],
        lambda: data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :],
        lambda: data[:place],
        lambda: data + noise,
        lambda: data[:place] + noise + data[place:],
        lambda: data[:place] + noise + data[place + len(noise) :],
        lambda: data[:place] + data[other:],
        lambda: data[:place] + bytes(other - place) + data[other:],
        lambda: bytes([draw.randrange(256)]) + data[1:],  # the length field of the safetensors header
    ]
    return draw.choice(actions)()


def outcome(folder: Path, read: Callable[[], object]) -> str:
    """The error message of the cache, or nothing if the data is correct; any other exception fails the test."""
    try:
        read()
    except CacheError as error:
        message = str(error)
        assert message.startswith(str(folder))
        assert "\n" not in message
        assert len(message) < len(str(folder)) + 400
        return message
    return ""


def read_and_compare(folder: Path) -> None:
    header = read_header(folder)
    assert header.identity == identity()
    read, right = CachedSplit(folder, header, "train"), by_index(DATA)
    assert torch.equal(read.whole(), right["features"])
    assert torch.equal(read.label, right["label"])
    assert torch.equal(read.index, right["index"])


@pytest.mark.parametrize("count", [220, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["header.json", SHARD])
def test_damaged_files_are_refused_or_read_rightly(cache: Path, name: str, count: int) -> None:
    draw, good = random.Random(count), (cache / name).read_bytes()
    messages = []
    for _ in range(count):
        (cache / name).unlink()  # existing mappings still refer to the old file
        (cache / name).write_bytes(damage(good, draw))
        messages.append(outcome(cache, lambda: read_and_compare(cache)))
    assert sum(map(bool, messages)) > 0.95 * count
    assert len({message.removeprefix(str(cache))[:40] for message in messages}) > 1  # several checks were reached


@pytest.mark.every(2)
@pytest.mark.parametrize("name", ["unfinished.json", SHARD])
def test_writer_goes_on_or_names_the_damaged_file(tmp_path: Path, name: str) -> None:
    draw = random.Random(0)
    cache, copy = tmp_path / "cache", tmp_path / "copy"
    writer = CacheWriter(cache, identity(), shard_bytes=sizes_for(4, identity()))
    writer.append("train", **DATA)
    good = (cache / name).read_bytes()

    opened: list[int] = []

    def go_on() -> None:
        writer = CacheWriter(copy, identity())
        opened.append(1)
        writer.append("train", **DATA)
        writer.finish({"train": 10})
        read_and_compare(copy)

    messages = []
    for _ in range(120):
        shutil.copytree(cache, copy)
        (copy / name).write_bytes(damage(good, draw))
        messages.append(outcome(copy, go_on))
        shutil.rmtree(copy)
    assert sum(map(bool, messages)) > 0.8 * len(messages)
    assert sum(opened) == messages.count("")  # rejected at once or not at all


@pytest.mark.parametrize("count", [120, pytest.param(3_000, marks=pytest.mark.slow)])
def test_without_checksums_damage_is_refused_or_only_in_the_features(cache: Path, count: int) -> None:
    draw, good = random.Random(count), (cache / SHARD).read_bytes()

    def read() -> None:
        rows = CachedSplit(cache, read_header(cache), "train", verify=False).whole()
        assert rows.shape == (10, WIDTH)

    for _ in range(count):
        (cache / SHARD).unlink()
        (cache / SHARD).write_bytes(damage(good, draw))
        outcome(cache, read)


def forged(cache: Path, change: Callable[[Any], object]) -> None:
    """Change the header and repair its checksum."""
    content = json.loads((cache / "header.json").read_text())
    del content["checksum"]
    change(content)
    (cache / "header.json").write_text(json.dumps(content | {"checksum": json_hash(content)}))


def shard(content: Any, **changes: Any) -> None:
    content["splits"]["train"]["shards"][1].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=2), "header.json: newer version 2 of the format; this reader knows 1"),
        (lambda c: c.update(schema=0), "header.json: version 0 of the format; this reader knows 1"),
        (lambda c: c.update(schema=True), "header.json: not the header of a feature cache, or damaged"),
        (lambda c: c.pop("pooling"), "header.json: it must hold backbone, weights_hash, .*, views"),
        (lambda c: c.update(views=0), "header.json: views is 0 but must be 1 or more"),
        (lambda c: c.update(mean=[1, 2, 3]), r"header.json: mean is \[1, 2, 3\] but must be"),
        (lambda c: c.update(dtype=["float32"]), r"header.json: dtype is \[\"float32\"\] but must be"),
        (lambda c: c.update(splits={}), "header.json: splits must be some of train, val and test"),
        (lambda c: c.update(splits={"all": 1}), "header.json: splits must be some of train, val and test"),
        (lambda c: c["splits"].update(train=[]), "header.json: splits.train: it must hold count, class_counts, shards"),
        (
            lambda c: c["splits"]["train"].update(count=9),
            "header.json: splits.train: count is 9, but its shards hold 10",
        ),
        (
            lambda c: c["splits"]["train"].update(class_counts=[10, 0, 0]),
            ": the labels of train do not match the class counts",
        ),
        (lambda c: c["splits"]["train"].update(class_counts=[10, 0]), "class_counts one for each class"),
        (lambda c: c["splits"]["train"]["shards"].append(1), "splits.train.shards: it must hold file, count, bytes"),
        (lambda c: shard(c, file="../x.safetensors"), 'splits.train.shards: "../x.safetensors" is no name of a shard'),
        (lambda c: shard(c, file="val-r000-00000.safetensors"), "is no name of a shard of train"),
        (lambda c: shard(c, file="train-r000-00000.safetensors"), "a shard is listed twice"),
        (lambda c: shard(c, count=0), f"{SHARD} must have a count and bytes, 1 or more"),
        (lambda c: shard(c, bytes=500), rf"{SHARD}: is \d+ bytes long, but should be 500: cut off or not copied"),
        (
            lambda c: shard(c, checksum="0" * 64),
            f"{SHARD}: its checksum is wrong: the shard is damaged; delete it and run",
        ),
        (lambda c: c.update(backbone="other"), "train-r000-00000.safetensors: is a shard of another cache"),
    ],
)
def test_forged_headers_are_refused_by_what_is_wrong(
    cache: Path, change: Callable[[Any], object], message: str
) -> None:
    forged(cache, change)
    with pytest.raises(CacheError, match=message) as caught:
        CachedSplit(cache, read_header(cache), "train")
    assert "\n" not in str(caught.value)


def test_damage_is_named(cache: Path) -> None:
    good = (cache / SHARD).read_bytes()
    for data, message in (
        (
            good[:-5],
            rf"{SHARD}: is {len(good) - 5} bytes long, but should be {len(good)}: cut off or not copied whole; delete it",
        ),
        (
            good[:-1] + bytes([good[-1] ^ 1]),
            f"{SHARD}: its checksum is wrong: the shard is damaged; delete it and run the",
        ),
        (
            b"\xff" * len(good),
            f"{SHARD}: cannot be read as safetensors: the shard is damaged; delete it and run the same",
        ),
    ):
        (cache / SHARD).write_bytes(data)
        with pytest.raises(CacheError, match=message):
            read_and_compare(cache)
    (cache / SHARD).unlink()
    with pytest.raises(
        CacheError, match=f"{SHARD}: the shard is missing; run the same extraction again, it writes what"
    ):
        read_and_compare(cache)
    for content, message in (
        (b"{", "header.json: not JSON in UTF-8: the file is damaged"),
        (b"\xff{}", "header.json: not JSON in UTF-8"),
        (b"[" * 100_000, "header.json: not JSON in UTF-8"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "header.json: not"),
        (b"[]", "header.json: not the header of a feature cache, or damaged"),
        (b'{"schema": 1}', "header.json: its checksum is wrong: the file is damaged"),
    ):
        (cache / "header.json").write_bytes(content)
        with pytest.raises(CacheError, match=message):
            read_and_compare(cache)
    (cache / "header.json").unlink()
    with pytest.raises(CacheError, match=f"^{cache}: there is no feature cache, as header.json is not there"):
        read_and_compare(cache)


def test_shard_of_another_cache_and_shards_of_none_are_refused(cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", identity(pooling="avg"), {"train": samples(10)})
    shutil.copy(tmp_path / "other" / SHARD, cache / SHARD)
    with pytest.raises(CacheError, match=f"{SHARD}: is a shard of another cache or of another split; remove it, then"):
        read_and_compare(cache)
    (cache / "header.json").unlink()
    with pytest.raises(CacheError, match=r"holds shards but no unfinished\.json; give an empty folder"):
        CacheWriter(cache, identity())
    with pytest.raises(CacheError, match=rf"{SHARD}/x: cannot be made \(Not a directory\)"):
        CacheWriter(cache / SHARD / "x", identity())


def test_header_that_is_spelled_otherwise_is_the_same(cache: Path) -> None:
    content = json.loads((cache / "header.json").read_text())
    (cache / "header.json").write_text(json.dumps(dict(reversed(content.items()))))
    read_and_compare(cache)
