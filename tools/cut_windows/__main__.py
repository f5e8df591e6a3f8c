"""The command that cuts raw sensor recordings (CSV, Parquet, npz) into one file of windows for SignalFileDataModule.

    python -m tools.cut_windows SOURCE TARGET.npz --rate 50 --window 2.56 [--overlap 0.5] [--signals [NAME=]COLUMN ...]
                                [--time COLUMN | --source_rate HZ] [--label COLUMN | --segments CSV] [--subject COLUMN]
                                [--path PATTERN] [--max_gap S] [--like WINDOWS.npz]

datamodules/signals/recordings does the work: no window reaches across a gap, and recordings are resampled at their real time
stamps. TARGET.npz is written under a temporary name and renamed at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from foundation.places import close_to
from foundation.project import MAIN
from tools.command_line import Parser, run_command, say, start, watched

if TYPE_CHECKING:  # imported inside the functions: the package imports torch, which would delay --help
    from datamodules.signals.recordings import Codes, Columns, Cutting, PathPattern, Recording, Segments

EXAMPLES = """\
rules:
  A step of more than --max_gap seconds, or backwards in time, divides a recording; no window reaches across. Samples without a
  value are removed first. Values are interpolated at their real time stamps; before a lower rate, a low-pass filter removes what
  would alias. A window is kept if all its samples have one label (--purity) and one person. docs/har_data.md states every rule.

examples:
  python -m tools.cut_windows recordings windows.npz --rate 50 --window 2.56 --path '{label}_{}/sub_{subject}.csv' --source_rate 50
  python -m tools.cut_windows walk.csv windows.npz --rate 50 --window 2.56 --time timestamp --time_unit ms --label activity
  python -m tools.cut_windows new.csv new.npz --like windows.npz
"""
STORED = ("time", "time_unit", "source_rate", "delimiter", "decimal", "encoding")


def parser() -> argparse.ArgumentParser:
    """Create the argument parser."""
    parser = Parser(
        "cut_windows", "Cut raw sensor recordings into windows for training and prediction.", epilog=EXAMPLES
    )
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a recording (.csv, .parquet, .npz), or a folder of them, at any depth",
    )
    add("target", metavar="TARGET", type=Path, help="file of windows to write, .npz; must not exist")
    add("--rate", type=float, metavar="HZ", help="sampling rate of the windows")
    add("--window", type=float, metavar="S", help="length of a window in seconds, rounded to whole samples")
    add("--overlap", type=float, help="share of a window that the next one repeats, 0 to below 1 (default: 0.5)")
    add(
        "--signals",
        nargs="+",
        metavar="[NAME=]COLUMN",
        help="columns of the signals, in this order; a name with a unit such as 'acc_x [g]' lets units be compared "
        "(default: every column that is nothing else)",
    )
    add(
        "--scale",
        nargs="+",
        metavar="SIGNAL=FACTOR",
        help="multiply signals to convert their units, such as 'acc_*=0.101972' from m/s2 to g",
    )
    add("--time", metavar="COLUMN", help="column of the time stamps (default: time, timestamp or seconds_elapsed)")
    add("--time_unit", choices=["s", "ms", "us", "ns"], help="unit of time stamps that are numbers (default: s)")
    add("--source_rate", type=float, metavar="HZ", help="sampling rate of recordings without time stamps")
    add("--label", metavar="COLUMN", help="column of the labels")
    add("--segments", type=Path, metavar="CSV", help="table of labelled time spans: recording, start, end, label")
    add("--subject", metavar="COLUMN", help="column of the people")
    add(
        "--path",
        metavar="PATTERN",
        help="labels and people from the paths below SOURCE, such as '{label}_{}/sub_{subject}.csv'; other files are left out",
    )
    add("--without", nargs="+", default=[], metavar="LABEL", help="labels whose windows are left out")
    add(
        "--purity",
        type=float,
        default=1.0,
        help="share of a window that has its label, above 0.5 (default: 1, all of it)",
    )
    add("--max_gap", type=float, metavar="S", help="longest step within a window (default: 2.5 median steps)")
    add(
        "--like",
        type=Path,
        metavar="WINDOWS.npz",
        help="cut as this file was cut: rate, window, overlap, largest gap, signals, scale, time; not labels and people, "
        "which --label, --subject or --path give",
    )
    add("--delimiter", help="character between the columns of a CSV file (default: a comma)")
    add("--decimal", help="decimal point in a CSV file (default: a point)")
    add("--encoding", help="encoding of a CSV file, such as cp1252 of Excel on Windows (default: utf-8)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code.
    """
    return run_command(lambda: cut_windows(parser().parse_args(argv)), "stopped; TARGET was not written")


