"""JPEG-coded canvases: same pixels at each reading, near those of the files; never mixed with raw ones; validation stays exact."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from datamodules import ImageFolderDataModule
from datamodules.images.canvases import CanvasError, CanvasLoader
from datamodules.images.canvases.coding import coded
from datamodules.images.decoding import squeezed
from tests.datamodules.canvas_sets import content, opened
from tests.datamodules.pictures import write_class, write_classes


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes"), {"a": 11, "b": 12}, suffix=".jpg")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    write_class(root, 17)
    return root


def folder(root: Path, cache: Path | None, **settings: Any) -> ImageFolderDataModule:
    given = {"image_size": 28, "batch_size": 4, "workers": 0, "canvas_cache": str(cache) if cache else None, **settings}
    data = ImageFolderDataModule(root=str(root), **given)
    data.setup("fit")
    data.check_input(("train", "val"))
    return data


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_canvases_are_the_coded_ones_of_the_files(pictures: Path, tmp_path: Path, channels: int, workers: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    one = opened(pictures, tmp_path / "one", channels=channels, quality=90, workers=workers)
    torch.set_num_threads(threads)
    again = opened(pictures, tmp_path / "one", channels=channels, quality=90)
    assert torch.equal(one.images, again.images)
    for row, path in enumerate(sorted(pictures.iterdir())):
        pixels, _ = squeezed(path, 16, channels)
        expected = np.asarray(Image.open(io.BytesIO(coded(pixels, 90)))).reshape(16, 16, channels)
        assert np.array_equal(one.images[row].permute(1, 2, 0).numpy(), expected)
    assert content(one.folder) == content(opened(pictures, tmp_path / "other", channels=channels, quality=90).folder)


def test_coded_and_raw_canvases_are_never_mixed(pictures: Path, tmp_path: Path) -> None:
    raw = opened(pictures, tmp_path / "raw")
    best = opened(pictures, tmp_path / "best", quality=95)
    worst = opened(pictures, tmp_path / "worst", quality=5)
    errors = [(one.images.float() - raw.images.float()).abs().mean() for one in (best, worst)]
    assert 0 < errors[0] < errors[1]
    for cache, settings, told in (
        ("raw", {"quality": 95}, "quality is null in the canvas cache, but 95 here"),
        ("best", {}, "quality is 95 in the canvas cache, but null here"),
        ("best", {"quality": 94}, "quality is 95 in the canvas cache, but 94 here"),
    ):
        with pytest.raises(CanvasError, match=told):
            opened(pictures, tmp_path / cache, **settings)
    (tmp_path / "raw" / "canvases-00000.safetensors").replace(tmp_path / "best" / "canvases-00000.safetensors")
    with pytest.raises(
        CanvasError, match=r"canvases-00000.safetensors: (is a shard of other canvases|is .* bytes long)"
    ):
        opened(pictures, tmp_path / "best", quality=95)
    with pytest.raises(CanvasError, match="canvas_quality is 95 but must be null for images of more than 8 bits"):
        opened(pictures, tmp_path / "deep", quality=95, levels=(0, 4095))


def test_only_training_images_are_coded(classes: Path, tmp_path: Path) -> None:
    plain, cached = (folder(classes, *given) for given in ((None,), (tmp_path,)))
    coded_data = folder(classes, tmp_path / "coded", canvas_quality=80)
    served = [data.train_dataloader() for data in (plain, coded_data)]
    assert isinstance(served[1], CanvasLoader)
    for one, other in zip(*served, strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["aspect"], other["aspect"])
        assert one["image"].stride() == other["image"].stride()
        assert 0 < (one["image"].float() - other["image"].float()).abs().mean() < 16
    for one, other in zip(cached.val_dataloader(), coded_data.val_dataloader(), strict=True):
        assert torch.equal(one["image"], other["image"])


def test_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_class(root, 6)
    (root / "003.png").write_bytes((root / "003.png").read_bytes()[:60])
    found = opened(root, tmp_path / "cache", quality=90)
    assert len(found.images) == 5


def test_a_damaged_canvas_is_named(pictures: Path, tmp_path: Path) -> None:
    shard = opened(pictures, tmp_path, quality=90).folder / "canvases-00002.safetensors"
    with safe_open(shard, "pt") as file:
        begin = shard.read_bytes().index(file.get_tensor("image").numpy().tobytes())
    with shard.open("r+b") as stream:
        stream.seek(begin)
        stream.write(bytes(4))
    with pytest.raises(
        CanvasError, match=r"canvases-00002.safetensors: canvas 0 cannot be decoded: the shard is damaged"
    ):
        opened(pictures, tmp_path, quality=90)
    with pytest.raises(CanvasError, match=r"canvases-00002.safetensors: its checksum is wrong"):
        opened(pictures, tmp_path, quality=90, verify=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"canvas_quality": 0}, "canvas_quality is 0 but must be 1 to 100, or null"),
        ({"canvas_quality": 101}, "canvas_quality is 101 but must be 1 to 100, or null"),
        ({"canvas_cache": None, "canvas_quality": 90}, "canvas_quality is 90 but must be null without canvas_cache"),
    ],
)
def test_a_wrong_quality_is_refused(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ImageFolderDataModule(root=str(tmp_path / "in"), **{"canvas_cache": str(tmp_path / "cache"), **settings})
