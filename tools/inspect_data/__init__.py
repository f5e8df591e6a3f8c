"""Checks a data set before training: statistics, duplicates, damaged files, plots. The command is in `__main__.py`."""
