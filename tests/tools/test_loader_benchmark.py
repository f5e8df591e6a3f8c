"""Tests of tools/loader_benchmark: the choice on simulated speeds, the overlay, a small real run, interruption by signals."""

import doctest
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.load_datamodule import load_datamodule
from datamodules import ImageFolderDataModule
from tests.datamodules.pictures import write_classes
from tools.loader_benchmark import __main__ as loader_benchmark
from tools.loader_benchmark import search as loader_search
from tools.loader_benchmark import timing
from tools.loader_benchmark.__main__ import main
from tools.loader_benchmark.search import (
    Cell,
    Measurements,
    Progress,
    choose,
    finalists,
    grid,
    overlay,
    search,
    table,
    waiting,
)
from tools.loader_benchmark.timing import Pipeline

GRID = grid([0, 1, 2, 4, 8], [2, 4, 8], [None])
forks = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


def cells(*speeds: tuple[int, int | None, float]) -> dict[Cell, float]:
    return {Cell(workers, prefetch, None): speed for workers, prefetch, speed in speeds}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("images"), {"cat": 6, "dog": 6}, suffix=".jpg")


@pytest.fixture(scope="module")
def config(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "images.yaml"
    path.write_text(
        "model:\n  class_path: TernaryClassifier\n"
        "data:\n  class_path: ImageFolderDataModule\n  init_args:\n"
        f"    root: {root}\n    image_size: 12\n    batch_size: 3\n    val_fraction: 0.2\n    workers: 7\n    prefetch: 6\n"
    )
    return path


# ---- choosing a setting ----


def test_doctests() -> None:
    assert doctest.testmod(loader_search).attempted >= 2
    assert not doctest.testmod(loader_search).failed


def test_grid_has_no_duplicate_settings() -> None:
    assert grid([2, 0, 2], [4], [False, True]) == [
        Cell(0, None, False),
        Cell(0, None, True),
        Cell(2, 4, False),
        Cell(2, 4, True),
    ]


@pytest.mark.parametrize(
    ("speeds", "taken"),
    [
        (cells((0, None, 50), (1, 2, 90), (2, 2, 100)), (2, 2)),
        (cells((1, 2, 96.9), (2, 4, 100), (2, 2, 97.0)), (2, 2)),  # 3 % is a tie, more is not
        (cells((1, 8, 97.1), (2, 2, 100), (1, 4, 97.1)), (1, 4)),  # fewer workers come before less prefetch
        (cells((0, None, 99), (4, 8, 100)), (0, None)),
    ],
)
def test_tie_goes_to_the_setting_with_less_memory(speeds: dict[Cell, float], taken: tuple[int, int | None]) -> None:
    assert choose(speeds)[:2] == taken


def test_tie_of_pinned_and_unpinned_goes_to_unpinned() -> None:
    assert choose({Cell(2, 2, True): 101.0, Cell(2, 2, False): 100.0}).pin is False
    assert choose({Cell(2, 2, True): 110.0, Cell(2, 2, False): 100.0}).pin is True


def test_finalists_are_the_fastest_and_the_cheapest_near_the_best() -> None:
    first = {cell: 1000.0 + cell.workers + (cell.prefetch or 0) / 10 for cell in GRID}
    first[Cell(0, None, None)] = 300.0
    assert finalists(first) == [Cell(1, 2, None), *[Cell(4, 4, None), Cell(4, 8, None)], *GRID[-3:]]
    assert finalists(cells((0, None, 69), (1, 2, 70), (2, 2, 100), (4, 2, 0))) == [Cell(1, 2, None), Cell(2, 2, None)]


def test_order_of_measurements() -> None:
    speeds = cells((0, None, 20), (1, 2, 60), (1, 4, 100), (2, 2, 95))
    calls: list[Cell] = []
    reported: list[Progress] = []

    def timer(cell: Cell) -> float:
        calls.append(cell)
        return speeds[cell]

    metrics = search(list(speeds), timer, reported.append, repeats=3)
    a, b, c, d = speeds
    assert calls == [a, b, c, d, d, c, b, c, d, d, c, c, d]  # all; the promising ones backwards; two finalists in turns
    assert metrics.finals == {c: [100] * 3, d: [95] * 3}
    assert [progress.done for progress in reported] == list(range(1, 14))
    assert [reported[i].total for i in (0, 4, 7, 12)] == [20, 19, 13, 13]


def test_the_better_of_two_measurements_counts() -> None:
    a, b = Cell(1, 2, None), Cell(2, 2, None)
    speeds = iter([100.0, 60, 95, 70])  # a, b, b, a
    assert search([a, b], lambda cell: next(speeds, 1.0)).first == {a: 100, b: 95}


@pytest.mark.parametrize("seed", range(40))
def test_choice_is_near_the_best_on_a_noisy_machine(seed: int) -> None:
    """Speeds that saturate, noise that only slows down, and another program that takes half of the machine for a while."""
    draw = random.Random(seed)
    bound = draw.uniform(150, 700)
    true: dict[Cell, float] = {
        cell: min(100.0 * (cell.workers or 0.8) ** 0.9, bound) * (1 + 0.01 * (cell.prefetch or 0)) for cell in GRID
    }
    now, slow_from = 0, draw.randrange(50)

    def timer(cell: Cell) -> float:
        nonlocal now
        now += 1
        return true[cell] * draw.uniform(0.94, 1.0) * (0.5 if slow_from <= now < slow_from + 7 else 1.0)

    winner = choose(search(GRID, timer).medians)
    assert true[winner] >= 0.9 * max(true.values())


def test_failing_settings_are_left_out() -> None:
    speeds = cells((1, 2, 80), (2, 2, 0), (4, 2, 0))
    metrics = search(list(speeds), lambda cell: speeds[cell])
    assert [*metrics.finals] == [Cell(1, 2, None)]
    assert [line.split() for line in table(metrics, Cell(1, 2, None))[2:]] == [
        [workers, "2", "0", "does", "not", "work"] for workers in ("2", "4")
    ]
    with pytest.raises(ValueError, match="none of the settings works; the reasons are printed above"):
        search([Cell(1, 2, None)], lambda cell: 0.0)


def test_table_lines() -> None:
    a, b, c = Cell(0, None, False), Cell(2, 2, False), Cell(2, 4, True)
    metrics = Measurements({a: 210.0, b: 3100.0, c: 3000.0}, {b: [2900.0, 3200, 3000], c: [3050.0, 3100, 3000]})
    assert [line.split() for line in table(metrics, b)] == [
        ["workers", "prefetch", "pinned", "images/s", "measured"],
        ["2", "4", "yes", "3,050", *["3", "times", "in", "turns,", "3,000", "..", "3,100"]],
        ["2", "2", "no", "3,000", *["3", "times", "in", "turns,", "2,900", "..", "3,200", "<-", "taken"]],
        ["0", "-", "no", "210", "once"],
    ]


def test_busy_machine_gives_a_warning() -> None:
    cell = Cell(2, 2, None)
    assert loader_search.busy(Measurements({}, {cell: [100.0, 90, 110]}), cell) is None
    assert "differ by 21% from one" in str(loader_search.busy(Measurements({}, {cell: [100.0, 90, 111]}), cell))


@pytest.mark.parametrize(
    ("loader", "network", "workers", "text"),
    [
        (400, 100, 2, "the loader is no bottleneck: it is busy 25% of the time that the network takes"),
        (100, 400, 2, "the network would wait 75.0% of its time for data"),
        (300, 100, 0, "the network would wait 25.0% of its time for data"),  # 1/300 s after 1/100 s of work
    ],
)
def test_waiting_share_of_the_network(loader: float, network: float, workers: int, text: str) -> None:
    assert waiting(loader, network, workers) == text


# ---- the overlay ----


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("winner", "settings"),
    [
        (Cell(3, 5, True), (3, 5, True)),
        (Cell(3, 5, False), (3, 5, False)),
        (Cell(3, 5, None), (3, 5, None)),
        (Cell(0, None, None), (0, 6, None)),  # a setting that was not measured keeps its configured value
    ],
)
def test_overlay_reaches_the_datamodule(winner: Cell, settings: tuple[Any, ...], config: Path, tmp_path: Path) -> None:
    file = tmp_path / "loader.yaml"
    file.write_text(overlay(winner, ["head", "line"], ["--config", "a b.yaml"], "vm, 2 cores", "x/loader.yaml"))
    data = load_datamodule(["--config", str(config), "--config", str(file)])
    assert isinstance(data, ImageFolderDataModule)
    assert (data.workers, data.prefetch, data.pin_memory) == settings
    comment = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert comment[0].startswith("# Overlay for experiments with an ImageFolderDataModule")
    assert comment[2] == "#   python main.py fit --config EXPERIMENT --config x/loader.yaml"
    assert "# Written by: python -m tools.loader_benchmark --config 'a b.yaml'" in comment
    assert comment[-2:] == ["# head", "# line"]


