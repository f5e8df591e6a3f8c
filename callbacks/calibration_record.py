"""The calibration record of a checkpoint: temperature, exit threshold and prediction sets, from parts of the validation samples.

    checkpoint["calibration"] = a :class:`Record` of plain values; read by lightning_modules/classification.py

A threshold reaches its target accuracy with probability 1 - level over the draw of its samples. A run uses the same samples at each
validation and keeps the best epoch. The levels of all validations add up to at most 1 - confidence, so the guarantee holds for all
epochs at once, and therefore for the one that is kept (union bound). docs/calibration.md lists what the guarantee covers.

What is fitted (temperature, penalty of the sets) is fitted to other samples than what is chosen (threshold, quantile of the sets):

    held out     one part is fitted to, the rest is chosen on
    cross_fit    FOLDS parts: each is divided by the temperature of all others, then everything is chosen on all samples; the
                 temperature that is kept is fitted to all samples. A penalty is found on one part, the quantile on the others
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from callbacks.pictures.reliability import Evaluation
from metrics import BinnedCalibration, ExitSums, SetKind, choose_exit_threshold, fit_temperature, set_metrics, set_rule
from metrics.conformal import least_samples, tuned_penalty
from metrics.exit_threshold import start_exits
from metrics.temperature import HIGHEST, LOWEST, mean_nll
from transforms import SampleRandom

Never = Literal["never"]
FOLDS = 5  # parts of a cross-fit
WORSE = 1.05  # ratio of the held-out NLL with and without temperature from which the temperature is doubted
NOT_STORED = "1 is stored in its place, the probabilities stay those of the network"


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
        refused: The temperature fitted to them if it is at an end of its range, so that 1 is stored in its place; else None.
        fitted_nll_before: Their NLL in nats with raw logits.
        fitted_nll_after: Their NLL in nats with divided logits, never higher.
        fitted_ece_after: Their ECE with divided logits, too low since the temperature was fitted to them.
        folds: Number of parts of a cross-fit; 0 if samples were held out.
        samples: Number of samples held out, all with a cross-fit; ECE, NLL, coverage and exit accuracy below are computed on them.
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
        sets: Values of ``metrics.SetRule``, and ``size``, ``empty`` and ``single`` of the samples held out; None without sets.
    """

    temperature: float
    fitted: int
    refused: float | None
    fitted_nll_before: float
    fitted_nll_after: float
    fitted_ece_after: float
    folds: int
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
    sets: dict[str, Any] | None


class Rules(NamedTuple):
    """Settings of the ``Calibration`` callback, whose docstring describes them, and of ``tools.calibrate``.

    Attributes:
        sets: Kind of the prediction sets; None for none.
        set_coverage: Their coverage, between 0 and 1 (both excluded).
        ends: Also keep a temperature at an end of its range.
    """

    target: float | None = 0.99
    confidence: float = 0.95
    temperature: bool = True
    holdout: float = 0.5
    cross_fit: bool = False
    sets: SetKind | None = None
    set_coverage: float = 0.9
    ends: bool = False


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


def fold_of(place: Tensor, seed: int) -> Tensor:
    """Part (N,) of each sample in a cross-fit, 0 to FOLDS - 1, equally large up to one sample; depends on seed and indices only."""
    order = SampleRandom(seed, 0, place.cpu()).bits("calibration/folds").argsort()
    part = torch.empty(len(place), dtype=torch.int64)
    part[order] = torch.arange(len(place)) % FOLDS
    return part


def next_level(allowed: float, spent: float, left: int) -> float:
    """Error probability for the next of ``left`` planned validations: equal shares, one kept in reserve for an extended run.

    >>> next_level(0.05, 0.0, 4), next_level(0.05, 0.03, 1)
    (0.01, 0.010000000000000002)
    """
    return max(allowed - spent, 0.0) / (max(left, 1) + 1)


class Fit(NamedTuple):
    """A temperature, and the one at an end of its range in whose place it is 1; see ``refused`` of a record."""

    temperature: float
    refused: float | None = None

    @classmethod
    def of(cls, samples: Samples, rules: Rules) -> Fit:
        """Fit a temperature; 1 if none is wanted, there are no samples, logits are not finite, or the fit ends at the range's end.

        The decision uses nothing but the samples fitted to: what is chosen on others keeps its guarantee.
        """
        if not rules.temperature or not len(samples.label) or not bool(samples.logits.isfinite().all()):
            return cls(1.0)
        found = fit_temperature(samples.logits, samples.label)
        return cls(1.0, found) if found in (LOWEST, HIGHEST) and not rules.ends else cls(found)


