"""Tests the code layout: which package may import which, file and folder sizes, docstrings and return types of public names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "main": {"cli"},
    "lightning_vision_recipes": {"cli"},
    "cli": {"callbacks", "datamodules", "foundation", "lightning_modules", "metrics"},
    "lightning_modules": {"features", "foundation", "metrics", "networks", "transforms"},
    "networks": {"foundation"},
    "metrics": {"foundation"},
    "datamodules": {"features", "foundation", "transforms"},
    "features": {"foundation"},
    "transforms": {"foundation"},
    "callbacks": {"features", "foundation", "metrics", "transforms"},
    "foundation": set(),
}
BELOW_MAIN = set(ALLOWED) - {"main", "lightning_vision_recipes"}
ALLOWED |= {"tools": BELOW_MAIN, "benchmarks": BELOW_MAIN | {"tools"}}
NO_LIGHTNING = {"networks", "transforms", "metrics", "features", "foundation"}
DOCUMENTED_ELSEWHERE = {"overload", "setter"}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def files_of(package: str) -> list[Path]:
    return [*ROOT.glob(f"{package}/**/*.py"), *ROOT.glob(f"{package}.py")]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_are_allowed(package: str) -> None:
    for path in files_of(package):
        names = imported(path)
        inside = names & (set(ALLOWED) | {"tests"})
        assert inside <= ALLOWED[package] | {package}, f"{path} imports {inside - ALLOWED[package] - {package}}"
        if package in NO_LIGHTNING:
            assert "lightning" not in names, f"{path}: {package} must not import Lightning"


def test_every_package_is_checked() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages <= set(ALLOWED)


def test_files_stay_short() -> None:
    paths = [*(path for package in ALLOWED for path in files_of(package)), *ROOT.glob("tests/**/*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path: count for path, count in lines.items() if count > 400}


@pytest.mark.parametrize("package", ALLOWED)
def test_folders_stay_small(package: str) -> None:
    for folder in sorted({path.parent for path in files_of(package)} - {ROOT}):
        entries = [path.name for path in folder.iterdir() if path.name != "__pycache__"]
        assert len(entries) <= 25, (
            f"{folder.relative_to(ROOT)}: {len(entries)} entries; move related files into a subpackage"
        )


@pytest.mark.parametrize("package", ALLOWED)
def test_public_names_have_docstrings_and_return_types(package: str) -> None:
    for path in files_of(package):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path}: the module has no docstring"
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        bodies = [tree.body, *(node.body for node in classes)]
        public = [n for body in bodies for n in body if isinstance(n, DEFINITIONS) and not n.name.startswith("_")]
        bare = [n.name for n in public if not ast.get_docstring(n) and not DOCUMENTED_ELSEWHERE & decorators(n)]
        assert not bare, f"{path}: without a docstring: {bare}"
        untyped = [node.name for node in public if not isinstance(node, ast.ClassDef) and node.returns is None]
        assert not untyped, f"{path}: without a return type: {untyped}"


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    names = [one.attr if isinstance(one, ast.Attribute) else getattr(one, "id", "") for one in node.decorator_list]
    return set(names)
