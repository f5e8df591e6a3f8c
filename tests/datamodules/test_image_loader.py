"""`ImageFileLoader`: content of a batch, same order as the in-memory loader, unreadable files, signals to the workers."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.images.decoding import central, squeezed
from datamodules.images.loader import ImageFileLoader, ImageFiles, cores_for_workers, signals_from_parent_only
from datamodules.in_memory import InMemoryLoader, beginning
from tests.datamodules.pictures import write_class

N = 11


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("files")
    write_class(root, N, suffix=".jpg")
    return root


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def loader(
    folder: Path,
    *,
    workers: int = 0,
    places: Tensor | None = None,
    position: Callable[[], tuple[int, int]] = beginning,
    unreadable: Callable[[list[int]], None] = print,
    shuffle: bool = True,
    rank: int = 0,
    world_size: int = 1,
) -> ImageFileLoader:
    listed = names(folder)
    return ImageFileLoader(
        ImageFiles(folder, listed, torch.arange(len(listed)) % 3, 16, 3),
        torch.arange(len(listed)) if places is None else places,
        3,
        unreadable=unreadable,
        workers=workers,
        prefetch=2,
        pin_memory=False,
        persistent=True,
        keep="equal",
        shuffle=shuffle,
        seed=5,
        position=position,
        rank=rank,
        world_size=world_size,
    )


def test_a_batch_has_the_pixels_of_its_files(folder: Path) -> None:
    batch = ImageFiles(folder, names(folder), torch.arange(N), 16, 3)[4]
    pixels, aspect = squeezed(folder / names(folder)[4], 16, 3)
    assert torch.equal(batch["image"][0], pixels)
    assert (batch["label"].tolist(), batch["index"].tolist(), batch["unreadable"]) == ([4], [4], [])
    assert batch["aspect"].tolist() == torch.tensor([aspect]).tolist()
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    evaluated = ImageFiles(folder, names(folder), None, 16, 1, share=0.5).__getitems__([2, 0])
    assert set(evaluated) == {"image", "index", "unreadable"}
    assert torch.equal(evaluated["image"][1], central(folder / names(folder)[0], 16, 1, 0.5))


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_position_equal_those_of_the_in_memory_loader(folder: Path, workers: int) -> None:
    at = [0, 0]
    places = torch.tensor([9, 1, 4, 7, 0, 2, 3])
    files = loader(folder, workers=workers, places=places, position=lambda: (at[0], at[1]))
    memory = InMemoryLoader({"index": places}, 3, keep="equal", shuffle=True, seed=5, position=lambda: (at[0], at[1]))
    assert len(files) == len(memory) == 3
    for at[0], at[1] in ((0, 0), (1, 0), (1, 2), (4, 1)):  # one loader, the same workers
        expected = [batch["index"].tolist() for batch in memory]
        assert [batch["index"].tolist() for batch in files] == expected
        assert len(expected) == 3 - at[1]


def test_an_interrupted_epoch_does_not_affect_the_next(folder: Path) -> None:
    files = loader(folder, workers=1)
    first = [batch["index"].tolist() for batch in files]
    for number, _ in enumerate(files):
        if number == 1:
            break
    assert [batch["index"].tolist() for batch in files] == first


def test_two_ranks_share_the_files(folder: Path) -> None:
    served = [
        index
        for rank in range(2)
        for batch in loader(folder, rank=rank, world_size=2)
        for index in batch["index"].tolist()
    ]
    assert sorted(served) == list(range(N))


def test_the_global_generator_is_not_used(folder: Path) -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(loader(folder, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_is_left_out_of_its_batch_and_reported(tmp_path: Path, workers: int) -> None:
    write_class(tmp_path, 4)
    torn = tmp_path / "002.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    reported: list[int] = []
    batches = list(loader(tmp_path, workers=workers, unreadable=reported.extend, shuffle=False))
    assert [batch["index"].tolist() for batch in batches] == [[0, 1], [3]]
    assert [batch["label"].tolist() for batch in batches] == [[0, 1], [0]]
    assert batches[0]["image"].shape == (2, 3, 16, 16)
    assert "unreadable" not in batches[0]
    assert reported == [2]


def test_a_batch_without_a_readable_file_is_an_error(tmp_path: Path) -> None:
    write_class(tmp_path, 3)
    files = loader(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Exception, match="no image of a whole batch can be read"):
        list(files)


def _wait() -> None:
    signals_from_parent_only(0)
    time.sleep(30)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="no sigwaitinfo here")
def test_workers_survive_a_signal_to_the_process_group(folder: Path) -> None:
    """A scheduler signals the whole group; the training process must write a checkpoint before its workers exit."""
    files = loader(folder, workers=1)
    batches = iter(files)
    next(batches)
    (worker,) = files._loader._iterator._workers  # type: ignore[union-attr]
    sender = os.fork()
    if sender == 0:  # not the worker's parent
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
        os._exit(0)
    os.waitpid(sender, 0)
    time.sleep(0.2)
    assert worker.is_alive()
    assert len(list(batches)) == 3
    process = multiprocessing.get_context("fork").Process(target=_wait, daemon=True)
    process.start()
    time.sleep(0.3)
    process.terminate()  # by the parent
    process.join(5)
    assert process.exitcode == 0  # torch in the parent would treat any other code as a crash


class _OfParent:
    """Says when a process that did not make it collects it; a session of onnxruntime would wait for its threads."""

    def __init__(self, told: Path) -> None:
        self.told, self.owner, self.myself = told, os.getpid(), self

    def __del__(self) -> None:
        if os.getpid() != self.owner:
            self.told.touch()


class _Collecting(ImageFiles):
    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        gc.collect()
        return super().__getitems__(indices)


def test_workers_do_not_collect_what_is_their_parents(folder: Path, tmp_path: Path) -> None:
    files = loader(folder, workers=1)
    files._loader.dataset.__class__ = _Collecting
    gc.disable()
    try:
        _OfParent(tmp_path / "told")  # garbage: it holds itself
        assert len(list(files)) == 4
    finally:
        gc.enable()
    assert not (tmp_path / "told").exists()
    gc.collect()


def test_the_number_of_workers_follows_the_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert [cores_for_workers(n) for n in (1, 2, 8, 100)] == [12, 6, 1, 1]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores_for_workers() == 16
