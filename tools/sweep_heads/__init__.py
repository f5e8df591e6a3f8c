"""Trains a grid of heads on cached features in one pass. The command is `__main__.py`."""
