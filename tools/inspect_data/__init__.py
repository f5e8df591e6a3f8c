"""Statistics, duplicates and pictures of a data set, before training. The command is `__main__.py`."""
