"""Finds the fastest data-loader settings (workers, prefetch, pin_memory). The command is in `__main__.py`."""