def cut_windows(options: argparse.Namespace) -> None:
    """Read the recordings, cut them, write TARGET and print what was found.

    Args:
        options: Flags as parsed by ``parser``.

    Raises:
        ValueError: A flag or a recording is invalid.
        OSError: A file cannot be read or written.
        ImportError: pyarrow is missing and a recording is no npz.
    """
    from datamodules.signals.recordings import Codes, Counts, PathPattern, Segments, WindowWriter, cut
    from datamodules.signals.recordings.path_pattern import shown
    from datamodules.signals.recordings.writing import stored_classes, stored_cutting
    from tools.cut_windows.scaling import factors_of, scaled
    from tools.cut_windows.summary import check_any, check_labels, labels_and_people, lines, swapped_columns

    _check_target(options.target)
    pattern = PathPattern(options.path) if options.path else None
    labelled = [name for name in ("label", "segments") if getattr(options, name)]
    if len(labelled + ["path"] * bool(pattern and "label" in pattern.fields)) > 1:
        raise ValueError("--label, --segments and {label} in --path each give the labels; choose one of them")
    if options.subject and pattern and "subject" in pattern.fields:
        raise ValueError("--subject and {subject} in --path both give the people; choose one of them")
    files = _files(options, pattern)
    if pattern and (merged := pattern.merged(list(files))):
        say("warning", f"--path {pattern.pattern}: {merged}")
    like = stored_cutting(options.like) if options.like else {}
    known = stored_classes(options.like) if options.like else []
    if pattern and (doubt := pattern.doubt(list(files), known)):
        _say_doubt(f"--path {pattern.pattern}", doubt, bool(options.like))
    segments = Segments(options.segments) if options.segments else None
    if segments and not segments.names_recordings and len(files) > 1:
        raise ValueError(
            f"--segments {options.segments}: add the column recording, because there are {len(files)} recordings"
        )
    if segments:
        segments.check(list(files))
    _check_like(options, like)
    columns = _columns(options, files, like)
    scale = factors_of(options.scale, like.get("scale", {}), list(columns.signals))
    labels, people, counts = Codes(), Codes(), Counts()
    has_labels = bool(labelled) or bool(pattern and "label" in pattern.fields)
    left_out = frozenset(labels.of(name) for name in options.without)
    cutting = _cutting(options, like, files, columns, has_labels, left_out)
    say("recordings", f"{len(files):,}, {len(columns.signals)} signals: {', '.join(columns.signals)}")
    if scale:
        say("scale", ", ".join(f"{name} times {factor:g}" for name, factor in scale.items()))
    with WindowWriter(options.target, list(columns.signals), cutting.samples) as writer:
        for name, path in watched("cut", files.items(), "recordings"):
            recording = scaled(
                _read(path, name, columns, labels, people, pattern, segments), list(columns.signals), scale
            )
            for part in cut(recording, cutting, counts):
                writer.add(name, part)
        for line in lines(counts, cutting):
            print(line)
        if segments and (unread := segments.unused()):
            say("warning", f"--segments names recordings that were not read: {', '.join(unread[:5])}")
        check_any(counts)
        if options.without and not counts.left_out:
            there = shown([name for name in labels.names if name not in options.without])
            say("warning", f"--without: no window has the label {' or '.join(options.without)}; the labels are {there}")
        check_labels(writer, labels.names if has_labels else [], bool(options.like))
        named = people.names if recording.subject is not None else []
        unused = _unused(next(iter(files.values())), columns)
        for line in labels_and_people(writer, labels.names if has_labels else [], named, options.without, unused):
            print(line)
        if options.label and options.subject and not {*labels.names} <= {*known}:
            columns_given = (options.label, options.subject)
            if doubt := swapped_columns(writer, labels.names, named, columns_given):
                _say_doubt(f"--label {options.label} --subject {options.subject}", doubt, bool(options.like))
        settings = {
            **cutting.plain(),
            "signals": columns.signals,
            "scale": scale,
            **{name: getattr(columns, name) for name in STORED},
        }
        writer.finish(labels.names if has_labels else [], named, settings)
    say("written", f"{options.target}: {counts.windows:,} windows of {cutting.samples} samples at {cutting.rate:g} Hz")
    target = quote(str(options.target))
    if options.like:
        command = "test" if has_labels else "predict"
        print(f"{command:<10} {MAIN} {command} --run RUN_DIR --data.test_file {target}")
    elif has_labels and named:
        print(
            f"train      {MAIN} fit --config configs/har_cpu.yaml --data SignalFileDataModule --data.file {target} "
            "--test_after_fit"
        )
    else:
        print(f"predict    {MAIN} predict --run RUN_DIR --data.test_file {target}")


