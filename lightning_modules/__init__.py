"""The LightningModules: one class per task, with its loss, metrics and optimiser.

Every step returns a dict with ``loss`` (), ``logits`` (never probabilities) and ``label``. Callbacks read only this dict, so they
work for every task. Modules import networks and metrics, never datamodules or callbacks.
"""

from lightning_modules.base import BaseModule
from lightning_modules.cascade_head import CascadeHead
from lightning_modules.classification import Classifier
from lightning_modules.feature_extractor import FeatureExtractor
from lightning_modules.har_classifier import HARClassifier
from lightning_modules.image_classifier import ImageClassifier
from lightning_modules.loading import load_run
from lightning_modules.prompted_segmenter import PromptedSegmenter
from lightning_modules.ternary_classifier import TernaryClassifier

__all__ = [
    "BaseModule",
    "CascadeHead",
    "Classifier",
    "FeatureExtractor",
    "HARClassifier",
    "ImageClassifier",
    "PromptedSegmenter",
    "TernaryClassifier",
    "load_run",
]
