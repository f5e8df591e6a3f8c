"""A page of headings, text, tables, pictures and code, as markdown beside its pictures and as one self-contained HTML file."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# no script, no web font, nothing from elsewhere: the file is the same in ten years and in an e-mail
STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --tint: #f5f7f9; --accent: #0072B2 }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.5rem 5rem }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem }
p { max-width: 46rem; margin: .5rem 0 }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
nav { background: var(--tint); border-radius: 8px; padding: .75rem 1.25rem; margin: 1.5rem 0 }
nav ul { margin: 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem }
.wide { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
td.number, th.number { text-align: right }
figure { margin: 1rem 0 } figure img { max-width: 100%; height: auto }
figcaption { color: var(--soft); font-size: .9rem }
pre { background: var(--tint); border-radius: 6px; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; line-height: 1.45 }
details { margin: .75rem 0 } summary { cursor: pointer; color: var(--accent) }
@media print { nav { display: none } h2 { break-after: avoid } figure, tr { break-inside: avoid } }
"""
NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( ?(%|s|x|GB|h|min))?|-?inf|nan|")


@dataclass
class Text:
    """A paragraph, plain."""

    text: str


@dataclass
class Table:
    """Rows of text.

    Args:
        header: One for each column.
        rows: Of as many cells.
        fold: Line that stands for a long table until it is opened; empty: always open.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    fold: str = ""


@dataclass
class Picture:
    """A PNG in the page's folder."""

    name: str
    caption: str


@dataclass
class Code:
    """Verbatim lines; folded under a line where one is given."""

    text: str
    language: str = ""
    fold: str = ""


Block = Text | Table | Picture | Code


@dataclass
class Section:
    """A heading and what is below it; sections of level 3 stand within the one before them.

    Args:
        title: Unique in the page.
        blocks: In their order.
        level: 2 or 3.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2


def anchor(title: str) -> str:
    """What GitHub makes of a heading.

    >>> anchor("Test: per class (5)")
    'test-per-class-5'
    """
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def numeric(table: Table) -> list[bool]:
    """Which columns hold nothing but numbers."""
    columns = range(len(table.header))
    return [bool(table.rows) and all(NUMBER.fullmatch(row[i]) for row in table.rows) for i in columns]


# ---- markdown ----


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """The page as markdown; pictures are links to files beside it."""
    lines = [f"# {_plain(title)}", ""]
    lines += [f"- [{_plain(one.title)}](#{anchor(one.title)})" for one in sections if one.level == 2]
    for section in sections:
        lines += ["", f"{'#' * section.level} {_plain(section.title)}"]
        for block in section.blocks:
            lines += ["", *_markdown(block)]
    return "\n".join(lines) + "\n"


def _markdown(block: Block) -> list[str]:
    if isinstance(block, Text):
        return [_plain(block.text)]
    if isinstance(block, Picture):
        return [f"![{_plain(block.caption)}]({block.name})"]
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
    """Text of which markdown makes nothing else: names of classes and files may hold any sign."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


# ---- HTML ----


def to_html(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The page as HTML that needs no other file.

    Args:
        title: Of the page.
        sections: Its content.
        folder: Where the pictures are.
    """
    tops = [section for section in sections if section.level == 2]
    links = "".join(f'<li><a href="#{anchor(one.title)}">{html.escape(one.title)}</a></li>' for one in tops)
    body = [f"<h1>{html.escape(title)}</h1>", f'<nav aria-label="Contents"><ul>{links}</ul></nav>']
    for section in sections:
        tag = f"h{section.level}"
        body.append(f'<{tag} id="{anchor(section.title)}">{html.escape(section.title)}</{tag}>')
        body += [_html(block, folder) for block in section.blocks]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    content = "\n".join(body)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{content}\n</main></body></html>\n'


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode((folder / block.name).read_bytes()).decode("ascii")
        caption = html.escape(block.caption)
        return f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    text = f"<pre><code>{html.escape(block.text.rstrip())}</code></pre>" if isinstance(block, Code) else _table(block)
    return f"<details><summary>{html.escape(block.fold)}</summary>{text}</details>" if block.fold else text


def _table(table: Table) -> str:
    kinds = [' class="number"' if number else "" for number in numeric(table)]

    def row(cells: Sequence[str], tag: str) -> str:
        parts = (f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return f"<tr>{''.join(parts)}</tr>"

    rows = "".join(row(cells, "td") for cells in table.rows)
    head = row(table.header, "th")
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
