"""`WindowWriter`: writes windows into one .npz for `SignalFileDataModule`, in bounded memory, and only when all are there.

signal (N, S, T) float32   label (N,) int64   subject (N,) text   class_names (K,)   signal_names (S,)   rate () in Hz
recording (N,) number of its recording in recordings (R,)   start (N,) time of its first sample in s   cutting: settings as JSON
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from datamodules.signals.recordings.cutting import Part
from foundation.atomic_files import replace_file
from foundation.bounded.arrays import read_arrays
from foundation.bounded.text import parse_json
from foundation.places import close_to

Array = np.ndarray[Any, Any]


class WindowWriter:
    """Collects windows in a temporary file next to the target, which `finish` turns into the .npz.

    Args:
        path: File to write, .npz.
        signal_names: The S names.
        samples: T, samples of a window.
    """

    def __init__(self, path: Path, signal_names: list[str], samples: int) -> None:
        self.path, self.signal_names, self.samples = path, signal_names, samples
        self._raw: IO[bytes] = tempfile.TemporaryFile(dir=path.parent, prefix=f".{path.name}.")  # noqa: SIM115  __exit__ closes it
        self._label: list[Array] = []
        self._subject: list[Array] = []
        self._start: list[Array] = []
        self._recording: list[Array] = []
        self.recordings: list[str] = []

    def __enter__(self) -> WindowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def add(self, name: str, part: Part) -> None:
        """Add windows of the recording with this name."""
        if not self.recordings or self.recordings[-1] != name:
            self.recordings.append(name)
        self._raw.write(part.signal.tobytes())
        self._label.append(part.label)
        self._subject.append(part.subject)
        self._start.append(part.start)
        self._recording.append(np.full(len(part.label), len(self.recordings) - 1, dtype=np.int64))

    @property
    def labels(self) -> Array:
        """Code of each window's label, (N,) int32."""
        return np.concatenate(self._label)

    @property
    def subjects(self) -> Array:
        """Code of each window's person, (N,) int32."""
        return np.concatenate(self._subject)

    def finish(self, class_names: list[str], people: list[str], settings: dict[str, Any]) -> None:
        """Write the .npz under a temporary name and rename it.

        Args:
            class_names: Name of each code of a label; empty if the windows have no labels. Classes without a window are left out,
                and the others are sorted, numbers by their value.
            people: Name of each code of a person; empty if the windows have none.
            settings: How the recordings were cut, plain values; `rate` is also written as an array.
        """
        arrays: dict[str, Array] = {
            "signal_names": np.array(self.signal_names),
            "rate": np.float64(settings["rate"]),  # type: ignore[dict-item]
            "recording": np.concatenate(self._recording),
            "recordings": np.array(self.recordings),
            "start": np.concatenate(self._start),
            "cutting": np.array(json.dumps(settings)),
        }
        if class_names:
            label = self.labels
            kept = sorted({class_names[code] for code in np.unique(label)}, key=natural)
            place = {name: number for number, name in enumerate(kept)}
            arrays["label"] = np.array([place.get(name, -1) for name in class_names], dtype=np.int64)[label]
            arrays["class_names"] = np.array(kept)
        if people:
            arrays["subject"] = np.array(people)[self.subjects]
        with replace_file(self.path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            shape = (len(arrays["start"]), len(self.signal_names), self.samples)
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
                "fortran_order": False,
                "shape": shape,
            }
            with archive.open("signal.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                self._raw.seek(0)
                shutil.copyfileobj(self._raw, member, 1 << 22)
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(values), allow_pickle=False)


def natural(name: str) -> tuple[bool, int, str]:
    """Sort key of names: whole numbers first, by their value, then texts.

    >>> sorted(["b", "10", "2", "a"], key=natural)
    ['2', '10', 'a', 'b']
    """
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def stored_cutting(path: Path) -> dict[str, Any]:
    """Return the settings with which a file of windows was cut.

    Raises:
        ValueError: There is no such file, or it was not written by `WindowWriter`.
    """
    if not path.is_file():
        why = "is a folder; a file of windows is needed" if path.is_dir() else f"no such file{close_to(path)}"
        raise ValueError(f"--like {path}: {why}")
    try:
        found = parse_json(str(read_arrays(path, ("cutting",))["cutting"]).encode())
        if not isinstance(found, dict):
            raise ValueError("its array cutting is no table of settings")
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"--like {path}: a file of windows that tools.cut_windows wrote is needed ({error})"
        ) from error
    return dict(found)


def stored_classes(path: Path) -> list[str]:
    """Return the names of the classes in a file of windows; none if its windows have no labels."""
    return [str(name) for name in read_arrays(path, ("class_names",)).get("class_names", ())]
