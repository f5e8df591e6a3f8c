"""Images of any number of channels: TIFF stacks, PNG with transparency, arrays; their pixels, training data, and refusals."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image

from datamodules import ImageFolderDataModule, transform_of
from datamodules.images.decoding import letterboxed, squeezed, whole_picture
from datamodules.images.stacks import stack_pixels
from datamodules.images.whole_files import look, try_decoding

Array = NDArray[Any]


def values(channels: int, dtype: Any = np.uint8, height: int = 9, width: int = 14, seed: int = 0) -> Array:
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.random((channels, height, width)).astype(dtype)
    return random.integers(0, np.iinfo(dtype).max, (channels, height, width), dtype=dtype)


def pages(path: Path, array: Array) -> None:
    first, *rest = [Image.fromarray(page) for page in array]
    first.save(path, save_all=True, append_images=rest)


def samples(path: Path, array: Array, planar: bool = False) -> None:
    """Writes a TIFF of several samples a pixel, in one strip or in one for each channel, as GDAL does."""
    channels, height, width = array.shape
    parts = [plane.tobytes() for plane in array] if planar else [array.transpose(1, 2, 0).tobytes()]
    starts = [8 + sum(map(len, parts[:k])) for k in range(len(parts))]
    bits, kind = 8 * array.dtype.itemsize, {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags = [(256, [width]), (257, [height]), (258, [bits] * channels), (259, [1]), (262, [1]), (273, starts)]
    tags += [(277, [channels]), (278, [height]), (279, [len(part) for part in parts]), (284, [1 + planar])]
    content, entries = b"".join(parts), b""
    for tag, numbers in [*tags, (339, [kind] * channels)]:
        value = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(numbers) > 1:
            value, content = struct.pack("<I", 8 + len(content)), content + value
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + value
    header = b"II*\0" + struct.pack("<I", 8 + len(content))
    path.write_bytes(header + content + struct.pack("<H", len(entries) // 12) + entries + bytes(4))


WRITERS: dict[str, Callable[[Path, Array], object]] = {
    "pages.tif": pages,
    "samples.tif": samples,
    "planar.tiff": lambda path, array: samples(path, array, planar=True),
    "first.npy": np.save,
    "last.npy": lambda path, array: np.save(path, array.transpose(1, 2, 0)),
    "fortran.npy": lambda path, array: np.save(path, np.asfortranarray(array)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_are_read_as_they_are_stored(tmp_path: Path, name: str, dtype: Any) -> None:
    array, path = values(5, dtype), tmp_path / name
    WRITERS[name](path, array)
    levels = None if dtype == np.uint8 else (0.0, 1.0) if dtype == np.float32 else (0.0, 65535.0)
    found = look(path, levels is not None, 5)
    assert (found.wrong, found.deep) == (None, dtype != np.uint8)
    assert found.whole == (name != "pages.tif")
    wanted = array if levels is None else (array / levels[1]).astype(np.float32)
    assert torch.equal(whole_picture(path, 5, levels), torch.from_numpy(wanted.copy()))
    edges: Any = None if levels is None else (pytest.approx(array.min(initial=0)), pytest.approx(array.max()))
    assert try_decoding(path, 5) == edges
    assert squeezed(path, (4, 6), 5, levels)[0].shape == (5, 4, 6)
    assert squeezed(path, (4, 6), 5, levels)[1] == 14 / 9
    assert letterboxed(path, (20, 20), 5, 0.0, levels)[:, 0].max() == 0
    if dtype == np.uint16:
        eight = stack_pixels(path, 5, None)
        assert eight is not None
        assert torch.equal(eight, torch.from_numpy((array / 257).round().astype(np.uint8)))


def test_transparency_is_a_channel_where_it_is_asked_for(tmp_path: Path) -> None:
    rgba = values(4)
    Image.fromarray(rgba.transpose(1, 2, 0)).save(tmp_path / "x.png")
    assert torch.equal(whole_picture(tmp_path / "x.png", 4), torch.from_numpy(rgba))
    assert whole_picture(tmp_path / "x.png", 3).shape == (3, 9, 14), "put on white, as ever"
    grey = np.ascontiguousarray(rgba[:2].transpose(1, 2, 0))
    Image.fromarray(grey, "LA").save(tmp_path / "grey.png")
    assert torch.equal(whole_picture(tmp_path / "grey.png", 2), torch.from_numpy(rgba[:2]))


def test_a_tiff_of_three_grey_pages_is_a_stack_of_three_channels(tmp_path: Path) -> None:
    array = values(3)
    pages(tmp_path / "x.tif", array)
    assert torch.equal(whole_picture(tmp_path / "x.tif", 3), torch.from_numpy(array))
    assert torch.equal(whole_picture(tmp_path / "x.tif", 1), torch.from_numpy(array[:1])), "the first page"
    np.save(tmp_path / "x.npy", array[0])
    assert torch.equal(whole_picture(tmp_path / "x.npy", 1), torch.from_numpy(array[:1]))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (
            lambda p: np.save(p.with_suffix(".npy"), values(4)),
            r"shape \(4, 9, 14\): --data.channels 5 needs \(H, W, 5\)",
        ),
        (lambda p: np.save(p.with_suffix(".npy"), np.array(["a"])), "an array of <U1, not of numbers"),
        (lambda p: np.save(p.with_suffix(".npy"), values(5, np.float32)), "no known range; .*--data.levels"),
        (lambda p: p.with_suffix(".npy").write_bytes(b"\x93NUMPY\x01\x00"), "header of an array is damaged"),
        (lambda p: p.with_suffix(".npy").write_bytes(b"no array"), "no image"),
        (lambda p: pages(p.with_suffix(".tif"), values(4)), "4 pages .* --data.channels 5 needs as many grey pages"),
        (lambda p: samples(p.with_suffix(".tif"), values(6)), "a TIFF of 6 channels, but --data.channels is 5"),
        (lambda p: Image.new("RGB", (4, 4)).save(p.with_suffix(".png")), "3 channels, but --data.channels is 5"),
        (lambda p: Image.new("L", (4, 4)).save(p.with_suffix(".png")), "1 channel, but --data.channels is 5"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    write(tmp_path / "x")
    (path,) = tmp_path.iterdir()
    found = look(path, False, 5).wrong
    assert found is not None
    assert len(found.splitlines()) == 1
    assert re.search(reason, found), found


def test_a_cut_array_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, values(5))
    path.write_bytes(path.read_bytes()[:-10])
    assert not look(path, False, 5).whole
    assert isinstance(try_decoding(path, 5), str)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arrays")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(8):
            np.save(root / name / f"{number}.npy", values(5, np.float32, seed=number + 100 * (name == "b")))
    return root


def folder(root: Path, **settings: Any) -> ImageFolderDataModule:
    given = {"channels": 5, "levels": [0.0, 1.0], "image_size": [8, 12], "batch_size": 4, "workers": 0, **settings}
    data = ImageFolderDataModule(root=str(root), **given)
    data.setup("fit")
    return data


def test_a_folder_of_arrays_trains_and_is_cached_to_the_bit(arrays: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    plain, cached = (folder(arrays, canvas_cache=cache) for cache in (None, str(tmp_path / "cache")))
    plain.check_input(("train", "val"))
    assert (
        "mean 0.5 and std 0.25 are used for all 5 channels; python -m tools.inspect_data measures them" in caplog.text
    )
    cached.prepare_sizes([cached.train_size])
    batch, other = (next(iter(data.train_dataloader())) for data in (plain, cached))
    assert torch.equal(batch["image"], other["image"])
    assert batch["image"].dtype == torch.float32
    assert plain.augment(batch, 0)["image"].shape == (4, 5, 8, 12)
    transform = transform_of({"trained_on": plain.training_record()})
    served = next(iter(plain.val_dataloader()))
    name = plain.files("val")[int(served["index"][0])]
    wanted = plain._normalize(served)["image"][0]
    assert torch.equal(transform(arrays / name), wanted)
    assert torch.equal(transform(np.load(arrays / name)), wanted)


def test_arrays_next_to_pictures_are_left_out(arrays: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level("INFO")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "features.npy", np.zeros(512))
        for number in range(4):
            Image.fromarray(values(3, seed=number)[0]).save(tmp_path / name / f"{number}.png")
    data = ImageFolderDataModule(root=str(tmp_path), image_size=8, workers=0, batch_size=2)
    data.setup("fit")
    assert "2 array next to pictures" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"policy": "randaugment"},
            "policy is 'randaugment' but must be none with channels 5: it knows only grey and RGB",
        ),
        ({"canvas_cache": "x", "canvas_quality": 90}, "canvas_quality is 90 but must be null with channels 5"),
        ({"mean": [0.5] * 3}, "mean is .* but must be 5 values, one for each channel"),
        ({"channels": 0}, "channels is 0 but must be 1 or more"),
    ],
)
def test_settings_that_know_only_pictures(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(**{"channels": 5, **settings})


def test_a_folder_of_other_channels_is_refused_in_one_line(arrays: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match=r"none of the 16 .* --data.channels 4 needs .*; set it as the files"
    ) as caught:
        folder(arrays, channels=4)
    assert len(str(caught.value).splitlines()) == 1
