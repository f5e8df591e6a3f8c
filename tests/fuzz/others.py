"""Rows of the formats of others: images, tars, annotations, tables, recordings, arrays, CIFAR-10's pickles, vocabularies."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules.cifar_reader import read_batch
from datamodules.cifar_reader import read_header as read_cifar
from datamodules.images.class_folders import read_groups
from datamodules.images.decoding import squeezed
from datamodules.images.label_table import Columns as LabelColumns
from datamodules.images.table_files import TableFiles
from datamodules.images.whole_files import look, try_decoding
from datamodules.segmentation.coco import read_coco
from datamodules.segmentation.labelme import read_labelme
from datamodules.segmentation.polygons import shapes_mask
from datamodules.segmentation.prompt_sets import Pair, PromptSet, size_of
from datamodules.segmentation.yolo import read_yolo
from datamodules.sharded.listing import names_of_labels, read_class_names
from datamodules.sharded.shard_index import ShardIndex
from datamodules.sharded.store import ShardError
from datamodules.sharded.tar_members import read_members
from datamodules.signals.file_formats import read_signal_file
from datamodules.signals.har_reader import read_activities, read_windows
from datamodules.signals.recordings.reading import Columns, read_recording, signals_of
from datamodules.signals.recordings.recording import Codes
from datamodules.signals.recordings.segments import Segments
from networks.segmenters.clip_weights import read_merges
from tests.datamodules.cifar_layout import write_cifar
from tests.datamodules.pictures import picture
from tests.fuzz.mutating import of_bytes, of_json, of_table
from tests.fuzz.own import VERSION, of_file
from tests.fuzz.rows import OF_TOOLS, Row
from tests.sharded.shard_sets import sample, write_tar


def coded(kind: str, **options: Any) -> bytes:
    """A picture of 40 x 30 pixels as a file of this format."""
    stream = io.BytesIO()
    picture(3, width=40, height=30).save(stream, kind, **options)
    return stream.getvalue()


def _image(ending: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        path = folder / f"a.{ending}"
        size_of(path)
        found = look(path).wrong or try_decoding(path)
        if isinstance(found, str):
            raise MisconfigurationException(found)
        squeezed(path, 16, 3)

    return read


def mended_png(data: bytes) -> bytes:
    """Give the chunks of a PNG their checksums again."""
    place, parts = 8, [data[:8]]
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        inner = data[place + 4 : place + 8 + size]
        parts.append(data[place : place + 4] + inner + struct.pack(">I", zlib.crc32(inner)))
        place += 12 + size
    return b"".join(parts)


def _tar(folder: Path) -> list[Path]:
    members = [one for number in range(3) for one in sample(number)]
    return [
        write_tar(
            folder / "a.tar", [*members, ("../../x.png", b"x"), ("../../x.cls", b"1"), ("long/" * 40 + "y.txt", b"y")]
        )
    ]


def _read_tar(folder: Path) -> None:
    with (folder / "a.tar").open("rb") as file:
        found = read_members(file, "a.tar", None)
        for one in found:
            file.seek(one.image.offset)
            assert len(file.read(one.image.size)) == one.image.size
    names, labels = [one.image.name for one in found], [one.label for one in found]
    none = np.zeros(len(found), np.int64)
    index = ShardIndex(
        "a.tar",
        VERSION,
        none,
        none,
        none,
        none.astype(np.uint8),
        names,
        labels,
        {},
    )
    names_of_labels([index])


def mended_tar(data: bytes) -> bytes:
    """Give the headers of a tar their checksums again."""
    blocks = [data[place : place + 512] for place in range(0, len(data), 512)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == 512:
            total = sum(block[:148]) + sum(block[156:]) + 8 * 32
            blocks[number] = block[:148] + f"{total:06o}\0 ".encode() + block[156:]
    return b"".join(blocks)


def _pictures(folder: Path, names: tuple[str, ...] = ("a.png", "b.png")) -> None:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        picture(number, width=20, height=10).save(folder / name)


def _draw(pairs: list[Pair]) -> None:
    for pair in pairs:
        shapes_mask(pair.shapes or (), *pair.size)


def _coco(folder: Path) -> list[Path]:
    _pictures(folder / "images")
    shapes: list[Any] = [
        [[1, 1, 8, 1, 8, 6, 1, 6]],
        {"counts": [5, 10, 185], "size": [10, 20]},
        {"counts": "52d5", "size": [10, 20]},
    ]
    content = {
        "images": [{"id": n, "file_name": f"{name}.png", "width": 20, "height": 10} for n, name in enumerate("ab")],
        "categories": [{"id": 1, "name": "crack"}],
        "annotations": [
            {"id": n, "image_id": n % 2, "category_id": 1, "segmentation": shape, "bbox": [1, 1, 5, 5]}
            for n, shape in enumerate(shapes[:2])
        ],
    }
    (folder / "c.json").write_text(json.dumps(content))
    return [folder / "c.json"]


def _read_coco(folder: Path) -> None:
    for polygons in (None, "contour"):
        one = PromptSet(".", ["crack"], annotations="c.json", boxes="fill", polygons=polygons)
        _draw(read_coco(folder, one, 0))


def _labelme(folder: Path) -> list[Path]:
    _pictures(folder / "set")
    mask = io.BytesIO()
    Image.new("L", (4, 3), 255).save(mask, "PNG")
    stored = base64.b64encode(mask.getvalue()).decode()
    kinds: list[tuple[str, list[list[float]]]] = [
        ("polygon", [[1, 1], [8, 1], [8, 6]]),
        ("rectangle", [[1, 1], [8, 6]]),
        ("circle", [[5, 5], [7, 5]]),
        ("linestrip", [[1, 1], [5, 5], [9, 2]]),
        ("mask", [[2, 2], [5, 4]]),
    ]
    shapes = [
        {"label": "crack", "points": points, "shape_type": kind} | ({"mask": stored} if kind == "mask" else {})
        for kind, points in kinds
    ]
    for name in "ab":
        content = {"imagePath": f"{name}.png", "imageHeight": 10, "imageWidth": 20, "shapes": shapes}
        (folder / "set" / f"{name}.json").write_text(json.dumps(content))
    return [folder / "set" / "a.json"]


def _read_labelme(folder: Path) -> None:
    _draw(read_labelme(folder, PromptSet("set", ["crack"], annotations="set"), 0))


def _yolo(folder: Path) -> list[Path]:
    _pictures(folder / "images")
    (folder / "labels").mkdir()
    for name in "ab":
        (folder / "labels" / f"{name}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.6\n1 0.5 0.5 0.2 0.3\n")
    (folder / "data.yaml").write_text("path: .\nnames: {0: &n crack, 1: stain}\nother: [*n, *n]\n")
    return [folder / "labels" / "a.txt", folder / "data.yaml"]


def _read_yolo(folder: Path) -> None:
    _draw(read_yolo(folder, PromptSet(".", ["crack"], annotations="data.yaml", categories=["crack"], boxes="fill"), 0))


def _change_yolo(data: bytes, draw: Any) -> bytes:
    return of_bytes(data, draw) if data[:4] == b"path" else of_table(" ")(data, draw)


def _labels(folder: Path) -> list[Path]:
    _pictures(folder / "images", ("a.png", "b.png", "c.png"))
    text = "file,label,split,person\na.png,cat,train,anna\nb.png,dog,train,bert\nc.png,cat,val,carl\n"
    (folder / "labels.csv").write_text(text)
    return [folder / "labels.csv"]


def _read_labels(folder: Path) -> None:
    table = TableFiles(folder / "images", str(folder / "labels.csv"), LabelColumns())
    for part in table.parts:
        table.listing(part, table.class_names, "skip", False, 3)


def _read_groups(folder: Path) -> None:
    read_groups(folder / "labels.csv", "person", ["a.png", "b.png", "c.png"])


def _signal_table() -> bytes:
    lines = [
        f"{w},{t / 50},{'walk' if w else 'sit'},{w},{t * 0.1:.3f},{t * 0.37 % 1:.3f}" for w in (0, 1) for t in range(4)
    ]
    return "\n".join(["window,time,label,subject,x,y", *lines, ""]).encode()


def _signal_arrays() -> bytes:
    stream = io.BytesIO()
    signal = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    np.savez_compressed(stream, signal=signal, label=np.array([0, 1, 2]), subject=np.array(["a", "b", "c"]), rate=50.0)
    return stream.getvalue()


def mended_zip(data: bytes) -> bytes:
    """Give the members of an archive their checksums and lengths again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = []
        for one in archive.infolist():
            begin = one.header_offset + 30 + sum(struct.unpack_from("<HH", data, one.header_offset + 26))
            raw = data[begin : begin + one.compress_size]
            parts.append(
                (one.filename, raw if one.compress_type == 0 else zlib.decompressobj(-15).decompress(raw, 1 << 20))
            )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return stream.getvalue()


