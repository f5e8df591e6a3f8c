"""Whether a processor computes bfloat16 fast, from the kernel's list of its flags."""

from pathlib import Path

import pytest

from callbacks.progress.processor import computes_bfloat16


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\n\nflags\t\t: fpu\n", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("processor\t: 0\n", None),
    ],
)
def test_flags_of_a_processor(tmp_path: Path, text: str, known: bool | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert computes_bfloat16(tmp_path / "cpuinfo") is known


def test_a_machine_without_a_list(tmp_path: Path) -> None:
    assert computes_bfloat16(tmp_path / "none") is None
