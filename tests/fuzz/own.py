"""Rows of the formats of this project: checkpoints, packed exports, caches of features and canvases, indices, records of runs."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save

from datamodules.images.canvases import open_canvases
from datamodules.images.canvases.header import CanvasError, read_header, recipe_of
from datamodules.images.canvases.shards import map_shard
from datamodules.images.canvases.writer import Source
from datamodules.sharded.shard_index import ShardIndex, _checksum, _read, _text, _write
from datamodules.sharded.store import Version
from features import CachedSplit, CacheError, list_files
from features import read_header as read_features
from features.identity import json_hash
from foundation.checkpoint_files import DamagedFileError, read_checkpoint, seal
from lightning_modules.pretrained.reading import read_weights
from networks import PackedError, read_packed, write_packed
from networks.packed import PREFIX, checksum
from tests.datamodules.pictures import picture
from tests.features.caches import identity, samples, write
from tests.fuzz.mutating import edited, of_bytes, of_json
from tests.fuzz.rows import ERRORS, OF_TOOLS, Row
from tests.networks.trained import resnet
from tools.compare.runs import read_run as compared_run
from tools.experiments.report import read_record
from tools.report.run import read_run, read_table

VERSION = Version(1000, "tag")
ODD_PICKLES = (b"c__builtin__\neval\n", b"cbuiltins\ngetattr\n", b"cos\nsystem\n")


def of_file(name: str, content: Callable[[], bytes]) -> Callable[[Path], list[Path]]:
    """Make one file."""

    def make(folder: Path) -> list[Path]:
        path = folder / name
        path.write_bytes(content())
        return [path]

    return make


def small_checkpoint() -> dict[str, Any]:
    """The content of a checkpoint as Lightning writes it, with few tensors."""
    draw = torch.Generator().manual_seed(0)
    state = {f"network.{name}": torch.randn(3, 4, generator=draw) for name in ("stem.weight", "head.weight")}
    progress = {"epoch_progress": {"current": {"processed": 2, "ready": 3}}}
    return {
        "state_dict": state,
        "loops": {"fit_loop": progress},
        "global_step": 12,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(12.0), "exp": torch.randn(3, 4, generator=draw)}}}],
        "hyper_parameters": {"lr": 0.1, "class_names": ["a", "b", "c"], "mean": [0.5] * 3},
    }


def _sealed(folder: Path) -> list[Path]:
    path = folder / "last.ckpt"
    torch.save(small_checkpoint(), path)
    seal(path)
    return [path]


def _mended_checkpoint(data: bytes) -> bytes:
    """Pack the members again, so that their checksums are right, and seal the file."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {one.filename: _raw(data, one) for one in archive.infolist()}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _raw(data: bytes, one: zipfile.ZipInfo) -> bytes:
    begin = one.header_offset + 30 + sum(struct.unpack_from("<HH", data, one.header_offset + 26))
    return data[begin : begin + one.compress_size]


def _change_checkpoint(data: bytes, draw: Any) -> bytes:
    """Change bytes of the file, values of its content, or opcodes of its pickle."""
    kind = draw.randrange(3)
    if kind == 0:
        return of_bytes(data, draw)
    stream = io.BytesIO()
    content = small_checkpoint()
    state = content.pop("state_dict")
    if kind == 1:
        torch.save(
            edited(content, draw) if draw.random() < 0.3 else {**edited(content, draw), "state_dict": state}, stream
        )
        return stream.getvalue()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {one.filename: archive.read(one) for one in archive.infolist()}
    name = next(name for name in parts if name.endswith("data.pkl"))
    if draw.random() < 0.3:
        place = draw.randrange(len(parts[name]))
        parts[name] = parts[name][:place] + draw.choice(ODD_PICKLES) + parts[name][place:]
    parts[name] = of_bytes(parts[name], draw)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for one, inner in parts.items():
            archive.writestr(one, inner)
    return stream.getvalue()


