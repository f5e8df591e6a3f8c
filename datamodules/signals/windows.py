"""Contract of the readers of signal windows, the split by subject, and the checks that all readers share (leaks, missing classes).

    signal   (N, S, T) float32   N windows of S signals with T samples each, in physical units
    label    (N,)      int64     class
    subject  (N,)      int64     number of the recorded person
    index    (N,)      int64     position in the data set

Windows of one recording are similar, and mostly overlap (in UCI HAR by one half). So all windows of a subject go into one split: no
window has a neighbour, or an overlapping window, in another split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.in_memory import seeded_generator

Windows = dict[str, Tensor]
NOBODY = -1
"""Subject of windows whose person is not known."""


def subjects_of(windows: Windows) -> list[int]:
    """Return the subject numbers of these windows, ascending, without `NOBODY`."""
    numbers: list[int] = windows["subject"].unique().tolist()  # sorted
    return [number for number in numbers if number != NOBODY]


def check_subjects(setting: str, value: int | float | list[int | str]) -> None:
    """Check a setting that is a number or a share of subjects, or a list of their names.

    Raises:
        ValueError: The value is neither a whole number from 1, nor a share above 0 and below 1, nor a list of names.
    """
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    named = isinstance(value, list) and len(value) > 0 and len({str(one) for one in value}) == len(value)
    if not whole and not named and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(
            f"{setting} is {value!r} but must be a whole number of subjects from 1, a share above 0 and below 1, or a list of "
            "different names"
        )


def as_scalar(value: int | float | list[int | str]) -> int | float | str:
    """Return the setting of a held-out split as one value, a list as a text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def held_out_subjects(
    subjects: Iterable[int],
    wanted: int | float | list[int | str],
    *,
    seed: int,
    name: str,
    known: Mapping[str, int] | None = None,
) -> list[int]:
    """Draw the subjects of a held-out split, or find them by name.

    Args:
        subjects: Numbers of the subjects to draw from.
        wanted: Number of subjects, a whole number from 1; or their share, above 0 and below 1, rounded and at least one subject;
            or a list of their names.
        seed: Seed of the split. With the same seed, a larger split contains a smaller one.
        name: Name of the held-out split (`val`, `test`); different names give unrelated draws even for the same seed.
        known: Name of a subject -> its number; None if the numbers are the names.

    Returns:
        The drawn subject numbers, ascending.

    Raises:
        MisconfigurationException: No subject would be left, or there is none of a name.
    """
    numbers = sorted(set(subjects))
    named = known or {str(number): number for number in numbers}
    if isinstance(wanted, list):
        if unknown := [str(one) for one in wanted if str(one) not in named]:
            raise MisconfigurationException(
                f"--data.{name}_subjects: there is no subject {', '.join(unknown)}; there are {', '.join(named)}"
                + (" (the test subjects are already held out)" if name == "val" else "")
            )
        count = len(wanted)
    else:
        count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(numbers)))
    if count >= len(numbers):
        people = "1 subject" if len(numbers) == 1 else f"{len(numbers)} subjects"
        raise MisconfigurationException(
            f"--data.{name}_subjects {wanted} holds out {count} of {people} ({', '.join(named)}), which leaves none to train on; "
            "a split needs windows of at least two subjects"
        )
    if isinstance(wanted, list):
        return sorted(named[str(one)] for one in wanted)
    order = torch.randperm(len(numbers), generator=seeded_generator("subjects", name, seed)).tolist()
    return sorted(numbers[place] for place in order[:count])


def taken(windows: Windows, subjects: Iterable[int]) -> Windows:
    """Return the windows of these subjects, in their original order."""
    rows = torch.isin(windows["subject"], torch.tensor(sorted(subjects))).nonzero().flatten()
    return {name: values.index_select(0, rows) for name, values in windows.items()}


def check_apart(splits: Mapping[str, Windows]) -> None:
    """Check that no subject and no window is in two splits; windows that are constant in every signal may be equal.

    Args:
        splits: Name of a split, as used in the message -> its windows.

    Raises:
        MisconfigurationException: The data leaks; the message names the splits and the shared subject or window.
    """
    where: dict[int, str] = {}
    for name, windows in splits.items():
        for subject in subjects_of(windows):
            if (other := where.setdefault(subject, name)) != name:
                raise MisconfigurationException(
                    f"the data leaks: subject {subject} is in {other} and in {name}; keep all windows of a subject in one split"
                )
    seen: dict[bytes, tuple[str, int]] = {}
    for name, windows in splits.items():
        signal = windows["signal"].cpu().numpy()
        still = (signal == signal[:, :, :1]).all((1, 2))
        for window, index in zip(signal[~still], windows["index"].cpu()[~still].tolist(), strict=True):
            digest = hashlib.blake2b(window.tobytes(), digest_size=16).digest()
            other, place = seen.setdefault(digest, (name, index))
            if other != name:
                raise MisconfigurationException(
                    f"the data leaks: window {index} of {name} is byte-identical to window {place} of {other}; keep it in one split"
                )


def check_classes_recorded(labels: Tensor, class_names: list[str]) -> None:
    """Check that every class has a window at all.

    Args:
        labels: (N,) int64 labels of all windows from which training and validation are drawn.
        class_names: The K names.

    Raises:
        MisconfigurationException: A class has no window, whoever is held out for validation.
    """
    counts = labels.bincount(minlength=len(class_names))
    if absent := [class_names[place] for place in (counts == 0).nonzero().flatten().tolist()]:
        raise MisconfigurationException(
            f"no window of {', '.join(absent)} outside of the test split; hold out other people for testing, add windows, or "
            "remove the class name"
        )


def check_classes_trained(labels: Tensor, class_names: list[str], subjects: list[int]) -> None:
    """Check that every class has a training window.

    Args:
        labels: (N,) int64 labels of the training split.
        class_names: The K names.
        subjects: Subjects of the training split.

    Raises:
        MisconfigurationException: A class has no training window.
    """
    counts = labels.bincount(minlength=len(class_names))
    absent = [class_names[place] for place in (counts == 0).nonzero().flatten().tolist()]
    if absent:
        raise MisconfigurationException(
            f"no training window of {', '.join(absent)}: none of the training subjects ({_listed(subjects)}) has such a window; "
            "hold out other subjects with another --data.split_seed, or remove the class name"
        )


def _listed(subjects: list[int]) -> str:
    return ", ".join(str(subject) for subject in subjects)