def _say_doubt(flags: str, doubt: tuple[str, bool], predicted: bool) -> None:
    """Warn of labels and people that seem to be swapped; refuse them if no network can be trained on them.

    Windows that are only predicted may be of anybody.
    """
    if doubt[1] and not predicted:
        raise ValueError(f"{flags}: {doubt[0]}")
    say("warning", f"{flags}: {doubt[0]}")


def _check_like(options: argparse.Namespace, like: dict[str, Any]) -> None:
    """Refuse flags that contradict --like in what windows of one run must share; overlap, scale, gap and time may differ."""
    rate, samples = like.get("rate"), like.get("samples")
    wrong = []
    if rate and options.rate not in (None, rate):
        wrong.append(f"has {rate:g} Hz, --rate says {options.rate:g}")
    elif rate and samples and options.window is not None and round(options.window * rate) != samples:
        wrong.append(f"has windows of {samples / rate:g} s, --window says {options.window:g}")
    names = [text.partition("=")[0] for text in options.signals or []]
    if like and names and names != list(like.get("signals", {})):
        wrong.append(f"has the signals {', '.join(like.get('signals', {}))}, --signals says {', '.join(names)}")
    if wrong:
        raise ValueError(f"--like {options.like} {'; '.join(wrong)}: leave the flag out, or --like")


def _check_target(target: Path) -> None:
    if target.suffix.lower() != ".npz":
        raise ValueError(f"TARGET {target} must end in .npz")
    if target.exists():
        raise ValueError(f"TARGET {target} exists and nothing is overwritten: give another name, or remove it first")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"TARGET {target}: there is no folder {target.parent}")


def _files(options: argparse.Namespace, pattern: PathPattern | None) -> dict[str, Path]:
    """Find the recordings: path below SOURCE -> file."""
    from datamodules.signals.file_formats import RECORDINGS

    source: Path = options.source
    if source.is_file():
        found = {source.name: source}
    elif source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in RECORDINGS and path.is_file())
        own = [path.resolve() for path in (options.segments, options.like) if path]
        found = {path.relative_to(source).as_posix(): path for path in paths if path.resolve() not in own}
    else:
        raise ValueError(f"SOURCE {source}: there is no such file or folder{close_to(source)}")
    if not found:
        raise ValueError(f"SOURCE {source} has no recordings: files that end in {', '.join(RECORDINGS)}")
    if pattern is None:
        return found
    fitting = {name: path for name, path in found.items() if pattern.of(name) is not None}
    if not fitting:
        raise ValueError(
            f"--path {pattern.pattern}: none of the {len(found):,} recordings fits, such as {next(iter(found))}"
        )
    if len(fitting) < len(found):
        other = next(name for name in found if name not in fitting)
        say("left out", f"{len(found) - len(fitting):,} files that do not fit --path, such as {other}")
    return fitting


