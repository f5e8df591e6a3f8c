"""Measures loader settings and names the fastest. The command is `__main__.py`."""
