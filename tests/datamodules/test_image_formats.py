"""datamodules/images/formats.py: each format that can be decoded is also listed; HEIC without its package is reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules.images import formats
from datamodules.images.class_folders import scan
from datamodules.images.decoding import squeezed
from datamodules.images.formats import ENDINGS, EXTENSIONS, missing_package, readable_formats
from datamodules.images.unlabelled import read_images
from datamodules.images.whole_files import look
from datamodules.segmentation.prompt_sets import check_formats

LOSSLESS = {"PNG", "BMP", "TIFF", "PPM", "TGA"}


def write_image(path: Path) -> None:
    levels = np.linspace(0, 255, 32, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(levels, levels[:, None], np.uint8(90)), axis=-1)
    kind = next(name for name, endings in ENDINGS.items() if path.suffix in endings)
    mode = {".pgm": "L", ".pbm": "1"}.get(path.suffix, "RGB")
    readable_formats()  # registers HEIF
    Image.fromarray(pixels).convert(mode).save(path, format=kind)


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_what_can_be_decoded_is_listed(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "cat" / f"1{ending.upper()}"
    if needs := missing_package(path):
        pytest.skip(needs)
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / f"1{ending}")
    found = scan(tmp_path)
    assert [one.name for one, _ in found.images] == [f"1{ending}"] * 2
    assert not found.left_out
    pixels, aspect = squeezed(found.images[0][0], 32, 3)
    write_image(reference := tmp_path / "reference.png")
    expected = squeezed(reference, 32, 3)[0]
    assert aspect == 1.0
    kind = next(name for name, endings in ENDINGS.items() if ending in endings)
    if kind in LOSSLESS and ending not in (".pgm", ".pbm"):
        assert (pixels == expected).all()
    elif ending not in (".pgm", ".pbm"):
        assert (pixels.float() - expected.float()).abs().mean() < 8


def test_no_ending_belongs_to_two_formats() -> None:
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)


def test_heic_without_its_package_is_named_and_not_dropped_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "readable_formats", lambda: tuple(name for name in ENDINGS if name != "HEIF"))
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        write_image(tmp_path / folder / "1.png")
    (tmp_path / "cat" / "2.HEIC").write_bytes(b"any")
    needs = "HEIC needs pillow-heif: uv sync --extra heif, or pip install pillow-heif"
    assert {why: [path.name for path in paths] for why, paths in scan(tmp_path).left_out.items()} == {needs: ["2.HEIC"]}
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(ValueError, match=f"class folder without an image .*: cat; {needs}$"):
        scan(tmp_path)


def test_heic_without_its_package_is_named_wherever_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "readable_formats", lambda: tuple(name for name in ENDINGS if name != "HEIF"))
    path = tmp_path / "1.heic"
    path.write_bytes(b"any")
    assert look(path).wrong == formats.NEEDS["HEIF"]  # labelled images
    with pytest.raises(
        MisconfigurationException, match=r"1\.heic cannot be read as an image \(HEIC needs .*\); give"
    ):  # predict
        read_images(tmp_path, 8, 3)
    with pytest.raises(MisconfigurationException, match=r"1\.heic: HEIC needs pillow-heif: .*; or convert or remove"):
        check_formats([path])  # prompted segmentation, folders and COCO
