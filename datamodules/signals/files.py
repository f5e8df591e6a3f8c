"""Windows of signals of your own, in one file, with training, validation and test persons drawn by a seed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from datamodules.base import Batch
from datamodules.signals.base import SignalDataModule, check_subjects
from datamodules.signals.file_formats import SignalFile, read_signal_file
from datamodules.signals.windows import check_apart, held_out_subjects, subjects_of, taken


class SignalFileDataModule(SignalDataModule):
    """Windows of signals from a .npz or .csv file; the forms are described in `datamodules.signals.file_formats`.

    Args:
        file: The file.
        test_subjects: Persons held out for testing: how many, 1 or more, or which share, below 1. Those for validation are held out
            from the others, so that who is tested depends on `test_subjects` and `split_seed` alone.
        **kwargs: Settings of every datamodule of signals, see `SignalDataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: There is no such file (found when it is first needed, class names included).
        MisconfigurationException: The file is of another form, damaged, or leaks.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (*SignalDataModule.fixed_on_resume, "test_subjects")

    def __init__(self, file: str = "data/windows.npz", test_subjects: int | float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_subjects("test_subjects", test_subjects)
        self.file, self.test_subjects = Path(file), test_subjects

    @cached_property
    def _content(self) -> SignalFile:
        """The whole file: an array's header does not say which classes there are."""
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
    def window_length(self) -> int:
        """Samples in a window; reads the file."""
        return self._content.windows["signal"].shape[2]

    def has_training_data(self) -> bool:
        """Yes: it is in the same file."""
        return True

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Take the windows of the test persons, or those of the others."""
        return self._parts[part]
