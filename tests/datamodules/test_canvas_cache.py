"""The canvas cache: batches equal those of the files to the bit; interrupted, shared and damaged sets; refusals."""

import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import ImageFolderDataModule
from datamodules.images.canvases import CanvasError, CanvasLoader, open_canvases, shards, writer
from datamodules.images.canvases.header import recipe_of
from datamodules.images.canvases.writer import Source
from datamodules.images.loader import ImageFileLoader, ImageFiles
from features import list_files
from tests.datamodules.canvas_sets import content, opened
from tests.datamodules.pictures import picture, write_class, write_classes

SHARDS = 4  # of 5 canvases, the last of 2


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes whose order is not that of the names of their files: a/000.jpg comes after a-b/000.jpg."""
    return write_classes(tmp_path_factory.mktemp("classes"), {"a": 11, "a!": 12, "a-b": 9}, suffix=".jpg")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_class(root, 17)
    return root


def folder(root: Path, cache: Path | None, **settings: Any) -> ImageFolderDataModule:
    given = {"image_size": 12, "batch_size": 4, "workers": 0, "canvas_cache": str(cache) if cache else None, **settings}
    data = ImageFolderDataModule(root=str(root), **given)
    data.setup("fit")
    return data


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        first.pop("unreadable", None)
        assert list(first) == list(second)
        for name, values in first.items():
            assert (values.dtype, values.stride()) == (second[name].dtype, second[name].stride()), name
            assert torch.equal(values, second[name]), name


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("shard_bytes", [1, 64_000_000])  # a shard of one canvas, and one of all
def test_batches_equal_those_of_the_files(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: Any, shard_bytes: int
) -> None:
    smaller = partial(open_canvases, shard_bytes=shard_bytes)
    monkeypatch.setattr("datamodules.images.canvases.opening.open_canvases", smaller)
    plain, cached = (folder(classes, cache, channels=channels) for cache in (None, tmp_path / "cache"))
    cached.check_input(("train", "val"))
    served = (cached.train_dataloader(), cached.val_dataloader())
    assert all(isinstance(loader, CanvasLoader) for loader in served)
    for mine, theirs in zip(served, (plain.train_dataloader(), plain.val_dataloader()), strict=True):
        equal(list(theirs), list(mine))
    batch = next(iter(served[0]))
    assert set(batch) == {"image", "index", "label", "aspect"}
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    batch["image"].zero_()  # a copy: the cache is not changed
    equal(list(plain.train_dataloader()), list(served[0]))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["train-squeezed-14", "val-central-12"]
    assert not list(tmp_path.rglob(".*"))  # no lock, no temporary file


def test_a_finished_cache_is_read_without_the_files(classes: Path, tmp_path: Path) -> None:
    data = folder(classes, tmp_path, split_seed=3)
    data.check_input(("train", "val"))
    expected = list(data.train_dataloader())
    again = folder(classes, tmp_path, split_seed=3)
    again.prepare_sizes([12])
    name = re.escape("ImageFiles.__getitems__")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodules.images.loader.ImageFiles.__getitems__", lambda *_: pytest.fail(name))
        equal(expected, list(again.train_dataloader()))


def test_without_being_opened_the_files_are_read(classes: Path, tmp_path: Path) -> None:
    """Tools that look at one batch do not write a whole cache; only a fit opens it by itself."""
    data = folder(classes, tmp_path / "cache")
    assert isinstance(data.train_dataloader(), ImageFileLoader)
    assert not (tmp_path / "cache").exists()


def test_each_size_has_its_own_set(classes: Path, tmp_path: Path) -> None:
    data = folder(classes, tmp_path)
    data.prepare_sizes([8, 12])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "train-squeezed-14",
        "train-squeezed-9",
        "val-central-12",
    ]
    data.train_size = 8
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, 9, 9)


def test_levels_of_deep_files_are_kept(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(10):
            grey = torch.randint(65536, (9, 11), generator=torch.Generator().manual_seed(number)).numpy()
            Image.fromarray(grey.astype("uint16")).save(tmp_path / "in" / label / f"{number}{label}.png")
    plain, cached = (folder(tmp_path / "in", cache, channels=1) for cache in (None, tmp_path / "cache"))
    cached.check_input(("train", "val"))
    equal(list(plain.train_dataloader()), list(cached.train_dataloader()))
    assert next(iter(cached.train_dataloader()))["image"].dtype == torch.float32
    with pytest.raises(CanvasError, match=r"levels is \[0.0, 65535.0\] in the canvas cache, but \[0.0, 4095.0\] here"):
        folder(tmp_path / "in", tmp_path / "cache", channels=1, levels=[0, 4095]).check_input(("train", "val"))


@pytest.mark.parametrize("unreadable", ["skip", "refuse"])
def test_a_damaged_file_is_left_out_as_without_the_cache(
    tmp_path: Path, unreadable: Any, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_classes(tmp_path / "in", {"cat": 12, "dog": 12})
    torn = root / "cat" / "003.png"
    picture(3, width=200, height=150).save(torn)
    data = torn.read_bytes()
    torn.write_bytes(data[: len(data) // 2] + bytes(99) + data[len(data) // 2 + 99 :])  # header and end look whole
    plain, cached = (folder(root, cache, unreadable=unreadable) for cache in (None, tmp_path / "cache"))
    wrong = "1 of the .* files in .*in cannot be read as images: cat/003.png"
    if unreadable == "refuse":
        with pytest.raises(MisconfigurationException, match=wrong):
            cached.prepare_sizes([12])
        return
    cached.prepare_sizes([12])
    assert len([record for record in caplog.records if re.search(wrong, record.message)]) == 1
    both = list(plain.train_dataloader()), list(cached.train_dataloader())
    equal(*both)
    assert sorted(len(batch["index"]) for batch in both[1])[0] == 3
    assert cached.unreadable_of("train") == 1


def test_a_file_out_of_reach_is_not_taken_for_a_damaged_one(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(pictures, tmp_path / "in")
    files = list_files(root, sorted(path.name for path in root.iterdir()))
    (root / "007.png").unlink()
    source = Source(root, files, print)
    with pytest.raises(CanvasError, match=r"007.png: cannot be read \(No such file or directory\), so its canvas is"):
        open_canvases(tmp_path / "cache", recipe_of(files, 16, 3), source, workers=0)
    shutil.copy(pictures / "006.png", root / "007.png")
    with (root / "007.png").open("r+b") as file:
        file.truncate(50)
    with pytest.raises(CanvasError, match=r"007.png: has changed while its canvas was written"):
        open_canvases(tmp_path / "cache", recipe_of(files, 16, 3), source, workers=0)


# ---- interrupted, and several processes ----


def process(action: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    return child


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("nth", range(1, 8))  # files.jsonl, unfinished.json, four shards, header.json
def test_a_killed_writer_is_continued_byte_by_byte(pictures: Path, tmp_path: Path, nth: int) -> None:
    whole = opened(pictures, tmp_path / "whole")

    def killed() -> None:
        fsync, count = os.fsync, 0

        def half_written(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count == nth:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = half_written  # type: ignore[assignment]
        opened(pictures, tmp_path / "broken")

    child = process(killed)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finished = sorted((tmp_path / "broken").glob("canvases-*"))
    assert len(finished) == min(max(nth - 3, 0), SHARDS)
    before = {path: path.stat().st_mtime_ns for path in finished}
    broken = opened(pictures, tmp_path / "broken")
    assert content(broken.folder) == content(whole.folder)
    assert torch.equal(broken.images, whole.images)
    assert {path: path.stat().st_mtime_ns for path in finished} == before  # they are not written again


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_two_processes_one_writes_and_the_other_takes_over_if_it_is_killed(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, cache = opened(pictures, tmp_path / "whole"), tmp_path / "cache"

    def stuck() -> None:
        write_shard = shards.write_shard

        def written(folder: Path, number: int, *arguments: Any) -> Any:
            time.sleep(100 if number == 2 else 0)
            return write_shard(folder, number, *arguments)

        writer.write_shard = written  # type: ignore[assignment, attr-defined]
        opened(pictures, cache)

    def waits() -> None:
        writer.write_shard = lambda *_: os._exit(9)  # type: ignore[attr-defined]
        opened(pictures, cache, patience_s=100.0)

    first, follower = process(stuck), process(waits)
    while not (cache / "canvases-00001.safetensors").exists():
        time.sleep(0.01)
    second = process(lambda: opened(pictures, cache))
    time.sleep(0.3)
    assert (first.is_alive(), second.is_alive(), follower.is_alive()) == (True, True, True)
    first.kill()
    for child in (first, second, follower):
        child.join(30)
    assert (first.exitcode, second.exitcode, follower.exitcode) == (-signal.SIGKILL, 0, 0)
    assert content(cache) == content(whole.folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kills_from_outside_with_workers(pictures: Path, tmp_path: Path) -> None:
    whole, cache = opened(pictures, tmp_path / "whole"), tmp_path / "cache"

    def slowly() -> None:
        read = ImageFiles._read

        def slow(files: ImageFiles, path: Path) -> Any:
            time.sleep(0.02)
            return read(files, path)

        ImageFiles._read = slow  # type: ignore[method-assign, assignment]
        opened(pictures, cache, workers=2)

    for number in range(6):
        child, before = process(slowly), len(list(cache.glob("canvases-*")))
        while child.is_alive() and len(list(cache.glob("canvases-*"))) == before:
            time.sleep(0.001)
        time.sleep(0.004 * number)
        child.kill()
        child.join()
    opened(pictures, cache, workers=2)
    for name in (".lock", "unfinished.json"):  # may be left by a process that was killed after the header
        (cache / name).unlink(missing_ok=True)
    assert content(cache) == content(whole.folder)
