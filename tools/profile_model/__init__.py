"""Measures time, memory and floating-point operations of a training step. The command is in `__main__.py`."""
