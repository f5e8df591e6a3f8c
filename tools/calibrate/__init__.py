"""Calibrates a finished run: temperature, exit threshold and prediction sets, into its checkpoint. The command is `__main__.py`."""