def evaluated(
    samples: Samples,
    temperature: float,
    threshold: float | None,
    target: float | None,
    calibrated: Tensor | None = None,
) -> Evaluation:
    """Compute calibration sums before and after a temperature, and exit counts.

    ``calibrated`` are the divided logits, if they are not those of one temperature.
    """
    divided = samples.logits / temperature if calibrated is None else calibrated
    before, after, exits = BinnedCalibration(), BinnedCalibration(), ExitSums(samples.logits.shape[1])
    for sums, logits in ((before, samples.logits), (after, divided), (exits, divided)):
        sums.to(samples.logits.device).update(logits, samples.label)
    # torchmetrics wraps the instance's compute to sum over processes; here every process already holds all samples
    counted = (BinnedCalibration.compute(before), BinnedCalibration.compute(after), ExitSums.compute(exits))
    return Evaluation(*counted, temperature, threshold, target)


class Parts(NamedTuple):
    """Samples that were fitted to, and samples that are chosen on, with the temperature of each; see the module docstring.

    Attributes:
        fitted: Samples that the kept temperature is fitted to.
        temperature: The kept temperature.
        refused: As in a record.
        chosen_on: Samples that threshold and sets are chosen on.
        divisor: Temperature of each of these, (n,) float64.
        folds: Number of parts of a cross-fit; 0 if samples were held out.
    """

    fitted: Samples
    temperature: float
    refused: float | None
    chosen_on: Samples
    divisor: Tensor
    folds: int

    @classmethod
    def of(cls, samples: Samples, rules: Rules, seed: int) -> Parts:
        """Divide a validation split; if only one thing is wanted and no cross-fit, all samples are used for it."""
        device = samples.label.device
        fits, chooses = rules.temperature or rules.sets == "raps", rules.target is not None or rules.sets is not None
        if fits and rules.cross_fit:
            parts, divisor = (
                fold_of(samples.place, seed).to(device),
                torch.ones(len(samples.label), dtype=torch.float64),
            )
            for part in range(FOLDS if rules.temperature else 0):
                divisor[(parts == part).cpu()] = Fit.of(samples.where(parts != part), rules).temperature
            return cls(samples, *Fit.of(samples, rules), samples, divisor.to(device), FOLDS)
        everything = torch.ones(len(samples.label), dtype=torch.bool)
        held = held_out(samples.place, rules.holdout, seed) if fits and chooses else everything
        fitted = samples.where((~held if fits and chooses else everything).to(device))
        chosen_on = samples.where(held.to(device))
        fit = Fit.of(fitted, rules)
        divisor = torch.full((len(chosen_on.label),), fit.temperature, dtype=torch.float64, device=device)
        return cls(fitted, *fit, chosen_on, divisor, 0)

    def calibrated(self) -> Tensor:
        """Logits of the samples chosen on, divided by their temperatures; as evaluations divide them if there is one."""
        logits = self.chosen_on.logits
        return (logits.double() / self.divisor[:, None]).float() if self.folds else logits / self.temperature


def chosen_sets(parts: Parts, rules: Rules, seed: int) -> dict[str, Any] | None:
    """Choose the rule of prediction sets; returns ``sets`` of a record. A cross-fit takes a penalty from its first part."""
    if rules.sets is None:
        return None
    logits, label = (parts.chosen_on.logits.double() / parts.divisor[:, None]).cpu(), parts.chosen_on.label.cpu()
    penalty, free, kept = 0.0, 1, torch.ones(len(label), dtype=torch.bool)
    if rules.sets == "raps":
        others, of_others = (parts.fitted.logits.double() / parts.temperature).cpu(), parts.fitted.label.cpu()
        if parts.folds:
            kept = fold_of(parts.chosen_on.place, seed) > 0
            others, of_others = logits[~kept], label[~kept]
        penalty, free = tuned_penalty(others, of_others, rules.set_coverage)
    rule = set_rule(logits[kept], label[kept], rules.sets, rules.set_coverage, penalty, free)
    found = set_metrics(rule.sets(logits), label)
    return {**rule.as_values(), "size": found.size, "empty": found.empty, "single": found.single}


def calibrate(samples: Samples, rules: Rules, level: float, seed: int) -> tuple[Record, Evaluation]:
    """Fit a temperature, choose a threshold and prediction sets.

    Args:
        samples: The whole validation split.
        rules: What is wanted, and of which samples.
        level: Probability with which the threshold may miss the target, 0 or more.
        seed: Seed of the split into parts.

    Returns:
        The record, and the sums of the samples chosen on for plots and tables.
    """
    parts = Parts.of(samples, rules, seed)
    fitted, temperature = parts.fitted, parts.temperature
    found = evaluated(parts.chosen_on, temperature, None, rules.target, parts.calibrated())
    chosen = None
    if rules.target is not None and 1 - level < 1:
        # samples with non-finite logits have confidence 0 and never exit
        chosen = choose_exit_threshold(found.exits.thresholds, *found.exits.overall(), rules.target, 1 - level)
    threshold = chosen.threshold if chosen is not None else None if rules.target is None else float("inf")
    before, after = found.before.metrics(), found.after.metrics()
    nlls = [mean_nll(fitted.logits.cpu(), fitted.label.cpu(), divisor) for divisor in (1.0, temperature)]
    in_sample = evaluated(fitted, temperature, None, None).after.metrics()["ece"] if len(fitted.label) else float("nan")
    record = Record(
        temperature=temperature,
        fitted=len(fitted.label) if rules.temperature else 0,
        refused=parts.refused,
        fitted_nll_before=nlls[0],
        fitted_nll_after=nlls[1],
        fitted_ece_after=in_sample,
        folds=parts.folds,
        samples=len(parts.chosen_on.label),
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
        sets=chosen_sets(parts, rules, seed),
    )
    return record, found._replace(threshold=threshold)


