"""Imports run one way, so that each part can be read, tested and used without what stands above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "main": {"cli"},
    "cli": {"callbacks", "datamodules", "lightning_modules"},
    "lightning_modules": {"features", "metrics", "networks"},
    "networks": set(),
    "metrics": set(),
    "datamodules": {"features", "transforms"},
    "features": set(),
    "transforms": set(),
    "callbacks": {"features", "metrics", "transforms"},
}
NO_LIGHTNING = {"networks", "transforms", "metrics", "features"}
FILES = [
    (package, path) for package in ALLOWED for path in [*ROOT.glob(f"{package}/**/*.py"), *ROOT.glob(f"{package}.py")]
]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES])
def test_imports_run_one_way(package: str, path: Path) -> None:
    inside = imported(path) & (set(ALLOWED) | {"tools", "benchmarks", "tests"})
    assert inside <= ALLOWED[package] | {package}, f"{path} imports {inside - ALLOWED[package] - {package}}"
    if package in NO_LIGHTNING:
        assert "lightning" not in imported(path), f"{path}: {package} knows nothing of Lightning"


def test_every_package_is_checked() -> None:
    others = {"benchmarks", "tests", "tools"}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - others
    assert packages <= set(ALLOWED)


def test_files_stay_short() -> None:
    long = {
        str(path): len(path.read_text().splitlines()) for _, path in FILES if len(path.read_text().splitlines()) > 400
    }
    assert not long
