"""Sizes of images: the side of a square, or height and width.

>>> sides(224), sides((96, 160))
((224, 224), (96, 160))
>>> size_text(224), size_text((96, 160))
('224', '96 x 160')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

Size: TypeAlias = int | tuple[int, int]
"""Side of a square, or height and width, in pixels; see `size_of`."""
OFF = 0.06  # by which a rounded side may differ from the exact one
LARGEST_STEP = 32  # stride of most networks; sizes need not be multiples of more


def size_of(given: int | Sequence[int]) -> Size:
    """The one form of a size: a number for squares, else height and width.

    Raises:
        ValueError: It is neither a number nor two numbers, or a number is below 1.

    >>> size_of([64, 64]), size_of([96, 160]), size_of(224)
    (64, (96, 160), 224)
    """
    values = [given] if isinstance(given, int) else [*given]
    if len(values) not in (1, 2) or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in values):
        raise ValueError("a size is 1 pixel or more, or [HEIGHT, WIDTH]")
    return values[0] if values[0] == values[-1] else (values[0], values[1])


def sides(size: Size) -> tuple[int, int]:
    """Height and width in pixels."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def pixels_of_size(size: Size) -> int:
    """Number of pixels."""
    height, width = sides(size)
    return height * width


def size_text(size: Size) -> str:
    """A size in words: `224` for a square, else `96 x 160` (height x width)."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


def times(size: Size, factor: float) -> Size:
    """A size with both sides multiplied and rounded.

    >>> times(224, 1.15), times((96, 160), 1.15)
    (258, (110, 184))
    """
    height, width = (round(factor * side) for side in sides(size))
    return size_of((height, width))


def in_proportion(shorter: int, of: Size) -> Size:
    """A size of about the proportions of another one.

    Args:
        shorter: Its shorter side in pixels.
        of: The other size. The longer side becomes a multiple of the largest power of two, at most 32, that divides both sides of
            `of` and the shorter side, so that a network with strides or patches takes it, and keeps the proportions within 6 %.

    >>> in_proportion(48, (96, 160)), in_proportion(64, (160, 96)), in_proportion(64, 224)
    ((48, 80), (112, 64), 64)
    """
    height, width = sides(of)
    exact, step = shorter * max(height, width) / min(height, width), LARGEST_STEP
    while step > 1 and (
        height % step or width % step or shorter % step or abs(round(exact / step) * step - exact) > OFF * exact
    ):
        step //= 2
    longer = max(shorter, round(exact / step) * step)
    return size_of((shorter, longer) if height <= width else (longer, shorter))


def plain_size(size: Size) -> int | list[int]:
    """A size as written in JSON and YAML."""
    return size if isinstance(size, int) else [*size]
