"""Data sets of image files: class folders, decoding, and a loader with worker processes.

datamodule.py       ImageFolderDataModule
class_folders.py    one folder per class: lists the image files, finds duplicates, reads groups
labelled.py         image files with their class labels; finds the train, val and test folders
unlabelled.py       unlabelled images of a folder, for ``predict``
formats.py          supported image formats and file extensions
decoding.py         decodes one file to uint8 pixels of a fixed size
loader.py           batches of image files, decoded by worker processes
canvases/           the canvas cache: decoded and shrunk images on disk
header.py           size, channels and normalisation as settings give them
split_files.py      labels and splits of the files; label_table.py, table_files.py: labels in a table
settings.py         checks and defaults shared by all datamodules that read image files
near_duplicates.py  finds the same photograph in another size, format or quality
"""
