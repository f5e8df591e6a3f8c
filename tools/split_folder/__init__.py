"""Splits a folder of images into train, val and test. The command is `__main__.py`."""
