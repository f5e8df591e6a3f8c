"""`CIFAR10DataModule` on small data sets in its layout, and on the real data if LVR_CIFAR10 names its folder."""

import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision import datasets
from torchvision.datasets.utils import calculate_md5

from datamodules import CIFAR10DataModule
from tests.datamodules.cifar_layout import CIFAR10_NAMES, pixel, write_cifar

FOLDER = "cifar-10-batches-py"


def test_splits_of_a_small_set(tmp_path: Path) -> None:
    write_cifar(tmp_path / FOLDER)
    data = CIFAR10DataModule(root=str(tmp_path), batch_size=8, val_fraction=0.2)
    data.setup("fit")
    assert "test" not in data.splits
    data.setup("test")
    train, val, test = (data.splits[name] for name in ("train", "val", "test"))
    assert [len(split["label"]) for split in (train, val, test)] == [120, 30, 30]
    assert sorted(train["index"].tolist() + val["index"].tolist()) == list(range(150))
    for split in (train, val):
        assert torch.equal(split["label"], split["index"] % 10)
        assert split["image"][:, 1, 2, 3].tolist() == [pixel(i, 1, 2, 3) for i in split["index"].tolist()]
    assert test["label"].tolist() == [9 - i % 10 for i in range(30)]
    assert test["image"][:, 2, 0, 1].tolist() == [pixel(i, 2, 0, 1) for i in range(30)]
    assert data.class_counts.tolist() == [12] * 10


def test_only_the_files_needed_by_the_stage_are_read(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / FOLDER)
    (folder / "data_batch_3").unlink()
    data = CIFAR10DataModule(root=str(tmp_path))
    data.setup("test")
    data.setup("predict")
    with pytest.raises(FileNotFoundError, match=r"^data_batch_3 missing in .*cifar-10-batches-py$"):
        data.setup("fit")


def test_a_missing_last_file_of_the_official_five_is_an_error(tmp_path: Path) -> None:
    write_cifar(tmp_path / FOLDER, files=3)
    with pytest.raises(FileNotFoundError, match="data_batch_4, data_batch_5 missing"):
        CIFAR10DataModule(root=str(tmp_path)).setup("fit")


def test_own_data(tmp_path: Path) -> None:
    write_cifar(tmp_path / "mine", names=["cat", "dog", "owl"], size=6, per_file=9, files=11)
    data = CIFAR10DataModule(root=str(tmp_path / "mine"), batch_size=8)
    assert (data.class_names, data.num_classes, data.image_size) == (["cat", "dog", "owl"], 3, 6)
    labels = data.read_part("train")
    assert labels["index"].tolist() == list(range(99))
    assert labels["image"][:, 0, 0, 0].tolist() == [pixel(i, 0, 0, 0) for i in range(99)]  # 10 comes after 9


def test_missing_data_names_folder_layout_and_flags(tmp_path: Path) -> None:
    data = CIFAR10DataModule(root=str(tmp_path))
    uses: list[Callable[[], object]] = [lambda: data.num_classes, lambda: data.image_size, lambda: data.setup("fit")]
    for use in uses:
        with pytest.raises(FileNotFoundError) as caught:
            use()
        message = str(caught.value)
        assert "\n" not in message
        for part in (
            str(tmp_path),
            "cifar-10-batches-py/ with batches.meta, data_batch_1 to data_batch_5 and test_batch",
            "--data.download true",
            "--data DigitsDataModule",
        ):
            assert part in message


