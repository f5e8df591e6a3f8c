"""Decoding of image files: pixels compared with Pillow and torchvision, EXIF orientation, transparency, unreadable files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules.images.decoding import central, squeezed
from datamodules.images.whole_files import look
from tests.datamodules.pictures import picture


def saved(folder: Path, image: Image.Image, name: str = "x.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize(("width", "height", "size"), [(60, 45, 20), (45, 60, 20), (10, 14, 32), (32, 32, 32)])
def test_squeezed_equals_pillows_bilinear_resize_of_the_whole_image(
    tmp_path: Path, width: int, height: int, size: int
) -> None:
    image = picture(0, width, height)
    pixels, aspect = squeezed(saved(tmp_path, image), size, 3)
    expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(int).transpose(2, 0, 1)
    assert np.abs(pixels.numpy().astype(int) - expected).max() <= 1
    assert aspect == width / height


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (56, 56)])
def test_central_equals_torchvisions_resize_and_centre_crop(tmp_path: Path, width: int, height: int) -> None:
    image = picture(1, width, height)
    pixels = central(saved(tmp_path, image), 28, 3, 0.875)
    reference = v2.Compose([v2.Resize(32), v2.CenterCrop(28), v2.PILToTensor()])(image)
    assert pixels.shape == (3, 28, 28)
    assert (pixels.int() - reference.int()).abs().max() <= 8  # the box may be shifted by half a pixel
    side = round(0.875 * min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    cut = np.asarray(image.crop((left, top, left + side, top + side)).resize((28, 28), Image.Resampling.BILINEAR))
    assert np.abs(pixels.numpy().astype(int) - cut.astype(int).transpose(2, 0, 1)).max() <= 1


def test_a_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(tmp_path: Path) -> None:
    image = picture(2, 640, 480)
    path = saved(tmp_path, image, "x.jpg", quality=95)
    with Image.open(path) as file:
        file.draft(None, (64, 64))
        assert file.size == (80, 60) or file.size == (160, 120)
    for pixels, whole in ((squeezed(path, 64, 3)[0], True), (central(path, 64, 3, 0.875), False)):
        if whole:
            expected = image.resize((64, 64), Image.Resampling.BILINEAR)
        else:
            expected = image.crop((110, 30, 530, 450)).resize((64, 64), Image.Resampling.BILINEAR)
        difference = np.abs(pixels.numpy().astype(int) - np.asarray(expected).astype(int).transpose(2, 0, 1))
        assert difference.mean() < 1.5
    assert squeezed(path, 64, 3)[1] == pytest.approx(4 / 3)


def test_orientation_transparency_palette_and_grey(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # EXIF: rotate by 90 degrees
    path = saved(tmp_path, picture(3, 40, 20), "turned.jpg", exif=turned, quality=95)
    pixels, aspect = squeezed(path, 20, 3)
    expected = np.asarray(picture(3, 40, 20).rotate(-90, expand=True).resize((20, 20), Image.Resampling.BILINEAR))
    assert aspect == 0.5
    assert np.abs(pixels.numpy().astype(int) - expected.astype(int).transpose(2, 0, 1)).mean() < 3
    clear = saved(tmp_path, Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "clear.png")
    assert squeezed(clear, 4, 3)[0].eq(255).all()  # composited on white
    palette = saved(tmp_path, Image.new("RGB", (8, 8), (10, 200, 30)).convert("P"), "palette.gif")
    assert (squeezed(palette, 4, 3)[0][:, 0, 0].int() - torch.tensor([10, 200, 30])).abs().max() <= 26  # web palette
    grey = saved(tmp_path, Image.new("L", (8, 8), 77), "grey.png")
    assert squeezed(grey, 4, 3)[0].eq(77).all()
    assert central(grey, 4, 1, 1.0).eq(77).all()
    assert central(grey, 4, 1, 1.0).shape == (1, 4, 4)
    deep = saved(tmp_path, Image.fromarray(np.full((8, 8), 65535, np.uint16)), "deep.png")
    assert squeezed(deep, 4, 1)[0].eq(255).all()


def test_files_that_are_not_images_are_found_by_their_header(tmp_path: Path) -> None:
    good = saved(tmp_path, picture(0))
    text, empty, torn = tmp_path / "text.png", tmp_path / "empty.png", tmp_path / "torn.png"
    text.write_text("no image")
    empty.touch()
    torn.write_bytes(good.read_bytes()[:200])
    assert [look(path).wrong for path in (good, text, empty)] == [None, "no image", "no image"]
    torn_webp = saved(tmp_path, picture(0), "torn.webp")
    torn_webp.write_bytes(
        torn_webp.read_bytes()[:100]
    )  # unlike with other formats, Pillow needs all of it to know the size
    assert look(torn_webp).wrong == "cut short"
    for ending in ("jpg", "png", "gif", "tif"):
        within_header = saved(tmp_path, picture(0), f"header.{ending}")
        within_header.write_bytes(within_header.read_bytes()[:10])
        assert look(within_header).wrong == "damaged"
    assert look(torn).wrong is None  # its header is intact: found only when it is decoded
    with pytest.raises(OSError, match="truncated"):
        squeezed(torn, 8, 3)
    assert look(tmp_path / "gone.png").wrong == "No such file or directory"
