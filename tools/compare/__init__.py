"""Compares runs: best and last metrics, settings that differ, cost. The command is `__main__.py`."""
