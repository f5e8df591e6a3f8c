"""Compiles the C++ kernel on first use with torch's extension loader, and finds the paths that the processor has.

The library is kept in torch's folder of extensions (TORCH_EXTENSIONS_DIR, or a folder in the user's cache) under a name with the
checksum of its sources. It is built in a folder of its own and then renamed, so that a build that was killed leaves nothing behind.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path as FilePath
from typing import Literal, get_args

from foundation.project import TOOL
from networks.integer.plan import CStep

Path = Literal["portable", "avx2", "vnni", "amx"]
PATHS: tuple[Path, ...] = get_args(Path)
"""Paths from the slowest to the fastest; all give the same results."""

SOURCES = FilePath(__file__).parent / "kernel"
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-ffp-contract=off", "-Wno-psabi"]
VERSION = 1
INSTEAD = f"a library can run the network instead: {TOOL}export RUN --int8 FILE.onnx writes a file for onnxruntime"


class KernelError(RuntimeError):
    """Raised if the kernel cannot be compiled or does not run here; the message is one line."""


@functools.cache
def kernel() -> ctypes.CDLL:
    """The compiled kernel; the first call on a machine compiles it, which takes seconds.

    Raises:
        KernelError: There is no compiler, or it fails.
    """
    try:
        path = _library()
        if not path.exists():
            _build(path)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the integer kernel cannot be stored or loaded: {error}; {INSTEAD}") from None
    library.lvr_new.restype = ctypes.c_void_p
    library.lvr_new.argtypes = []
    library.lvr_free.restype = None
    library.lvr_free.argtypes = [ctypes.c_void_p]
    library.lvr_add.restype = None
    library.lvr_add.argtypes = [ctypes.c_void_p, ctypes.POINTER(CStep)]
    library.lvr_run.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int] * 3,
        ctypes.c_void_p,
        *[ctypes.c_int] * 2,
    ]
    if library.lvr_version() != VERSION:
        raise KernelError(f"{path}: another version of the integer kernel; delete the file")
    return library


@functools.cache
def supported_paths() -> tuple[Path, ...]:
    """The paths that this processor has, from the slowest to the fastest; `portable` is always there. Compiles the kernel.

    Raises:
        KernelError: The kernel cannot be compiled.
    """
    library = kernel()
    return tuple(path for index, path in enumerate(PATHS) if library.lvr_has(index))


def choose_path(path: Path | Literal["auto"]) -> Path:
    """The path itself, or with `auto` the fastest one that this processor has.

    Raises:
        KernelError: The processor does not have it, or the kernel cannot be compiled.
        ValueError: There is no such path.
    """
    if path != "auto" and path not in PATHS:
        raise ValueError(f"path must be one of auto, {', '.join(PATHS)}, got {path!r}")
    there = supported_paths()
    if path == "auto":
        return there[-1]
    if path not in there:
        raise KernelError(f"path: this processor ({platform.machine()}) has no {path}; it has {', '.join(there)}")
    return path


def _library() -> FilePath:
    digest = hashlib.sha256(repr((FLAGS, platform.machine())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or FilePath.home() / ".cache"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or FilePath(cache) / "torch_extensions"  # as torch's loader
    return FilePath(root) / f"lvr_integer_{digest.hexdigest()[:16]}.so"


def _build(path: FilePath) -> None:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    from torch.utils import cpp_extension

    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise KernelError(f"the integer kernel needs a C++ compiler, and there is no {compiler}; {INSTEAD}")
    if not cpp_extension.is_ninja_available():
        raise KernelError(f"the integer kernel needs ninja to be compiled (pip install ninja); {INSTEAD}")
    path.parent.mkdir(parents=True, exist_ok=True)
    # not in the loader's own folder: a killed build would leave a lock there, for which all later ones wait
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="lvr_build_") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cpp_extension.load(
                    "lvr_integer",
                    [str(SOURCES / "network.cpp")],
                    extra_cflags=FLAGS,
                    extra_ldflags=["-fopenmp"],
                    build_directory=folder,
                    with_cuda=False,
                    is_python_module=False,
                )
        except (RuntimeError, subprocess.SubprocessError) as error:
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            reason = (lines[1:] or lines or [str(error)])[0][:200]
            raise KernelError(f"{compiler} cannot compile the integer kernel: {reason}; {INSTEAD}") from None
        os.replace(FilePath(folder) / "lvr_integer.so", path)
