"""Weights from elsewhere: files of any trainer (reading.py, folders.py), loaded into new runs (starting.py).

Per network: a frozen backbone (backbone.py), a segmenter's encoder (encoder.py), the HAR ViT (har.py).
"""

from lightning_modules.pretrained.reading import SavedWeights, absent, other_kind, other_run, read_weights
from lightning_modules.pretrained.starting import ADAPTED, ONE_SOURCE, StartsFromWeights, said_of

__all__ = [
    "ADAPTED",
    "ONE_SOURCE",
    "SavedWeights",
    "StartsFromWeights",
    "absent",
    "other_kind",
    "other_run",
    "read_weights",
    "said_of",
]
