"""Scores how far images are from what a run knows; see docs/outliers.md."""
