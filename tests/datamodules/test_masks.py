"""`read_mask` and `read_all`: values count as they are in the file, indices are not colours, empty splits are logged."""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image

from datamodules import PromptSet
from datamodules.segmentation.mask_files import read_set
from datamodules.segmentation.masks import MaskError, read_all, read_mask
from tests.datamodules.segmentation_sets import TWO, write_two
from tests.datamodules.test_segmentation_messages import data_of

OBJECT = np.zeros((6, 8), dtype=np.uint8)
OBJECT[1:4, 2:7] = 1


def palette(colours: dict[int, tuple[int, int, int]], indices: NDArray[np.uint8] = OBJECT) -> Image.Image:
    image = Image.fromarray(indices, "P")
    image.putpalette([value for index in range(256) for value in colours.get(index, (0, 0, 0))])
    return image


def saved(folder: Path, image: Image.Image) -> Path:
    image.save(folder / "m.png")
    return folder / "m.png"


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(OBJECT * 255),
        Image.fromarray(OBJECT > 0),
        Image.fromarray(OBJECT * np.uint16(65535)),
        Image.fromarray(OBJECT * np.uint16(255)),  # 8 bits, written with 16
        Image.fromarray(np.repeat(OBJECT[..., None] * 255, 3, axis=2)),
        palette({1: (255, 255, 255)}),  # black and white by index
        palette({0: (255, 255, 255), 1: (0, 0, 0)}, 1 - OBJECT),
    ],
)
def test_black_and_white_masks_of_every_kind_are_read_alike(tmp_path: Path, image: Image.Image) -> None:
    mask, reason = read_mask(saved(tmp_path, image))
    assert torch.equal(mask[0], torch.from_numpy(OBJECT))
    assert reason is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(OBJECT), "its largest value is not 255 but 1; a mask must be 255 on the object"),
        (Image.fromarray(OBJECT.astype(np.uint16)), "its largest value is not 255 but 1; a mask must be 255"),
        (Image.fromarray(OBJECT * np.uint16(300)), "its largest value is not 65535 but 300; a mask must be 255"),
        (palette({1: (128, 0, 0)}), r"a palette image of the indices 0 \(68.8%\), 1 \(31.2%\), whose colours are not black"),
        (palette({1: (255, 255, 0)}), "which index is the object"),  # its grey value is 226
        (Image.fromarray(OBJECT[..., None] * np.array([255, 255, 0], np.uint8)), r"31.25% .* coloured, as \(255, 255, 0\)"),
    ],
)  # fmt: skip
def test_masks_with_another_meaning_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        read_mask(saved(tmp_path, image))


def test_colour_masks_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Pillow reads only the upper 8 bits of these, so that a mask of 0 and 1 would be empty."""
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in OBJECT)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    path = tmp_path / "m.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    )
    with pytest.raises(MaskError, match="it has 16 bits and several channels"):
        read_mask(path)


def test_values_between_black_and_white_are_described(tmp_path: Path) -> None:
    mask, reason = read_mask(saved(tmp_path, Image.fromarray(OBJECT * np.uint16(40000))))
    assert int(mask.sum()) == 15
    assert (
        reason
        == "31.25% of its pixels are neither 0 nor 65535 but 40000 to 40000; values above 32767 count as the object"
    )


def test_judge_counts_pixels_and_images_of_each_prompt(tmp_path: Path) -> None:
    write_two(tmp_path)
    pairs = [pair for number, one in enumerate(TWO) for pair in read_set(tmp_path, one, number)]
    Image.new("L", (24, 18)).save(tmp_path / "walls" / "masks" / "w00.png")
    (tmp_path / "joints" / "masks" / "j03.png").write_bytes(b"no")
    found = read_all(pairs)
    assert (found.count, found.read, found.images, found.showing) == (24, 24, {0: 11, 1: 12}, {0: 11, 1: 11})
    pixels = sum(pair.size[0] * pair.size[1] for pair in pairs if pair.prompt == 1)
    assert found.positive[1] == pytest.approx(11 * 48 / pixels)
    assert [path.name for path in found.damaged] == ["j03.png"]
    assert 0 < read_all([pairs[12]] * 200, limit_s=0.0).read < 200  # a sample where all would take too long


def rewrite(folder: Path, change: Any) -> None:
    for path in (folder / "masks").iterdir():
        change(np.array(Image.open(path))).save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mask: Image.fromarray(mask // 255), r"9 of 18 masks are refused: joints/masks/j\d\d.png: its largest value"),
        (lambda mask: Image.fromarray((mask > 0).astype(np.uint16)), "its largest value is not 255 but 1"),
        (lambda mask: palette({1: (128, 0, 0)}, (mask > 0).astype(np.uint8)), r"palette image .*\(likewise joints"),
        (lambda mask: Image.fromarray(mask * 0), r"no positive pixel in the 6 train masks of 'tape' \(j\d\d.png, .*, j\d\d.png\)"),
    ],
)  # fmt: skip
def test_masks_are_judged_before_the_first_step(tmp_path: Path, change: Any, message: str) -> None:
    rewrite(write_two(tmp_path) / "joints", change)
    data = data_of(tmp_path)
    data.setup("fit")
    with pytest.raises(MisconfigurationException, match=message) as caught:
        data.check_input(("train", "val"))
    assert "\n" not in str(caught.value)


def test_one_line_says_what_the_masks_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_two(tmp_path)
    data = data_of(tmp_path, [PromptSet("joints", ["tape"])])
    data.setup("fit")
    with caplog.at_level("INFO"):
        data.check_input(("train", "val"))
    assert "checked    9 of 9 images decoded in" in caplog.text
    share = r"'tape' \d+\.\d\d% of the train pixels in 6 of 6 images, \d+\.\d\d% of the val pixels in 3 of 3 images"
    assert any(re.search(rf"masks      {share} \(9 of 9 masks read in", m) for m in caplog.messages)


def test_damaged_images_are_found_before_the_first_step(tmp_path: Path) -> None:
    write_two(tmp_path)
    for path in (tmp_path / "joints" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-300])  # the header is intact
    data = data_of(tmp_path)
    data.setup("fit")
    with pytest.raises(
        MisconfigurationException, match=r"9 of the 18 files in .* cannot be read as images: joints/images/j\d\d.png \("
    ):
        data.check_input(("train", "val"))
