"""`free_memory`: the memory that this process can still take, within the limit of its container."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Memory in bytes that can be taken: available in the machine (MemAvailable), or left under the limit of the container.

    Returns:
        The smaller of the two; 0 if neither can be read, as on systems other than Linux.
    """
    known = [value for value in (_of_machine(), _of_container()) if value is not None]
    return max(0, min(known, default=0))


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):
        return None


def _of_container() -> int | None:
    """Left under the limit of a control group, version 2 or 1; the cache of files in it can be given back, and is free."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            whole, taken = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit, used))
            lines = (CGROUP / limit).with_name("memory.stat").read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        return whole - taken + next((int(line.split()[1]) for line in lines if line.startswith(f"{cache} ")), 0)
    return None
