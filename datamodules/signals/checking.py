"""Checks signal windows before the first step: constant signals and windows; logs in one line what the data holds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from datamodules.images.class_folders import listed
from datamodules.signals.matching import UNNAMED, bare_names
from datamodules.signals.windows import Windows, subjects_of

log = logging.getLogger(__name__)


def check_triples(signal_names: Sequence[str]) -> None:
    """Warn of three signals that rotation and scaling take for x, y and z of one sensor although their names say otherwise.

    Args:
        signal_names: The S names.
    """
    bare = bare_names(signal_names)
    for place in range(0, len(bare), 3):
        triple = bare[place : place + 3]
        axes, stems = [name[-1:].lower() for name in triple], {name[:-1] for name in triple}
        if not all(UNNAMED.fullmatch(name) for name in triple) and (axes != ["x", "y", "z"] or len(stems) > 1):
            log.warning(
                f"rotation and scaling take {', '.join(triple)} for x, y and z of one sensor; order the signals in such triples, "
                "or set --data.rotation 0 --data.scaling 0"
            )
            return


def check_windows(splits: Mapping[str, Windows], class_names: Sequence[str], signal_names: Sequence[str]) -> None:
    """Log windows, samples, signals, people and classes of these splits, and warn of signals and windows that never change.

    That values are finite is checked by the readers.

    Args:
        splits: Split -> its windows.
        class_names: The K names.
        signal_names: The S names.
    """
    counts = ", ".join(
        f"{len(one['label']):,} {split}"
        + (f" of {people} {'person' if people == 1 else 'people'}" if (people := len(subjects_of(one))) else "")
        for split, one in splits.items()
    )
    labels = torch.cat([one["label"] for one in splits.values()]).bincount(minlength=len(class_names)).tolist()
    classes = listed([f"{name} {count:,}" for name, count in zip(class_names, labels, strict=True)])
    length = next(iter(splits.values()))["signal"].shape[2]
    log.info(
        f"windows    {counts}; {length} samples of {len(signal_names)} signals ({listed(signal_names)}); "
        f"{len(class_names)} classes ({classes})"
    )
    for split, one in splits.items():
        lowest, highest = one["signal"].amin(2), one["signal"].amax(2)
        still = [
            name for name, low, high in zip(signal_names, lowest.amin(0), highest.amax(0), strict=True) if low == high
        ]
        if still:
            log.warning(f"signals that never change in {split}: {listed(still)}; they carry no information")
        dead = (lowest == highest).all(1)
        if dead.any():
            log.warning(
                f"{int(dead.sum()):,} of {len(dead):,} {split} windows are constant in every signal, the first is window "
                f"{int(one['index'][dead][0])}; was the sensor off?"
            )
