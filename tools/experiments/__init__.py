"""Runs named experiments, resumes interrupted ones and compares all of them. The command is in `__main__.py`."""
