"""Compares runs: best and last metrics, settings that differ, cost. The command is in `__main__.py`."""
