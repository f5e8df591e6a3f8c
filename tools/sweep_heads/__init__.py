"""Trains a grid of classifier heads together on cached features. The command is in `__main__.py`."""
