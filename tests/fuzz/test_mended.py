"""Faults that fuzzing or reading found, each with the right answer: counts, lengths and names that nobody has, refused at once."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from callbacks import read_metrics
from datamodules.cifar_reader import read_pickle
from datamodules.images.canvases import CanvasError
from datamodules.images.canvases.coding import coded, decode
from datamodules.images.canvases.header import UNFINISHED, read_header, recipe_of
from datamodules.images.class_folders import read_groups
from datamodules.images.label_table import in_order
from datamodules.images.whole_files import try_decoding
from datamodules.segmentation.coco import read_coco
from datamodules.segmentation.coco_shapes import ShapeError, bounded
from datamodules.segmentation.image_names import ImageNames
from datamodules.segmentation.labelme import _shape
from datamodules.segmentation.polygons import polygon_mask, uncompressed
from datamodules.segmentation.prompt_sets import PromptSet
from datamodules.segmentation.yolo import category_names
from datamodules.sharded.listing import names_of_labels
from datamodules.sharded.shard_index import _read, _write
from datamodules.sharded.store import ShardError
from datamodules.sharded.tar_members import read_members
from datamodules.signals.file_formats import read_signal_file
from datamodules.signals.har_reader import read_activities
from datamodules.signals.recordings.reading import Columns, column_names
from datamodules.signals.recordings.segments import Segments
from foundation.checkpoint_files import DamagedFileError, check_pickle, read_checkpoint
from lightning_modules.pretrained.reading import read_weights
from networks.segmenters.clip_weights import read_merges
from tests.fuzz.own import _index, mended_header
from tools.compare.runs import read_run
from tools.experiments.report import read_record

LONG = "x" * 200_000


def test_the_lengths_in_a_checkpoint_are_within_it(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"w": torch.ones(3)}}, path)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\1\2")
    data[entry + 20 : entry + 28] = struct.pack("<II", 0x7FFFFFFF, 0x7FFFFFFF)
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="cut short or no checkpoint"):
        read_checkpoint(path)


def test_weights_of_others_in_several_parts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    end = data.rfind(b"PK\5\6")
    data[end:end] = struct.pack(
        "<4sIQI", b"PK\6\7", 7, end, 1
    )  # as for more than 4 GB: the part and place of the table
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.pt: cannot be read: it is truncated or not a weights file"):
        read_weights(str(path), ["w"])


def test_no_memory_is_taken_for_what_the_table_of_a_checkpoint_claims(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.ones(3)}, path)
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + 20 : entry + 24] = struct.pack("<I", 0x7FFFFFFF)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its table of contents is damaged"):
        check_pickle(path)


def test_canvases_are_counted_before_they_are_listed(tmp_path: Path) -> None:
    recipe = recipe_of({"a.png": 3}, size=8, channels=3)
    content = {"schema": 1, **recipe.content(), "rows": 1, "shards": []}
    changes: list[dict[str, Any]] = [{"count": 10**15}, {"versions": []}, {"data": {}}]
    for change in changes:
        (tmp_path / "header.json").write_bytes(mended_header(json.dumps(content | change).encode()))
        with pytest.raises(CanvasError, match="the header is damaged"):
            read_header(tmp_path, recipe, {"a.png": 3})


def test_a_field_of_a_header_of_canvases_has_another_type(tmp_path: Path) -> None:
    recipe = recipe_of({"a.png": 3}, size=8, channels=3)
    content = {"schema": 1, **recipe.content(), "rows": 1}
    other = {
        "fill": ({"a": 1}, "fill is .* in the canvas cache, but null here"),
        "versions": (recipe.versions | {"x": None}, "versions.x is null in the canvas cache, but .not there. here"),
    }
    for name, (value, text) in other.items():
        (tmp_path / UNFINISHED).write_bytes(mended_header(json.dumps(content | {name: value}).encode()))
        with pytest.raises(CanvasError, match=text):
            read_header(tmp_path, recipe, {"a.png": 3})


def test_labels_do_not_say_how_many_names_are_made(tmp_path: Path) -> None:
    signal = np.zeros((2, 1, 4))
    np.savez(tmp_path / "a.npz", signal=signal, label=np.array([0, 10**15]), subject=np.array([1, 2]))
    for setting in ("file", "test_file"):
        with pytest.raises(MisconfigurationException, match="label"):
            read_signal_file(tmp_path / "a.npz", setting)


def test_one_long_line_does_not_set_the_width_of_all_texts(tmp_path: Path) -> None:
    lines = [f"w{n // 2},{n},{n},a" for n in range(2000)]
    (tmp_path / "a.csv").write_text("\n".join(["window,time,x,label", *lines, f"{LONG},1,1,a", f"{LONG},2,1,a"]))
    with pytest.raises(MisconfigurationException, match=r"a line has 200,00. bytes, while a usual one has"):
        read_signal_file(tmp_path / "a.csv")


def test_a_cell_that_is_too_long_is_said_in_every_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"file,group,start,end,label\na.png,{LONG},0,1,x\n")
    for read in (lambda: read_groups(path, "group", ["a.png"]), lambda: Segments(path), lambda: read_metrics(path)):
        with pytest.raises(ValueError, match="field larger than field limit"):
            read()


def test_numbers_of_thousands_of_digits_are_sorted() -> None:
    assert in_order(["10", "9", "1" * 5000, "009"]) == ["009", "9", "10", "1" * 5000]


def test_run_lengths_end() -> None:
    assert uncompressed("P" * 100_000 + "0") is None
    assert uncompressed("b'" + "(" * 100_000 + "'") is None
    assert uncompressed("b'\\\\\\\\0'") is not None


def test_corners_are_near_and_few() -> None:
    for points in ([[0, 0], [1e300, 1]], [[0, 0]] * 100_001, [[-9e5, -9e5], [9e5, 9e5]] * 20):
        with pytest.raises(ShapeError, match=r"corner|outline"):
            bounded(np.array(points, dtype=np.float64))
    many = np.random.default_rng(0).uniform(0, 3000, (20_000, 2))
    whole = polygon_mask(many[:50], 3000, 30)
    assert np.array_equal(whole, polygon_mask(np.vstack([many[:50], many[:1]]), 3000, 30))


def test_a_polygon_of_many_corners_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).uniform(0, 40, (300, 2))
    whole = polygon_mask(points, 40, 40)
    monkeypatch.setattr("datamodules.segmentation.polygons.AT_ONCE", 100)
    assert np.array_equal(whole, polygon_mask(points, 40, 40))


def test_a_shape_of_labelme_may_have_any_type_and_mask() -> None:
    stream = io.BytesIO()
    Image.new("1", (3000, 3000)).save(stream, "PNG")
    stored = base64.b64encode(stream.getvalue()).decode()
    with pytest.raises(ShapeError, match="3000x3000 pixels is larger than the image"):
        _shape({"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": stored}, 10, 10, False)
    with pytest.raises(ShapeError, match="are not read"):
        _shape({"shape_type": ["mask"], "points": [[0, 0], [1, 1]]}, 10, 10, False)


def test_names_that_no_file_has_are_not_there(tmp_path: Path) -> None:
    names = ImageNames(tmp_path, tmp_path)
    assert [names.find(name) for name in ("x" * 300, "a/" * 5000, "\0", "../../etc/hosts")] == [None] * 4


def test_annotations_that_are_nested_too_deep_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(MisconfigurationException, match="nested more than 64 deep"):
        read_coco(tmp_path, PromptSet(".", ["x"], annotations="a.json"), 0)


def test_names_of_categories_are_texts(tmp_path: Path) -> None:
    for names in ("{0: &a [x, x], 1: [*a, *a]}", f"{{{'9' * 5000}: x}}", "{0: 2001-99-99}"):
        (tmp_path / "data.yaml").write_text(f"names: {names}\n")
        with pytest.raises(MisconfigurationException, match="has no list of `names`"):
            category_names(tmp_path / "data.yaml", True)


def test_a_pickle_has_no_sets_and_no_nested_keys(tmp_path: Path) -> None:
    contents = [{"a": {1}}, {"a": frozenset({1})}, {"a": {(1, 2): 3}}]
    for content in contents:
        (tmp_path / "a").write_bytes(pickle.dumps(content, 4))
        with pytest.raises(MisconfigurationException, match="is damaged or not a batch file"):
            read_pickle(tmp_path / "a")
    (tmp_path / "a").write_bytes(pickle.dumps({"a": b"abc"}, 4)[:-3])
    with pytest.raises(MisconfigurationException, match="is damaged or not a batch file"):
        read_pickle(tmp_path / "a")


def test_a_tar_does_not_say_how_much_is_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 4096
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with (tmp_path / "a.tar").open("rb") as file, pytest.raises(ShardError, match=r"^a.tar: [^\n]*$"):
        read_members(file, "a.tar", None)


def test_a_vocabulary_is_unpacked_up_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("networks.segmenters.clip_weights.LONGEST", 1000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(2000)))
    with pytest.raises(ValueError, match="longer than 1,000 bytes"):
        read_merges(str(tmp_path / "a.gz"))


def test_records_of_experiments_are_tables(tmp_path: Path) -> None:
    for content in ("[]", '{"a": 1}', '{"a": {"words": 3}}', "[" * 100_000):
        (tmp_path / "experiments.json").write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_record(tmp_path)


def test_an_index_of_other_types_is_built_again(tmp_path: Path) -> None:
    path, good = tmp_path / "a.npz", _index()
    for change in ({"names": 3}, {"labels": ["0"]}, {"wrong": {5: "x"}}, {"offset": np.zeros(3, np.int64)}):
        _write(path, dataclasses.replace(good, **change))
        assert _read(path, good.address, good.version) is None
    _write(path, good)
    assert _read(path, good.address, good.version) is not None


def test_metrics_are_rows_of_numbers(tmp_path: Path) -> None:
    for rows in ("1,2,3,4", "inf,2,3", "1,nan,3"):
        (tmp_path / "metrics.csv").write_text(f"epoch,step,train/loss\n{rows}\n")
        with pytest.raises(ValueError, match="is damaged"):
            read_metrics(tmp_path / "metrics.csv")


def test_names_of_activities_are_text(tmp_path: Path) -> None:
    (tmp_path / "activity_labels.txt").write_bytes(b"1 WALK\xff\n")
    with pytest.raises(MisconfigurationException, match="is no text in UTF-8"):
        read_activities(tmp_path)


def test_a_broken_parquet_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(30) + (30).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(ValueError, match=r"^it is no whole Parquet file \([^\n]*\)$"):
        column_names(tmp_path / "a.parquet", Columns({}))


def test_a_coded_canvas_has_the_size_of_its_set() -> None:
    data = np.frombuffer(coded(torch.zeros(3, 16, 16, dtype=torch.uint8), 90), np.uint8)
    decode(data, np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(OSError, match="it is 16 x 16 pixels, not 8 x 8"):
        decode(data, np.zeros((8, 8, 3), np.uint8))


def test_numbers_of_labels_in_shards_are_those_of_classes() -> None:
    with pytest.raises(
        MisconfigurationException, match=r"the label of 2.png is 99999999999, but classes are numbered from 0"
    ):
        names_of_labels([dataclasses.replace(_index(), labels=["0", "99999999999"])])
    assert names_of_labels([dataclasses.replace(_index(), labels=["00", "02"])]) == ["0", "1", "2"]


def test_a_picture_that_asks_for_more_than_its_pixels_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: Any) -> None:
        raise MemoryError

    Image.new("1", (2000, 2000)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", none_left)
    assert try_decoding(tmp_path / "a.png") == "damaged"
    monkeypatch.setattr("datamodules.images.whole_files.bytearray", none_left, raising=False)
    with pytest.raises(MemoryError):  # for its pixels either
        try_decoding(tmp_path / "a.png")


def test_a_run_with_numbers_beyond_floats_is_broken(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed_everything: 1\n")
    (tmp_path / "training_summary.json").write_text('{"time": {"seconds": 1}, "environment": {"devices": 1e999}}')
    assert "training_summary.json cannot be read" in read_run(tmp_path).status
