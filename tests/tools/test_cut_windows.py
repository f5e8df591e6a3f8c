"""tools.cut_windows: a folder of raw recordings becomes the windows that the rules state, and wrong input is one line."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datamodules import SignalFileDataModule
from datamodules.signals.recordings import PathPattern
from tests.datamodules.raw_recordings import SIGNALS, STEPS, motion, write_recordings
from tools.cut_windows.__main__ import main

PATTERN = ("--path", "{label}_{}/sub_{subject}.csv", "--time_unit", "ms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "recordings"
    write_recordings(folder)
    return folder


def expected(folder: Path, samples: int, hop: int, rate: float) -> list[tuple[str, float, str, str]]:
    """Recording, start, label and person of each window by a plain statement of the rule, from the files themselves."""
    found = []
    for path in sorted(folder.rglob("*.csv")):
        time = [float(line.split(",")[1]) / 1000 for line in path.read_text().splitlines()[1:]]
        step = sorted(b - a for a, b in pairwise(time))[(len(time) - 1) // 2]
        begin = 0
        for end in range(1, len(time) + 1):
            if end < len(time) and time[end] - time[end - 1] <= 2.5 * step:
                continue
            start = time[begin]
            while start + (samples - 1) / rate <= time[end - 1] + 1e-5:
                label, person = path.parent.name.split("_")[0], path.stem.split("_")[1]
                found.append((path.relative_to(folder).as_posix(), start, label, person))
                start += hop / rate
            begin = end
    return found


def test_windows_of_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "windows.npz"
    assert main([str(folder), str(target), "--rate", "50", "--window", "2.56", *PATTERN]) == 0
    out = capsys.readouterr().out
    plain = expected(folder, 128, 64, 50.0)
    with np.load(target) as file:
        content = {name: file[name] for name in file.files}
    names = content["recordings"][content["recording"]]
    labels = content["class_names"][content["label"]]
    assert list(zip(names.tolist(), labels.tolist(), content["subject"].tolist(), strict=True)) == [
        (name, label, person) for name, _, label, person in plain
    ]
    np.testing.assert_allclose(content["start"], [start for _, start, _, _ in plain], atol=1e-6)
    for signal, start, label, person in zip(
        content["signal"], content["start"], labels, content["subject"], strict=True
    ):
        true = motion(start + np.arange(128) / 50, label, int(person))
        assert np.abs(signal.T - true)[10:-10].max() < 0.06  # linear interpolation; at the ends also the filter
        assert np.abs(signal.T - true).max() < 0.5
    still = content["signal"][labels == "sit"]
    assert np.abs(still[:, 2] - 9.81).max() < 1e-5  # gravity, up to the ends of the pieces
    assert f"{len(plain):,} of 128 samples (2.56 s at 50 Hz), overlap 50%" in out
    assert "24 longer than 2.5 median steps" in out
    counts = Counter(labels.tolist())
    assert all(f"{label} {counts[label]}" in out for label in STEPS)
    data = SignalFileDataModule(str(target), test_subjects=2, val_subjects=1)
    data.setup("fit")
    assert (data.class_names, data.signal_names) == (sorted(STEPS), list(SIGNALS))
    assert not [path for path in tmp_path.iterdir() if path != target]


def test_new_recordings_are_cut_like_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "windows.npz", tmp_path / "new.npz"
    flags = ["--rate", "25", "--window", "2", "--overlap", "0.25", "--signals", f"z={SIGNALS[2]}", f"x={SIGNALS[0]}"]
    assert main([str(folder), str(first), *flags, *PATTERN]) == 0
    one = folder / "jog_4" / "sub_3.csv"
    assert main([str(one), str(second), "--like", str(first), "--rate", "25"]) == 0
    with np.load(first) as cut, np.load(second) as new:
        assert new["signal_names"].tolist() == ["z", "x"]
        there = cut["recordings"][cut["recording"]] == "jog_4/sub_3.csv"
        np.testing.assert_array_equal(new["signal"], cut["signal"][there])
        assert {"label", "subject"}.isdisjoint(new.files)
        assert json.loads(str(new["cutting"])) == json.loads(str(cut["cutting"]))
    for contradiction, told in (
        (["--rate", "50"], "windows.npz has 25 Hz, --rate says 50: leave the flag out, or --like"),
        (["--window", "3"], "has windows of 2 s, --window says 3"),
        (["--signals", f"x={SIGNALS[0]}"], "has the signals z, x, --signals says x"),
    ):
        assert main([str(one), str(tmp_path / "refused.npz"), "--like", str(first), *contradiction]) == 2
        assert told in capsys.readouterr().err
    second.unlink()
    assert main([f"{folder}s", str(second), "--like", str(first)]) == 2
    assert f"no such file or folder, did you mean {str(folder)!r}?" in capsys.readouterr().err
    assert main([str(one), str(second), "--like", str(first)]) == 0
    held_out = tmp_path / "held_out.npz"
    lines = capsys.readouterr().out.splitlines()
    assert " predict --run RUN_DIR" in lines[-1]
    (classes,) = [
        line for line in lines if line.startswith("classes    none given: predict needs none; fit and test do: ")
    ]
    assert "--label COLUMN, --segments CSV or {label} in --path; columns that were not read: " in classes
    assert SIGNALS[1] in classes.rpartition(": ")[2]
    assert "people     none given: --subject COLUMN or {subject} in --path" in lines
    assert main([str(folder), str(held_out), "--like", str(first), *PATTERN]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f" test --run RUN_DIR --data.test_file {held_out}"), "labelled windows are tested"


def test_other_units_are_converted_and_like_takes_the_factors_over(folder: Path, tmp_path: Path) -> None:
    """1 g is 9.80665 m/s2; a linear step before linear ones, so the windows are the others' times the factor."""
    rate = ["--rate", "30", "--window", "2", *PATTERN]
    signals = ["--signals", *(f"{name.replace('m/s2', 'g')}={name}" for name in SIGNALS)]
    plain, in_g, one = (tmp_path / f"{name}.npz" for name in ("plain", "in_g", "one"))
    assert main([str(folder), str(plain), *rate]) == 0
    assert (
        main([str(folder), str(in_g), *rate, *signals, "--scale", "acc_[xy]=0.10197162", "acc_z [g]=0.10197162"]) == 0
    )
    assert main([str(folder / "jog_4" / "sub_3.csv"), str(one), "--like", str(in_g)]) == 0
    with np.load(plain) as before, np.load(in_g) as after, np.load(one) as new:
        np.testing.assert_allclose(after["signal"], before["signal"] / 9.80665, rtol=1e-5, atol=1e-5)
        there = after["recordings"][after["recording"]] == "jog_4/sub_3.csv"
        np.testing.assert_array_equal(new["signal"], after["signal"][there])


