"""The command that writes the report of a run folder: report.md with its pictures, and report.html as one self-contained file.

    python -m tools.report RUN_DIR [--output DIR]

    RUN_DIR --read_run--> Run --sections--> page --> DIR/report.md, *.png, report.html        (default DIR: RUN_DIR/report)

It reads only the text files and pictures of the run folder, never data or weights, and does not change the run. An existing
report is replaced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.command_line import Parser, run_command, start


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run_dir: Folder of the run.
        output: Folder of the report; None takes the subfolder ``report`` of the run.

    Returns:
        Path of report.html; report.md and the pictures are in the same folder.

    Raises:
        ValueError: The folder is not a run folder, or a file in it is damaged.
        OSError: The report cannot be written.
    """
    from foundation.atomic_files import write_text
    from tools.report.page import to_html, to_markdown
    from tools.report.run import read_run
    from tools.report.sections import sections

    run = read_run(Path(run_dir))
    target = Path(output) if output is not None else run.folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    title = f"Run {run.folder.resolve().parent.name}/{run.folder.resolve().name}"
    content = sections(run, target)
    write_text(target / "report.md", to_markdown(title, content))
    write_text(target / "report.html", to_html(title, content, target))
    return target / "report.html"


def parser() -> argparse.ArgumentParser:
    """Create the argument parser of the command."""
    parser = Parser("report", "Write the report of a run as markdown and HTML.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="folder of the run, finished or not")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the report (default: RUN_DIR/report)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """

    def command() -> None:
        options = parser().parse_args(argv)
        page = write_report(options.run_dir, options.output)
        print(f"report     {page} (one file, for any browser)\n           {page.with_suffix('.md')} with its pictures")

    return run_command(command)


if __name__ == "__main__":
    start(main)
