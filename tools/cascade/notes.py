"""What is said aloud of a cascade: costly stage first, threshold at the end of the search, missed goal, images that are shrunk."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.sizes import Size, sides, size_of, size_text
from tools.cascade.measures import Sweep


def order_note(flops: Sequence[float], names: Sequence[str]) -> str | None:
    """Say that stage 1 costs as much as stage 2 or more; None if it is cheaper.

    Args:
        flops: Operations per image of stage 1 and stage 2.
        names: Names of the two stages.
    """
    if flops[0] < flops[1]:
        return None
    if flops[0] == flops[1]:
        return f"both stages take the same number of operations ({names[0]}), so no threshold can save any"
    return (
        f"the costly stage comes first: {names[0]} takes {flops[0] / flops[1]:.3g} times the operations of {names[1]}, so no "
        "threshold can save any; give the cheap stage first"
    )


def size_notes(read: tuple[int, int], taken: Sequence[Size | None]) -> list[str]:
    """Say which stages get smaller images than are read: their accuracy may differ from that of `test`, which reads at their size.

    Args:
        read: Height and width of the images that are read once for both stages, in pixels.
        taken: Sizes that the stages take; None: any.
    """
    return [
        f"stage {number} gets images of {size_text(size_of(read))} px shrunk to {size_text(size)} px; test reads them at "
        f"{size_text(size)} px, so its accuracy there may differ a little"
        for number, size in enumerate(taken, start=1)
        if size is not None and sides(size) != read
    ]


def edge_note(swept: Sweep, place: int) -> str | None:
    """Say that the chosen threshold is at an end of the search, which is no optimum; None if it is between the ends.

    Args:
        swept: The sweep in which the threshold was chosen.
        place: Index of the chosen threshold.
    """
    if place == 0:
        return "the threshold is at the end of the search (never): stage 2 answers every sample, and stage 1 only adds its cost"
    if place == len(swept.threshold) - 1:
        return "the threshold is at the end of the search (the lowest): stage 1 answers every sample, stage 2 is never needed"
    return None


def goal_note(
    split: str, budget: float | None, tolerance: float | None, share: float, accuracies: Sequence[float]
) -> str | None:
    """Say that the measured samples do not meet what the threshold was chosen for on other samples; None if they do.

    Args:
        split: Name of the measured split.
        budget: Largest share of stage 2's operations; None if it was not asked for.
        tolerance: Percentage points of accuracy that may be lost against stage 2; None if it was not asked for.
        share: Operations of the cascade as a share of stage 2's.
        accuracies: Accuracy of stage 2 and of the cascade, 0 to 1.
    """
    if budget is not None and share > budget:
        return f"--budget {budget:g} is not met on the {split} split: the cascade takes {share:.3f} of stage 2's operations"
    lost = 100 * (accuracies[0] - accuracies[1])
    if tolerance is not None and lost > tolerance + 1e-9:
        return (
            f"--tolerance {tolerance:g} is not met on the {split} split: the cascade loses {lost:.2f} points against stage 2; the "
            "threshold was chosen on other samples"
        )
    return None
