"""Draws what each encoder makes of a window of signals. The command is `__main__.py`."""
