"""Commands whose output is cut off by ``| head`` end without a traceback, and a fit goes on."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PRINTS = """
import sys
from foundation.terminal_output import with_open_end
from callbacks.progress.console import Console

def command():
    for number in range(100_000):
        {line}
    print("done", file=sys.stderr)
    return 0

sys.exit(with_open_end(command))
"""


def cut(code: str, folder: Path) -> tuple[int, str]:
    """Run a program whose output is read up to its first line; its exit code and errors."""
    with (folder / "errors").open("w+b") as errors:
        program = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors)
        assert program.stdout is not None
        program.stdout.readline()
        program.stdout.close()
        status = program.wait(timeout=60)
    return status, (folder / "errors").read_text()


@pytest.mark.slow
def test_a_command_ends_quietly(tmp_path: Path) -> None:
    assert cut(PRINTS.format(line="print(number)"), tmp_path) == (141, "")


@pytest.mark.slow
def test_a_console_of_a_fit_goes_on(tmp_path: Path) -> None:
    line = "number < 3000 and Console(width=80).print(number)"
    assert cut(PRINTS.format(line=line), tmp_path) == (0, "done\n")


def test_another_broken_pipe_is_an_error(tmp_path: Path) -> None:
    code = "import os\nfrom foundation.terminal_output import with_open_end\nr, w = os.pipe()\nos.close(r)\nprint(1, flush=True)\n"
    command = [sys.executable, "-c", f"{code}with_open_end(lambda: os.write(w, b'x'))"]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert program.returncode == 1
    assert "BrokenPipeError" in program.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [["main.py", "fit", "--help"], ["-m", "tools.compare", "--help"]])
def test_help_ends_quietly(words: list[str]) -> None:
    command = f"{sys.executable} {' '.join(words)} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage")
