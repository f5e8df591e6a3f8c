"""`HARDataModule`: UCI HAR (Anguita et al., 2013), six activities of 30 subjects, or your own recordings in its layout.

UCI HAR has nine signals of a phone at the waist, in windows of 2.56 s. The test split is the official one with nine subjects. Some
of the other 21 subjects are held out for validation. No subject is in two splits. `datamodules.signals.har_reader` describes the
layout.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules.base import Batch
from datamodules.signals.base import SignalDataModule
from datamodules.signals.har_download import fetch
from datamodules.signals.har_generator import ACTIVITIES, write_generated
from datamodules.signals.har_reader import FOLDER, LENGTH, SIGNALS, find_folder, read_activities, read_windows
from datamodules.signals.recordings.finding import find_recording
from foundation.made_folders import will_make
from foundation.places import instead
from foundation.project import TOOL

GENERATED = "har_generated"


def _holds_har(folder: Path) -> bool:
    return any((inner / "activity_labels.txt").is_file() for inner in (folder, folder / FOLDER))


class HARDataModule(SignalDataModule):
    """UCI HAR, or your own recordings in the same layout with any activities and any subjects.

    Args:
        root: Folder that holds `UCI HAR Dataset` (or har/UCI HAR Dataset), or that folder itself.
        download: Download the official archive into `root` if the data is missing; the checksum is verified.
        generate: Write synthetic recordings in the same layout to har_generated in `root` and use only these.
        **kwargs: Settings of every signal datamodule, see `SignalDataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: The data is missing (raised at the first access to the data, class names included).
        MisconfigurationException: A file is damaged or does not match the others, or two splits share a subject or a window.
    """

    def __init__(self, root: str = "data", download: bool = False, generate: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if download and generate:
            raise ValueError("download and generate are both true; set only one of them")
        self.root, self.download, self.generate = Path(root), download, generate

    @property
    def class_names(self) -> list[str]:
        """Names of the activities from activity_labels.txt."""
        return list(self._activities)

    @cached_property
    def _activities(self) -> list[str]:
        if self.generate or (self.download and find_folder(self.root) is None):
            return list(ACTIVITIES)  # prepare_data will write these
        return read_activities(self._folder())

    @property
    def signal_names(self) -> list[str]:
        """Names of the nine signals, body_acc_x to total_acc_z."""
        return list(SIGNALS)

    @property
    def signal_units(self) -> list[str]:
        """Units of the signals: g for accelerations, rad/s for angular velocities."""
        return ["rad/s" if "gyro" in name else "g" for name in SIGNALS]

    @property
    def window_length(self) -> int:
        """Number of samples in a window: 128, at 50 Hz."""
        return LENGTH

    def prepare_data(self) -> None:
        """Download or generate the data if requested and missing; Lightning calls this once per machine."""
        if self.generate:
            will_make(self.root / GENERATED)
            try:
                write_generated(self.root / GENERATED)
            except FileExistsError as error:
                raise MisconfigurationException(f"--data.generate: {error}; give another --data.root") from error
        elif self.download and find_folder(self.root) is None:
            fetch(self.root)

    def _folder(self) -> Path:
        folder = find_folder(self.root / GENERATED if self.generate else self.root)
        if folder is None:
            where = f"no UCI HAR in {self.root.absolute()}{(hint := instead(self.root, _holds_har))}"
            raw = None if hint else find_recording(self.root)
            if raw is not None:
                raise FileNotFoundError(
                    f"{where}, but recordings such as {raw.relative_to(self.root)}: cut them into windows ({TOOL}cut_windows "
                    f"{self.root} windows.npz ...) and give --data SignalFileDataModule --data.file windows.npz"
                )
            raise FileNotFoundError(
                f"{where}; expected {FOLDER}/ with activity_labels.txt and, in train/ and test/, y, subject and Inertial Signals/; "
                "download it with --data.download true, set another folder with --data.root, or use synthetic recordings with "
                "--data.generate true"
            )
        return folder

    def has_training_data(self) -> bool:
        """Return whether the data has a folder train."""
        return (self._folder() / "train").is_dir()

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Read the windows of one part; see `datamodules.signals.windows`."""
        return read_windows(self._folder(), part, self.num_classes)