def _read_checkpoint(folder: Path) -> None:
    path = folder / "last.ckpt"
    content = read_checkpoint(path)
    assert content is not None


def _read_weights(folder: Path) -> None:
    read_weights(str(folder / "w.pt"), ["stem.weight", "head.weight"])


def _weights(folder: Path) -> list[Path]:
    path = folder / "w.pt"
    torch.save(small_checkpoint(), path)
    return [path]


def _read_safetensors(folder: Path) -> None:
    read_weights(str(folder / "w.safetensors"), ["stem.weight"])


def _safe() -> bytes:
    return save({"stem.weight": torch.ones(3, 4), "head.weight": torch.ones(2)}, {"format": "pt"})


def change_safetensors(data: bytes, draw: Any) -> bytes:
    """Change the JSON of the header, with its length, or bytes."""
    size = int.from_bytes(data[:8], "little")
    if draw.random() < 0.5 or size > len(data):
        return of_bytes(data, draw)
    header = of_json(data[8 : 8 + size], draw)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _packed() -> bytes:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{os.getpid()}.lvr"
    try:
        about: dict[str, Any] = {
            "image_size": 8,
            "mean": [0.5] * 3,
            "std": [0.2] * 3,
            "class_names": list("abcdefghij"),
        }
        write_packed(path, resnet(), architecture="resnet20", coding="trits", **about)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _change_packed(data: bytes, draw: Any) -> bytes:
    start = PREFIX.size + PREFIX.unpack_from(data)[2]
    if draw.random() < 0.6:
        return PREFIX.pack(data[:8], 1, 0, 0) + of_json(data[PREFIX.size : start].strip(), draw) + b"\n" + data[start:]
    return of_bytes(data, draw)


def _mended_packed(data: bytes) -> bytes:
    header, _, payload = data[PREFIX.size :].partition(b"\n")
    if PREFIX.unpack_from(data)[2]:
        start = PREFIX.unpack_from(data)[2]
        header, payload = data[PREFIX.size : PREFIX.size + start], data[PREFIX.size + start :]
    payload = payload[:-16]
    whole = PREFIX.pack(data[:8], 1, len(header), PREFIX.size + len(header) + len(payload) + 16) + header + payload
    return whole + checksum(whole)


def mended_header(data: bytes) -> bytes:
    """Give a JSON header its checksum again."""
    content = json.loads(data)
    content.pop("checksum", None)
    return json.dumps(content | {"checksum": json_hash(content)}).encode()


def _features(folder: Path) -> list[Path]:
    write(folder, identity(), {"train": samples(6), "val": samples(5, seed=1, first=1)}, rows=16)
    return [folder / "header.json", next(folder.glob("train*.safetensors"))]


def _read_features(folder: Path) -> None:
    header = read_features(folder)
    for split in header.splits:
        CachedSplit(folder, header, cast(Any, split), verify=False).whole()


def _change_cache(data: bytes, draw: Any) -> bytes:
    return of_json(data, draw) if data[:1] == b"{" else change_safetensors(data, draw)


def _canvases(folder: Path) -> list[Path]:
    (folder / "images").mkdir()
    for number in range(3):
        picture(number, width=12, height=10).save(folder / "images" / f"{number}.png")
    files = list_files(folder / "images", sorted(path.name for path in (folder / "images").iterdir()))
    recipe = recipe_of(files, size=8, channels=3)
    open_canvases(folder / "set", recipe, Source(folder / "images", files, print), workers=0)
    return [folder / "set" / "header.json", next((folder / "set").glob("*.safetensors"))]


def _read_canvases(folder: Path) -> None:
    files = list_files(folder / "images", sorted(path.name for path in (folder / "images").iterdir()))
    recipe = recipe_of(files, size=8, channels=3)
    header = read_header(folder / "set", recipe, files)
    assert header is not None
    for number, (shard, count) in enumerate(zip(header.shards, header.counts(), strict=True)):
        map_shard(folder / "set", number, header.recipe, count, shard)