def test_label_out_of_range_names_its_file(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / FOLDER)
    write_cifar(tmp_path / "other", names=[*CIFAR10_NAMES, "owl"])
    (tmp_path / "other" / "data_batch_2").replace(folder / "data_batch_2")
    message = r"label 10 of row 2 in .*data_batch_2 is outside 0\.\.9: batches\.meta names 10 classes"
    with pytest.raises(MisconfigurationException, match=message):
        CIFAR10DataModule(root=str(tmp_path)).setup("fit")


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Suppress the log output."""


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the official archive by a small one with matching checksums, served from localhost."""
    folder = write_cifar(tmp_path / "source" / FOLDER, size=32, per_file=2)
    path = tmp_path / "source" / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, arcname=FOLDER)
    official = datasets.CIFAR10
    monkeypatch.setattr(official, "tgz_md5", calculate_md5(path))
    for name in ("train_list", "test_list"):
        sums = [(file, calculate_md5(folder / file)) for file, _ in getattr(official, name)]
        monkeypatch.setattr(official, name, sums)
    meta = {"filename": "batches.meta", "md5": calculate_md5(folder / "batches.meta")}
    monkeypatch.setattr(official, "meta", meta)
    monkeypatch.setenv("no_proxy", "*")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(path.parent))) as server:
        monkeypatch.setattr(official, "url", f"http://127.0.0.1:{server.server_port}/{path.name}")
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("archive")
def test_download_happens_once_and_repairs_a_broken_extraction(tmp_path: Path) -> None:
    root = tmp_path / "data"
    CIFAR10DataModule(root=str(root)).prepare_data()
    assert not root.exists()  # no download without download=True
    data = CIFAR10DataModule(root=str(root), download=True, batch_size=8)
    data.prepare_data()
    batch = root / FOLDER / "data_batch_1"
    content = batch.read_bytes()
    data.prepare_data()
    batch.write_bytes(content[:100])
    data.prepare_data()
    assert batch.read_bytes() == content


def test_header_is_known_before_the_download(tmp_path: Path) -> None:
    data = CIFAR10DataModule(root=str(tmp_path / "nothing"), download=True)
    assert (data.num_classes, data.image_size, data.in_channels) == (10, 32, 3)
    assert data.class_names == CIFAR10_NAMES
    assert not (tmp_path / "nothing").exists()


def test_own_data_is_never_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "file:///nowhere")
    for name, names in (("mine", CIFAR10_NAMES), (FOLDER, ["cat", "dog"])):
        write_cifar(tmp_path / name, names=names)
        CIFAR10DataModule(root=str(tmp_path / name), download=True).prepare_data()


def test_error_without_network_names_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "url", "file:///nowhere/cifar-10-python.tar.gz")
    message = (
        r"could not download file:///nowhere/cifar-10-python\.tar\.gz \(.*\); "
        r"obtain cifar-10-python\.tar\.gz or the folder cifar-10-batches-py another way and put it into .*data$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        CIFAR10DataModule(root=str(tmp_path / "data"), download=True).prepare_data()


@pytest.mark.usefixtures("archive")
def test_a_wrong_checksum_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(FileNotFoundError, match=r"could not download .* \(.*corrupted.*\)"):
        CIFAR10DataModule(root=str(tmp_path / "data"), download=True).prepare_data()
    assert not (tmp_path / "data" / FOLDER).exists()


def test_normalisation_is_a_setting() -> None:
    data = CIFAR10DataModule(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert CIFAR10DataModule().mean == (0.4914, 0.4822, 0.4465)
    with pytest.raises(ValueError, match=r"std is \[0.2, 0.2\] but must be 3 values above 0"):
        CIFAR10DataModule(std=[0.2, 0.2])


@pytest.mark.slow
@pytest.mark.skipif("LVR_CIFAR10" not in os.environ, reason="LVR_CIFAR10 names no folder with CIFAR-10")
def test_real_cifar10_equals_torchvision() -> None:
    root = os.environ["LVR_CIFAR10"]
    data = CIFAR10DataModule(root=root)
    assert (data.class_names, data.image_size) == (CIFAR10_NAMES, 32)
    train, test = data.read_part("train"), data.read_part("test")
    folder = data._folder()
    assert data._is_whole(folder)
    for part, is_train in ((train, True), (test, False)):
        peer = datasets.CIFAR10(str(folder.parent), train=is_train)
        assert torch.equal(part["image"], torch.from_numpy(peer.data).permute(0, 3, 1, 2))
        assert part["label"].tolist() == peer.targets
    pixels = train["image"].permute(1, 0, 2, 3).flatten(1).double() / 255
    assert torch.allclose(pixels.mean(1), torch.tensor(data.mean).double(), atol=5e-5)
    assert torch.allclose(pixels.std(1, correction=0), torch.tensor(data.std).double(), atol=5e-5)