def _change_arrays(data: bytes, draw: Any) -> bytes:
    """Change bytes of the file, or of an array in it, where they are its description."""
    if draw.random() < 0.4:
        return of_bytes(data, draw)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {one.filename: archive.read(one) for one in archive.infolist()}
    name = draw.choice([*parts])
    parts[name] = of_bytes(parts[name], draw)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for one, content in parts.items():
            archive.writestr(one, content)
    return stream.getvalue()


def _recording() -> bytes:
    lines = [f"{t / 50:.2f},{t * 0.1:.2f},{-t * 0.2:.2f},{'walk' if t > 4 else 'sit'}" for t in range(10)]
    return "\n".join(["time,x,y,activity", *lines, ""]).encode()


def _parquet() -> bytes:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    stream = io.BytesIO()
    values = {"time": np.arange(10) / 50, "x": np.arange(10.0), "activity": ["walk"] * 10}
    parquet.write_table(arrow.table(values), stream)
    return stream.getvalue()


def _read_recording(ending: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        path = folder / f"r.{ending}"
        columns = Columns({}, time="time", label="activity")
        found = Columns(signals_of(path, columns), time="time", label="activity")
        read_recording(path, path.name, found, Codes(), Codes())

    return read


def _har(folder: Path) -> list[Path]:
    (folder / "activity_labels.txt").write_text("1 WALKING\n2 SITTING\n")
    (folder / "train" / "Inertial Signals").mkdir(parents=True)
    (folder / "train" / "y_train.txt").write_text("1\n2\n")
    (folder / "train" / "subject_train.txt").write_text("3\n4\n")
    line = " ".join(f"{value:.3e}" for value in np.linspace(-1, 1, 128))
    for sensor in ("body_acc", "body_gyro", "total_acc"):
        for axis in "xyz":
            (folder / "train" / "Inertial Signals" / f"{sensor}_{axis}_train.txt").write_text(f"{line}\n{line}\n")
    signal = folder / "train" / "Inertial Signals" / "body_acc_x_train.txt"
    return [
        folder / "activity_labels.txt",
        folder / "train" / "y_train.txt",
        folder / "train" / "subject_train.txt",
        signal,
    ]


def _cifar(folder: Path) -> list[Path]:
    write_cifar(folder / "c", size=2, per_file=3, files=1, names=["a", "b", "c"])
    return [folder / "c" / "batches.meta", folder / "c" / "data_batch_1"]


def _read_cifar(folder: Path) -> None:
    read_batch(folder / "c" / "data_batch_1", read_cifar(folder / "c"))


def _segments() -> bytes:
    return b"recording,start,end,label\na,0.0,1.0,walk\nb,1.5,2.0,sit\n"


def _change_packed(data: bytes, draw: Any) -> bytes:
    """Change the packed bytes, or what is packed."""
    return gzip.compress(of_bytes(gzip.decompress(data), draw)) if draw.random() < 0.6 else of_bytes(data, draw)


def _merges() -> bytes:
    return gzip.compress(b"#version\n" + b"\n".join(b"a%d b%d" % (n, n) for n in range(20)) + b"\n")


IMAGES = {
    "PNG": ("png", {}, mended_png),
    "JPEG": ("jpg", {}, None),
    "TIFF": ("tif", {"compression": "tiff_lzw"}, None),
    "WEBP": ("webp", {}, None),
    "GIF": ("gif", {}, None),
    "BMP": ("bmp", {}, None),
    "PPM": ("ppm", {}, None),
}
OTHERS = {
    **{
        kind: Row(
            of_file(f"a.{ending}", partial(coded, kind, **options)),
            _image(ending),
            of_bytes,
            mend,
            memory=4 << 30,
        )
        for kind, (ending, options, mend) in IMAGES.items()
    },
    "tar": Row(_tar, _read_tar, of_bytes, mended_tar, (ShardError, MisconfigurationException)),
    "COCO": Row(_coco, _read_coco, of_json),
    "labelme": Row(_labelme, _read_labelme, of_json),
    "YOLO": Row(_yolo, _read_yolo, _change_yolo),
    "label table": Row(_labels, _read_labels, of_table(",")),
    "groups": Row(_labels, _read_groups, of_table(","), None, OF_TOOLS),
    "class names": Row(
        of_file("c.txt", lambda: b"cat\ndog\nbird\n"), lambda f: read_class_names(str(f / "c.txt")), of_table(" ")
    ),
    "signal table": Row(of_file("s.csv", _signal_table), lambda f: read_signal_file(f / "s.csv"), of_table(",")),
    "signal arrays": Row(
        of_file("s.npz", _signal_arrays), lambda f: read_signal_file(f / "s.npz"), _change_arrays, mended_zip
    ),
    "recording": Row(of_file("r.csv", _recording), _read_recording("csv"), of_table(","), None, OF_TOOLS),
    "parquet": Row(of_file("r.parquet", _parquet), _read_recording("parquet"), of_bytes, None, OF_TOOLS),
    "segments": Row(
        of_file("s.csv", _segments), lambda f: Segments(f / "s.csv").of("a"), of_table(","), None, OF_TOOLS
    ),
    "UCI text": Row(_har, lambda f: read_windows(f, "train", len(read_activities(f))), of_table(" ")),
    "CIFAR pickle": Row(_cifar, _read_cifar, of_bytes),
    "vocabulary": Row(
        of_file("v.txt.gz", _merges), lambda f: read_merges(str(f / "v.txt.gz")), _change_packed, None, OF_TOOLS
    ),
}
