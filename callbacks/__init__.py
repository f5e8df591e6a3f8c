"""Lightning callbacks: EMA, checkpoints, exact resume, metric logs, plots, progress bar, LR finder, calibration, stopping.

A callback reads step outputs, logged metrics and the run folder. It does not depend on the task, and imports neither
lightning_modules nor datamodules. On a module it may use ``log_epoch(stage)``, ``shared_step(batch, stage)``, ``metric_names`` and
``stages()`` (lightning_modules/base.py, scheduled_module.py), ``collapsed`` (lightning_modules/segmentation_module.py), and
``several_labels``, ``monitored`` and ``label_results`` (lightning_modules/multilabel.py).
"""

from callbacks.calibration import Calibration
from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from callbacks.dry_run import is_out_of_memory
from callbacks.early_stopping import EarlyStopping
from callbacks.ema import EMA
from callbacks.exact_resume import ExactResume
from callbacks.failures.collapse import WarnOnCollapse
from callbacks.failures.memory import WarnOnMemory
from callbacks.failures.non_finite import NonFiniteError, StopOnNonFinite
from callbacks.fast_loop import FastEpochLoop, NoProfiler, skip_empty_hooks
from callbacks.feature_writer import FeatureWriter
from callbacks.learning_rate_finder import LearningRateFinder
from callbacks.metrics_log import MetricsLog, RunTensorBoard, read_metrics
from callbacks.pictures.confusion_matrix import ConfusionMatrix
from callbacks.pictures.curves import Curves
from callbacks.pictures.label_curves import LabelCurves
from callbacks.pictures.predicted_masks import MaskWriter
from callbacks.pictures.segmentation import SegmentationPictures
from callbacks.pictures.subject_accuracy import SubjectAccuracy
from callbacks.pictures.ternary_shares import TernaryShares
from callbacks.pictures.worst_mistakes import WorstMistakes
from callbacks.progress.progress import Progress
from callbacks.progress.speed import Speed
from callbacks.progressive_resizing import ProgressiveResizing, StageOutOfMemoryError
from callbacks.resizing_stages import ResizingStage
from callbacks.run_folder import RunFolder, run_folder
from callbacks.stop_on_signal import Interrupted, StopOnSignal
from callbacks.summary import RunSummary

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "Calibration",
    "Checkpoints",
    "ConfusionMatrix",
    "Curves",
    "EarlyStopping",
    "ExactResume",
    "FastEpochLoop",
    "FeatureWriter",
    "Interrupted",
    "LabelCurves",
    "LearningRateFinder",
    "MaskWriter",
    "MetricsLog",
    "NoProfiler",
    "NonFiniteError",
    "Progress",
    "ProgressiveResizing",
    "ResizingStage",
    "RunFolder",
    "RunSummary",
    "RunTensorBoard",
    "SegmentationPictures",
    "Speed",
    "StageOutOfMemoryError",
    "StopOnNonFinite",
    "StopOnSignal",
    "SubjectAccuracy",
    "TernaryShares",
    "WarnOnCollapse",
    "WarnOnMemory",
    "WorstMistakes",
    "is_out_of_memory",
    "read_metrics",
    "run_folder",
    "skip_empty_hooks",
]
