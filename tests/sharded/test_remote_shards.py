"""Tests remote shards: a store in memory and a real S3 server on the loopback; the cache and its limit; servers that vanish."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.sharded import store
from datamodules.sharded.cache import ShardCache
from datamodules.sharded.store import ShardError, Version, asked, version_of
from tests.sharded.conftest import Bucket
from tests.sharded.shard_sets import data_of, write_set


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    """Ten shards of 5 samples in a store in memory, and the URL of their folder."""
    folder = write_set(tmp_path / "local", [5] * 10)
    system = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        system.pipe(f"/set/{path.name}", path.read_bytes())
    yield "memory://set"
    system.rm("/set", recursive=True)


def served(data: Any) -> list[int]:
    return [index for batch in data.train_dataloader() for index in batch["index"].tolist()]


def used(cache: Path) -> int:
    """Bytes in the cache, while no process may make room; a copy that is finished just now counts once."""
    sizes = {}
    with (cache / "shards" / ".space").open("ab") as space:
        fcntl.flock(space, fcntl.LOCK_EX)
        for path in (path for kind in ("*.part", "*.tar") for path in (cache / "shards").glob(kind)):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.stem] = path.stat().st_size
    return sum(sizes.values())


def test_a_remote_set_is_the_local_one(memory: str, tmp_path: Path) -> None:
    batches = []
    for shards in (memory, tmp_path / "local"):
        data = data_of(shards, tmp_path / "cache", shuffle_shards=3)
        data.setup("fit")
        batches.append([*data.train_dataloader(), *data.val_dataloader()])
    for one, other in zip(*batches, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_cache_never_holds_more_than_its_limit(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of 20,480 bytes, read in blocks of 2, fit a cache of 3: each is fetched once for the index and once an epoch."""
    fetched: list[str] = []
    largest = 0
    download = store.download

    def counted(address: str, version: Version, target: Any, patience_s: float) -> None:
        nonlocal largest
        fetched.append(address)
        download(address, version, target, patience_s)
        largest = max(largest, used(tmp_path / "cache"))

    monkeypatch.setattr("datamodules.sharded.cache.download", counted)
    data = data_of(memory, tmp_path / "cache", shuffle_shards=2, cache_limit_gb=3 * 20480e-9)
    data.setup("fit")
    assert len(fetched) == 9  # of train and val
    fetched.clear()
    assert len(served(data)) == 40
    assert len(set(fetched)) == len(fetched) >= 5
    assert 0 < largest <= 3 * 20480
    with pytest.raises(
        MisconfigurationException, match=r"--data\.shuffle_shards 4 shards of this set take up to 8.19e-05"
    ):
        data_of(memory, tmp_path / "cache", shuffle_shards=4, cache_limit_gb=3 * 20480e-9).setup("fit")
    with pytest.raises(ShardError, match=r"has 20,480 bytes, more than --data\.cache_limit_gb 1e-05"):
        data_of(memory, tmp_path / "new", cache_limit_gb=1e-5).setup("fit")


def _read_many(folder: str, limit: int, seed: int, problems: Any) -> None:
    """Read shards of a fake store in a random order, and check their content."""
    cache = ShardCache(Path(folder), limit, 1.0)

    def fake(address: str, version: Version, target: Any, patience_s: float) -> None:
        target.seek(0)
        target.write(bytes([int(address[-1])]) * version.size)
        target.flush()

    pytest.MonkeyPatch().setattr("datamodules.sharded.cache.download", fake)
    generator = torch.Generator().manual_seed(seed)
    try:
        for number in torch.randint(0, 8, (150,), generator=generator).tolist():
            with cache.open(f"s3://fake/{number}", Version(1000 + number, "tag")) as file:
                file.seek(0)
                content = file.read()
                if content != bytes([number]) * (1000 + number):
                    problems.put(f"{number}: {len(content)} bytes")
            if (size := used(Path(folder))) > limit:
                problems.put(f"{size} bytes")
    except BaseException as error:
        problems.put(repr(error))
        raise


