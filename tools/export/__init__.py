"""Exports the network of a run as a packed ternary file or as ONNX. The command is in `__main__.py`."""