def _index() -> ShardIndex:
    columns = (np.array([512, 2048]), np.array([700, 700]), np.array([5, 6]))
    return ShardIndex(
        "a.tar", VERSION, *columns, np.zeros(2, np.uint8), ["1.png", "2.png"], ["0", "1"], {1: "no image"}
    )


def _write_index(folder: Path) -> list[Path]:
    _write(folder / "index.npz", _index())
    return [folder / "index.npz"]


def _read_index(folder: Path) -> None:
    found = _read(folder / "index.npz", "a.tar", VERSION)
    assert found is None or len(found.names) == len(found.labels) == len(found.size) == len(found.offset)


def _mended_index(data: bytes) -> bytes:
    """Take another text or another column, with the right checksum; the bytes only say which."""
    draw = __import__("random").Random(data[:200] + data[-100:])
    content = json.loads(_text(_index()))
    content = edited(content, draw)
    text = json.dumps(content).encode()
    columns = {"offset": np.array([512, 2048]), "size": np.array([700, 700]), "key": np.array([5, 6])}
    columns["kind"] = np.zeros(2, np.uint8)
    name = draw.choice([*columns])
    columns[name] = draw.choice((columns[name][:1], columns[name].astype("<f4"), columns[name][None], -columns[name]))
    sums = _checksum(text, *(one.tobytes() for one in columns.values()))
    stream = io.BytesIO()
    as_bytes = {"text": np.frombuffer(text, np.uint8), "checksum": np.frombuffer(sums, np.uint8)}
    np.savez_compressed(stream, **columns, **as_bytes)  # type: ignore[arg-type]
    return stream.getvalue()


def _record() -> bytes:
    one = {"words": ["fit", "--config", "a.yaml"], "exit_code": 0, "seconds": 3.5}
    return json.dumps({"base": one, "ema": dict(one)}).encode()


def _use_record(folder: Path) -> None:
    for entry in read_record(folder).values():
        " ".join(map(str, entry.get("words", [])))


def _run(folder: Path) -> list[Path]:
    files = {
        "config.yaml": b"seed_everything: 1\nmodel: {class_path: A, init_args: {lr: 0.1}}\n"
        b"data: {init_args: {root: &r data, b: *r}}\n",
        "metrics.csv": b"epoch,step,train/loss,val/acc\n0,10,1.5,\n0,10,,0.5\n1,20,1.2,0.6\n",
        "training_summary.json": json.dumps({"time": {"seconds": 10.0}, "environment": {"devices": 1}}).encode(),
        "test_metrics.json": json.dumps(
            {"metrics": {"test/acc": 0.5}, "overrides": {}, "data": {"place": "x"}}
        ).encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


def _read_run(folder: Path) -> None:
    compared_run(folder)
    read_run(folder)
    read_table(folder / "metrics.csv")


def _change_run(data: bytes, draw: Any) -> bytes:
    return of_json(data, draw) if data[:1] == b"{" else of_bytes(data, draw)


OWN = {
    "checkpoint": Row(_sealed, _read_checkpoint, _change_checkpoint, _mended_checkpoint, (DamagedFileError, *ERRORS)),
    "weights": Row(_weights, _read_weights, _change_checkpoint, None, OF_TOOLS),
    "safetensors": Row(of_file("w.safetensors", _safe), _read_safetensors, change_safetensors, None, OF_TOOLS),
    "packed export": Row(
        of_file("a.lvr", _packed), lambda f: read_packed(f / "a.lvr"), _change_packed, _mended_packed, (PackedError,)
    ),
    "feature cache": Row(_features, _read_features, _change_cache, mended_header, (CacheError,)),
    "canvas cache": Row(_canvases, _read_canvases, _change_cache, mended_header, (CanvasError,)),
    "shard index": Row(_write_index, _read_index, of_bytes, _mended_index, ()),
    "experiments": Row(of_file("experiments.json", _record), _use_record, of_json, None, OF_TOOLS),
    "run": Row(_run, _read_run, _change_run, None, OF_TOOLS),
}