def _columns(options: argparse.Namespace, files: dict[str, Path], like: dict[str, Any]) -> Columns:
    from datamodules.signals.recordings.reading import TIME_NAMES, Columns, check_columns, column_names, signals_of

    signals = dict(like.get("signals", {}))
    if options.signals:
        pairs = [(name, column or name) for name, _, column in (text.partition("=") for text in options.signals)]
        signals = dict(pairs)
        if len(signals) < len(pairs):
            raise ValueError("--signals: a name is given twice")
    given = {name: value for name in STORED if (value := getattr(options, name)) is not None}
    stored = {name: like[name] for name in STORED if like.get(name) is not None}
    if "time" in given or "source_rate" in given:
        stored = {name: value for name, value in stored.items() if name not in ("time", "source_rate")}
    columns = Columns(signals=signals, label=options.label, subject=options.subject, **(stored | given))
    if columns.time and columns.source_rate:
        raise ValueError(
            "--time and --source_rate: give the column of the time stamps, or the rate of recordings without them"
        )
    name, path = next(iter(files.items()))
    times = [like.get("time"), *TIME_NAMES]
    try:
        if columns.source_rate and (unused := [one for one in column_names(path, columns) if one in times]):
            say("warning", f"the time stamps in the column {unused[0]!r} are not used, because of --source_rate")
        if not columns.time and not columns.source_rate:
            names = column_names(path, columns)
            columns = _with(columns, time=next((one for one in TIME_NAMES if one in names), None))
            if columns.time is None:
                raise ValueError(
                    "which of its columns is the time? Give --time COLUMN, or --source_rate HZ if there is none; it has "
                    + ", ".join(name for name in names if name)
                )
        check_columns(column_names(path, columns), [one for one in (columns.label, columns.subject) if one])
        return _with(columns, signals=signals_of(path, columns))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _unused(path: Path, columns: Columns) -> list[str]:
    """Columns of a recording that are neither signal, time, label nor person."""
    from datamodules.signals.recordings.reading import TIME_NAMES, column_names

    read = {*columns.signals.values(), columns.time, columns.label, columns.subject, *TIME_NAMES, "", "index"}
    return [name for name in column_names(path, columns) if name not in read and not name.startswith("Unnamed: ")]


def _with(columns: Columns, **changes: object) -> Columns:
    from dataclasses import replace

    return replace(columns, **changes)  # type: ignore[arg-type]


def _cutting(
    options: argparse.Namespace,
    like: dict[str, Any],
    files: dict[str, Path],
    columns: Columns,
    has_labels: bool,
    left_out: frozenset[int],
) -> Cutting:
    """Combine the flags and the settings of --like, and check them."""
    from datamodules.signals.recordings import Codes, Cutting, read_recording
    from datamodules.signals.recordings.resampling import rate_of

    rate: Any = options.rate if options.rate is not None else like.get("rate")
    if rate is None:
        name, path = next(iter(files.items()))
        own = rate_of(read_recording(path, name, columns, Codes(), Codes()).time)
        raise ValueError(f"give --rate HZ, the sampling rate of the windows; {name} has {own:.4g} Hz")
    if options.window is None and not like:
        raise ValueError("give --window S, the length of a window in seconds, such as 2.56")
    overlap = 0.5 if options.overlap is None else options.overlap
    for flag, value, good, wanted in (
        ("rate", rate, rate > 0, "above 0"),
        ("window", options.window, options.window is None or options.window * rate >= 2, "at least two samples"),
        ("overlap", overlap, 0 <= overlap < 1, "from 0 to below 1"),
        ("purity", options.purity, 0.5 < options.purity <= 1, "above 0.5, up to 1"),
        ("max_gap", options.max_gap, options.max_gap is None or options.max_gap > 0, "above 0"),
    ):
        if not good:
            raise ValueError(f"--{flag} {value}: must be {wanted}")
    samples = round(options.window * rate) if options.window is not None else int(like["samples"])
    as_before = options.overlap is None and options.window is None and like
    hop = int(like["hop"]) if as_before else max(1, round(samples * (1 - overlap)))
    max_gap = options.max_gap if options.max_gap is not None else like.get("max_gap")
    return Cutting(float(rate), samples, hop, max_gap, options.purity, has_labels, left_out)


def _read(
    path: Path,
    name: str,
    columns: Columns,
    labels: Codes,
    people: Codes,
    pattern: PathPattern | None,
    segments: Segments | None,
) -> Recording:
    """Read a recording, with labels and people from its path or the table of segments if these give them."""
    import numpy as np

    from datamodules.signals.recordings import read_recording
    from datamodules.signals.recordings.reading import UNITS

    try:
        recording = read_recording(path, name, columns, labels, people)
    except ValueError as error:
        if "has no column" in str(error) and pattern is None:
            raise ValueError(f"{error}; --path PATTERN leaves out files of another kind") from error
        raise
    length = len(recording.time)
    for what, value in (pattern.of(name) or {} if pattern else {}).items():
        codes = np.full(length, (labels if what == "label" else people).of(value), dtype=np.int32)
        recording = recording._replace(**{what: codes})  # type: ignore[arg-type]
    if segments:
        recording = recording._replace(label=segments.label(recording, UNITS[columns.time_unit], labels))
    return recording


if __name__ == "__main__":
    start(main)
