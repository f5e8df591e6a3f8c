"""Memory that was freed stays with the process, so that the next step's activations need no fresh pages.

glibc gives large blocks back to the system as soon as they are freed. Every activation of the next step is then made of new pages,
which the kernel has to zero and map: on a processor this can take longer than the convolutions (docs/benchmarks.md has figures).
"""

import ctypes
import gc
import os
import platform

import torch

# of glibc's malloc.h
TRIM_THRESHOLD, MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to keep what is freed; returns whether it was told.

    Left alone where there is another C library, and where the environment has settings for the allocator, which win:
    ``MALLOC_MMAP_MAX_=65536`` gives glibc's own behaviour back.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if own or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, LARGEST))


def free_memory() -> None:
    """Let go of what a failed start left behind, in cycles of its objects and in torch's cache of the accelerator's memory."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
