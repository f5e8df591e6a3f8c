"""`SignalFileDataModule`: signal windows from one file of your own, split into training, validation and test subjects by a seed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import Batch
from datamodules.signals.base import SignalDataModule, check_subjects
from datamodules.signals.file_formats import SignalFile, read_signal_file
from datamodules.signals.windows import check_apart, held_out_subjects, subjects_of, taken


class SignalFileDataModule(SignalDataModule):
    """Signal windows from a .npz or .csv file; `datamodules.signals.file_formats` describes the formats.

    Args:
        file: Path of the .npz or .csv file.
        test_subjects: Subjects held out for testing: their number, 1 or more, or their share, above 0 and below 1. The validation
            subjects are held out from the others, so the test subjects depend only on `test_subjects` and `split_seed`.
        **kwargs: Settings of every signal datamodule, see `SignalDataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: There is no such file (raised at the first access to the data, class names included).
        MisconfigurationException: The file has another format, is damaged, or has the same window in two splits.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (*SignalDataModule.fixed_on_resume, "test_subjects")

    def __init__(self, file: str = "data/windows.npz", test_subjects: int | float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_subjects("test_subjects", test_subjects)
        self.file, self.test_subjects = Path(file), test_subjects

    @cached_property
    def _content(self) -> SignalFile:
        """Content of the whole file, since an array's header does not list the classes."""
        return read_signal_file(self.file)

    @cached_property
    def _parts(self) -> dict[str, Batch]:
        windows = self._content.windows
        people = subjects_of(windows)
        test = held_out_subjects(people, self.test_subjects, seed=self.split_seed, name="test")
        parts = {"train": taken(windows, set(people) - set(test)), "test": taken(windows, test)}
        check_apart({"the training data": parts["train"], "the test split": parts["test"]})
        return parts

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; reads the file."""
        return self._content.class_names

    @property
    def signal_names(self) -> list[str]:
        """Names of the signals; reads the file."""
        return self._content.signal_names

    @property
    def signal_units(self) -> list[str] | None:
        """Units of the signals, if the file gives them; reads the file."""
        return self._content.signal_units or super().signal_units

    def subject_name(self, number: int) -> str:
        """Name of a person in the file, or the number if the file has only numbers."""
        names = self._content.subject_names
        return str(number) if names is None else names[number]

    @property
    def window_length(self) -> int:
        """Number of samples in a window; reads the file."""
        return self._content.windows["signal"].shape[2]

    def has_training_data(self) -> bool:
        """Return True: the training data is in the same file."""
        return True

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Return the windows of the test subjects, or of all other subjects."""
        return self._parts[part]
