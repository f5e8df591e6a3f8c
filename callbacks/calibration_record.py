"""The calibration record of a checkpoint: temperature and exit threshold, computed from two parts of the validation samples.

    checkpoint["calibration"] = a :class:`Record` of plain values; read by lightning_modules/classification.py

A threshold reaches its target accuracy with probability 1 - level over the draw of its samples. A run uses the same samples at each
validation and keeps the best epoch. The levels of all validations add up to at most 1 - confidence, so the guarantee holds for all
epochs at once, and therefore for the one that is kept (union bound). docs/calibration.md lists what the guarantee covers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from callbacks.pictures.reliability import Evaluation
from metrics import BinnedCalibration, ExitSums, choose_exit_threshold, fit_temperature
from metrics.exit_threshold import start_exits
from metrics.temperature import HIGHEST, LOWEST, mean_nll
from transforms import SampleRandom

Never = Literal["never"]
WORSE = 1.05  # ratio of the held-out NLL with and without temperature from which the temperature is doubted


class Samples(NamedTuple):
    """Logits (N, K) float32, class ids (N,) and data set indices (N,), sorted by index; on one device."""

    logits: Tensor
    label: Tensor
    place: Tensor

    def where(self, chosen: Tensor) -> Samples:
        """Select the samples of a boolean mask (N,) or of an index (N,)."""
        return Samples(*(values[chosen] for values in self))


class Record(TypedDict):
    """Calibration results of one validation; NaN if there were no samples or logits were not finite.

    Attributes:
        temperature: Divisor of the logits.
        fitted: Number of samples that the temperature was fitted on; 0 without a temperature.
        fitted_nll_before: Their NLL in nats with raw logits.
        fitted_nll_after: Their NLL in nats with divided logits, never higher.
        samples: Number of samples held out; ECE, NLL, coverage and exit accuracy below are computed on them.
        ece_before: ECE with raw logits.
        ece_after: ECE with divided logits.
        ece_floor: ECE that a perfectly calibrated network would show.
        nll_before: NLL in nats with raw logits.
        nll_after: NLL in nats with divided logits.
        threshold: Exit threshold on the calibrated confidence; "never" if no threshold reaches the target, None without a target.
        target: Exit accuracy to reach, or None.
        confidence: Probability of the guarantee over the whole run.
        level: Part of 1 - ``confidence`` that this validation used.
        coverage: Share of the samples that exit; None without a target.
        exit_accuracy: Accuracy of the samples that exit; None without a target or if no threshold reaches it.
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
    """Settings of the ``Calibration`` callback; its docstring describes them."""

    target: float | None = 0.99
    confidence: float = 0.95
    temperature: bool = True
    holdout: float = 0.5


def held_out(place: Tensor, share: float, seed: int) -> Tensor:
    """Draw the samples to hold out from fitting the temperature.

    Args:
        place: Data set indices (N,) int64.
        share: Share of the samples to hold out, 0 to 1; rounded to whole samples.
        seed: Seed of the draw. The draw depends only on seed and indices, so it is the same in every epoch and run, and for any
            number of processes.

    Returns:
        Mask (N,) on the CPU.
    """
    order = SampleRandom(seed, 0, place.cpu()).bits("calibration/holdout").argsort()
    mask = torch.zeros(len(place), dtype=torch.bool)
    mask[order[: round(share * len(place))]] = True
    return mask


def next_level(allowed: float, spent: float, left: int) -> float:
    """Error probability for the next of ``left`` planned validations: equal shares, one kept in reserve for an extended run.

    >>> next_level(0.05, 0.0, 4), next_level(0.05, 0.03, 1)
    (0.01, 0.010000000000000002)
    """
    return max(allowed - spent, 0.0) / (max(left, 1) + 1)


def fitted_temperature(samples: Samples) -> float:
    """Fit a temperature; 1 if there are no samples or logits are not finite."""
    usable = len(samples.label) > 0 and bool(samples.logits.isfinite().all())
    return fit_temperature(samples.logits, samples.label) if usable else 1.0


def evaluated(samples: Samples, temperature: float, threshold: float | None, target: float | None) -> Evaluation:
    """Compute calibration sums before and after a temperature, and exit counts."""
    before, after, exits = BinnedCalibration(), BinnedCalibration(), ExitSums(samples.logits.shape[1])
    for sums, divisor in ((before, 1.0), (after, temperature), (exits, temperature)):
        sums.to(samples.logits.device).update(samples.logits / divisor, samples.label)
    # torchmetrics wraps the instance's compute to sum over processes; here every process already holds all samples
    counted = (BinnedCalibration.compute(before), BinnedCalibration.compute(after), ExitSums.compute(exits))
    return Evaluation(*counted, temperature, threshold, target)


def calibrate(samples: Samples, rules: Rules, level: float, seed: int) -> tuple[Record, Evaluation]:
    """Fit a temperature and choose a threshold.

    Args:
        samples: The whole validation split.
        rules: Settings of the callback.
        level: Probability with which the threshold may miss the target, 0 or more.
        seed: Seed of the split into two parts. If only a temperature or only a threshold is wanted, all samples are used for it.

    Returns:
        The record, and the sums of the held-out samples for plots and tables.
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
        # samples with non-finite logits have confidence 0 and never exit
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


def doubt(record: Record) -> str | None:
    """Why the temperature should not be relied on; None if nothing speaks against it, or if there is none."""
    if not record["fitted"]:
        return None
    where = f"temperature {record['temperature']:.3f}, fitted to {record['fitted']:,} validation samples,"
    advice = "the probabilities are not calibrated; use more validation samples"
    if record["temperature"] in (LOWEST, HIGHEST):
        return f"{where} is at the end of its range ({LOWEST:g} to {HIGHEST:g}): {advice}"
    if record["target"] is not None and record["nll_after"] > WORSE * record["nll_before"]:
        change = f"from {record['nll_before']:.4f} to {record['nll_after']:.4f}"
        return f"{where} raises the NLL of the held-out samples {change}: {advice}"
    return None


def in_words(record: Record) -> list[str]:
    """Log lines: the temperature and its effect on NLL and ECE, the threshold and its guarantee."""
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
            if edge := at_the_edge(coverage):
                lines.append(f"threshold {threshold:g}: {edge}")
    return lines


def at_the_edge(coverage: float) -> str | None:
    """What to say of a threshold at which all samples exit or none; None between these ends of the search.

    Args:
        coverage: Share of the samples that exit, 0 to 1; NaN without samples.
    """
    if coverage == 1:
        return "every sample exits; it is at the end of the search, a second stage is never needed on data like this"
    return (
        "no sample exits; it is at the end of the search, a first stage only adds its cost" if coverage == 0 else None
    )


def _percent(share: float, digits: int | None = None) -> str:
    return f"{100 * share:.6g} %" if digits is None else f"{100 * share:.{digits}f} %"
