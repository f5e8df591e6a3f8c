"""Fixtures of all tests: one torch thread, plots without rasterisation, a check for left-over files, and a finished tiny run."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks in the tests are small: a second thread makes them slower

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

ROOT = Path(__file__).resolve().parent.parent
DRAW = FigureCanvasAgg.draw
WATCHED = ("runs", "lightning_logs", "checkpoints", "caches")


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all but each n-th case of a test with `@pytest.mark.every(n)` as slow; a case that is asked for by name runs."""
    cases: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0]
        if (marker := item.get_closest_marker("every")) is None:
            continue
        if cases[test] % marker.args[0]:
            item.add_marker(pytest.mark.slow)
        cases[test] += 1


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    # after a first backward pass that follows torch.compile, forked processes can have none, also without a GPU
    torch.zeros(1, requires_grad=True).sum().backward()


def _blank(canvas: FigureCanvasAgg) -> None:
    canvas.renderer = canvas.get_renderer()


@pytest.fixture(scope="session", autouse=True)
def _plots_are_blank() -> Iterator[None]:
    """Skip the rasterisation of plots, as it takes half of a tiny run's time; `draws` turns it on again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FigureCanvasAgg, "draw", _blank)
        yield


@pytest.fixture(autouse=True)
def _plots_are_drawn_if_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("draws"):
        monkeypatch.setattr(FigureCanvasAgg, "draw", DRAW)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves files in the project folder."""
    before = {path for name in WATCHED for path in (ROOT / name).rglob("*")} | set(ROOT.iterdir())
    yield
    after = {path for name in WATCHED for path in (ROOT / name).rglob("*")} | set(ROOT.iterdir())
    made = {
        path
        for path in after - before
        if path.name not in ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
    }
    assert not made, f"left behind: {sorted(map(str, made))}"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted tiny run that tested its best checkpoint in the same process; tests must not write to it."""
    from tests.runs.killing import TINY, forked

    folder = tmp_path_factory.mktemp("finished") / "run"
    log = folder.parent / "log"
    assert forked(["fit", "--config", TINY, "--run_dir", str(folder), "--test_after_fit"], log=log) == 0, (
        log.read_text()
    )
    return folder


@pytest.fixture(autouse=True)
def _no_handlers_of_earlier_tests() -> None:
    """Take away the log handlers that a command of an earlier test left: their stream is closed by now."""
    from cli.app import OUR_PACKAGES

    for name in OUR_PACKAGES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
