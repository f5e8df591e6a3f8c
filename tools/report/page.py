"""Renders a page of headings, text, tables, pictures and code as Markdown or as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("page.html.jinja")
NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( ?(%|s|x|GB|h|min))?|-?inf|nan|")


@dataclass
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass
class Table:
    """A table of text cells.

    Args:
        header: Column titles.
        rows: Rows with one cell per column.
        fold: Summary line of a table that is folded at first; empty for a table that is always open.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    fold: str = ""


@dataclass
class Picture:
    """A PNG file in the folder of the page."""

    name: str
    caption: str


@dataclass
class Code:
    """Verbatim lines of code; folded at first if ``fold`` gives a summary line."""

    text: str
    language: str = ""
    fold: str = ""


Block = Text | Table | Picture | Code


@dataclass
class Section:
    """A heading and its content; a section of level 3 belongs to the preceding section of level 2.

    Args:
        title: Heading, unique in the page.
        blocks: Content in order.
        level: Level of the heading, 2 or 3.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2


def anchor(title: str) -> str:
    """Return the anchor that GitHub generates for a heading.

    >>> anchor("Test: per class (5)")
    'test-per-class-5'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def numeric(table: Table) -> list[bool]:
    """Return for each column whether it contains only numbers."""
    columns = range(len(table.header))
    return [bool(table.rows) and all(NUMBER.fullmatch(row[i]) for row in table.rows) for i in columns]


# ---- markdown ----


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Render the page as Markdown; pictures are links to files in the same folder."""
    lines = [f"# {_plain(title)}", ""]
    lines += [f"- [{_plain(one.title)}](#{anchor(one.title)})" for one in sections if one.level == 2]
    lines += [line for section in sections for line in _section(section)]
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    heading = f"{'#' * section.level} {_plain(section.title)}"
    return ["", heading, *(line for block in section.blocks for line in ["", *_markdown(block)])]


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        # a paragraph that begins with "-" or "1." is no list
        return [re.sub(r"^(\d*)([-+.)])", r"\1\\\2", _plain(block.text))]
    if isinstance(block, Picture):
        return [f"![{_plain(block.caption)}]({quote(block.name)})"]
    if isinstance(block, Code):
        longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
        fence = "`" * max(3, longest + 1)
        lines = [f"{fence}{block.language}", block.text.rstrip(), fence]
    else:
        rule = ["---:" if number else "---" for number in numeric(block)]
        lines = [_row(block.header), f"| {' | '.join(rule)} |", *map(_row, block.rows)]
    if not block.fold:
        return lines
    return ["<details>", f"<summary>{html.escape(block.fold)}</summary>", "", *lines, "", "</details>"]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) for cell in cells)} |"


def _plain(text: str) -> str:
    """Escape Markdown syntax; names of classes and files may contain any character."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


# ---- HTML ----


def to_html(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Render the page as HTML with embedded pictures, which needs no other file: its Markdown, set into page.html.jinja.

    Args:
        title: Title of the page.
        sections: Content of the page.
        folder: Folder of the pictures.
    """
    # raw HTML is on for the <details> of folded blocks; all other text is escaped by `_plain`
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")
    reader.add_render_rule("image", _pictures_of(folder))
    reader.add_render_rule("table_open", lambda *_: '<div class="wide"><table>')
    reader.add_render_rule("table_close", lambda *_: "</table></div>")
    tops = [(anchor(one.title), one.title) for one in sections if one.level == 2]
    blocks = "\n".join(line for one in sections for line in _section(one))
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return page.render(title=title, contents=tops, body=Markup(_with_anchors(reader, blocks)))


def _with_anchors(reader: MarkdownIt, text: str) -> str:
    tokens = reader.parse(text)
    for opening, content in pairwise(tokens):
        if opening.type == "heading_open":
            opening.attrSet("id", anchor("".join(one.content for one in content.children or [])))
    return str(reader.renderer.render(tokens, reader.options, {}))


def _pictures_of(folder: Path) -> Callable[..., str]:
    """The render rule that embeds the pictures of a folder."""

    def picture(renderer: RendererHTML, tokens: Sequence[Token], place: int, *_: Any) -> str:
        file = folder / unquote(str(tokens[place].attrs["src"]))
        data = base64.b64encode(file.read_bytes()).decode("ascii")
        caption = html.escape("".join(one.content for one in tokens[place].children or []))
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"

    return picture
