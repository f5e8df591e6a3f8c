"""Tests README.md, CONTRIBUTING.md and docs/: runs their commands and Python code, parses their YAML, and checks their links.

    ... main.py COMMAND ...                runs on the real command line; a new fit trains one batch only, others run in full
                                           (commands in docs/ take a second each and belong to the slow tests)
    make TARGET, python -m MODULE          the target and the module exist
    ```python                              the blocks of a page run in order, in one namespace
    ```yaml                                is accepted as an overlay of configs/cifar_ternary.yaml
    [text](file#heading)                   file and heading exist

For every page, runs/NAME/DATE-TIME is the folder of a finished run. Blocks marked ``text`` are not checked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from PIL import Image

from benchmarks.cached_head import write_cache
from cli import main
from datamodules.signals.har_generator import write_generated
from tests.datamodules.cifar_layout import write_cifar
from tests.datamodules.pictures import write_classes
from tests.datamodules.raw_recordings import write_recordings
from tools.cut_windows.__main__ import main as cut_windows

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()),
    *sorted(ROOT.glob("docs/*.md")),
]
RUN = "runs/NAME/DATE-TIME"
PLACEHOLDERS = {
    "RUN_DIR": RUN,
    "HAR_RUN_DIR": "har_run",
    "CHECKPOINT": f"{RUN}/checkpoints/best.ckpt",
    "EXPERIMENT": "configs/digits_ternary.yaml",
    "FOLDER": "folder",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "console", "")
# flags for a fit of one batch on any machine, in a second; --trainer.fast_dev_run writes nothing
SHORT = {
    "--trainer.fast_dev_run": "true",
    "--trainer.accelerator": "cpu",
    "--trainer.devices": "1",
    "--trainer.num_nodes": "1",
    "--trainer.strategy": "auto",
    "--trainer.precision": "32-true",
    "--model.architecture": "resnet20",
    "--model.compile": "false",
    "--data.batch_size": "8",
}
# added to or replacing the above for a fit on image files
SHORT_OF_FILES = {
    "--model.architecture": "test_resnet",
    "--model.pretrained": "false",
    "--data.workers": "0",
    "--data.drop_last": "false",
}
# added to or replacing the above for a fit on windows of signals
SHORT_OF_SIGNALS = {
    "--model.architecture": "test_vit",
    "--model.pretrained": "false",
    "--data.image_size": "32",
}

# flags for a fit of prompted segmentation, whose settings differ
SHORT_OF_SEGMENTATION = {
    "--trainer.fast_dev_run": "true",
    "--trainer.accelerator": "cpu",
    "--data.generate": "20",
    "--data.image_size": "48",
    "--data.batch_size": "4",
    "--data.workers": "0",
}

# flags for a fit on a frozen backbone, or on cached features
SHORT_OF_FROZEN = {
    "--trainer.fast_dev_run": "true",
    "--trainer.accelerator": "cpu",
    "--model.backbone": "test_vit",
    "--model.pretrained": "false",
    "--model.weights": "null",
    "--model.network_args": "null",
    "--data.image_size": "32",
    "--data.workers": "0",
    "--data.batch_size": "8",
}
SHORT_OF_CACHED = {"--trainer.fast_dev_run": "true", "--trainer.accelerator": "cpu", "--data.batch_size": "8"}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


class Command(NamedTuple):
    """A command as a tuple of words, with the page and line where it is written."""

    place: str
    words: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """Arguments of main.py."""
        return list(self.words[self.words.index("main.py") + 1 :])


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in FENCE.finditer(text)]


def commands_of(block: Block) -> list[Command]:
    """Commands of a shell block, without comments and with placeholders replaced."""
    if block.language not in SHELL:
        return []
    found = []
    for number, line in enumerate(block.text.replace("\\\n", "  ").splitlines(), start=block.line + 1):
        words = tuple(PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True))
        if words:
            found.append(Command(f"{block.page.name}:{number}", words))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [command for block in BLOCKS for command in commands_of(block)]
# a command that is on several pages runs once
MAIN = list({tuple(c.arguments): c for c in reversed(COMMANDS) if "main.py" in c.words}.values())[::-1]
OVERLAYS = [block for block in BLOCKS if block.language == "yaml"]


def slow_in_docs(command: Command) -> object:
    """Test parameter: commands of README.md and CONTRIBUTING.md run by default, commands of docs/ are marked slow."""
    quick = (ROOT / command.place.partition(":")[0]).exists()
    return pytest.param(command, marks=() if quick else pytest.mark.slow)


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


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small generated replacements for CIFAR-10, a folder of images, a feature cache and UCI HAR."""
    folder = tmp_path_factory.mktemp("images")
    names = [
        f"class {i}" for i in range(10)
    ]  # with the official class names, the reader would verify the official checksums
    write_cifar(folder / "data" / "cifar-10-batches-py", names=names, size=32)
    write_cifar(folder / "my_images", names=["cat", "dog", "fox"], size=12, files=2)
    (folder / "my_photos").mkdir()
    Image.new("RGB", (40, 30), "teal").save(folder / "my_photos" / "boat.jpg")
    write_classes(folder / "folder", {"cat": 20, "dog": 20})
    write_cache(folder / "caches" / "NAME", samples=40, width=8)
    write_generated(folder / "data", subjects=range(1, 7), test_subjects=(2,), windows=2)
    write_recordings(folder / "recordings", seconds=12, people=4)
    cut = ["--rate", "50", "--window", "2.56", "--time_unit", "ms", "--path", "{label}_{}/sub_{subject}.csv"]
    assert cut_windows([str(folder / "recordings"), str(folder / "windows.npz"), *cut]) == 0
    new = folder / "recordings" / "jog_4" / "sub_1.csv"
    assert cut_windows([str(new), str(folder / "new.npz"), "--like", str(folder / "windows.npz")]) == 0
    fit = [
        "fit",
        "--data",
        "SignalFileDataModule",
        "--data.file",
        str(folder / "windows.npz"),
        "--data.batch_size",
        "8",
    ]
    fit += ["--model", "HARClassifier", "--model.architecture", "signal_resnet", "--trainer.max_epochs", "1"]
    assert main([*fit, "--trainer.enable_progress_bar", "false", "--run_dir", str(folder / "har_run")]) == 0
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path) -> Path:
    """Working directory with configs/, tests/ and a finished run, like the project after a run."""
    for name in ("configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)

    def copy(source: str, target: str) -> None:
        # checkpoints are replaced, never modified, so a hard link is enough
        (os.link if source.endswith(".ckpt") else shutil.copy2)(source, target)

    shutil.copytree(finished, tmp_path / RUN, copy_function=copy)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shortened(arguments: list[str]) -> list[str]:
    """Appends the flags that shorten a fit to one batch."""
    of_files = any(argument.startswith("configs/image_") for argument in arguments)
    of_signals = any(argument.startswith("configs/har_") for argument in arguments)
    added = {**SHORT, **(SHORT_OF_FILES if of_files else SHORT_OF_SIGNALS if of_signals else {})}
    if "signal_resnet" in arguments:  # the network that reads signals directly, without images
        added["--model.architecture"] = "signal_resnet"
    if any(argument.startswith("configs/prompt_") for argument in arguments):
        weights = {"--model.weights": "random_tiny"} if "configs/prompt_segmentation.yaml" in arguments else {}
        added = {**SHORT_OF_SEGMENTATION, **weights}
    if any(argument.startswith("configs/cascade_") for argument in arguments):
        added = SHORT_OF_CACHED if "configs/cascade_cached.yaml" in arguments else SHORT_OF_FROZEN
    return [*arguments, *(word for pair in added.items() for word in pair)]


def is_long(arguments: list[str]) -> bool:
    """Whether a command starts a new training."""
    return arguments[0] == "fit" and not {"--resume", "--help", "--print_config"} & {*arguments}


def test_the_pages_are_found() -> None:
    assert {"README.md", "quick_reference.md", "runs.md"} <= {page.name for page in PAGES}
    assert len(MAIN) > 30
    assert {command.arguments[0] for command in MAIN} == {"fit", "validate", "test", "predict"}


@pytest.mark.parametrize(
    "command", [slow_in_docs(c) for c in MAIN], ids=lambda command: f"{command.place} {' '.join(command.arguments)}"
)
def test_command(command: Command, workplace: Path, images: Path) -> None:
    for source in images.iterdir():
        (workplace / source.name).symlink_to(source)
    arguments = command.arguments
    # the flags that shorten a fit come after the original ones, so the original command is always parsed
    assert run(shortened(arguments) if is_long(arguments) or "--cache" in arguments else arguments) == 0


def test_a_wrong_command_is_noticed(workplace: Path) -> None:
    assert run(shortened(["fit", "--config", "configs/digits_ternary.yaml", "--model.compile", "tru"])) == 2
    assert run(["test", "--run", "runs/NAME/OTHER"]) == 2


def pages_with_python() -> list[object]:
    """Test parameters: pages with Python blocks; using_a_run.md exports, predicts and loads, takes ten seconds and is slow."""
    pages = sorted({block.page for block in BLOCKS if block.language == "python"})
    slow = {"using_a_run.md": pytest.mark.slow}
    return [pytest.param(page, marks=slow.get(page.name, ()), id=page.name) for page in pages]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_python())
