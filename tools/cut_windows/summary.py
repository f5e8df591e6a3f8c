"""Lines that say what was found in recordings, how they were cut, and which windows were left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datamodules.signals.recordings.path_pattern import swapped

if TYPE_CHECKING:
    from datamodules.signals.recordings import Counts, Cutting, WindowWriter

LEFT_OUT = (
    ("mixed", "with several labels"),
    ("unlabelled", "without a label"),
    ("left_out", "with a label of --without"),
    ("nobody", "with several people or none"),
)


def lines(counts: Counts, cutting: Cutting) -> list[str]:
    """Say rates, gaps, removed samples and windows that were left out.

    Args:
        counts: What `cut` counted over all recordings.
        cutting: How they were cut.
    """
    found = [f"samples    {counts.samples:,}" + _rates(counts, cutting)]
    if counts.missing or counts.repeated:
        found.append(
            f"removed    {counts.missing:,} samples without a value, {counts.repeated:,} with the time of the one before"
        )
    limit = "2.5 median steps" if cutting.max_gap is None else f"{cutting.max_gap:g} s"
    gaps = f"{counts.gaps:,} longer than {limit}"
    if counts.gaps:
        gaps += f", in all {counts.gap_time:,.1f} s, the longest {counts.longest_gap:,.1f} s"
    if counts.backwards:
        gaps += f"; {counts.backwards:,} times back in time"
    if counts.bridged:
        gaps += f"; interpolated across {counts.bridged:,} shorter ones, the longest {counts.longest_bridged:.3g} s"
    found.append(f"gaps       {gaps}")
    overlap = 1 - cutting.hop / cutting.samples
    shape = f"{cutting.samples} samples ({cutting.samples / cutting.rate:.4g} s at {cutting.rate:g} Hz), overlap {overlap:.0%}"
    found.append(f"windows    {counts.windows:,} of {shape}")
    reasons = [f"{getattr(counts, name):,} {text}" for name, text in LEFT_OUT if getattr(counts, name)]
    if counts.short:
        reasons.append(f"{counts.short:,} samples in pieces shorter than a window")
    if reasons:
        found.append(f"left out   {'; '.join(reasons)}")
    return found


def _rates(counts: Counts, cutting: Cutting) -> str:
    if not counts.rates:
        return ""
    low, high = min(counts.rates), max(counts.rates)
    text = f" at {low:.4g} Hz" if high - low < 1e-3 * high else f" at {low:.4g} to {high:.4g} Hz"
    if low < 0.95 * cutting.rate:
        text += f"; below {cutting.rate:g} Hz, interpolation adds samples and no information"
    return text


def check_any(counts: Counts) -> None:
    """Check that there is a window.

    Raises:
        ValueError: There is none; the message says why.
    """
    if counts.windows:
        return
    reasons = [f"{getattr(counts, name):,} windows {text}" for name, text in LEFT_OUT if getattr(counts, name)]
    reasons += [f"{counts.short:,} samples in pieces shorter than a window"] * bool(counts.short)
    if counts.backwards:
        reasons.append(f"{counts.backwards:,} steps back in time: sort the samples by time")
    raise ValueError(f"no window is left: {'; '.join(reasons) or 'the recordings are empty'}")


def check_labels(writer: WindowWriter, names: list[str], predicted: bool) -> None:
    """Check that the labels are classes, and not what tells windows or recordings apart.

    Args:
        writer: Holds the windows.
        names: Name of each code of a label.
        predicted: Whether the windows are cut like others, to be predicted with a trained network.

    Raises:
        ValueError: Each of three labels or more has one window only.
    """
    counts = [int((writer.labels == code).sum()) for code in range(len(names))]
    if len(names) >= 3 and max(counts) == 1 and not predicted:
        raise ValueError(
            f"each of the {sum(counts):,} labels has one window only, such as {names[0]!r}: they are no classes; check "
            "which column, or which part of --path, is the label"
        )


def labels_and_people(
    writer: WindowWriter, class_names: list[str], people: list[str], unwanted: list[str], unused: list[str]
) -> list[str]:
    """Say how many windows each class and each person has.

    Args:
        writer: Holds the windows.
        unwanted: Classes that may be without a window.
        class_names: Name of each code of a label.
        people: Name of each code of a person.
        unused: Columns of the recordings that were not read.
    """
    found = []
    for what, names, codes in (("classes", class_names, "labels"), ("people", people, "subjects")):
        if not names:
            found.append(f"{what:<10} none given: {_how_to_give(what)}")
            if what == "classes" and unused:
                found[-1] += f"; columns that were not read: {', '.join(unused[:12])}"
            continue
        numbers = getattr(writer, codes)
        counts = {name: int((numbers == code).sum()) for code, name in enumerate(names)}
        there = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {count:,}" for name, count in there[:12]) + (", ..." if len(there) > 12 else "")
        found.append(f"{what:<10} {len(there)}: {shown}")
        if absent := [name for name, count in counts.items() if not count and name not in unwanted]:
            found.append(f"warning    without a window: {', '.join(absent[:12])}")
    return found


def swapped_columns(
    writer: WindowWriter, class_names: list[str], people: list[str], columns: tuple[str, str]
) -> tuple[str, bool] | None:
    """Say what suggests that the columns of labels and people are swapped, as `swapped` does; None if nothing does.

    Args:
        writer: Holds the windows.
        class_names: Name of each code of a label.
        people: Name of each code of a person.
        columns: Column of the labels, and of the people.
    """
    codes = set(zip(writer.labels.tolist(), writer.subjects.tolist(), strict=True))
    label, subject = columns
    return swapped(
        {(class_names[label], people[person]) for label, person in codes},
        f"if the columns are swapped, give --label {subject} --subject {label}",
    )


def _how_to_give(what: str) -> str:
    """Flags that give labels or people; --like takes none of them over, as new recordings are mostly without."""
    if what == "people":
        return "--subject COLUMN or {subject} in --path"
    return "predict needs none; fit and test do: --label COLUMN, --segments CSV or {label} in --path"
