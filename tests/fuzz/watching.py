"""Watches what a reader does: files outside of its folder, files written, programs run, names imported by a pickle, connections."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
READ_ONLY = tuple(
    {str(ROOT), sys.prefix, sys.base_prefix, str(Path(sys.prefix).resolve()), *sysconfig.get_paths().values()}
)
"""Folders of programs, from which modules are imported."""
FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pickle.find_class"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "ctypes.dlopen", "webbrowser.open", "os.kill"),
)
WRITES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Records forbidden deeds of this process while it is `on`; there can be one only, as such a hook cannot be taken away.

    Attributes:
        on: Whether deeds are recorded.
        folder: The folder whose files may be read.
        found: What was done.
    """

    _hooked: Watch | None = None

    def __init__(self) -> None:
        self.on, self.folder = False, ""
        self.found: list[str] = []

    @classmethod
    def of_process(cls) -> Watch:
        """Return the watch of this process."""
        if cls._hooked is None:
            cls._hooked = cls()
            sys.addaudithook(cls._hooked.hear)
        return cls._hooked

    def hear(self, event: str, values: tuple[Any, ...]) -> None:
        """Take an event of the interpreter."""
        if not self.on:
            return
        if event == "open":
            self._opened(values[0], values[2])
        elif event in FORBIDDEN or event in WRITES:
            self.found.append(f"{event} {values!r:.100}")
        elif event == "exec" and getattr(values[0], "co_filename", "").startswith("<") and not _importing():
            self.found.append(f"exec {values!r:.100}")

    def _opened(self, path: Any, flags: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        place = os.path.abspath(os.fsdecode(path))
        if (flags or 0) & WRITE_FLAGS:
            self.found.append(f"opens {place} for writing")
        elif not place.startswith((self.folder, *READ_ONLY)):
            self.found.append(f"opens {place}")


def _importing() -> bool:
    """Whether a module is being imported; those make classes by exec, such as named tuples."""
    frame = sys._getframe(2)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