# ---- time measurement ----


class Ticking:
    """A fake clock that only advances when a test sets its time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_whole_worker_rounds_are_timed_after_a_warm_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking()
    monkeypatch.setattr(timing, "perf_counter", clock)
    data = ImageFolderDataModule(root=str(root), image_size=12, batch_size=3)

    def batches() -> Any:
        # three workers; the first two rounds are slow, every later round takes one second
        for seconds in itertools.chain((0.5, 0, 0, 5, 0, 0), itertools.cycle((0.8, 0, 0.2))):
            clock.now += seconds
            yield {"index": torch.arange(3)}

    pipeline = Pipeline(data, torch.device("cpu"), seconds=3.1, say=lambda what, text: None)
    # 3 batches of 3 images per second, for 4 seconds; stopping at 3.2 seconds would include a partial round
    assert pipeline._timed(batches(), 3, augmented=False) == pytest.approx(9.0)


def test_batches_are_augmented_and_settings_reach_the_loader(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageFolderDataModule(root=str(root), image_size=12, batch_size=3, val_fraction=0.2)
    data.setup("fit")
    seen: list[torch.Size] = []
    augment = data.augment

    def watched(batch: dict[str, torch.Tensor], epoch: int) -> dict[str, torch.Tensor]:
        batch = augment(batch, epoch)
        seen.append(batch["image"].shape)
        return batch

    monkeypatch.setattr(data, "augment", watched)
    pipeline = Pipeline(data, torch.device("cpu"), seconds=1e-9, say=lambda what, text: None)
    assert pipeline.images_per_s(Cell(0, None, None), augmented=True) > 0
    assert seen == [torch.Size([3, 3, 12, 12])] * 2  # warm-up and measurement
    assert pipeline.images_per_s(Cell(0, None, None), augmented=False) > 0
    assert len(seen) == 2
    pipeline._set(Cell(3, 5, True))
    assert (data.workers, data.prefetch, data.pin_memory) == (3, 5, True)


def test_failing_loader_is_reported_and_has_speed_0(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ImageFolderDataModule(root=str(root))
    printed: list[str] = []

    def fail() -> Any:
        raise RuntimeError("DataLoader worker (pid 7) is killed\nby signal: Bus error.")

    monkeypatch.setattr(data, "train_dataloader", fail)
    pipeline = Pipeline(data, torch.device("cpu"), 1.0, lambda what, text: printed.append(f"{what}: {text}"))
    assert pipeline.images_per_s(Cell(8, 8, None), augmented=False) == 0
    assert printed == ["failed: workers 8, prefetch 8: DataLoader worker (pid 7) is killed by signal: Bus error."]


# ---- the command ----


@pytest.mark.slow
@forks
def test_small_real_run(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "loader.yaml"
    flags = ["--config", str(config), "--device", "cpu", "--seconds", "0.02", "--workers", "0", "1", "--prefetch", "2"]
    assert main([*flags, "--output", str(out), "--images_per_s", "1e9"]) == 0
    printed = capsys.readouterr().out
    assert "9 training images, batches of 3 at 12 px, decoded, copied to cpu and augmented" in printed
    assert "9 of 9 read" in printed
    assert "pin        skipped: pinned memory only helps with a CUDA device" in printed
    assert "<- taken" in printed
    assert "the network would wait" in printed
    data = load_datamodule(["--config", str(config), "--config", str(out)])
    assert isinstance(data, ImageFolderDataModule)
    assert data.workers in (0, 1)
    assert [path.name for path in out.parent.iterdir()] == ["loader.yaml"]
    assert not multiprocessing.active_children()
    before = out.read_text()
    assert main([*flags, "--output", str(out)]) == 2
    assert capsys.readouterr().err == f"error: --output {out}: already exists; give another file or --overwrite\n"
    assert out.read_text() == before
    assert main([*flags, "--output", str(out), "--overwrite", "--with_augmentation", "false"]) == 0
    assert "decoded and thrown away" in capsys.readouterr().out
    assert out.read_text() != before


def forked_tool(arguments: list[str], errors: Path) -> None:
    """Run the command in a forked process, which does not need to import everything again."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as under `if __name__ == "__main__"`
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.exit(main(arguments))


