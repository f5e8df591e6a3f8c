"""Test-time augmentation: a network sees several views of an image, and the probabilities are averaged.

flip     the image and its mirror image                                              2 views
flips    also upside down, where up and down mean nothing: maps, tissue, road        4 views
shifts   the image and four shifts by a sixteenth of its side, each mirrored too    10 views; not for masks
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VIEWS = ("flip", "flips", "shifts")
FLIPS: dict[str, tuple[tuple[int, ...], ...]] = {
    "flip": ((), (-1,)),
    "flips": ((), (-1,), (-2,), (-2, -1)),
    "shifts": ((), (-1,)),
}
"""Dimensions that each view turns round."""
SHARE = 1 / 16  # of a side that a view is shifted by


class View(NamedTuple):
    """What a view does to images (B, C, H, W), and how its masks (N, P, H, W) are turned back."""

    apply: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


def check_views(name: str, module: Any) -> None:
    """Check that a module can be used with views.

    Args:
        name: One of ``VIEWS``, or ``none``.
        module: A module of this project.

    Raises:
        ValueError: There are no such views, or they mean nothing to what the module takes.
    """
    if name == "none":
        return
    if name not in VIEWS:
        raise ValueError(f"tta: must be one of {', '.join(VIEWS)}, got {name!r}")
    kind = type(module).__name__
    if module.takes_signals:
        raise ValueError(
            f"tta: a {kind} takes windows of signals, and a window turned round is another movement; leave it out"
        )
    if module.takes_masks and name == "shifts":
        raise ValueError("tta: shifts move the masks of a segmenter; give flip or flips")


def views_of(name: str) -> list[View]:
    """The views of a name, the image as it is first."""
    turned = [partial(torch.flip, dims=dims) if dims else _same for dims in FLIPS[name]]
    views = [View(turn, turn) for turn in turned]
    if name == "shifts":
        moves = [(y, x) for y, x in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        views += [View(partial(_moved, turn=turn, by=by), _same) for by in moves for turn in turned]
    return views


def averaged_classes(
    name: str,
    image: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
    several_labels: bool = False,
) -> Tensor:
    """Logits (B, K) whose probabilities are the mean over the views of images (B, C, H, W).

    With one label a sample softmax(result / ``temperature``) is the mean of softmax(logits / ``temperature``); with several labels
    sigmoid(result) is the mean of sigmoid(logits).

    Raises:
        ValueError: There are no images but features.
    """
    if image.ndim != 4:
        raise ValueError("tta: needs images, and these are cached features, which have one view only")
    found = torch.stack([logits_of(view.apply(image)).float() for view in views_of(name)])
    if several_labels:
        return _mean_of_sigmoids(found)
    log_mean = (found / temperature).log_softmax(dim=2).logsumexp(dim=0) - math.log(len(found))
    return log_mean * temperature


def averaged_masks(name: str, image: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits (N, 1, H, W) whose sigmoid is the mean over the views of images (B, 3, H, W), each mask turned back."""
    return _mean_of_sigmoids(torch.stack([view.back(logits_of(view.apply(image)).float()) for view in views_of(name)]))


def _mean_of_sigmoids(logits: Tensor) -> Tensor:
    """Logit of the mean over the first dimension; the number of views cancels."""
    return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)


def _same(values: Tensor) -> Tensor:
    return values


def _moved(image: Tensor, turn: Callable[[Tensor], Tensor], by: tuple[int, int]) -> Tensor:
    """Shift by a sixteenth of the side; what comes in from outside repeats the edge."""
    height, width = image.shape[-2:]
    dy, dx = (max(1, round(SHARE * side)) for side in (height, width))
    padded = F.pad(image, (dx, dx, dy, dy), mode="replicate")
    top, left = dy * (1 + by[0]), dx * (1 + by[1])
    return turn(padded[..., top : top + height, left : left + width])
