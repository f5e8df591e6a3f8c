"""Writing and reading a feature cache: the same values are read back, for any number of processes and after interruptions."""

import json
import os
import random
import re
import signal
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from features import CachedSplit, CacheError, CacheWriter, Identity, data_of_files, hash_tensors, read_header
from tests.features.caches import DTYPES, WIDTH, by_index, identity, samples, sizes_for, write


def appended(
    writer: CacheWriter, data: dict[str, Tensor], rows: slice | Tensor = slice(None), split: Any = "train"
) -> int:
    return writer.append(split, **{name: values[rows] for name, values in data.items()})


def check_holds(folder: Path, split: Any, data: dict[str, Tensor], about: Identity) -> None:
    """The values read are equal to the bit to the values written, cast once."""
    read, right = CachedSplit(folder, read_header(folder), split), by_index(data)
    assert torch.equal(read.index, right["index"])
    assert torch.equal(read.label, right["label"])
    rows = right["features"].to(DTYPES[about.dtype]).view(-1, WIDTH)
    assert torch.equal(read.whole(), rows)
    chosen = torch.randint(len(rows), (50,))
    assert torch.equal(read.take(chosen), rows[chosen])
    assert read.take(chosen[:0]).shape == (0, WIDTH)


@pytest.mark.parametrize(("dtype", "views"), list(product(["float32", "float16", "bfloat16"], [1, 3])))
def test_what_was_written_is_read(tmp_path: Path, dtype: Any, views: int) -> None:
    about = identity(dtype=dtype, views=views)
    parts = {"train": samples(11, 1, views), "val": samples(5, 2), "test": samples(1, 3)}
    header = write(tmp_path / "c", about, parts)
    assert header == read_header(tmp_path / "c")
    assert header.identity == about
    for split, data in parts.items():
        check_holds(tmp_path / "c", split, data, about)
        entry = header.splits[split]
        assert (entry.count, list(entry.class_counts)) == (
            len(data["label"]),
            data["label"].bincount(minlength=3).tolist(),
        )
        assert [shard.bytes for shard in entry.shards] == [
            (tmp_path / "c" / shard.file).stat().st_size for shard in entry.shards
        ]
    assert [shard.count for shard in header.splits["train"].shards] == [4, 4, 3]
    assert max(shard.bytes for shard in header.splits["train"].shards) <= sizes_for(4, about)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "header.json",
        *(
            f"{split}-r000-{i:05d}.safetensors"
            for split, n in (("test", 1), ("train", 3), ("val", 2 if views == 1 else 1))
            for i in range(n)
        ),
    ]


def test_shard_is_plain_safetensors_and_its_checksum_the_hash_of_its_tensors(tmp_path: Path) -> None:
    data = samples(4)
    shard = write(tmp_path, identity(), {"train": data}).splits["train"].shards[0]
    found = load_file(tmp_path / shard.file)
    assert {name: values.tolist() for name, values in found.items()} == {n: v.tolist() for n, v in data.items()}
    assert shard.checksum == hash_tensors(data)


def test_shards_are_mapped_and_not_read(tmp_path: Path) -> None:
    shard = write(tmp_path, identity(), {"train": samples(4)}).splits["train"].shards[0]
    before = len(os.listdir("/proc/self/fd"))
    read = CachedSplit(tmp_path, read_header(tmp_path), "train")
    # compare full paths, because shards of other tests have the same name and may still be mapped
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path / shard.file) in line]
    begin, end = (int(number, 16) for number in lines[0].split()[0].split("-"))
    assert begin < read._features[0].data_ptr() < end
    assert lines[0].split()[1][-1] == "p"  # private mapping: changes of a tensor do not reach the file
    assert len(os.listdir("/proc/self/fd")) == before
    read._features[0].zero_()
    assert CachedSplit(tmp_path, read_header(tmp_path), "train").whole().any()


@pytest.mark.parametrize("world_size", [2, 3])
def test_several_processes_write_one_cache(tmp_path: Path, world_size: int) -> None:
    data, about = samples(23), identity()
    writers = [CacheWriter(tmp_path, about, rank=r, shard_bytes=sizes_for(3, about)) for r in range(world_size)]
    for rank, writer in enumerate(writers):
        for rows in torch.arange(rank, 23, world_size).split(2):
            assert appended(writer, data, rows) == len(rows)
        writer.flush()
    header = writers[0].finish({"train": 23})
    check_holds(tmp_path, "train", data, about)
    assert {shard.file[:10] for shard in header.splits["train"].shards} == {
        f"train-r{r:03d}" for r in range(world_size)
    }


