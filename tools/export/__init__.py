"""Packed ternary files and ONNX of a run's network. The command is `__main__.py`."""
