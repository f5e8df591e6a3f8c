"""UCI HAR (Anguita et al., 2013): six activities of 30 people, nine signals of a phone at the waist in windows of 2.56 s.

The test split is the official one, nine people; of the other 21 some are held out for validation. Nobody is in two splits. The
layout, which recordings of your own may have too, is described in `datamodules.signals.har_reader`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datamodules.base import Batch
from datamodules.signals.base import SignalDataModule
from datamodules.signals.har_download import fetch
from datamodules.signals.har_generator import ACTIVITIES, write_generated
from datamodules.signals.har_reader import FOLDER, LENGTH, SIGNALS, find_folder, read_activities, read_windows

GENERATED = "har_generated"


class HARDataModule(SignalDataModule):
    """UCI HAR, or recordings of your own in the same layout with any activities and any people.

    Args:
        root: Folder that holds `UCI HAR Dataset` (or har/UCI HAR Dataset), or that folder itself.
        download: Fetch the official archive into `root` if no data is there; the checksum is verified.
        generate: Write made-up recordings in the same layout to har_generated in `root` and use these, whatever else is there.
        **kwargs: Settings of every datamodule of signals, see `SignalDataModule`.

    Raises:
        ValueError: A setting is out of its range.
        FileNotFoundError: The data is not there (found when it is first needed, class names included).
        MisconfigurationException: A file is damaged, does not fit the others, or the data leaks.
    """

    def __init__(self, root: str = "data", download: bool = False, generate: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if download and generate:
            raise ValueError("download and generate are both true; choose the real data or the made-up one")
        self.root, self.download, self.generate = Path(root), download, generate

    @property
    def class_names(self) -> list[str]:
        """Names of the activities from activity_labels.txt."""
        return list(self._activities)

    @cached_property
    def _activities(self) -> list[str]:
        if self.generate or (self.download and find_folder(self.root) is None):
            return list(ACTIVITIES)  # what prepare_data is going to write
        return read_activities(self._folder())

    @property
    def signal_names(self) -> list[str]:
        """body_acc_x to total_acc_z."""
        return list(SIGNALS)

    @property
    def window_length(self) -> int:
        """128 samples, at 50 Hz."""
        return LENGTH

    def prepare_data(self) -> None:
        """Fetch or write the data where that is wanted and needed; Lightning calls this on one process of each machine."""
        if self.generate:
            write_generated(self.root / GENERATED)
        elif self.download and find_folder(self.root) is None:
            fetch(self.root)

    def _folder(self) -> Path:
        folder = find_folder(self.root / GENERATED if self.generate else self.root)
        if folder is None:
            raise FileNotFoundError(
                f"no UCI HAR in {self.root.absolute()}: expected {FOLDER}/ with activity_labels.txt and, in train/ and test/, y, "
                "subject and Inertial Signals/; fetch it with --data.download true, name another folder with --data.root, or use "
                "made-up recordings with --data.generate true"
            )
        return folder

    def has_training_data(self) -> bool:
        """Say whether there is a folder train."""
        return (self._folder() / "train").is_dir()

    def read_part(self, part: Literal["train", "test"]) -> Batch:
        """Read the windows of one part; see `SignalDataModule`."""
        return read_windows(self._folder(), part, self.num_classes)
