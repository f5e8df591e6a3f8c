"""Allocator settings: freed memory is kept by the process; environment variables take precedence."""

import os
import platform
import subprocess
import sys

import pytest

from tests.runs.killing import ROOT

# page faults of three blocks of 40 MB, above any size that glibc keeps by itself, one after the other, each written to and freed
SCRIPT = """
import ctypes, resource, runpy

keep_freed_memory = runpy.run_path("foundation/allocator.py")["keep_freed_memory"]  # without what cli/__init__.py imports

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        block = libc.malloc(40 << 20)
        libc.memset(block, 1, 40 << 20)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
changed = keep_freed_memory()
faults()
print(changed, faults() < before / 100)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "True True"),
        pytest.param({"MALLOC_MMAP_MAX_": "65536"}, "False False", marks=pytest.mark.slow),
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.check=0"}, "False False", marks=pytest.mark.slow),
    ],
    ids=["kept", "variable", "tunable"],
)
def test_freed_memory_is_kept(environment: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=True)
    assert result.stdout.split() == expected.split()
