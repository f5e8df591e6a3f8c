"""Image files: folders of classes, decoding, the loader with its worker processes.

datamodule.py       ImageFolderDataModule
class_folders.py    one folder per class: which files are listed, which are left out, duplicates, groups
labelled.py         the files of an image folder with their classes, and its train, val and test folders
unlabelled.py       the images of a folder without labels, for ``predict``
formats.py          the image formats that can be read, and their file endings
decoding.py         one file as uint8 pixels of a fixed size
loader.py           batches that worker processes decode
settings.py         settings of all datamodules that read image files
near_duplicates.py  the same photograph in another size, format or quality
"""
