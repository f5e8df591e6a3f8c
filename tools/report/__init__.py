"""Writes the report of a run as Markdown and HTML. The command is in `__main__.py`."""
