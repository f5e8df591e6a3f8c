"""What is said aloud of a cascade: the costly stage comes first, a threshold at the end of the search, a goal that is not met."""

from __future__ import annotations

from collections.abc import Sequence

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
        return f"--tolerance {tolerance:g} is not met on the {split} split: the cascade loses {lost:.2f} points against stage 2"
    return None
