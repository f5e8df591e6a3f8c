"""Draws the image that each signal encoder makes of a window of signals. The command is in `__main__.py`."""
