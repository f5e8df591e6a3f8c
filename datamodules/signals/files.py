"""`SignalFileDataModule`: signal windows from one file of your own, split by people, and whole files for testing and prediction."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.base import Batch
from datamodules.extraction import Scalar
from datamodules.images.class_folders import listed
from datamodules.sample_keys import LOOKED_AT, row_keys
from datamodules.signals.base import SignalDataModule
from datamodules.signals.file_formats import SignalFile, read_signal_file
from datamodules.signals.matching import SignalMatching, units_of
from datamodules.signals.windows import NOBODY, Windows, check_apart, check_subjects, subjects_of, taken
from foundation.project import MAIN


class SignalFileDataModule(SignalDataModule):
    """Signal windows from a .npz or .csv file; `datamodules.signals.file_formats` describes the formats.

    Args:
        file: Path of the .npz or .csv file. A file without labels can only be predicted, as a whole.
        test_subjects: Subjects held out for testing: their number, 1 or more, their share, above 0 and below 1, or a list of their
            names. The validation subjects are held out from the others, so the test subjects depend only on `test_subjects` and
            `split_seed`. Not used with `test_file`.
        test_file: File whose windows are all tested and predicted, in place of windows of `file`; they need labels only to be
            tested. Its classes and signals are matched by name to those of `file`, or of the checkpoint if `file` is not there.
        **kwargs: Settings of every signal datamodule, see `SignalDataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: There is no such file (raised at the first access to the data, class names included).
        MisconfigurationException: A file has another format, is damaged, or has other signals or classes; or a window or a person
            is in two splits.
    """

    fixed_on_resume: ClassVar[tuple[str, ...]] = (*SignalDataModule.fixed_on_resume, "test_subjects")

    def __init__(
        self,
        file: str = "data/windows.npz",
        test_subjects: int | float | list[int | str] = 0.2,
        test_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_subjects("test_subjects", test_subjects)
        if self.fold is not None and test_file is not None:
            raise ValueError(f"fold {self.fold}: the people of the file are tested in turn; leave test_file out")
        self.file, self.test_subjects = Path(file), test_subjects
        self.test_file = None if test_file is None else Path(test_file)

    # ---- the files ----

    @cached_property
    def _content(self) -> SignalFile:
        """Content of the whole file, since an array's header does not list the classes."""
        return read_signal_file(self.file)

    @cached_property
    def _whole_test(self) -> SignalFile | None:
        """Content of the file that is tested and predicted as a whole; None if the test split is drawn from `file`."""
        if self.test_file is not None:
            return read_signal_file(self.test_file, "test_file")
        return None if self._content.labelled else self._content

    @property
    def _described(self) -> SignalFile:
        """Content whose names of classes, signals and people hold: that of `file` if it is there."""
        if self._whole_test is not None and not self.file.is_file():
            return self._whole_test
        return self._content

    @property
    def place(self) -> str:
        """The file of the data; in an evaluation the file that is tested."""
        tested = self.test_file if self.trained_on is not None or not self.file.is_file() else None
        return os.path.abspath(tested or self.file)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; reads the file."""
        return self._described.class_names

    @property
    def signal_names(self) -> list[str]:
        """Names of the signals; reads the file."""
        return self._described.signal_names

    @property
    def signal_units(self) -> list[str] | None:
        """Units of the signals, if the file gives them; reads the file."""
        return self._described.signal_units or super().signal_units

    @property
    def sampling_rate(self) -> float | None:
        """Sampling rate in Hz, if the file gives it; reads the file."""
        return self._described.rate

    @property
    def time_step(self) -> float | None:
        """Step of the time stamps of a table, in the table's own unit; reads the file."""
        return self._described.time_step

    @property
    def window_length(self) -> int:
        """Number of samples in a window; reads the file."""
        return self._described.windows["signal"].shape[2]

    @cached_property
    def _people(self) -> dict[str, int]:
        """Numbers of the people of both files, by name; a name in both is one person."""
        own = self._described
        names = own.subject_names or [str(number) for number in subjects_of(own.windows)]
        numbers = range(len(names)) if own.subject_names else subjects_of(own.windows)
        plain = [_plain(name) for name in names]
        people = dict(zip(plain if len({*plain}) == len(names) else names, numbers, strict=True))
        if (other := self._whole_test) is not None and other is not own:
            for number in subjects_of(other.windows):
                name = str(number) if other.subject_names is None else other.subject_names[number]
                people.setdefault(_plain(name), max(people.values(), default=-1) + 1)
        return people

    def subject_name(self, number: int) -> str:
        """Name of a person in the files, or the number if people have only numbers; `unknown person` of windows without one."""
        if number == NOBODY:
            return "unknown person"
        return next((name for name, own in self._people.items() if own == number), str(number))

    # ---- splits ----

    @cached_property
    def _parts(self) -> dict[str, Batch]:
        windows = self._content.windows
        people = subjects_of(windows)
        test = self._held_out(people, self.test_subjects, "test")
        parts = {"train": taken(windows, set(people) - set(test)), "test": taken(windows, test)}
        check_apart({"the training data": parts["train"], "the test split": parts["test"]})
        return parts

    @property
    def tests_a_file(self) -> bool:
        """Whether a whole file is tested and predicted."""
        return self._whole_test is not None

    def has_training_data(self) -> bool:
        """Return whether `file` is there, with labels; only a test file is needed to test a checkpoint."""
        return self.file.is_file() and self._content.labelled

    def setup(self, stage: str) -> None:
        """See `SignalDataModule`; a test needs labels.

        Raises:
            MisconfigurationException: The windows to be tested have no labels.
        """
        tested = self._whole_test if stage == "test" else None
        if tested is not None and not tested.labelled:
            name = self.test_file or self.file
            raise MisconfigurationException(
                f"{name} has no labels to test against; predict it: {MAIN} predict --run RUN_DIR --data.test_file "
                f"{quote(str(name))}, or cut it again with --label, --segments or {{label}} in --path"
            )
        super().setup(stage)

    def left_by_the_draw(self) -> tuple[int, Tensor, str]:
        """See `MatchedToCheckpoint`."""
        if self.tests_a_file or self.fold is not None:
            return super().left_by_the_draw()
        left = self._parts["train"]["signal"]
        return len(left), row_keys(left[:LOOKED_AT]), f"give --data.test_file {quote(str(self.file))}"

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Return the windows of the test file or the test subjects, or all others.

        Raises:
            MisconfigurationException: The training windows have no labels or people.
        """
        if part == "test" and self._whole_test is not None:
            return self._as_own(self._whole_test)
        windows = self._content.windows
        missing = [] if self._content.labelled else ["label"]
        missing += ["subject"] if (windows["subject"] == NOBODY).any() else []
        if missing:
            raise MisconfigurationException(
                f"{self.file} has no {' and no '.join(missing)}: training needs the label of each window, and the person, by whom "
                f"the data is split; to predict it, {MAIN} predict --run RUN_DIR --data.test_file {quote(str(self.file))}"
            )
        return windows if self._whole_test is not None or self.fold is not None else self._parts[part]

    def _as_own(self, other: SignalFile) -> Windows:
        """Return the windows of a file with the signals, classes and people of `file`, matched by name."""
        own = self._described
        if other is own:
            return other.windows
        assert self.test_file is not None
        than = f"{self.file} has"
        matching = SignalMatching.of(DescribedSignals.of(other, str(self.test_file)), self._known(own), than=than)
        windows = {**other.windows, "signal": matching.in_order(other.windows["signal"])}
        if self._record is not None:
            matching.check_scale(windows["signal"], *self.signal_scale, str(self.test_file))
        if other.labelled:
            if unknown := [name for name in other.class_names if name not in own.class_names]:
                raise MisconfigurationException(
                    f"{self.test_file} has the class{'es' * (len(unknown) > 1)} {listed(unknown)}, but {than} only "
                    f"{listed(own.class_names)}"
                )
            table = torch.tensor([own.class_names.index(name) for name in other.class_names], dtype=torch.int64)
            windows["label"] = table[windows["label"]]
        names = other.subject_names
        windows["subject"] = torch.tensor(
            [
                number if number == NOBODY else self._people[_plain(str(number) if names is None else names[number])]
                for number in windows["subject"].tolist()
            ],
            dtype=torch.int64,
        )
        return windows

    def _known(self, own: SignalFile) -> dict[str, Any]:
        return DescribedSignals.of(own, str(self.file))._asdict()

    def predicted_files(self) -> list[str] | None:
        """Recording and start of each window that predict serves, if the file has them."""
        return (self._whole_test or self._content).sources

    # ---- data of a checkpoint ----

    @property
    def split_settings(self) -> dict[str, Scalar]:
        """Settings that decide which window is in which split."""
        tested = {} if self.test_file is None else {"test_file": str(self.test_file.absolute())}
        return {**super().split_settings, **tested}

    def is_training_data(self) -> bool:
        """See `MatchedToCheckpoint`; another test file is other data."""
        record = self.trained_on
        if record is not None and self._whole_test is not None:
            return record.split.get("test_file") == self.split_settings.get("test_file") and super().is_training_data()
        return super().is_training_data()


def _plain(name: str) -> str:
    """Return the name of a person as it is compared: 01 is 1, because another file may write it as a number."""
    return str(int(name)) if name.isdecimal() else name


class DescribedSignals(NamedTuple):
    """Names, units, window length and sampling rate of a file, as `datamodules.signals.matching.Signals`."""

    place: str
    signal_names: list[str]
    signal_units: list[str] | None
    window_length: int
    sampling_rate: float | None
    time_step: float | None

    @classmethod
    def of(cls, file: SignalFile, place: str) -> DescribedSignals:
        """Describe the content of a file."""
        units = file.signal_units or units_of(file.signal_names)
        return cls(place, file.signal_names, units, file.windows["signal"].shape[2], file.rate, file.time_step)