def test_processes_share_a_cache_that_is_smaller_than_the_set(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    problems = context.SimpleQueue()
    arguments = [(str(tmp_path), 3100, seed, problems) for seed in range(3)]
    processes = [context.Process(target=_read_many, args=one) for one in arguments]
    for one in processes:
        one.start()
    for one in processes:
        one.join(60)
    assert problems.empty(), problems.get()
    assert [one.exitcode for one in processes] == [0, 0, 0]


def test_what_a_killed_process_left_is_removed(memory: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    (folder / "dead.part").write_bytes(bytes(60000))
    data = data_of(memory, tmp_path / "cache", shuffle_shards=2, cache_limit_gb=3 * 20480e-9)
    data.setup("fit")
    assert not (folder / "dead.part").exists()
    assert used(tmp_path / "cache") <= 3 * 20480


def test_two_sets_with_equal_base_names_do_not_share_a_copy(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for part, first in (("train", 0), ("val", 100)):
        (path,) = write_set(tmp_path / part, [4], first).glob("*.tar")
        system.pipe(f"/two/{part}/shard-000.tar", path.read_bytes())
    data = data_of("memory://two/train", tmp_path / "cache", val_shards="memory://two/val", test_fraction=0.0)
    data.setup("fit")
    assert not set(data.sample_keys("train").tolist()) & set(data.sample_keys("val").tolist())
    system.rm("/two", recursive=True)


def test_a_shard_that_was_replaced_is_refused(memory: str, tmp_path: Path) -> None:
    data = data_of(memory, tmp_path / "cache", shuffle_shards=2, cache_limit_gb=3 * 20480e-9)
    data.setup("fit")
    system = fsspec.filesystem("memory")
    for path in write_set(tmp_path / "other", [5] * 10, first=50).glob("*.tar"):
        system.pipe(f"/set/{path.name}", path.read_bytes())
    with pytest.raises(ShardError, match="has changed since it was indexed"):
        served(data)


def asked_again(fails: int, error: Exception, patience_s: float) -> tuple[int, float]:
    calls = 0

    def ask() -> int:
        nonlocal calls
        calls += 1
        if calls <= fails:
            raise error
        return calls

    begun = time.monotonic()
    return asked("s3://b/a.tar", ask, patience_s), time.monotonic() - begun


def test_what_helps_is_asked_again_and_what_does_not_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("datamodules.sharded.store.time.sleep", waits.append)
    assert asked_again(4, ConnectionError("reset"), 60)[0] == 5
    assert waits == [0.2, 0.4, 0.8, 1.6]
    waits.clear()
    with pytest.raises(ShardError, match=r"the store gave no answer for 0 s \(ConnectionError: reset\); try later"):
        asked_again(9, ConnectionError("reset"), 1)
    for error, line in (
        (FileNotFoundError("x"), "there is no such shard"),
        (PermissionError("Forbidden"), "may not be read .*credentials"),
    ):
        waits.clear()
        with pytest.raises(ShardError, match=line):
            asked_again(1, error, 60)
        assert not waits
    with pytest.raises(ShardError, match=r"nope://.* needs another package|Protocol not known"):
        version_of("nope://bucket/a.tar", 0)


@pytest.mark.slow
def test_a_bucket_is_read_by_workers(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.put(write_set(tmp_path / "local", [5] * 10), "workers")
    data = data_of(f"{url}/shard-{{000..009}}.tar", tmp_path / "cache", workers=2, shuffle_shards=3)
    data.setup("fit")
    local = data_of(tmp_path / "local", tmp_path / "cache", shuffle_shards=3)
    local.setup("fit")
    assert served(data) == served(local)
    assert version_of(f"{url}/shard-000.tar", 5).tag  # an ETag
    with pytest.raises(ShardError, match=r"none\.tar: there is no such shard"):
        version_of(f"{url}/none.tar", 5)
    with pytest.raises(ShardError, match="there is no"):
        data_of(f"{bucket.url}/nothing/", tmp_path / "cache").setup("fit")


@pytest.mark.slow
def test_ten_thousand_samples_while_the_server_stops_and_starts(bucket: Bucket, tmp_path: Path) -> None:
    """Nothing is lost, and nothing comes twice; the cache holds a quarter of the set."""
    sizes = [500] * 20
    url = bucket.put(write_set(tmp_path / "local", sizes), "many")
    val = bucket.put(write_set(tmp_path / "val", [20], first=20000), "val")
    shard = (tmp_path / "local" / "shard-000.tar").stat().st_size
    settings = {"val_shards": val, "test_fraction": 0.0, "shuffle_shards": 3, "cache_limit_gb": 5.5e-9 * shard}
    data = data_of(url, tmp_path / "cache", workers=2, batch_size=32, patience_s=60, **settings)
    data.setup("fit")
    found: list[int] = []
    returning: list[threading.Timer] = []
    for number, batch in enumerate(data.train_dataloader()):
        found += batch["index"].tolist()
        if number in (60, 200):
            for one in returning:
                one.join()
            bucket.stop()
            returning.append(threading.Timer(4, bucket.start))
            returning[-1].start()
    assert len(returning) == 2
    for one in returning:
        one.join()
    assert len(found) == 10_000
    assert sorted(found) == list(range(10_000))
    bucket.stop()
    data.patience_s = data._cache.patience_s = 2.0
    try:
        with pytest.raises(ShardError, match="the store gave no answer") as caught:
            served(data)
        assert "\n" not in str(caught.value)
    finally:
        bucket.start()
    assert sorted(served(data)) == list(range(10_000))
