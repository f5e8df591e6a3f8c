"""`whole_files`: a file that was cut off is found in every format, whole files are known as such, deep files keep their range."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.formats import readable_formats
from datamodules.images.whole_files import decode_some, look
from tests.datamodules.pictures import picture

FORMATS = ["jpg", "png", "webp", "bmp", "tif", "gif", "jp2", "ppm", "tga", "avif", "heic"]


def written(folder: Path, ending: str) -> Path:
    if {"avif": "AVIF", "heic": "HEIF"}.get(ending, "PNG") not in readable_formats():
        pytest.skip(f"no reader of .{ending} here")
    path = folder / f"x.{ending}"
    picture(0, 64, 48).save(path)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_a_cut_off_file_is_found_and_a_whole_one_is_not_doubted(tmp_path: Path, ending: str) -> None:
    path = written(tmp_path, ending)
    assert look(path)._replace(whole=True)[:3] == (None, False, True)
    assert look(path).whole
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    assert not look(path).whole
    assert [*decode_some([path], [0]).wrong] == [0]


def test_compressed_tiffs_are_judged_by_their_strips(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    picture(0, 64, 48).save(path, compression="tiff_lzw")
    assert look(path).whole


def test_bytes_after_the_end_are_no_damage(tmp_path: Path) -> None:
    path = written(tmp_path, "jpg")
    path.write_bytes(path.read_bytes() + b"a trailer of a phone")
    assert not look(path).whole  # not clear from its end
    assert decode_some([path], [0]).wrong == {}  # but it can be decoded


def test_doubtful_files_come_first_and_the_others_as_far_as_the_budget_goes(tmp_path: Path) -> None:
    paths = []
    for number in range(200):
        paths.append(tmp_path / f"{number}.png")
        Image.new("L", (4, 4)).save(paths[-1])
    paths[7].write_bytes(b"no")
    found = decode_some(paths, [7], budget_s=0.0)
    assert (found.count, [*found.wrong]) == (33, [7])  # the doubtful one, and one block of the others
    assert decode_some(paths, [7], budget_s=60.0).count == 200


def test_the_range_of_deep_files_is_found(tmp_path: Path) -> None:
    for name, values in (("a.png", [[30, 4000]]), ("b.png", [[7, 90]])):
        Image.fromarray(np.array(values, np.uint16)).save(tmp_path / name)
    paths = [tmp_path / "a.png", tmp_path / "b.png", written(tmp_path, "jpg")]
    assert [look(path).deep for path in paths] == [True, True, False]
    found = decode_some(paths, [])
    assert (found.lowest, found.highest) == (7, 4000)


def test_floating_point_needs_levels(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    assert (
        look(tmp_path / "x.tif").wrong
        == "its grey values have no known range; say which are black and white with --data.levels"
    )
    assert look(tmp_path / "x.tif", levels=True).wrong is None
