"""Confidence of the predicted class, and the fine fixed grid on which samples are counted (ECE bins: calibration.py).

    confidence = largest softmax probability, computed in float32 for logits of any type

Because the grid is fixed, the state of a metric has the same size for any number of samples, and results at any threshold can be
computed afterwards. The grid has three decimals below 0.99 and one more decimal after each further nine: 0.99, 0.9901, .. 0.999,
0.99901, .. 0.999999, 1. A confidence of exactly 1 has its own bin.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def confidence_grid(also: Sequence[float] = ()) -> Array:
    """Lower edges of the bins, ascending from 0 to 1.

    Args:
        also: Additional edges in [0, 1].

    Returns:
        (F,), all different as float32; F is 1,352 without additional edges. Bin i holds ``edge[i] <= p < edge[i + 1]``, the last
        bin p = 1.

    >>> confidence_grid()[[0, 1, 989, 990, 991, -1]].tolist()
    [0.0, 0.001, 0.989, 0.99, 0.9901, 1.0]
    """
    finer = [(10**digits - 100 + np.arange(90)) / 10**digits for digits in range(4, 8)]
    edges = np.concatenate([np.arange(990) / 1000, *finer, [0.999999, 1.0], np.asarray(also, dtype=np.float64)])
    return edges[np.unique(edges.astype(np.float32), return_index=True)[1]]


def top_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and class of each prediction.

    Args:
        logits: (B, K) of any float type, K >= 2.

    Returns:
        Confidences (B,) float32 in [0, 1], NaN where the logits are not finite, and predicted classes (B,).

    Raises:
        ValueError: There is only one logit per sample; its softmax would always be 1.

    >>> top_label(torch.tensor([[0.0, 100.0], [1.0, 1.0]]))
    (tensor([1.0000, 0.5000]), tensor([1, 0]))
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits: shape {tuple(logits.shape)} given, (B, K) with K >= 2 classes needed")
    predicted = logits.argmax(dim=1)
    probabilities = logits.float().softmax(dim=1)
    return probabilities.gather(1, predicted[:, None])[:, 0].clamp(max=1), predicted


def grid_bin(confidence: Tensor, edges: Tensor) -> Tensor:
    """Bin of each confidence.

    Args:
        confidence: (B,) float32 in [0, 1]; NaN goes to the first bin, because it reaches no threshold.
        edges: The grid (F,) as float32 on the same device.

    Returns:
        (B,) int64, 0 to F - 1.
    """
    return torch.bucketize(confidence.nan_to_num(nan=0.0), edges, right=True) - 1
