"""Measures accuracy and cost of a two-stage cascade of classifiers. The command is in `__main__.py`."""