def doubt(record: Record) -> str | None:
    """Why the temperature should not be relied on; None if nothing speaks against it, or if there is none."""
    if not record["fitted"]:
        return None
    advice = "the probabilities are not calibrated; use more validation samples"
    at_the_end = f"{_fit_of(record)}, is at the end of its range ({LOWEST:g} to {HIGHEST:g})"
    if refused(record):
        return f"{at_the_end}: {NOT_STORED}"
    if record["temperature"] in (LOWEST, HIGHEST):
        return f"{at_the_end}: {advice}"
    reason = no_gain(record)
    return f"{reason}: {advice}" if reason and record["nll_after"] > WORSE * record["nll_before"] else None


def refused(record: Record) -> float | None:
    """The temperature at an end of its range that is not stored; None if there is none, or in an earlier version's checkpoint."""
    return record.get("refused")


def no_gain(record: Record) -> str | None:
    """Say that the temperature does not lower the NLL of samples that it was not fitted to; None if it does, or none are known."""
    apart = record["target"] is not None or record.get("folds") or record.get("sets")
    before, after = record["nll_before"], record["nll_after"]
    if not record["fitted"] or not apart or record["temperature"] == 1 or not after >= before:
        return None
    return f"{_fit_of(record)}, raises the NLL of samples that it was not fitted to from {before:.4f} to {after:.4f}"


def _fit_of(record: Record) -> str:
    return (
        f"temperature {refused(record) or record['temperature']:.3f}, fitted to {record['fitted']:,} validation samples"
    )


def in_words(record: Record) -> list[str]:
    """Log lines: the temperature and its effect on NLL and ECE, the threshold and its guarantee, the prediction sets.

    A refused temperature has no line here but that of `doubt`.
    """
    folds, sets = record.get("folds", 0), record.get("sets")  # a checkpoint of an earlier version has neither
    lines, samples = [], f"{record['samples']:,} samples {'cross-fitted' if folds else 'held out'}"
    if record["fitted"] and not refused(record):
        ece, floor = (_percent(record[name], 2) for name in ("ece_after", "ece_floor"))
        change = (
            f"NLL {record['nll_before']:.4f} -> {record['nll_after']:.4f}, "
            f"ECE {_percent(record['ece_before'], 2)} -> {ece} (floor {floor})"
        )
        of = samples if record["target"] is not None or sets is not None else "these"
        fit = f"temperature {record['temperature']:.3f}, fitted to {record['fitted']:,} validation samples; of "
        if folds:
            own = f"NLL {record['fitted_nll_after']:.4f}, ECE {_percent(record['fitted_ece_after'], 2)}"
            lines.append(f"{fit}each fifth with the temperature of the others: {change}; in sample {own}")
        else:
            lines.append(f"{fit}{of}: {change}")
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
    if sets is not None:
        lines.append(_sets_in_words(sets, samples))
    return lines


def _sets_in_words(sets: dict[str, Any], samples: str) -> str:
    begin = f"sets {sets['kind']} with {_percent(sets['coverage'])} coverage, of {samples}: "
    if sets["quantile"][0] == float("inf"):
        return f"{begin}every class is in every set; at least {least_samples(sets['coverage']):,} are needed"
    penalty = ""
    if sets["kind"] == "raps":  # without a penalty it is aps
        ranks = f"penalty {sets['penalty']:g} from rank {sets['free'] + 1}"
        penalty = f"; {ranks}" if sets["penalty"] else "; no penalty made them smaller, so they are those of aps"
    shares = f"{_percent(sets['single'], 1)} of one class, {_percent(sets['empty'], 1)} empty"
    return f"{begin}{sets['size']:.2f} classes in a set, {shares}{penalty}"


def at_the_edge(coverage: float) -> str | None:
    """What to say of a threshold at which all samples exit or none; None between these ends of the search.

    Args:
        coverage: Share of the samples that exit, 0 to 1; NaN without samples.
    """
    if coverage == 1:
        return "every sample exits, so a second stage is never needed on data like this"
    return "no sample exits, so a first stage only adds its cost" if coverage == 0 else None


def _percent(share: float, digits: int | None = None) -> str:
    return f"{100 * share:.6g} %" if digits is None else f"{100 * share:.{digits}f} %"
