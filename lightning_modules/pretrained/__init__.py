"""Initial weights of a network: read from files of any trainer (reading.py, folders.py), loaded into new runs (starting.py)."""

from lightning_modules.pretrained.reading import SavedWeights, read_weights
from lightning_modules.pretrained.starting import ONE_SOURCE, StartsFromWeights

__all__ = ["ONE_SOURCE", "SavedWeights", "StartsFromWeights", "read_weights"]