@pytest.mark.parametrize(("before", "after", "stop"), list(product([1, 2], [1, 3], [1, 4, 9])))
def test_interrupted_extraction_goes_on_with_any_number_of_processes(
    tmp_path: Path, before: int, after: int, stop: int
) -> None:
    data, about, n = samples(31), identity(), 31
    for rank in range(before):
        writer = CacheWriter(tmp_path, about, rank=rank, shard_bytes=sizes_for(4, about))
        for rows in list(torch.arange(rank, n, before).split(2))[:stop]:
            appended(writer, data, rows)
        # killed here: buffered samples are lost, and a file that was being written has another name
        (tmp_path / f".train-r{rank:03d}-00099.safetensors.r{rank:03d}.tmp").write_bytes(b"half")
    on_disk = len(list(tmp_path.glob("*.safetensors"))) * 4
    written = 0
    for rank in range(after):
        writer = CacheWriter(tmp_path, about, rank=rank, shard_bytes=sizes_for(4, about))
        order = torch.arange(rank, n, after)
        missing = writer.missing("train", data["index"][order])
        first = int(missing.nonzero()[0]) if missing.any() else len(order)
        if before == after == 1:
            assert first == on_disk == 4 * (2 * stop // 4)  # the samples on disk determine where to continue
        for rows in order[first // 2 * 2 :].split(2):
            written += appended(writer, data, rows)
        writer.flush()
    assert written == n - on_disk
    writer.finish({"train": n})
    check_holds(tmp_path, "train", data, about)
    assert not list(tmp_path.glob(".*"))


def test_whole_cache_has_nothing_to_do_and_one_that_lost_a_shard_has(tmp_path: Path) -> None:
    data, about = samples(10), identity()
    header = write(tmp_path, about, {"train": data})
    writer = CacheWriter(tmp_path, about)
    assert writer.finished
    assert appended(writer, data) == 0
    assert writer.finish({"train": 10}) == header
    (tmp_path / header.splits["train"].shards[1].file).unlink()
    writer = CacheWriter(tmp_path, about)
    assert not writer.finished
    assert appended(writer, data) == 4
    writer.finish({"train": 10})
    check_holds(tmp_path, "train", data, about)


def test_flush_leaves_nothing_to_lose_and_is_nothing_without_samples(tmp_path: Path) -> None:
    data, about = samples(5), identity()
    writer = CacheWriter(tmp_path, about)
    appended(writer, data, slice(0, 3))
    assert (writer.held("train"), list(tmp_path.glob("*.safetensors"))) == (3, [])
    writer.flush()
    writer.flush()
    assert (writer.held("train"), len(list(tmp_path.glob("*.safetensors")))) == (0, 1)
    writer = CacheWriter(tmp_path, about)
    assert writer.missing("train", data["index"]).tolist() == [False] * 3 + [True] * 2
    assert appended(writer, data) == 2


def test_types_are_cast_and_devices_left(tmp_path: Path) -> None:
    about = identity(dtype="float16")
    data = samples(4)
    write(tmp_path, about, {"train": {**data, "features": data["features"].double().requires_grad_()}})
    check_holds(tmp_path, "train", data, about)


def test_full_disk_loses_nothing_and_the_same_call_goes_on(tmp_path: Path) -> None:
    """Simulated by a limit on the size of files in a separate process; 40 samples exceed the limit."""
    import resource

    data, about = samples(60), identity()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            writer = CacheWriter(tmp_path, about, shard_bytes=sizes_for(20, about))
            appended(writer, data, slice(0, 25))
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
            with refused(r"cannot be written \(File too large\); all shards before it are kept: make room, then run"):
                appended(writer, data, slice(25, 45))
            assert writer.held("train") == 25
            assert len(list(tmp_path.glob("*.safetensors"))) == 1
            assert not list(tmp_path.glob(".*.tmp"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            appended(writer, data, slice(25, 45))
            assert writer.held("train") == 5
            code = 0
        except BaseException as error:  # for the test's output: the process ends here
            print(repr(error))
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    writer = CacheWriter(tmp_path, about)
    assert appended(writer, data) == 20  # the five buffered samples were lost with the process
    writer.finish({"train": 60})
    check_holds(tmp_path, "train", data, about)


def test_shard_has_its_name_only_when_it_is_on_disk_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[tuple[int, int, list[str]]] = []
    fsync = os.fsync

    def recorded(handle: int) -> None:
        fsync(handle)
        found = os.fstat(handle)
        synchronised.append((found.st_ino, found.st_size, [path.name for path in tmp_path.glob("*.safetensors")]))

    writer = CacheWriter(tmp_path, identity())
    appended(writer, samples(5))
    monkeypatch.setattr("features.shards.os.fsync", recorded)
    writer.flush()
    (shard,) = tmp_path.glob("*.safetensors")
    assert synchronised[0] == (shard.stat().st_ino, shard.stat().st_size, [])
    assert synchronised[1][0] == tmp_path.stat().st_ino  # and then the name itself


@pytest.mark.slow
def test_killed_extractions_go_on_to_the_same_cache(tmp_path: Path) -> None:
    data, about, n, rounds = samples(400), identity(), 400, 0
    draw = random.Random(0)
    while not (tmp_path / "header.json").is_file():
        pid = os.fork()
        if not pid:
            try:
                writer = CacheWriter(tmp_path, about, shard_bytes=sizes_for(3, about))
                for begin in range(0, n, 5):
                    appended(writer, data, slice(begin, begin + 5))
                writer.finish({"train": n})
            finally:
                os._exit(0)
        if rounds < 6:
            time.sleep(draw.uniform(0.005, 0.08))
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        rounds += 1
        assert rounds < 9
    check_holds(tmp_path, "train", data, about)
    assert not list(tmp_path.glob(".*"))


def refused(message: str) -> Any:
    return pytest.raises(CacheError, match=message)


def test_finish_reports_missing_and_surplus_samples(tmp_path: Path) -> None:
    data, about = samples(10), identity()
    writer = CacheWriter(tmp_path, about)
    appended(writer, data, slice(0, 7))
    with refused("train has 7 of 1,000 samples; run the same extraction again"):
        writer.finish({"train": 1000})
    with refused("val has 0 of 3 samples"):
        writer.finish({"train": 7, "val": 3})
    with refused("train has 7 samples, but should have 6"):
        writer.finish({"train": 6})
    with refused("train has 7 samples, but should have 0"):
        writer.finish({})
    with refused("its extraction is not finished; run the same command again"):
        read_header(tmp_path)
    other = CacheWriter(tmp_path, about, rank=1)
    assert appended(other, data, slice(6, 8)) == 1  # one is on disk by now
    other._seen.clear()
    appended(other, data, slice(5, 6))
    other.flush()
    with refused(f"sample {int(data['index'][5])} of train is there twice"):
        other.finish({"train": 9})


CHANGES: list[tuple[dict[str, Any], str]] = [
    (
        {"backbone": "vit_small", "weights_hash": "cc" * 32, "feature_width": 9},
        'backbone is "vit_tiny" in the cache, but "vit_small"',
    ),
    ({"weights_hash": "cc" * 32}, "weights_hash is a1a1a1a1a1a1 in the cache, but cccccccccccc is wanted"),
    ({"layers": (-1, -2)}, r"layers is \[-1\] in the cache, but \[-1, -2\] is wanted"),
    ({"pooling": "avg"}, 'pooling is "cls" in the cache, but "avg" is wanted'),
    ({"image_size": 224}, "image_size is 32 in the cache, but 224 is wanted"),
    ({"std": (0.2, 0.2, 0.25)}, r"std is \[0.2, 0.2, 0.2\] in the cache, but \[0.2, 0.2, 0.25\] is wanted"),
    (
        {"transform": {"eval_share": 1.0, "flip": False}},
        "transform.eval_share is 0.875 in the cache, but 1.0 is wanted",
    ),
    ({"transform": {"eval_share": 0.875}}, 'transform.flip is false in the cache, but "not there" is wanted'),
    ({"split": {"val_fraction": 0.1, "split_seed": 1}}, "split.split_seed is 0 in the cache, but 1 is wanted"),
    ({"class_names": ("cat", "dog", "bird")}, r'class_names is \["cat", "dog", "fish"\] in the cache, but'),
    ({"dtype": "bfloat16"}, 'dtype is "float32" in the cache, but "bfloat16" is wanted'),
    ({"views": 4}, "views is 1 in the cache, but 4 is wanted"),
    ({"data": "tensors:" + "0" * 64}, "data is files:b2b2b2b2b2b2 in the cache, but tensors:000000000000 is wanted;"),
]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=[next(iter(changes)) for changes, _ in CHANGES])
def test_cache_with_another_identity_is_refused_with_the_first_difference(
    tmp_path: Path, changes: dict[str, Any], message: str, finished: bool
) -> None:
    writer = CacheWriter(tmp_path, identity())
    appended(writer, samples(3))
    if finished:
        writer.finish({"train": 3})
    with refused(f"^{tmp_path}: {message}") as caught:
        CacheWriter(tmp_path, identity(**changes))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("is wanted; take the cache that fits, or extract into another folder")


def test_other_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    before = {"cat/1.jpg": 10, "dog/2.jpg": 20}
    now = {"cat/1.jpg": 11, "dog/3.jpg": 20}
    write_identity = identity(data=data_of_files(before))
    CacheWriter(tmp_path, write_identity, files=before)
    assert not CacheWriter(tmp_path, write_identity, files=before).finished
    message = (
        r"is wanted \(1 file added, 1 removed, 1 changed, the first is 'cat/1.jpg' \(changed from 10 to 11 bytes\)\);"
    )
    with refused(message):
        CacheWriter(tmp_path, identity(data=data_of_files(now)), files=now)
    (tmp_path / "files.jsonl").unlink()
    with refused("data is files:[0-9a-f]{12} in the cache, but files:[0-9a-f]{12} is wanted;"):
        CacheWriter(tmp_path, identity(data=data_of_files(now)), files=now)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": torch.zeros(3, WIDTH + 1)}, r"features of train are \(3, 7\) of float32, but must be \(3, 6\)"),
        ({"features": torch.zeros(3, 2, WIDTH)}, r"features of train are \(3, 2, 6\) of float32"),
        ({"features": torch.zeros(3, WIDTH).int()}, r"of int32, but must be \(3, 6\) of a floating type"),
        (
            {"features": torch.full((3, WIDTH), 7e4)},
            "features of sample 0 are not finite in float16; float32 and bfloat16",
        ),
        ({"label": torch.tensor([0, 1, 3])}, "label holds 0 to 3, but must be 0 to 2"),
        ({"label": torch.tensor([0, 1])}, r"label is \(2,\) of torch.int64, but must be \(3,\)"),
        ({"index": torch.tensor([0, -1, 3])}, "index holds -1 to 3, but must be 0 to 2147483647"),
        ({"index": torch.tensor([0, 4, 4])}, "index of train names a sample twice in one batch"),
        ({"index": torch.tensor([0, 1, 2]).int()}, r"index is \(3,\) of torch.int32"),
    ],
)
def test_batches_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    good = {"features": torch.zeros(3, WIDTH), "label": torch.arange(3), "index": torch.arange(3)}
    writer = CacheWriter(tmp_path, identity(dtype="float16"))
    with refused(message):
        writer.append("train", **{**good, **changes})
    with refused("split is 'all' but must be train, val or test"):
        writer.append("all", **good)  # type: ignore[arg-type]
    assert writer.append("train", **good) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": ""}, 'backbone is "" but must be a name'),
        ({"weights_hash": "abc"}, 'weights_hash is "abc" but must be 64 hexadecimal digits'),
        ({"layers": ()}, r"layers is \[\] but must be one whole number or more"),
        ({"image_size": 0}, "image_size is 0 but must be 1 pixel or more"),
        ({"mean": [0.5] * 3}, r"mean is \[0.5, 0.5, 0.5\] but must be a finite number for each channel"),
        ({"std": (0.2, 0.2)}, r"std is \[0.2, 0.2\] but must be 3 numbers above 0"),
        ({"transform": {"a": [1]}}, "transform is .* but must be a flat table"),
        ({"data": "b2"}, 'data is "b2" but must be files: or tensors:'),
        ({"class_names": ()}, r"class_names is \[\] but must be one name or more"),
        ({"dtype": "float64"}, 'dtype is "float64" but must be float32, float16 or bfloat16'),
        ({"feature_width": True}, "feature_width is true but must be 1 or more"),
        ({"views": 0}, "views is 0 but must be 1 or more"),
    ],
)
def test_identity_of_wrong_values_is_refused(changes: dict[str, Any], message: str) -> None:
    with refused(message):
        identity(**changes)


def test_header_matches_the_documentation(tmp_path: Path) -> None:
    """docs/feature_cache.md lists exactly the fields of the header."""
    write(tmp_path, identity(), {"train": samples(4)}, weights_from={"file": "w.pt"})
    content = json.loads((tmp_path / "header.json").read_text())
    page = (Path(__file__).resolve().parents[2] / "docs" / "feature_cache.md").read_text()
    table = page[page.index("### Header") : page.index("### Shards")]
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in row) == sorted(content)
