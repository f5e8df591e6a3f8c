"""Splits a folder of images into train, val and test. The command is in `__main__.py`."""
