"""Time, memory and operations of a training step. The command is `__main__.py`."""
