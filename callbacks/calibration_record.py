"""What a checkpoint says of its own confidence: a temperature and an exit threshold, from two parts of the validation samples.

    checkpoint["calibration"] = a :class:`Record` of plain values; lightning_modules/classification.py reads it

A threshold keeps its promise with probability 1 - level over the draw of its samples. A run looks at the same samples at each
validation and takes the epoch that looks best; with levels that add up to 1 - confidence the promise holds for all its epochs at
once, so for the one taken too (union bound). docs/calibration.md says what that covers and what it does not.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from callbacks.pictures.reliability import Evaluation
from metrics import BinnedCalibration, ExitSums, choose_exit_threshold, fit_temperature
from metrics.exit_threshold import start_exits
from metrics.temperature import mean_nll
from transforms import SampleRandom

Never = Literal["never"]


class Samples(NamedTuple):
    """Logits (N, K) float32, class ids (N,) and places in the data set (N,), ordered by place; on one device."""

    logits: Tensor
    label: Tensor
    place: Tensor

    def where(self, chosen: Tensor) -> Samples:
        """Those of a mask (N,)."""
        return Samples(*(values[chosen] for values in self))


class Record(TypedDict):
    """What is known after a validation; NaN where there were no samples or logits were not finite.

    ``fitted`` samples gave the temperature, and their NLL in nats never rises by it. All else is of the ``samples`` held out:
    their ECE and NLL with raw and with divided logits, the ECE that a perfectly calibrated network would show
    (``ece_floor``), and what exits at the threshold, which is compared with calibrated confidences. ``level`` is the part of
    1 - ``confidence`` that this validation spent. The last four are None where no target was set, the last also where
    no threshold reaches it.
    """

    temperature: float
    fitted: int
    fitted_nll_before: float
    fitted_nll_after: float
    samples: int
    ece_before: float
    ece_after: float
    ece_floor: float
    nll_before: float
    nll_after: float
    threshold: float | Never | None
    target: float | None
    confidence: float
    level: float
    coverage: float | None
    exit_accuracy: float | None


class Rules(NamedTuple):
    """Settings of the callback ``Calibration``, which explains them."""

    target: float | None = 0.99
    confidence: float = 0.95
    temperature: bool = True
    holdout: float = 0.5


def held_out(place: Tensor, share: float, seed: int) -> Tensor:
    """Which samples the temperature is not fitted on.

    Args:
        place: Places in the data set (N,) int64.
        share: How many of them, 0 to 1; rounded to whole samples.
        seed: Of the draw, which depends on nothing else: it is the same in each epoch, run and number of processes.

    Returns:
        Mask (N,) on the CPU.
    """
    order = SampleRandom(seed, 0, place.cpu()).bits("calibration/holdout").argsort()
    mask = torch.zeros(len(place), dtype=torch.bool)
    mask[order[: round(share * len(place))]] = True
    return mask


def next_level(allowed: float, spent: float, left: int) -> float:
    """What the next of ``left`` planned validations may spend: equal shares, of which one is kept back for a run that is extended.

    >>> next_level(0.05, 0.0, 4), next_level(0.05, 0.03, 1)
    (0.01, 0.010000000000000002)
    """
    return max(allowed - spent, 0.0) / (max(left, 1) + 1)


def fitted_temperature(samples: Samples) -> float:
    """The temperature of samples; 1 where they say nothing: there are none, or logits are not finite."""
    usable = len(samples.label) > 0 and bool(samples.logits.isfinite().all())
    return fit_temperature(samples.logits, samples.label) if usable else 1.0


def evaluated(samples: Samples, temperature: float, threshold: float | None, target: float | None) -> Evaluation:
    """Calibration of samples before and after a temperature, and what exits."""
    before, after, exits = BinnedCalibration(), BinnedCalibration(), ExitSums(samples.logits.shape[1])
    for sums, divisor in ((before, 1.0), (after, temperature), (exits, temperature)):
        sums.to(samples.logits.device).update(samples.logits / divisor, samples.label)
    # the class's own function: that of the object would add up all processes, each of which has all samples already
    counted = (BinnedCalibration.compute(before), BinnedCalibration.compute(after), ExitSums.compute(exits))
    return Evaluation(*counted, temperature, threshold, target)


def calibrate(samples: Samples, rules: Rules, level: float, seed: int) -> tuple[Record, Evaluation]:
    """Fit a temperature and choose a threshold.

    Args:
        samples: The whole validation split.
        rules: What is wanted.
        level: Probability with which the threshold may miss the target, 0 or more.
        seed: Of the split into two parts; with one thing to find there is one part, of all samples.

    Returns:
        The record, and the sums of the samples held out, from which pictures are drawn.
    """
    everything = torch.ones(len(samples.label), dtype=torch.bool)
    both = rules.temperature and rules.target is not None
    held = held_out(samples.place, rules.holdout, seed) if both else everything
    fitted = samples.where((~held if both else everything).to(samples.label.device))
    chosen_on = samples.where(held.to(samples.label.device))
    temperature = fitted_temperature(fitted) if rules.temperature else 1.0
    found = evaluated(chosen_on, temperature, None, rules.target)
    chosen = None
    if rules.target is not None and 1 - level < 1:
        # samples whose logits are not finite have confidence 0: they never exit
        chosen = choose_exit_threshold(found.exits.thresholds, *found.exits.overall(), rules.target, 1 - level)
    threshold = chosen.threshold if chosen is not None else None if rules.target is None else float("inf")
    before, after = found.before.metrics(), found.after.metrics()
    nlls = [mean_nll(fitted.logits.cpu(), fitted.label.cpu(), divisor) for divisor in (1.0, temperature)]
    record = Record(
        temperature=temperature,
        fitted=len(fitted.label) if rules.temperature else 0,
        fitted_nll_before=nlls[0],
        fitted_nll_after=nlls[1],
        samples=len(chosen_on.label),
        ece_before=before["ece"],
        ece_after=after["ece"],
        ece_floor=after["ece_floor"],
        nll_before=before["nll"],
        nll_after=after["nll"],
        threshold="never" if threshold == float("inf") else threshold,
        target=rules.target,
        confidence=rules.confidence,
        level=level,
        coverage=chosen.coverage if chosen is not None else None if rules.target is None else 0.0,
        exit_accuracy=chosen.accuracy if chosen is not None else None,
    )
    return record, found._replace(threshold=threshold)


def in_words(record: Record) -> list[str]:
    """Lines for the log: the temperature and what it changes, the threshold and its promise."""
    lines, samples = [], f"{record['samples']:,} samples held out"
    if record["fitted"]:
        ece, floor = (_percent(record[name], 2) for name in ("ece_after", "ece_floor"))
        lines.append(
            f"temperature {record['temperature']:.3f}, fitted to {record['fitted']:,} validation samples; of "
            f"{samples if record['target'] is not None else 'these'}: NLL {record['nll_before']:.4f} -> {record['nll_after']:.4f}, "
            f"ECE {_percent(record['ece_before'], 2)} -> {ece} (floor {floor})"
        )
    if record["target"] is not None:
        promise = f"at {_percent(record['target'])} exit accuracy with {_percent(record['confidence'])} confidence: "
        threshold, coverage, accuracy = record["threshold"], record["coverage"], record["exit_accuracy"]
        if coverage is None or accuracy is None:
            needed = start_exits(0, record["target"], 1 - record["level"])[0] if 1 - record["level"] < 1 else 0
            hint = f"; {needed:,} exits without an error are the least that proves it" if needed else ""
            lines.append(f"{promise}no threshold reaches it ({samples}{hint})")
        else:
            found = f"threshold {threshold:g}, coverage {_percent(coverage, 1)}"
            lines.append(f"{promise}{found} (of {samples}; {_percent(accuracy, 2)} of these exits are right)")
    return lines


def _percent(share: float, digits: int | None = None) -> str:
    return f"{100 * share:.6g} %" if digits is None else f"{100 * share:.{digits}f} %"
