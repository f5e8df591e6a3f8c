"""Cuts raw sensor recordings into windows for `SignalFileDataModule`; `python -m tools.cut_windows` is the command.

recording.py     `Recording`: time stamps, signals, labels and people of one file; missing, repeated and backward samples
reading.py       reads a recording from CSV, Parquet or npz by column names
segments.py      labels of time spans, from a table
path_pattern.py  labels and people from folder and file names
resampling.py    pieces without gaps, and resampling at their real time stamps
cutting.py       windows of a recording with their labels and people
writing.py       writes the windows of many recordings into one .npz, in bounded memory
"""

from datamodules.signals.recordings.cutting import Counts, Cutting, cut
from datamodules.signals.recordings.path_pattern import PathPattern
from datamodules.signals.recordings.reading import Columns, read_recording
from datamodules.signals.recordings.recording import Codes, Recording
from datamodules.signals.recordings.segments import Segments
from datamodules.signals.recordings.writing import WindowWriter, stored_cutting

__all__ = [
    "Codes",
    "Columns",
    "Counts",
    "Cutting",
    "PathPattern",
    "Recording",
    "Segments",
    "WindowWriter",
    "cut",
    "read_recording",
    "stored_cutting",
]
