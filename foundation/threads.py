"""Runs work on the rows of a batch in threads of this process, for calls that let other threads run (numpy copies, torch kernels).

There are as many threads as torch uses for one operation (`torch.get_num_threads`), and they live as long as the process. An
operation of torch that is itself divided among threads must not be called in one: each thread would start a team of its own.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch


def in_threads(work: Callable[[range], object], count: int) -> None:
    """Divide `count` rows evenly among the threads, and wait until all are done.

    Args:
        work: Called once in each thread with its rows, some of 0 to count - 1; must not depend on which rows come together.
        count: Number of rows.

    Raises:
        Exception: What `work` raised, if it did.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        if count:
            work(range(count))
        return
    started = [_pool(threads - 1).submit(work, range(first, count, threads)) for first in range(1, threads)]
    try:
        work(range(0, count, threads))
    finally:
        errors = [each.exception() for each in started]  # waits: no thread may still write when this returns
    for error in errors:
        if error is not None:
            raise error


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
