"""Two classifiers one after the other: accuracy against cost. The command is `__main__.py`."""
