"""Collects every command of the documentation: README.md, CONTRIBUTING.md, docs/, headers of configurations, examples of --help.

A page      shell blocks (each line), ``text`` blocks (lines that begin with $), inline code that begins with a command
A header    lines of the first comment that begin with a command, and code in backticks
--help      the EXAMPLES of every tool

``[--flag VALUE]`` is an optional part and is tested with it. Inline code that only names a command, or that leaves a part
out (``...``), is no command to type.
"""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
OWN_TEST = ROOT / "docs" / "paths.md"  # tests/paths runs its commands; some are refused on purpose
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted({*ROOT.glob("docs/*.md")} - {OWN_TEST})]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "console", "")
OURS = r"(?:python (?:main\.py|-m (?:tools|benchmarks|lightning_vision_recipes)\b)|vision-recipes |make [a-z])"
INLINE = re.compile(rf"`({OURS}[^`]*)`")
FLAGS = re.compile(r"""(?:--[a-z](?:[\w.]*\w)?\+? (?:"[^"]*"|[^\s-][^\s"]*)\s*)+""")
MAIN_COMMANDS = ("fit", "validate", "test", "predict")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A command as a tuple of words, and where it is written.

    Attributes:
        place: File and line.
        words: The words as they are typed, with placeholders.
        output: Lines that the page shows as its output; empty if it shows none.
    """

    place: str
    words: tuple[str, ...]
    output: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """``main``, ``tools.NAME``, ``benchmarks.NAME``, or the program of another project, such as ``make``."""
        words = self.words
        if "main.py" in words:
            return "main"
        if "vision-recipes" in words or "lightning_vision_recipes" in words:
            return "main" if self.arguments[0] in MAIN_COMMANDS else f"tools.{self._after_program[0]}"
        return words[words.index("-m") + 1] if "-m" in words[:2] else words[0]

    @property
    def _after_program(self) -> list[str]:
        words = self.words
        for program in ("main.py", "vision-recipes", "lightning_vision_recipes"):
            if program in words:
                return list(words[words.index(program) + 1 :])
        return list(words[3 if "-m" in words[:2] else 1 :])

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``main.py``, of the tool, or of another program."""
        after = self._after_program
        by_name = "vision-recipes" in self.words and after[0] not in MAIN_COMMANDS
        return after[1:] if by_name else after

    def __str__(self) -> str:
        return f"{self.place} {' '.join(self.words)}"


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in FENCE.finditer(text)]


def words_of(line: str) -> tuple[str, ...]:
    """Split a line as a shell does, without its comment and a redirection; ``[--flag VALUE]`` counts as given."""
    optional = re.sub(r"\[(--[^\]]*)\]", r"\1", line)
    words = shlex.split(optional, comments=True)
    return tuple(words[: words.index(">")] if ">" in words else words)


def commands_of(block: Block) -> list[Command]:
    """Return the commands of a block: every line of a shell block, the lines after ``$ `` of a ``text`` block."""
    name = block.page.name
    if block.language in SHELL:
        lines = enumerate(block.text.replace("\\\n", "  ").splitlines(), start=block.line + 1)
        found = [Command(f"{name}:{number}", words_of(line)) for number, line in lines]
        return [command for command in found if command.words]
    if block.language != "text":
        return []
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Command(f"{name}:{block.line}", words_of(line), tuple(shown.splitlines())) for line, shown in pairs]


def inline_of(page: Path) -> list[Command]:
    """Return the commands in the inline code of a page: those with arguments and without ``...``."""
    text = FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    found = [
        Command(f"{page.name}:{text.count(chr(10), 0, m.start()) + 1}", words_of(m[1])) for m in INLINE.finditer(text)
    ]
    return [command for command in found if not {"...", "NAME"} & {*command.words} and is_complete(command)]


def is_complete(command: Command) -> bool:
    """Whether inline code is a command to type: ``main.py fit`` or the name of a tool alone only names it."""
    return command.words[0] == "make" or command.module.startswith("benchmarks") or len(command.arguments) > 1


def header_of(config: Path) -> list[str]:
    """Return the lines of the first comment of a configuration, without their #."""
    lines = config.read_text(encoding="utf-8").splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:end]]


def header_commands(config: Path) -> list[Command]:
    """Return the commands in the header of a configuration."""
    name = str(config.relative_to(ROOT))
    text = "\n".join(header_of(config)).replace("\\\n", "  ")
    lines = [line.strip() for line in text.splitlines() if re.match(rf" +{OURS}", line)]
    code = [match[1] for match in INLINE.finditer(" ".join(line for line in header_of(config)))]
    return [Command(name, words_of(line)) for line in [*lines, *code]]


def header_flags(config: Path) -> list[tuple[str, ...]]:
    """Return the flags with their values that the sentences of a header name, those next to each other together."""
    prose = " ".join(line for line in header_of(config) if not line.startswith("  "))
    prose = INLINE.sub("", prose)
    return [tuple(word.rstrip(".,;:)") for word in shlex.split(match[0])) for match in FLAGS.finditer(prose)]


def help_commands(tool: Path) -> list[Command]:
    """Return the commands in the EXAMPLES of a tool, which --help prints."""
    for node in ast.parse(tool.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXAMPLES":
            text = str(ast.literal_eval(node.value)).replace("\\\n", "  ")
            lines = [line.strip() for line in text.splitlines() if re.match(rf" +{OURS}", line)]
            return [Command(f"{tool.parent.name} --help", words_of(line)) for line in lines]
    return []


CONFIGS = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.stem != "defaults"]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EVERY = [
    *(command for block in BLOCKS for command in commands_of(block)),
    *(command for page in PAGES for command in inline_of(page)),
    *(command for config in CONFIGS for command in header_commands(config)),
    *(command for tool in sorted(ROOT.glob("tools/*/__main__.py")) for command in help_commands(tool)),
]
COMMANDS = list({(c.module, *c.arguments): c for c in reversed(EVERY)}.values())[::-1]
"""A command that is in several places is listed once, with the first."""
