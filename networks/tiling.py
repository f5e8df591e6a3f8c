"""Tiled inference of segmenters: large images are segmented in overlapping squares, whose logits are blended, to limit memory.

image --squares of `side`, overlapping by an eighth--> network, one square at a time --weights that fall to the edges--> logits
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

OVERLAP = 8  # neighbouring squares overlap by at least side / OVERLAP


class Tiling:
    """Segments images in overlapping squares.

    The logit of a pixel is the mean over all squares that contain it, weighted by the distance to the edges of the square, near
    which the network sees the least context.

    Args:
        side: Height and width of a square in pixels, 32 or more. Images whose sides are not longer are segmented as a whole.

    Raises:
        ValueError: `side` is below 32.
    """

    def __init__(self, side: int) -> None:
        if side < 32:
            raise ValueError(f"tile: pixels, 32 or more, or null, got {side}")
        self.side = side

    def __call__(
        self,
        network: Callable[[Tensor, Sequence[str], Tensor | None], Tensor],
        image: Tensor,
        prompts: Sequence[str],
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Logits (N, 1, H, W); arguments as in networks/segmenters/parts.py."""
        height, width = image.shape[-2:]
        if max(height, width) <= self.side:
            return network(image, prompts, image_index)
        total = image.new_zeros(len(prompts), 1, height, width, dtype=torch.float32)
        weights = image.new_zeros(height, width, dtype=torch.float32)
        for top in starts(height, self.side):
            for left in starts(width, self.side):
                rows, columns = slice(top, min(height, top + self.side)), slice(left, min(width, left + self.side))
                logits = network(image[..., rows, columns], prompts, image_index).float()
                weight = _ramp(logits.shape[-2], logits)[:, None] * _ramp(logits.shape[-1], logits)
                total[..., rows, columns] += logits * weight
                weights[rows, columns] += weight
        return total / weights


def starts(length: int, side: int) -> list[int]:
    """First pixel of each square along an axis, evenly spaced.

    >>> starts(100, 100), starts(250, 100)
    ([0], [0, 75, 150])
    """
    if length <= side:
        return [0]
    count = 1 + -(-(length - side) // (side - side // OVERLAP))
    return [place * (length - side) // (count - 1) for place in range(count)]


def _ramp(length: int, like: Tensor) -> Tensor:
    place = torch.arange(length, device=like.device, dtype=torch.float32)
    return torch.minimum(place + 1, length - place)
