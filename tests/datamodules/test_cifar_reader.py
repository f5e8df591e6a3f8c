"""The CIFAR-10 reader on files with known pixels, on pickles that try to run code, and on damaged files."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.cifar_reader import Header, find_folder, read_batch, read_header, read_pickle
from tests.datamodules.cifar_layout import pixel, write_cifar, write_pickle

HEADER = Header(["a", "b", "c"], image_size=4)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pixel_matches_the_layout(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar(tmp_path / "set", names=["a", "b", "c"], per_file=7, files=2, protocol=protocol)
    assert read_header(folder) == HEADER
    images, labels = read_batch(folder / "data_batch_2", HEADER)
    expected = [[[[pixel(i, c, y, x) for x in range(4)] for y in range(4)] for c in range(3)] for i in range(7, 14)]
    assert images.tolist() == expected
    assert labels.tolist() == [1, 2, 0, 1, 2, 0, 1]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)


def test_files_of_python_2_are_read(tmp_path: Path) -> None:
    """The official files are like this: byte strings for text, numpy's old module name, type codes as bytes."""
    text = b"U\x04data" + b"U\x06labels"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x02K\x0ctcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x18"
    )
    values = bytes(range(24))
    (tmp_path / "batch").write_bytes(b"\x80\x02}(" + text[:6] + array + values + b"tb" + text[6:] + b"](K\x02K\x00eu.")
    images, labels = read_batch(tmp_path / "batch", Header(["a", "b", "c"], image_size=2))
    assert images.tolist() == np.arange(24).reshape(2, 3, 2, 2).tolist()
    assert labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    "labels", [[1, 0], np.array([1, 0]), np.array([1, 0], dtype=">i2"), [np.int64(1), np.uint8(0)]]
)
def test_labels_may_have_any_integer_type(tmp_path: Path, labels: Any) -> None:
    for protocol in (2, 5):
        write_pickle(tmp_path / "batch", {"data": np.zeros((2, 48), np.uint8), "labels": labels}, protocol)
        assert read_batch(tmp_path / "batch", HEADER)[1].tolist() == [1, 0]


def test_fortran_ordered_arrays_are_read(tmp_path: Path) -> None:
    data = np.asfortranarray(np.arange(96, dtype=np.uint8).reshape(2, 48))
    for protocol in (2, 5):
        write_pickle(tmp_path / "batch", {"data": data, "labels": [0, 0]}, protocol)
        assert read_batch(tmp_path / "batch", HEADER)[0].reshape(2, 48).tolist() == data.tolist()


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_foreign_pickle_runs_no_code(tmp_path: Path) -> None:
    write_pickle(tmp_path / "evil", {"data": Touch(tmp_path / "ran"), "labels": []})
    pickle.loads((tmp_path / "evil").read_bytes())
    assert (tmp_path / "ran").exists()  # plain unpickling does run the code
    (tmp_path / "ran").unlink()
    message = r"evil is damaged or not a batch file .*: it references posix\.system, which is not allowed"
    with pytest.raises(MisconfigurationException, match=message):
        read_pickle(tmp_path / "evil")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(U\x011tR.",
        b"cbuiltins\ngetattr\n.",
        b"cnumpy\nload\n.",
        b"c__main__\nx\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",  # a dotted name accesses an attribute of a class
        b"P0\n.",
        b"\x82\x01.",
    ],
)
def test_other_ways_to_run_code_are_blocked(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "evil").write_bytes(code)
    with pytest.raises(MisconfigurationException, match="is damaged or not a batch file"):
        read_pickle(tmp_path / "evil")


def test_arrays_of_objects_and_floats_are_errors(tmp_path: Path) -> None:
    for values in (np.array([{}], dtype=object), np.zeros(2), np.zeros(1, dtype="i4,i4")):
        write_pickle(tmp_path / "batch", {"data": values})
        with pytest.raises(MisconfigurationException, match=r"it holds values of type .*, not integers"):
            read_pickle(tmp_path / "batch")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named_in_the_error(tmp_path: Path, share: float) -> None:
    path = write_cifar(tmp_path / "set") / "data_batch_1"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MisconfigurationException, match="data_batch_1 is damaged or not a batch file"):
        read_pickle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "batch is damaged .*: it holds no dict"),
        ({"labels": [0]}, r"batch has no `data` of shape \(images, values\) and type uint8"),
        ({"data": np.zeros(48, np.uint8), "labels": [0]}, "batch has no `data` of shape"),
        ({"data": np.zeros((1, 48), np.int32), "labels": [0]}, "batch has no `data` of shape"),
        ({"data": np.zeros((1, 48), np.uint8)}, "batch has no `labels`, a list of integers"),
        ({"data": np.zeros((1, 48), np.uint8), "labels": [0.5]}, "batch has no `labels`, a list of integers"),
        ({"data": np.zeros((2, 48), np.uint8), "labels": [0]}, r"batch has 2 images but labels of shape \(1,\)"),
        ({"data": np.zeros((1, 12), np.uint8), "labels": [0]}, "has 12 values in a row, but batches.meta specifies 48"),
        ({"data": np.zeros((2, 48), np.uint8), "labels": [0, 3]}, r"label 3 of row 1 in .*batch is outside 0\.\.2"),
        ({"data": np.zeros((2, 48), np.uint8), "labels": [-1, 0]}, r"label -1 of row 0 in .*batch .* names 3 classes"),
    ],
)
def test_errors_for_invalid_batches(tmp_path: Path, content: Any, message: str) -> None:
    write_pickle(tmp_path / "batch", content)
    with pytest.raises(MisconfigurationException, match=message):
        read_batch(tmp_path / "batch", HEADER)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"num_vis": 48}, r"batches\.meta has no label_names"),
        (
            {"label_names": ["a"], "num_vis": 50},
            r"batches\.meta: 50 values do not form a square image with three channels",
        ),
        ({"label_names": ["a"]}, r"data_batch_1: 10 values do not form a square image"),
    ],
)
def test_errors_for_invalid_headers(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    write_pickle(tmp_path / "batches.meta", meta)
    write_pickle(tmp_path / "data_batch_1", {"data": np.zeros((1, 10), np.uint8), "labels": [0]})
    with pytest.raises(MisconfigurationException, match=message):
        read_header(tmp_path)


def test_a_missing_row_length_is_taken_from_the_first_batch(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "set", size=5)
    write_pickle(folder / "batches.meta", {"label_names": [b"cat", "dog"]})
    assert read_header(folder) == Header(["cat", "dog"], image_size=5)


def test_folder_is_found_in_three_locations_and_never_guessed(tmp_path: Path) -> None:
    assert find_folder(tmp_path) is None
    inner = write_cifar(tmp_path / "cifar10" / "cifar-10-batches-py")
    assert find_folder(tmp_path) == find_folder(tmp_path / "cifar10") == find_folder(inner) == inner
    write_cifar(tmp_path / "cifar-10-batches-py")
    with pytest.raises(MisconfigurationException, match=r"both hold data; set --data\.root to one of them"):
        find_folder(tmp_path)
