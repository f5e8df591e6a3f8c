"""Computes the failed step of a run again: which sample, layer or gradient is not finite. The command is in `__main__.py`."""
