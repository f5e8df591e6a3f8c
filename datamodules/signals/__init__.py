"""Windows of signals: UCI HAR, recordings of your own, and how they become images.

base.py               split by person, normalisation, images of signals
har.py                HARDataModule; har_reader.py, har_download.py, har_generator.py: its files
files.py              SignalFileDataModule; file_formats.py: arrays and tables with windows of your own
windows.py            the checks that every reader shares
augmentation.py       augmentation of a training batch    images.py  signals of a window as images
checkpoint_record.py  normalisation and persons that a checkpoint keeps
"""
