"""What is said of files that are left out: those that are no images, and those that cannot be read as images.

One wording for headers, training, evaluation and predict of all systems; tools.inspect_data silences it, and prints the findings.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.images.class_folders import listed

log = logging.getLogger(__name__)

NO_IMAGE, CUT_SHORT, DAMAGED = "no image", "cut short", "damaged"
"""The reasons where no header of an image can be read, where the file ends within it, and where only the pixels cannot be read."""


def say_left_out(folder: Path, left_out: Mapping[str, Sequence[Path]]) -> None:
    """Log how many files of a folder are no samples.

    Args:
        folder: The folder.
        left_out: Reason -> the files.
    """
    if reasons := left_out_text({reason: len(paths) for reason, paths in left_out.items()}):
        log.info(f"left out   {reasons}, in {folder}")


def left_out_text(counts: Mapping[str, int]) -> str:
    """How many files are left out for each reason.

    >>> left_out_text({"not an image": 2, "broken link": 1, "hidden": 0})
    '1 broken link, 2 not an image'
    """
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()) if count)


def unreadable_text(folder: Path | None, wrong: Mapping[str, str], count: int) -> str:
    """Name files that cannot be read, with the reasons.

    Args:
        folder: Folder of the files; None if they are in several.
        wrong: Name of each of them, relative to the folder -> why it cannot be read.
        count: Number of files that were to be read.
    """
    if count == 1 and len(wrong) == 1:
        [(name, reason)] = wrong.items()
        return f"{name if folder is None else folder / name} cannot be read as an image ({reason})"
    shown = listed([f"{name} ({reason})" for name, reason in wrong.items()])
    place = "" if folder is None else f" in {folder}"
    if len(wrong) == count:
        return f"none of the {count:,} files{place} can be read as an image: {shown}"
    return f"{len(wrong):,} of the {count:,} files{place} cannot be read as images: {shown}"


def report_unreadable(folder: Path | None, wrong: Mapping[str, str], count: int, advice: str | None = None) -> None:
    """Log a warning that names files that cannot be read and are left out.

    Args:
        folder: As for `unreadable_text`, as the next two.
        wrong: Nothing is said if it is empty.
        count: Number of files.
        advice: What to do, if such files are refused; None: they are left out, unless it is all of them.

    Raises:
        MisconfigurationException: They are refused, or no file can be read.
    """
    if not wrong:
        return
    text = unreadable_text(folder, wrong, count)
    if advice is not None or len(wrong) == count:
        of_setting = all("--data." in reason for reason in wrong.values())
        last = "set it as the files need" if of_setting else f"give {'another file' if count == 1 else 'images'}"
        raise MisconfigurationException(f"{text}; {last if of_setting else advice or last}")
    log.warning(f"{text}; left out")