def test_labels_of_a_column_and_of_segments_agree(tmp_path: Path) -> None:
    label = ["walk"] * 60 + [""] * 20 + ["sit"] * 60 + ["null"] * 60
    rows = [f"{row * 0.02:.2f},{row},{one},anna" for row, one in enumerate(label)]
    (tmp_path / "day.csv").write_text("\n".join(["time,a,activity,who", *rows, ""]))
    (tmp_path / "segments.csv").write_text("start,end,label\n0,1.2,walk\n1.6,2.8,sit\n")
    flags = ["--rate", "50", "--window", "0.4", "--signals", "a", "--subject", "who"]
    first, second = tmp_path / "one.npz", tmp_path / "two.npz"
    day = str(tmp_path / "day.csv")
    assert main([day, str(first), *flags, "--label", "activity", "--without", "null"]) == 0
    assert main([day, str(second), *flags, "--segments", str(tmp_path / "segments.csv")]) == 0
    with np.load(first) as one, np.load(second) as two:
        assert one["class_names"].tolist() == ["sit", "walk"]
        assert one["subject"].tolist() == ["anna"] * len(one["signal"])
        for name in ("signal", "label", "start", "class_names"):
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--window", "1", "--time_unit", "ms"],
            "give --rate HZ, the sampling rate of the windows; downstairs_1/sub_1.csv has 50",
        ),
        (["--rate", "50"], "give --window S"),
        (["--rate", "50", "--window", "0.01"], "--window 0.01: must be at least two samples"),
        (["--rate", "50", "--window", "1", "--overlap", "1"], "--overlap 1.0: must be from 0 to below 1"),
        (["--rate", "50", "--window", "1", "--time", "stamp"], "it has no column stamp, did you mean 'timestamp'?"),
        (["--rate", "50", "--window", "1", "--source_rate", "50", "--time", "a"], "--time and --source_rate"),
        (["--rate", "50", "--window", "1", "--label", "a", "--path", "{label}/{}"], "choose one of them"),
        (["--rate", "50", "--window", "1", "--path", "{who}/{}"], "give {label} or {subject}"),
        (["--rate", "50", "--window", "1", "--path", "{label}.csv"], "none of the 24 recordings fits"),
        (["--rate", "50", "--window", "90", "--time_unit", "ms"], "no window is left: "),
        (["--rate", "50", "--window", "1", "--time_unit", "s"], "give their unit with --time_unit"),
        (["--like", "nowhere.npz"], "--like nowhere.npz: no such file"),
        (["--like", "tests"], "--like tests: is a folder; a file of windows is needed"),
        (["--rate", "50", "--window", "1", "--signals", "a", "a"], "--signals: a name is given twice"),
        (
            ["--rate", "50", "--window", "1", "--scale", "acc_x"],
            "SIGNAL=FACTOR is needed, such as acc_x=0.101972 (m/s2 to g)",
        ),
        (["--rate", "50", "--window", "1", "--scale", "acc_x=0"], "SIGNAL=FACTOR is needed"),
        (
            ["--rate", "50", "--window", "1", "--scale", "gyr_*=2"],
            "--scale gyr_*=2: there is no signal gyr_*; there are acc_x [",
        ),
    ],
)
def test_wrong_input_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([str(folder), str(tmp_path / "windows.npz"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_misspelt_column_is_named_before_the_signals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be listed among the signals otherwise."""
    path = tmp_path / "a.csv"
    path.write_text("time,x,activity\n0,1,sit\n0.02,2,sit\n")
    flags = ["--rate", "50", "--window", "1", "--label", "activty"]
    assert main([str(path), str(tmp_path / "windows.npz"), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a.csv: it has no column activty, did you mean 'activity'?" in printed.err


def test_other_time_columns_are_no_signals_and_unused_ones_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{row * 20},{row * 0.02:.2f},{row}" for row in range(100)]
    (tmp_path / "a.csv").write_text("\n".join(["time,seconds_elapsed,acc", *rows, ""]))
    flags = [str(tmp_path / "a.csv"), str(tmp_path / "a.npz"), "--rate", "50", "--window", "1", "--time_unit", "ms"]
    assert main(flags) == 0
    assert "1 signals: acc" in capsys.readouterr().out
    (tmp_path / "a.npz").unlink()
    assert main([*flags, "--source_rate", "50"]) == 0
    assert "the time stamps in the column 'time' are not used, because of --source_rate" in capsys.readouterr().out


def test_files_of_another_kind_and_unsorted_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a_info.csv").write_text("time,code\n0,1\n1,2\n")
    (folder / "b.csv").write_text("time,acc\n0,1\n1,2\n")
    flags = [str(folder), str(tmp_path / "a.npz"), "--rate", "50", "--window", "1"]
    assert main(flags) == 2
    assert "b.csv: it has no column code" in (err := capsys.readouterr().err)
    assert "--path PATTERN leaves out files of another kind" in err
    (folder / "a_info.csv").unlink()
    rows = [f"{(row ^ 1) * 0.02:.2f},{row}" for row in range(100)]
    (folder / "b.csv").write_text("\n".join(["time,acc", *rows, ""]))
    assert main(flags) == 2
    assert "50 steps back in time: sort the samples by time" in capsys.readouterr().err


def test_known_labels_are_not_doubted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four activities of two new people are more labels than people, and right; activities are known by name in German too."""
    for who in ("anna", "ben", "carl", "dora", "eva"):
        for what in ("a", "b", "c", "d"):
            path = tmp_path / ("new" if who in ("dora", "eva") else "known") / who / f"{what}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(["time,x", *(f"{row * 0.02:.2f},{row % 7}" for row in range(100))]))
    first, second, flags = tmp_path / "a.npz", tmp_path / "b.npz", ["--path", "{subject}/{label}.csv"]
    assert main([str(tmp_path / "known"), str(first), "--rate", "50", "--window", "1", *flags]) == 0
    assert "more labels than people; if they are swapped, give" in capsys.readouterr().out
    assert main([str(tmp_path / "new"), str(second), "--like", str(first), *flags, "--without", "walk"]) == 0
    printed = capsys.readouterr().out
    assert "swapped" not in printed
    assert "--without: no window has the label walk; the labels are 'a', 'b', 'c', .." in printed
    german = [f"{what}/{who}.csv" for what in ("gehen", "stehen", "Treppe_hoch") for who in ("anna", "ben", "carl")]
    text, _ = PathPattern("{subject}/{label}.csv").doubt(german) or ("", False)
    assert "the people have names of activities" in text


def test_swapped_fields_of_a_path_are_said_or_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.csv")]
    assert PathPattern("{label}_{}/sub_{subject}.csv").doubt(names) is None
    swapped = PathPattern("{subject}_{}/sub_{label}.csv")
    assert swapped.swapped() == "{label}_{}/sub_{subject}.csv"
    many = [f"{what}_1/sub_{who}.csv" for what in ("sit", "walk") for who in range(24)]
    text, certain = swapped.doubt(many) or ("", True)
    assert not certain
    assert text.startswith(
        "24 labels ('0', '1', '10', ..) and 2 people ('sit', 'walk'): the people have names of activities"
    )
    assert text.endswith("if they are swapped, give --path '{label}_{}/sub_{subject}.csv'")
    other = tmp_path / "other"
    for what, who in (("sit", "1"), ("walk", "2")):
        (other / what).mkdir(parents=True)
        shutil.copy(folder / names[0], other / what / f"{who}.csv")
    flags = ["--rate", "50", "--window", "1", "--time_unit", "ms", "--path", "{subject}/{label}.csv"]
    assert main([str(other), str(tmp_path / "a.npz"), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no label is there for two people" in line
    assert not (tmp_path / "a.npz").exists()


WALKS = ("walking", "walking_upstairs", "sitting")


@pytest.mark.parametrize(
    ("pattern", "paths", "merged"),
    [
        ("{subject}/{label}_{}.csv", [f"{who}/{what}_rec1.csv" for who in ("ann", "ben") for what in WALKS], "walking"),
        ("{label}_{subject}.csv", [f"{what}_{who}.csv" for who in ("ann", "ben") for what in WALKS], "walking"),
        ("{subject}_{label}_{}.csv", [f"ann_{what}_rec1.csv" for what in WALKS], "walking"),
        ("{subject}_{label}.csv", [f"{who}_{what}.csv" for who in ("ann", "ben") for what in WALKS], None),
        ("{subject}/{label}_rec{}.csv", [f"ann/{what}_rec1.csv" for what in WALKS], None),
        ("{subject}/{label}.csv", [f"ann/{what}.csv" for what in WALKS], None),
        ("{label}_{}/sub_{subject}.csv", [f"{what}_{n}/sub_{n}.csv" for what in ("dws", "ups") for n in (1, 2)], None),
        ("{label}_{}.csv", ["walking_2026-05-01_1.csv", "walking_2026-05-02_1.csv"], None),
    ],
)
def test_a_label_that_may_be_the_beginning_of_two_is_said(pattern: str, paths: list[str], merged: str | None) -> None:
    text = PathPattern(pattern).merged(paths)
    assert (text is None) == (merged is None)
    assert (text or "").startswith("" if merged is None else f"{{label}} is as short as it can be: {merged!r}")


def test_a_merged_label_is_said_before_the_recordings_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "\n".join(["time,a", *(f"{n / 20},{n}" for n in range(40)), ""])
    for who in ("ann", "ben"):
        (tmp_path / "days" / who).mkdir(parents=True)
        for what in WALKS:
            (tmp_path / "days" / who / f"{what}_1.csv").write_text(rows)
    flags = [str(tmp_path / "days"), str(tmp_path / "a.npz"), "--rate", "20", "--window", "1", "--path"]
    assert main([*flags, "{subject}/{label}_{}.csv"]) == 0
    out = capsys.readouterr().out
    assert "warning    --path {subject}/{label}_{}.csv: {label} is as short as it can be: 'walking' is of " in out
    assert "classes    2: walking" in out


@pytest.mark.parametrize(
    ("labels", "people", "reason"),
    [
        ("1 2 3 4", "sit walk", "the people have names of activities"),
        ("1 2 3 4", "wlk sitdown", "the labels are numbered and the people are not"),
        ("ann ben cas dan", "a1 a2", "more labels than people"),
        ("ann ben", "sit walk run", "the people have names of activities"),
        ("walk sit stand", "sita stephan", None),
        ("sit walk", "1 2 3 4", None),
        ("1 2", "ann ben cas", "the labels are numbered and the people are not"),
        ("sit walk run", "7", None),  # one person, as in a first recording
    ],
)
def test_swapped_columns_are_said(
    labels: str, people: str, reason: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(label, who) for label in labels.split() for who in people.split() for _ in range(20)]
    rows = [f"{n / 20},{n},{label},{who}" for n, (label, who) in enumerate(pairs)]
    (tmp_path / "day.csv").write_text("\n".join(["time,a,one,two", *rows, ""]))
    flags = [str(tmp_path / "day.csv"), str(tmp_path / "a.npz"), "--rate", "20", "--window", "0.5", "--label", "one"]
    assert main([*flags, "--subject", "two"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(lines) == (reason is not None)
    if reason:
        counts = f"{len(labels.split())} labels ({labels.split()[0]!r}, "
        assert lines[0].startswith(f"warning    --label one --subject two: {counts}")
        assert f": {reason}; if the columns are swapped, give --label two --subject one" in lines[0]


def test_columns_in_which_no_label_is_of_two_people_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n / 20},{n},{('ann', 'ben', 'cas')[n // 40]},{('sit', 'sit', 'walk')[n // 40]}" for n in range(120)]
    (tmp_path / "day.csv").write_text("\n".join(["time,a,one,two", *rows, ""]))
    flags = [str(tmp_path / "day.csv"), str(tmp_path / "a.npz"), "--rate", "20", "--window", "0.5"]
    assert main([*flags, "--label", "one", "--subject", "two"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: --label one --subject two: 3 labels ('ann', 'ben', 'cas') and 2 people ('sit', 'walk'): no"
    )
    assert not (tmp_path / "a.npz").exists()


def test_a_label_for_each_window_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\n".join(f"{n / 50},{n}" for n in range(60))
    for name in ("a1", "a2", "a3"):
        (tmp_path / f"{name}.csv").write_text(f"time,acc\n{rows}\n")
    flags = [str(tmp_path), str(tmp_path / "a.npz"), "--rate", "50", "--window", "1", "--overlap", "0"]
    assert main([*flags, "--path", "{label}.csv"]) == 2
    assert "each of the 3 labels has one window only, such as 'a1'" in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()


def test_nothing_is_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "windows.npz").write_text("mine")
    assert main([str(folder), str(tmp_path / "windows.npz"), "--rate", "50", "--window", "1"]) == 2
    assert "exists and nothing is overwritten" in capsys.readouterr().err
    assert (tmp_path / "windows.npz").read_text() == "mine"
