"""`Notes`: what the files of data sets gave reason to say, held back until all sets are read, each message once for all files.

The three files of a shipped split often give three equal messages, and a command may read a split only to compare it: `say` logs
what was noted when the data is used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from datamodules.images.class_folders import listed

log = logging.getLogger(__name__)


@dataclass
class _Note:
    """A message: the files it is about, and how many of how many things it counts, over all files."""

    places: dict[Path, None] = field(default_factory=dict)
    part: int = 0
    whole: int = 0


class Notes:
    """Collects messages about files.

    Args:
        held: Log the messages in `say`, equal ones of several files as one; False: log each at once.
    """

    def __init__(self, held: bool = False) -> None:
        self.held = held
        self._notes: dict[tuple[int, str, str], _Note] = {}
        self._merged: dict[str, dict[str, None]] = {}  # object -> its categories
        self._merged_in: dict[str, Path] = {}

    def warn(self, place: Path, text: str, count: tuple[int, int] | None = None) -> None:
        """Note a warning.

        Args:
            place: The file or folder that it is about.
            text: The message without the file and without the counts.
            count: How many of how many the text is about; the sums over all files are put in front of the text.
        """
        self._add(logging.WARNING, "", place, text, count)

    def inform(self, head: str, place: Path, text: str, count: tuple[int, int] | None = None) -> None:
        """Note a message that is no warning; `head` is its first word."""
        self._add(logging.INFO, head, place, text, count)

    def merged(self, place: Path, prompt: str, names: list[str]) -> None:
        """Note that several categories are one object, since the set chooses none; a single one is as it should be."""
        if len(names) > 1:
            self._merged_in.setdefault(prompt, place)
            self._merged.setdefault(prompt, {}).update(dict.fromkeys(names))
            self._finish()

    def _add(self, level: int, head: str, place: Path, text: str, count: tuple[int, int] | None) -> None:
        note = self._notes.setdefault((level, head, text), _Note())
        note.places[place] = None
        if count is not None:
            note.part, note.whole = note.part + count[0], note.whole + count[1]
        self._finish()

    def _finish(self) -> None:
        if not self.held:
            self.say()

    def say(self) -> None:
        """Log all messages, once; nothing is said, and all is kept, while messages are switched off."""
        if not log.isEnabledFor(logging.WARNING):
            return
        for (level, head, text), note in self._notes.items():
            first, *others = note.places
            more = f" and {len(others)} more" if others else ""
            count = f"{note.part:,} of {note.whole:,} " if note.whole else ""
            log.log(level, f"{f'{head:<10} ' if head else ''}{first}{more}: {count}{text}")
        for prompt, names in self._merged.items():
            log.info(
                f"categories {self._merged_in[prompt]}: all {len(names)} are {prompt!r}: {listed([*names])}; to choose, give the "
                f"set categories: [{next(iter(names))}], and each other object a set of its own"
            )
        self._notes.clear()
        self._merged.clear()
        self._merged_in.clear()
