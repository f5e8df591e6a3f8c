"""Download of UCI HAR: what is unpacked from the archive, and the errors without network or with a wrong checksum."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from datamodules import HARDataModule
from datamodules.signals import har_download
from datamodules.signals.har_generator import ACTIVITIES
from datamodules.signals.har_reader import FOLDER
from tests.datamodules.har_recordings import write_recordings


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data set; tests must not change it."""
    return write_recordings(tmp_path_factory.mktemp("har"))


@pytest.fixture
def archive(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive like that of the UCI repository: a zip inside a zip, with additional files."""
    inner, outer = io.BytesIO(), tmp_path / "archive.zip"
    with zipfile.ZipFile(inner, "w") as file:
        for path in generated.rglob("*.txt"):
            file.write(path, Path(FOLDER) / path.relative_to(generated))
        file.writestr(f"{FOLDER}/train/X_train.txt", "features")
        file.writestr(f"__MACOSX/{FOLDER}/._train", "macOS")
    with zipfile.ZipFile(outer, "w") as file:
        file.writestr(har_download.INNER, inner.getvalue())
    monkeypatch.setattr(har_download, "URL", outer.as_uri())
    monkeypatch.setattr(har_download, "SHA256", hashlib.sha256(outer.read_bytes()).hexdigest())
    return outer


@pytest.mark.usefixtures("archive")
def test_download_happens_once(generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = HARDataModule(root=str(tmp_path / "data"), download=True, batch_size=8)
    assert data.class_names == list(ACTIVITIES)  # known without a download
    assert not (tmp_path / "data").exists()
    data.prepare_data()
    monkeypatch.setattr(har_download, "URL", "file:///nowhere")
    data.prepare_data()
    data.setup("fit")
    copied = {path.relative_to(tmp_path / "data" / FOLDER) for path in (tmp_path / "data").rglob("*.txt")}
    assert copied == {path.relative_to(generated) for path in generated.rglob("*.txt")}
    assert [path.name for path in (tmp_path / "data").iterdir()] == [FOLDER]


def test_download_errors_name_the_cause_and_the_fix(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = HARDataModule(root=str(tmp_path / "data"), download=True)
    with archive.open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        FileNotFoundError,
        match=r"could not download .*its SHA-256 is .*; obtain the folder UCI HAR Dataset another way",
    ):
        data.prepare_data()
    monkeypatch.setattr(har_download, "URL", "file:///nowhere")
    with pytest.raises(FileNotFoundError, match=r"could not download file:///nowhere \(.*\); obtain the folder"):
        data.prepare_data()
    assert not (tmp_path / "data").exists()
