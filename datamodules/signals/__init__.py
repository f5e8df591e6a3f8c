"""Data sets of signal windows (time series): UCI HAR, your own recordings, and the conversion of windows to images.

base.py               SignalDataModule: split by subject, normalisation, images of signals
header.py             names, units, rate and shapes, which base.py inherits
recordings/           cuts raw recordings into windows
har.py                HARDataModule; har_reader.py, har_download.py, har_generator.py: its files
files.py              SignalFileDataModule; file_formats.py: reads your own windows from .npz and .csv
table_format.py       reads a table of windows    checking.py  checks of all windows before the first step
windows.py            contract of a reader, split by subject, and checks shared by all readers
augmentation.py       augmentation of a training batch    images.py  encodes the signals of a window as images
checkpoint_record.py  normalisation and subjects stored in a checkpoint
"""
