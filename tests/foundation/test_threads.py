"""Threads for the rows of a batch: every row once, errors reach the caller, and a forked process has threads of its own."""

import multiprocessing
from collections.abc import Iterator

import pytest
import torch

from foundation.threads import in_threads


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_row_is_worked_on_once(threads: int, count: int) -> None:
    rows: list[int] = []
    calls: list[range] = []

    def work(some: range) -> None:
        calls.append(some)
        rows.extend(some)

    in_threads(work, count)
    assert sorted(rows) == list(range(count))
    assert len(calls) == min(threads, count)


@pytest.mark.parametrize("wrong", [0, 1])
def test_an_error_reaches_the_caller(threads: int, wrong: int) -> None:
    def work(some: range) -> None:
        if wrong in some:
            raise ValueError(f"row {wrong}")

    with pytest.raises(ValueError, match=f"row {wrong}"):
        in_threads(work, 6)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads(threads: int) -> None:
    in_threads(lambda _: None, 4)
    child = multiprocessing.get_context("fork").Process(target=in_threads, args=(lambda _: None, 4))
    child.start()
    child.join(20)
    assert child.exitcode == 0
