"""Reads the official "python version" of CIFAR-10, or your own data in the same layout, without running code from the pickles.

    batches.meta                    pickled dict: label_names (K names), num_vis (values in a row)
    data_batch_1, data_batch_2 ...  pickled dict: data (n, 3 * S * S) uint8, labels (n integers); CIFAR-10 has five of 10,000
    test_batch                      the same

A row of `data` is the red plane, then the green, then the blue, each S rows of S pixels, so it reshapes to (3, S, S).
Layout: https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky, 2009).

Loading an untrusted pickle can run arbitrary code. The files need only a dict, lists, numbers, text and arrays, and the reader
accepts nothing else. Arrays are built here from their bytes, so that numpy never unpickles anything.
"""

import pickle
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from foundation.bounded.messages import one_line
from foundation.bounded.stream import BoundedStream

MOST_VALUES = 1 << 30  # in a row: an image of 18,918 x 18,918 pixels
FOLDER = "cifar-10-batches-py"


class Header(NamedTuple):
    """Content of batches.meta: the names of the K classes, and the height and width S of an image in pixels."""

    class_names: list[str]
    image_size: int


class _Type:
    """Replacement for numpy.dtype during unpickling; accepts only integers and booleans."""

    def __init__(self, spec: str | bytes, *_: object) -> None:
        self.dtype = np.dtype(spec.decode() if isinstance(spec, bytes) else spec)
        if self.dtype.kind not in "biu":
            raise pickle.UnpicklingError(f"it holds values of type {self.dtype}, not integers")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">", b"<", b">"):
            self.dtype = self.dtype.newbyteorder("<" if state[1] in ("<", b"<") else ">")


class _Array:
    """Replacement for numpy.ndarray during unpickling; `value` is set once the bytes have been read."""

    value: np.ndarray[Any, Any]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        self.value = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: bytes, dtype: _Type, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", raw))
    return array


def _scalar(dtype: _Type, raw: bytes) -> int:
    return int(np.frombuffer(raw, dtype.dtype)[0])


def _encode(text: str, encoding: str) -> bytes:
    """Return the bytes that Python 3 stores as text in older pickle protocols."""
    return text.encode("latin1")


_KNOWN = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):
    """The unpickler of the standard library that is written in Python.

    That in C cannot be told what to refuse.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it references {module_name}.{global_name}, which is not allowed") from None


def _with_plain_keys(opcode: bytes, first: int) -> None:
    """Let a dict have keys of text, bytes and numbers only; its keys are every second value on the stack from `first`."""
    load = _Unpickler.dispatch[opcode[0]]

    def checked(self: Any) -> None:
        if not all(isinstance(key, str | bytes | int) for key in self.stack[first::2]):
            raise pickle.UnpicklingError("a dict has keys that are neither text nor numbers")
        load(self)

    _Unpickler.dispatch[opcode[0]] = checked


def _refused(self: Any) -> None:
    raise pickle.UnpicklingError("it holds sets, which are not read")


for _opcode, _first in ((pickle.SETITEM, -2), (pickle.SETITEMS, 0), (pickle.DICT, 0)):
    _with_plain_keys(_opcode, _first)
_Unpickler.dispatch |= dict.fromkeys((pickle.ADDITEMS[0], pickle.FROZENSET[0]), _refused)


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of numbers, text, lists and arrays, without importing or running anything that the file refers to.

    Args:
        path: File of any pickle protocol, written by Python 2 or 3.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: The file is damaged, or contains any other type of object.
    """
    with path.open("rb") as opened:
        file = BoundedStream(opened)
        try:
            content = _Unpickler(file, encoding="bytes").load()
            if not isinstance(content, dict):
                raise pickle.UnpicklingError("it holds no dict")
            return {_text(key): value.value if isinstance(value, _Array) else value for key, value in content.items()}
        except Exception as error:  # damaged bytes can raise nearly anything, see the docs of pickle.UnpicklingError
            raise MisconfigurationException(
                f"{path} is damaged or not a batch file of the CIFAR-10 layout: {one_line(str(error))[:300]}"
            ) from error


def find_folder(root: Path) -> Path | None:
    """Find the folder with batches.meta: `root`, root/cifar-10-batches-py or root/cifar10/cifar-10-batches-py.

    Returns:
        The folder, or None if none of them has the file.

    Raises:
        MisconfigurationException: Both subfolders have it.
    """
    if (root / "batches.meta").is_file():
        return root
    found = [folder for folder in (root / FOLDER, root / "cifar10" / FOLDER) if (folder / "batches.meta").is_file()]
    if len(found) > 1:
        raise MisconfigurationException(f"{found[0]} and {found[1]} both hold data; set --data.root to one of them")
    return found[0] if found else None


def read_header(folder: Path) -> Header:
    """Read batches.meta, and the first data batch if batches.meta lacks the row length (num_vis).

    Raises:
        FileNotFoundError: A file is missing.
        MisconfigurationException: The file is damaged, or images of this row length are not square with three channels.
    """
    path = folder / "batches.meta"
    meta = read_pickle(path)
    names = meta.get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str | bytes) for name in names):
        raise MisconfigurationException(f"{path} has no label_names, the list of the class names")
    row = meta.get("num_vis")
    if row is None:
        path = folder / "data_batch_1"
        row = _rows(path)[0].shape[1]
    known = isinstance(row, int) and 0 < row <= MOST_VALUES
    size = round((row / 3) ** 0.5) if known else 0
    if not known or 3 * size * size != row:
        raise MisconfigurationException(
            f"{path}: {one_line(str(row))[:40]} values do not form a square image with three channels"
        )
    return Header([str(_text(name)) for name in names], size)


def read_batch(path: Path, header: Header) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Read one batch file.

    Returns:
        Images (n, 3, S, S) uint8 and labels (n,) int64.

    Raises:
        FileNotFoundError: There is no such file.
        MisconfigurationException: The file is damaged, or does not match the header.
    """
    data, labels = _rows(path)
    size, num_classes = header.image_size, len(header.class_names)
    if data.shape[1] != 3 * size * size:
        raise MisconfigurationException(
            f"{path} has {data.shape[1]} values in a row, but batches.meta specifies {3 * size * size}"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        place = int(wrong.argmax())
        raise MisconfigurationException(
            f"label {labels[place]} of row {place} in {path} is outside 0..{num_classes - 1}: "
            f"batches.meta names {num_classes} classes"
        )
    return data.reshape(-1, 3, size, size), labels


def _rows(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `data` (n, values) uint8 and `labels` (n,) int64 of a batch file."""
    content = read_pickle(path)
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.dtype != np.uint8:
        raise MisconfigurationException(f"{path} has no `data` of shape (images, values) and type uint8")
    whole = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    if not whole and not isinstance(labels, np.ndarray):
        raise MisconfigurationException(f"{path} has no `labels`, a list of integers")
    labels = np.asarray(labels, dtype=np.int64)
    if labels.shape != (len(data),):
        raise MisconfigurationException(f"{path} has {len(data)} images but labels of shape {labels.shape}")
    return data, labels