@forks
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_signal_leaves_no_files_and_no_workers(stop: signal.Signals, config: Path, tmp_path: Path) -> None:
    out, errors = tmp_path / "new" / "loader.yaml", tmp_path / "errors"
    words = ["--config", str(config), "--device", "cpu", "--seconds", "100", "--workers", "2", "--output", str(out)]
    process = multiprocessing.get_context("fork").Process(target=forked_tool, args=(words, errors))
    process.start()
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 60
        while len(workers := children.read_text().split()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.2)
        assert process.pid is not None
        os.kill(process.pid, stop)
        process.join(30)
    finally:
        process.kill()
    assert (process.exitcode, errors.read_text()) == (130, "stopped; nothing was written\n")
    assert not out.parent.exists()
    assert not [worker for worker in workers if Path("/proc", worker).exists()]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "-1"], "--workers is [-1] but must be 0 or more"),
        (["--prefetch", "0", "2"], "--prefetch is [0, 2] but must be 1 or more"),
        (["--seconds", "0"], "--seconds is 0.0 but must be above 0"),
        (["--images_per_s", "0"], "--images_per_s is 0.0 but must be above 0"),
        (
            ["--seconds", "x"],
            "argument --seconds: invalid float value: 'x'; see python -m tools.loader_benchmark --help",
        ),
        (["--device", "cuda"], "--device cuda: torch finds no CUDA device; use --device cpu"),
        (["--data.rot", "x"], "rot"),
        (["--data.batch_size", "300"], "--data.batch_size 300 is larger than the training set of 9 samples"),
    ],
)
def test_wrong_input_is_one_line(
    flags: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--config", str(config), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not [*tmp_path.iterdir()]


def test_output_folder_and_missing_config_are_errors(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the default output is in the working folder
    assert main(["--config", str(config), "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --output {tmp_path}: is a folder; give a file\n"
    assert main([]) == 2
    assert "--config: which data?" in capsys.readouterr().err


def test_data_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = str(Path("configs/digits_ternary.yaml").resolve())
    monkeypatch.chdir(tmp_path)
    assert main(["--config", digits]) == 2
    wanted = "error: DigitsDataModule serves its images from memory and has no workers: nothing to measure\n"
    assert capsys.readouterr().err == wanted
    assert not [*tmp_path.iterdir()]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert "five times in turns" in printed
    assert loader_benchmark.default_out().parts[0] not in ("configs", "runs")  # tools.experiments would run it as one
    assert str(loader_benchmark.default_out()) in printed.replace("\n" + " " * 24, "")