def test_python(page: Path, workplace: Path) -> None:
    module = ModuleType("page")  # one namespace per page; in sys.modules, so that its classes are found by module name

    def run_blocks() -> None:
        sys.modules[module.__name__] = module
        for block in blocks_of(page):
            if block.language == "python":
                exec(compile("\n" * block.line + block.text, str(page), "exec"), module.__dict__)

    assert in_child(run_blocks, workplace / "log") == 0, (workplace / "log").read_text()


@pytest.mark.parametrize("block", OVERLAYS, ids=lambda block: f"{block.page.name}:{block.line}")
def test_overlay(block: Block, workplace: Path) -> None:
    (workplace / "overlay.yaml").write_text(block.text)
    configs = ["--config", "configs/cifar_ternary.yaml", "--config", "overlay.yaml"]
    assert run(["fit", *configs, "--print_config"]) == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=lambda command: command.place)
def test_make(command: Command) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {word for word in command.words[1:] if "=" not in word} <= {*targets}
    assert all((ROOT / word.partition("=")[2]).exists() for word in command.words if word.startswith("CONFIG="))


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m" in c.words], ids=lambda command: command.place)
def test_module_exists(command: Command) -> None:
    module = command.words[command.words.index("-m") + 1]
    assert importlib.util.find_spec(module) is not None


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
