"""Runs named experiments, resumes what was interrupted, compares them. The command is `__main__.py`."""
