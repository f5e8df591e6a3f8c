"""Tests README.md, CONTRIBUTING.md and docs/: runs their Python code, parses their YAML, and checks their links.

```python                  the blocks of a page run in order, in one namespace; runs/NAME/DATE-TIME is a finished run
```yaml                    is accepted as an overlay of configs/cifar_ternary.yaml
[text](file#heading)       file and heading exist
quick_reference.md         names every configuration

Commands are tested by tests/docs/test_commands.py and test_config_headers.py.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cli import main
from tests.docs.commands import BLOCKS, FENCE, PAGES, ROOT, Block, blocks_of
from tests.docs.tiny import RUN, Workplace

OVERLAYS = [block for block in BLOCKS if block.language == "yaml"]


def run(arguments: list[str]) -> int:
    """Runs a command in this process and returns its exit code."""
    try:
        return main(arguments)
    except SystemExit as end:  # raised by --print_config
        return int(end.code or 0)


def in_child(action: Callable[[], object], log: Path) -> int:
    """Runs ``action`` in a forked process, which keeps the classes that a page defines out of this one; returns the exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            target = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def pages_with_python() -> list[object]:
    """Test parameters: pages with Python blocks; using_a_run.md exports, predicts and loads, takes ten seconds and is slow."""
    pages = sorted({block.page for block in BLOCKS if block.language == "python"})
    slow = {"using_a_run.md": pytest.mark.slow}
    return [pytest.param(page, marks=slow.get(page.name, ()), id=page.name) for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_python())
def test_python(page: Path, workplace: Workplace) -> None:
    workplace.copy_run("digits", RUN)
    (workplace.folder / "my_images").unlink()  # docs/data.md writes it
    module = ModuleType("page")  # one namespace per page; in sys.modules, so that its classes are found by module name

    def run_blocks() -> None:
        sys.modules[module.__name__] = module
        for block in blocks_of(page):
            if block.language == "python":
                code = compile("\n" * block.line + block.text, str(page), "exec")
                if ".cuda()" not in block.text or torch.cuda.is_available():
                    exec(code, module.__dict__)

    assert in_child(run_blocks, workplace.folder / "log") == 0, (workplace.folder / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("block", OVERLAYS, ids=lambda block: f"{block.page.name}:{block.line}")
def test_overlay(block: Block, workplace: Workplace) -> None:
    (workplace.folder / "overlay.yaml").write_text(block.text)
    configs = ["--config", "configs/cifar_ternary.yaml", "--config", "overlay.yaml"]
    assert run(["fit", *configs, "--print_config"]) == 0


def slug(heading: str) -> str:
    """Returns the anchor that GitHub generates for a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: {sorted(anchors(target))}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    assert not [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "index.md" and f"({page.name})" not in index
    ]


def test_the_quick_reference_names_every_configuration() -> None:
    text = (ROOT / "docs" / "quick_reference.md").read_text()
    names = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("configs/**/*.*")) if path.stem != "defaults"]
    assert len(names) > 50
    assert not [name for name in names if f"`{name}`" not in text]
