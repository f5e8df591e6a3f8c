"""What every reader of windows of signals promises, and the checks that all of them share.

    signal   (N, S, T) float32   N windows of S signals with T samples each, in physical units
    label    (N,)      int64     class
    subject  (N,)      int64     number of the person who was recorded
    index    (N,)      int64     place in the data set

Windows of one recording look alike, and mostly overlap (in UCI HAR by one half). So a split is made of whole persons: then no
window has a neighbour, nor half of itself, in another split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.in_memory import seeded_generator

Windows = dict[str, Tensor]


def subjects_of(windows: Windows) -> list[int]:
    """Return the numbers of the persons in these windows, ascending."""
    numbers: list[int] = windows["subject"].unique().tolist()  # sorted
    return numbers


def held_out_subjects(subjects: Iterable[int], wanted: int | float, *, seed: int, name: str) -> list[int]:
    """Draw the persons of a split.

    Args:
        subjects: Numbers of the persons to draw from.
        wanted: How many, if whole and 1 or more; or which share of them, above 0 and below 1, rounded and at least one.
        seed: Seed of the split. For one seed a larger split holds all of a smaller one.
        name: What is held out (`val`, `test`); draws of different names are unrelated also for equal seeds.

    Returns:
        Their numbers, ascending.

    Raises:
        MisconfigurationException: Nobody would be left.
    """
    known = sorted(set(subjects))
    count = wanted if isinstance(wanted, int) else max(1, round(wanted * len(known)))
    if count >= len(known):
        people = "1 subject" if len(known) == 1 else f"{len(known)} subjects"
        raise MisconfigurationException(
            f"--data.{name}_subjects {wanted} holds out {count} of {people} ({_listed(known)}), which leaves none to train on; "
            "a split needs windows of at least two people"
        )
    order = torch.randperm(len(known), generator=seeded_generator("subjects", name, seed)).tolist()
    return sorted(known[place] for place in order[:count])


def taken(windows: Windows, subjects: Iterable[int]) -> Windows:
    """Return the windows of these persons, in their order."""
    rows = torch.isin(windows["subject"], torch.tensor(sorted(subjects))).nonzero().flatten()
    return {name: values.index_select(0, rows) for name, values in windows.items()}


def check_apart(splits: Mapping[str, Windows]) -> None:
    """Check that no person and no window is in two splits.

    Args:
        splits: Name of a split, as a reader of the message knows it -> its windows.

    Raises:
        MisconfigurationException: The data leaks; the message names the splits and what they share.
    """
    where: dict[int, str] = {}
    for name, windows in splits.items():
        for subject in subjects_of(windows):
            if (other := where.setdefault(subject, name)) != name:
                raise MisconfigurationException(
                    f"the data leaks: subject {subject} is in {other} and in {name}; the windows of a person must be in one of them"
                )
    seen: dict[bytes, tuple[str, int]] = {}
    for name, windows in splits.items():
        for window, index in zip(windows["signal"].cpu().numpy(), windows["index"].tolist(), strict=True):
            digest = hashlib.blake2b(window.tobytes(), digest_size=16).digest()
            other, place = seen.setdefault(digest, (name, index))
            if other != name:
                raise MisconfigurationException(
                    f"the data leaks: window {index} of {name} is, byte for byte, window {place} of {other}; keep it in one of them"
                )


def check_classes_trained(labels: Tensor, class_names: list[str], subjects: list[int]) -> None:
    """Check that the persons who are trained on do everything that is to be learned.

    Args:
        labels: (N,) int64 labels of the training split.
        class_names: The K names.
        subjects: Persons of the training split.

    Raises:
        MisconfigurationException: A class has no training window.
    """
    counts = labels.bincount(minlength=len(class_names))
    absent = [class_names[place] for place in (counts == 0).nonzero().flatten().tolist()]
    if absent:
        raise MisconfigurationException(
            f"no training window of {', '.join(absent)}: nobody among the training subjects ({_listed(subjects)}) does it; "
            "hold out others with --data.split_seed, or remove the name"
        )


def _listed(subjects: list[int]) -> str:
    return ", ".join(str(subject) for subject in subjects)
