"""The report of a run as Markdown and HTML. The command is `__main__.py`."""
