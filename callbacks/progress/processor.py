"""What the processor of this machine can compute fast."""

from __future__ import annotations

from functools import cache
from pathlib import Path

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # the last is that of ARM
LISTED = Path("/proc/cpuinfo")


@cache
def computes_bfloat16(listed: Path = LISTED) -> bool | None:
    """Whether the processor has instructions for bfloat16; None if that is not known, as outside Linux.

    Without them, torch's convolutions and products in bfloat16 are several times slower than in float32.

    Args:
        listed: The kernel's description of the processors.
    """
    try:
        lines = listed.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else not BFLOAT16.isdisjoint(flags)
