"""The command ``vision-recipes``, which is also ``python -m lightning_vision_recipes``.

vision-recipes fit --config FILE    is python main.py fit --config FILE
vision-recipes compare RUN RUN      is python -m tools.compare RUN RUN, and so on for every tool
"""

from __future__ import annotations

import os
import runpy
import sys
from importlib import import_module

from lightning_vision_recipes import ROOT


def tool_names() -> list[str]:
    """Names of the tools, sorted."""
    return sorted(path.parent.name for path in (ROOT / "tools").glob("*/__main__.py"))


def main() -> int:
    """Run the command of this process's arguments.

    Returns:
        The exit code, see cli/app.py.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as for `python main.py`: configurations may name classes of yours
    import_module(
        "foundation.project"
    )  # reads from this process's program how commands are typed, before a tool is started
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in tool_names():
        sys.argv = [f"vision-recipes {name}", *sys.argv[2:]]
        runpy.run_module(f"tools.{name}", run_name="__main__", alter_sys=True)
        return 0
    from cli import main as run

    code = run(sys.argv[1:])
    if name in ("", "-h", "--help"):
        print(f"Tools, with --help each: vision-recipes {' | '.join(tool_names())}")
    return code


if __name__ == "__main__":
    sys.exit(main())
