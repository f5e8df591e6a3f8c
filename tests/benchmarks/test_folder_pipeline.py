"""Benchmark folder_pipeline: both sides serve the same files with the same size and value range; speed is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import folder_pipeline, loader, photos
from benchmarks.folder_pipeline import Result, Setting, our_data, our_epochs, peer_epochs, peer_loader, write_cache
from datamodules.images.canvases import CanvasLoader
from foundation.measuring import Spread
from tests.datamodules.pictures import write_classes

# forked workers: Python 3.12 and later warn of threads in the parent
forks = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


def plain(root: Path, count: int) -> None:
    """Single-colour pictures of different sizes."""
    for number in range(count):
        path = root / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30 + number, 40 - number), (10 * number, 255 - 9 * number, 77)).save(path)


def colours(images: Tensor) -> Tensor:
    """Sorted colours (B, 3) of single-colour images."""
    assert (images - images[:, :, :1, :1]).abs().max() < 1e-6
    found = images[:, :, 0, 0]
    return found[found[:, 0].argsort()]


def test_both_sides_serve_the_same_images(tmp_path: Path) -> None:
    plain(tmp_path, 22)
    setting = Setting(tmp_path, size=16, batch_size=20, workers=0, scale=0.35)
    data = our_data(setting)
    (batch,) = list(data.train_dataloader())
    (peer,) = list(peer_loader(data, setting))
    ours = data.augment(batch, 0)["image"]
    assert ours.shape == peer[0].shape == (20, 3, 16, 16)
    assert ours.dtype == peer[0].dtype == torch.float32
    torch.testing.assert_close(colours(ours), colours(peer[0]), rtol=0, atol=1e-5)
    assert batch["label"].sum() == peer[1].sum() == 10
    assert our_epochs(data)() == peer_epochs(data, setting)() == 20


@pytest.mark.slow
def test_both_sides_cut_out_as_much(tmp_path: Path) -> None:
    """Pictures whose red is the column and whose green is the row: the range of a crop shows its share of width and height."""
    ramp = np.stack([*np.meshgrid(np.linspace(0, 255, 100), np.linspace(0, 255, 80)), np.zeros((80, 100))], -1)
    for number in range(224):
        path = tmp_path / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp[..., 2] = number  # identical files are not distributed over splits
        Image.fromarray(ramp.astype(np.uint8)).save(path)
    setting = Setting(tmp_path, size=24, batch_size=200, workers=0, scale=0.35)
    data = our_data(setting)
    batch = next(iter(data.train_dataloader()))
    areas = []
    for images in (data.augment(batch, 0)["image"], next(iter(peer_loader(data, setting)))[0]):
        pixels = images[:, :2] * torch.tensor(data.std)[:2].view(2, 1, 1) + torch.tensor(data.mean)[:2].view(2, 1, 1)
        area = (pixels.amax((2, 3)) - pixels.amin((2, 3))).prod(1) * (24 / 23) ** 2  # from the first pixel to the last
        areas.append(area.sort().values)
    ours, peer = areas
    assert min(ours[0], peer[0]) > 0.25  # resampling smooths the ends of a small crop
    assert (ours.mean() - peer.mean()).abs() < 0.06  # 200 each, with a standard deviation of 0.18
    assert (ours - peer).abs().max() < 0.15


@pytest.mark.slow
@forks
def test_it_prints_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "own", {"cat": 10, "dog": 10}, suffix=".jpg")
    flags = ["--repeats", "2", "--images", "20", "--sizes", "16", "24", "--batch_size", "8", "--workers", "1"]
    folder_pipeline.main([*flags, "--root", str(root), "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|") and not line.startswith("| -")]
    header, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header[:6] == [
        "pictures",
        "px",
        "images",
        *(f"{s}, images/s" for s in ("torchvision", "ours", "with cache")),
    ]
    assert header[6:] == ["ratio", "with cache / torchvision", "with cache / ours"]
    assert printed.count("px: the cache was written at ") == 4
    assert [row[:3] for row in rows] == [[name, px, "16"] for name in ("made up", str(root)) for px in ("16", "24")]
    assert "made up: 20 JPEGs of 500 x 375 pixels" in printed
    assert "1 workers on each side, batches of 8, crops of 0.35 to 1 of the area" in printed
    content = json.loads((tmp_path / "figures.json").read_text())
    assert (content["benchmark"], content["workers"], content["environment"]["threads"]) == ("folder_pipeline", 1, 1)
    for pipeline in content["pipelines"]:
        ours, peer, ratio = (Spread(**pipeline[name]) for name in ("ours", "torchvision", "ratio"))
        assert ours.least / peer.most <= ratio.least <= ratio.most <= ours.most / peer.least
        cached, gain = (Spread(**pipeline[name]) for name in ("cached", "gain"))
        assert cached.least / ours.most <= gain.least <= gain.most <= cached.most / ours.least
        assert pipeline["written"] > 0
        assert set(Result._fields) < pipeline.keys()


def test_the_contender_with_a_cache_reads_the_cache(tmp_path: Path) -> None:
    plain(tmp_path / "in", 22)
    setting = Setting(tmp_path / "in", size=16, batch_size=4, workers=0, scale=0.35)
    data = our_data(setting, str(tmp_path / "cache"))
    assert write_cache(data) > 0
    loader, peer = data.train_dataloader(), our_data(setting).train_dataloader()
    assert isinstance(loader, CanvasLoader)
    for batch, other in zip(loader, peer, strict=True):
        assert torch.equal(batch["image"], other["image"])


def test_made_up_photographs_are_as_large_as_real_ones(tmp_path: Path) -> None:
    sizes = photos.write_photos(tmp_path, 4)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        f"class_{label}/{number:06}.jpg" for label, number in ((0, 0), (0, 2), (1, 1), (1, 3))
    ]
    assert sorted(sizes) == sorted(file.stat().st_size for file in files)
    assert all(50_000 < size < 100_000 for size in sizes)
    with Image.open(files[0]) as image:
        assert image.size == (500, 375)
    again, other = (np.asarray(photos.photo(number)) for number in (0, 1))
    assert (again == np.asarray(photos.photo(0))).all()
    assert (again != other).mean() > 0.5


def test_a_file_that_one_side_does_not_list_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain(tmp_path, 12)
    setting = Setting(tmp_path, size=16, batch_size=4, workers=0, scale=0.35)
    data = our_data(setting)
    names = data.files("train")
    gone = data.splits["train"]["index"][0]
    monkeypatch.setattr(data, "files", lambda split: [*names[:gone], "class_0/other.png", *names[gone + 1 :]])
    with pytest.raises(RuntimeError, match="torchvision lists 10 of the 11 images that our pipeline trains on"):
        peer_loader(data, setting)
    with pytest.raises(RuntimeError, match="an epoch served 8 images of 12"):
        loader.images_per_s(our_epochs(data), 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "10"], "--images: enough for a batch of 64 with a tenth held out, or 0, got 10"),
        (["--images", "0"], "--images 0 needs --root DIR: there is nothing to measure on"),
        (["--repeats", "1"], "--repeats: 2 or more, got 1"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        folder_pipeline.main(arguments)
    assert message in capsys.readouterr().err
