"""Configures glibc's allocator to keep freed memory in the process, which makes training steps on a CPU faster.

glibc returns large blocks to the system as soon as they are freed. Every activation of the next step then needs new pages, which
the kernel has to zero and map: on a CPU this can take longer than the convolutions (measurements: docs/benchmarks.md).
"""

import ctypes
import os
import platform

# constants from glibc's malloc.h
TRIM_THRESHOLD, MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Configure glibc's allocator to keep freed memory.

    Nothing is changed with another C library, or when the environment already configures the allocator (``MALLOC_*`` or
    ``GLIBC_TUNABLES``). ``MALLOC_MMAP_MAX_=65536`` therefore restores glibc's default behaviour.

    Returns:
        Whether the allocator was configured.
    """
    own = any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if own or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(MMAP_MAX, 0) and libc.mallopt(TRIM_THRESHOLD, LARGEST))
