"""Configures glibc's allocator to keep freed memory in the process, which makes training steps on a CPU faster.

glibc gives large blocks back to the system as soon as they are freed. Every activation of the next step is then made of new pages,
which the kernel has to zero and map: on a processor this can take longer than the convolutions (docs/benchmarks.md has figures).
"""

import ctypes
import os
import platform

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
