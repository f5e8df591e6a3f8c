"""Fixtures of the tests of the documentation: tiny data, tiny runs, and a folder with both to run commands in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.commands import ROOT
from tests.docs.tiny import Workplace, train, write_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small replacements for the data that the documentation names."""
    folder = tmp_path_factory.mktemp("documented")
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def run_of(tiny_data: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a finished tiny run of a system, trained when it is first asked for."""
    known = {"digits": finished}

    def run(kind: str) -> Path:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind) / "run"
            here = Path.cwd()
            os.chdir(folder.parent)
            try:
                train(kind, tiny_data, folder, ROOT)
            finally:
                os.chdir(here)
            known[kind] = folder
        return known[kind]

    return run


@pytest.fixture
def workplace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: Path, run_of: Callable[[str], Path]
) -> Workplace:
    """Working directory with configs/, tests/, and the data and runs of the documentation."""
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path, tiny_data, run_of, ROOT)
