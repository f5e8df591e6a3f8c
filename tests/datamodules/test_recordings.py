"""Raw recordings: pieces, resampling, windows, labels and people equal plain statements of the rules, sample by sample."""

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.signals.recordings import Codes, Columns, Counts, Cutting, Recording, Segments, cut, read_recording
from datamodules.signals.recordings.cutting import Part
from datamodules.signals.recordings.resampling import grid_length, is_on_grid, nearest, pieces, rate_of, resampled

RANDOM = np.random.default_rng(0)


def recording(time: np.ndarray, values: np.ndarray, label: object = None, subject: object = None) -> Recording:
    codes = [None if one is None else np.array(one, dtype=np.int32) for one in (label, subject)]
    return Recording("walk.csv", time, [column.astype(np.float32) for column in values.T], codes[0], codes[1])


def whole(parts: list[Part]) -> Part:
    return Part(*(np.concatenate(values) for values in zip(*parts, strict=True)))


# ---- resampling ----


@pytest.mark.parametrize("source", [25.0, 50.0, 51.0, 98.7, 100.0, 200.0, 433.0])
def test_a_constant_stays_constant_up_to_both_ends(source: float) -> None:
    time = np.cumsum(RANDOM.uniform(0.7, 1.3, 1003)) / source
    values = resampled(time, [np.full(1003, 9.81)], 50.0)
    assert values.shape == (1, grid_length(time, 50.0))
    assert np.abs(values - 9.81).max() < 1e-6


def test_a_line_stays_a_line() -> None:
    time = np.arange(1001) / 200
    grid = np.arange(grid_length(time, 50.0)) / 50
    np.testing.assert_allclose(resampled(time, [3 * time - 1], 50.0)[0], 3 * grid - 1, atol=1e-5)


def test_what_would_alias_is_removed_and_what_fits_is_kept() -> None:
    time = np.arange(2000) / 200
    slow, fast = np.sin(2 * np.pi * 5 * time), np.sin(2 * np.pi * 45 * time)  # 45 Hz would appear as 5 Hz at 50 Hz
    inside = slice(50, -50)
    kept = resampled(time, [slow], 50.0)[0][inside]
    np.testing.assert_allclose(kept, slow[::4][inside], atol=0.01)
    assert np.abs(resampled(time, [fast], 50.0)[0][inside]).max() < 0.01
    assert np.abs(fast[::4][inside]).max() > 0.9  # what plain slicing would give


def test_samples_on_the_grid_are_unchanged() -> None:
    values = RANDOM.normal(size=500)
    for offset in (0.0, 12345.6):
        time = np.round(offset + np.arange(500) * 0.02, 4)
        assert is_on_grid(time, 50.0)
        np.testing.assert_array_equal(resampled(time, [values], 50.0)[0], values.astype(np.float32))


def test_interpolation_uses_the_real_time_stamps() -> None:
    time = np.cumsum(RANDOM.uniform(0.5, 1.5, 400)) / 50
    got = resampled(time, [np.sin(2 * np.pi * 0.5 * time)], 50.0)[0]
    grid = time[0] + np.arange(len(got)) / 50
    np.testing.assert_allclose(got, np.sin(2 * np.pi * 0.5 * grid), atol=2e-3)


def test_nearest_row_of_each_sample() -> None:
    time = np.cumsum(RANDOM.uniform(0.2, 2, 200)) / 50
    length = grid_length(time, 50.0)
    plain = [int(np.abs(time - (time[0] + k / 50)).argmin()) for k in range(length)]
    assert nearest(time, length, 50.0).tolist() == plain


def test_pieces_and_rate() -> None:
    time = np.array([0, 1, 2, 3.4, 4.4, 1, 2, 9.0]) / 10
    assert pieces(time, 0.14001) == [(0, 5), (5, 7), (7, 8)]
    assert rate_of(time) == pytest.approx(10)


# ---- windows ----


def plainly(
    time: np.ndarray, values: np.ndarray, label: list[int], max_gap: float
) -> list[tuple[float, list[list[float]], int]]:
    """A plain statement of the rule for recordings at the wanted rate of 10 Hz: windows of 5 samples, 2 apart, of one label."""
    found, begin = [], 0
    for end in range(1, len(time) + 1):
        if end < len(time) and 0 < time[end] - time[end - 1] <= max_gap:
            continue
        for first in range(begin, end - 4, 2):
            window = range(first, first + 5)
            if len({label[row] for row in window}) == 1 and label[first] >= 0:
                found.append(
                    (time[first], [[values[row, s] for row in window] for s in range(values.shape[1])], label[first])
                )
        begin = end
    return found


@pytest.mark.parametrize("seed", range(5))
def test_windows_equal_a_plain_statement_of_the_rule(seed: int) -> None:
    random = np.random.default_rng(seed)
    steps = random.choice([1, 1, 1, 1, 1, 1, 1, 1, 7, -3], 300)
    time = np.cumsum(steps) / 10
    values = random.normal(size=(300, 2)).astype(np.float32)
    label = np.repeat(random.integers(-1, 3, 30), 10)
    counts = Counts()
    found = whole(list(cut(recording(time, values, label, np.zeros(300)), Cutting(10.0, 5, 2, 0.25), counts)))
    expected = plainly(time, values, label.tolist(), 0.25)
    assert len(expected) == counts.windows == len(found.label) > 5
    np.testing.assert_allclose(found.start, [start for start, _, _ in expected])
    np.testing.assert_array_equal(found.signal, np.array([window for _, window, _ in expected], dtype=np.float32))
    assert found.label.tolist() == [number for _, _, number in expected]
    assert counts.gaps == int((steps == 7).sum() - (steps[0] == 7))
    assert counts.backwards == int((steps == -3).sum() - (steps[0] == -3))
    assert counts.mixed + counts.unlabelled > 0


def test_a_label_needs_its_share_of_the_window() -> None:
    label = np.array([0] * 7 + [1] * 3 + [0] * 6 + [1] * 4)
    cutting = Cutting(10.0, 10, 10, 0.25, purity=0.7)
    counts = Counts()
    found = whole(list(cut(recording(np.arange(20) / 10, np.zeros((20, 1)), label), cutting, counts)))
    assert (found.label.tolist(), counts.mixed) == ([0], 1)


def test_missing_and_repeated_samples_are_removed_and_counted() -> None:
    time, values = np.arange(40) / 10, RANDOM.normal(size=(40, 2))
    values[10, 1] = np.nan  # one sample: interpolated
    values[20:25, 0] = np.nan  # five: a gap
    doubled = np.insert(np.arange(40), 30, 30)
    counts = Counts()
    parts = list(cut(recording(time[doubled], values[doubled]), Cutting(10.0, 5, 5, 0.25, labels=False), counts))
    assert (counts.missing, counts.repeated, counts.gaps, counts.bridged) == (6, 1, 1, 1)
    assert counts.longest_gap == pytest.approx(0.6)
    np.testing.assert_allclose(whole(parts).start, [0, 0.5, 1.0, 1.5, 2.5, 3.0, 3.5])
    np.testing.assert_allclose(whole(parts).signal[2, 1, 0], (values[9, 1] + values[11, 1]) / 2, rtol=1e-5)


def test_time_stamps_that_many_samples_share_are_too_coarse() -> None:
    time = np.repeat(np.arange(4.0), 50)
    with pytest.raises(ValueError, match=r"walk.csv: 98% of the samples have the time stamp of the sample before"):
        list(cut(recording(time, np.zeros((200, 1))), Cutting(10.0, 5, 5), Counts()))


def test_segments_in_dates_and_in_the_unit_of_large_numbers(tmp_path: Path) -> None:
    table = tmp_path / "segments.csv"
    for start, end, origin in (
        ("2026-01-01 00:00:00.10", "2026-01-01T00:00:00.29Z", np.datetime64("2026-01-01T00:00:00", "ns")),
        ("1767225600100000000", "1767225600290000000", 1767225600_000000000),
    ):
        table.write_text(f"start,end,label\n{start},{end},walk\n")
        one = recording(np.arange(10) / 20, np.zeros((10, 1)))._replace(origin=origin)
        assert Segments(table).label(one, 1e-9, Codes()).tolist() == [-1, -1, 0, 0, 0, 0, -1, -1, -1, -1]


@pytest.mark.parametrize("rate", [100, 200])
def test_a_last_time_stamp_just_short_of_the_grid(rate: int) -> None:
    for short in (0.0, 5e-6, 15e-6, 19e-6):
        time = np.round(np.arange(9 * rate + 1) / rate, 6)
        time[-1] -= short
        np.testing.assert_allclose(resampled(time, [time], 50.0)[0], np.arange(451) / 50, atol=1e-4)


def test_the_filter_is_that_of_the_recording_in_every_piece() -> None:
    time = np.concatenate([np.arange(400) / 50, 20 + np.arange(400) / 52.0])  # the second piece is a little faster
    values = RANDOM.normal(size=(800, 1))
    parts = whole(list(cut(recording(time, values), Cutting(50.0, 100, 100, labels=False), Counts())))
    grid = time[400] + np.arange(100) / 50
    second = parts.signal[parts.start >= 20][0, 0]
    np.testing.assert_allclose(second, np.interp(grid, time[400:], values[400:, 0]), atol=1e-5)


def test_missing_numbers_among_labels_and_times(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    origin = 1767225600_000000000
    time: list[int | None] = [origin + 20_000_000 * row for row in range(100_000)]
    time[90_000] = None  # in a later batch than the first
    label = [1] * 50 + [None] * 50 + [2] * (len(time) - 100)
    table = {"t": arrow.array(time, arrow.int64()), " a ": [0.5] * len(time), "l": arrow.array(label, arrow.int64())}
    parquet.write_table(arrow.table(table), tmp_path / "a.parquet")
    columns, codes = Columns({"a": "a"}, time="t", time_unit="ns", label="l"), Codes()
    found = read_recording(tmp_path / "a.parquet", "a", columns, codes, Codes())
    assert np.flatnonzero(np.isnan(found.time)).tolist() == [90_000]
    np.testing.assert_allclose(np.delete(found.time, 90_000), np.delete(np.arange(100_000), 90_000) * 0.02, atol=1e-9)
    assert found.label is not None
    assert [codes.names[code] if code >= 0 else "" for code in found.label[[0, 60, 100]].tolist()] == ["1", "", "2"]
    np.savez(tmp_path / "b.npz", t=np.arange(3.0), a=np.zeros(3), l=np.array([b"x", b"y", b""]))
    second = read_recording(
        tmp_path / "b.npz", "b", Columns({"a": "a"}, time="t", label="l"), codes := Codes(), Codes()
    )
    assert second.label is not None
    assert (codes.names, second.label.tolist()) == (["x", "y"], [0, 1, -1])


def test_columns_of_one_name_and_segments_of_several_recordings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a,a\n0,1,2\n1,2,3\n")
    with pytest.raises(ValueError, match="several of its columns have the name 'a'"):
        read_recording(tmp_path / "a.csv", "a", Columns({"a": "a"}, time="t"), Codes(), Codes())
    (tmp_path / "t.csv").write_text("t,t,a\n0,1,2\n1,2,3\n")
    with pytest.raises(ValueError, match="several of its columns have the name 't'"):
        read_recording(tmp_path / "t.csv", "a", Columns({"a": "a"}, time="t"), Codes(), Codes())
    np.savez(tmp_path / "a.npz", t=np.arange(2), a=np.zeros((2, 1)), a_0=np.ones(2))
    with pytest.raises(ValueError, match="several of its columns have the name 'a_0'"):
        read_recording(tmp_path / "a.npz", "a", Columns({"a": "a_0"}, time="t"), Codes(), Codes())
    table = tmp_path / "segments.csv"
    table.write_text("recording,start,end,label\nben/rec.csv,0,5,run\nrec.csv,0,5,walk\n")
    with pytest.raises(ValueError, match=r"line 3 names rec.csv, which are 2 recordings: anna/rec.csv, ben/rec.csv"):
        Segments(table).check(["anna/rec.csv", "ben/rec.csv"])
    Segments(table).check(["ben/rec.csv"])
    table.write_text("start,end,label,label\n0,5,run,walk\n")
    with pytest.raises(ValueError, match="two columns are called 'label'; rename one"):
        Segments(table)


def test_texts_of_parquet_that_are_not_utf_8(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = arrow.array([b"walk", b"w\xfflk"]).view(arrow.string())  # as in a damaged file
    parquet.write_table(arrow.table({"t": [0.0, 1.0], "a": [1.0, 2.0], "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="it is damaged: a text in it is not UTF-8"):
        read_recording(tmp_path / "a.parquet", "a", Columns({"a": "a"}, time="t", label="label"), Codes(), Codes())


def test_a_column_may_be_two_signals(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a\n0,1\n1,2\n")
    found = read_recording(tmp_path / "a.csv", "a", Columns({"x": "a", "y": "a"}, time="t"), Codes(), Codes())
    np.testing.assert_array_equal(found.signals, [[1, 2], [1, 2]])


def test_windows_of_two_people_are_left_out() -> None:
    counts = Counts()
    person = np.repeat([0, 1], 10)
    found = whole(
        list(cut(recording(np.arange(20) / 10, np.zeros((20, 1)), None, person), Cutting(10.0, 4, 2), counts))
    )
    assert counts.nobody == 1
    assert found.subject.tolist() == [0] * 4 + [1] * 4


# ---- files ----

COLUMNS = Columns({"x": "a", "y": "b"}, time="t", label="activity", subject="who")


def write(path: Path, ending: str, time: np.ndarray, values: np.ndarray, label: list[str], who: list[str]) -> Path:
    path = path / f"walk{ending}"
    if ending == ".npz":
        np.savez(path, t=time, a=values[:, 0], b=values[:, 1], activity=np.array(label), who=np.array(who))
    elif ending == ".csv":
        rows = [f"{t},{b},{a},{one},{person}" for t, (a, b), one, person in zip(time, values, label, who, strict=True)]
        path.write_text("\ufefft,b, a,activity,who\n" + "\n".join(rows) + "\n", encoding="utf-8")
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = {"t": time, "a": values[:, 0], "b": values[:, 1], "activity": label, "who": who}
        parquet.write_table(arrow.table(table), path, row_group_size=7)
    return path


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npz"])
def test_every_kind_of_file_is_read_alike(tmp_path: Path, ending: str) -> None:
    time, values = np.arange(20) / 10, RANDOM.normal(size=(20, 2))
    path = write(tmp_path, ending, time, values, ["walk", "null", "", "3.0"] * 5, ["7"] * 20)
    labels, people = Codes(), Codes()
    found = read_recording(path, "walk", COLUMNS, labels, people)
    np.testing.assert_allclose(found.time, time)
    np.testing.assert_array_equal(np.stack(found.signals, axis=1), values.astype(np.float32))
    assert found.label is not None
    assert [labels.names[code] if code >= 0 else "" for code in found.label[:4].tolist()] == ["walk", "null", "", "3"]
    assert people.names == ["7"]


@pytest.mark.parametrize(
    ("unit", "stamps"),
    [
        ("ms", [f"{1000 + 20 * row}" for row in range(9)]),
        ("ns", [f"{1767225600_000000000 + 20_000_000 * row}" for row in range(9)]),
        ("s", [f"2026-01-01 00:00:{row * 0.02:09.6f}" for row in range(9)]),
        ("s", [f"2026-01-01T00:00:{row * 0.02:09.6f}Z" for row in range(9)]),
        ("s", [f"{1767225600 + row * 0.02:.2f}" for row in range(9)]),
    ],
)
def test_units_of_time(tmp_path: Path, unit: str, stamps: list[str]) -> None:
    path = tmp_path / "walk.csv"
    path.write_text("\n".join(["t,a", *(f"{stamp},1" for stamp in stamps), ""]))
    time = read_recording(path, "walk", Columns({"a": "a"}, time="t", time_unit=unit), Codes(), Codes()).time
    np.testing.assert_allclose(np.diff(time), 0.02, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("t,acc_x\n0,1\n", Columns({"x": "acc_X"}, time="t"), "no column acc_X, did you mean 'acc_x'"),
        ("t,a\n0,1\n20,2\n40,3\n", Columns({"a": "a"}, time="t"), "20 s apart .median., taken in s; give their unit"),
        (
            "t,a\n0,walk\n",
            Columns({"a": "a"}, time="t"),
            "in the column 'a': .* invalid value 'walk'; choose the signals",
        ),
        ("t,a\n0,1\n1,2,3\n", Columns({"a": "a"}, time="t"), "Expected 2 columns, got 3"),
        ("a\n1\n", Columns({"a": "a"}), "give --time COLUMN .* or --source_rate HZ"),
        ("", Columns({"a": "a"}, time="t"), "Empty CSV file"),
        ("t;a\n0;1\n", Columns({"a": "a"}, time="t"), "separated by ';' .t;a.: give --delimiter ';'"),
        ("t,a\n0,1\n", Columns({"a [g]": "a [g]"}, time="t"), r"a name with a unit is given as 'a \[g\]=a'"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, text: str, columns: Columns, message: str) -> None:
    path = tmp_path / "walk.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^walk_1: .*{message}"):
        read_recording(path, "walk_1", columns, Codes(), Codes())


def test_a_table_of_excel(tmp_path: Path) -> None:
    """Commas for points and Windows' encoding are named with their flags, which are right together."""
    path = tmp_path / "a.csv"
    path.write_bytes("Zeit;Tätigkeit;x\n0;gehen;0,5\n0,02;müde;-1,25\n".encode("cp1252"))
    own = {"signals": {"x": "x"}, "time": "Zeit", "label": "Tätigkeit", "delimiter": ";"}

    def read(**more: str) -> Recording:
        return read_recording(path, "a.csv", Columns(**own, **more), codes, Codes())  # type: ignore[arg-type]

    codes = Codes()
    for more, message in (
        ({}, "^a.csv: it is not in utf-8: give --encoding, such as --encoding cp1252 for a file of Excel on Windows$"),
        ({"encoding": "cp1252"}, r"invalid value '0,(5|02)'; its numbers have commas: give --decimal ,$"),
        ({"encoding": "klingon"}, "--encoding klingon: there is no such encoding; give utf-8, cp1252 or utf-16"),
    ):
        with pytest.raises(ValueError, match=message):
            read(**more)
    found = read(encoding="cp1252", decimal=",")
    np.testing.assert_array_equal(found.signals, [[0.5, -1.25]])
    assert found.label is not None
    assert [codes.names[code] for code in found.label.tolist()] == ["gehen", "müde"]
    path.write_bytes("t,label,x\n0,gehen,1\n1,müde,2\n".encode("cp1252"))  # its first line is in UTF-8
    with pytest.raises(ValueError, match=r"a.csv: it is not in utf-8: give --encoding"):
        read_recording(path, "a.csv", Columns({"x": "x"}, time="t", label="label"), Codes(), Codes())


def test_a_table_of_segments_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes("start,end,label\n5,6,müde\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"^--segments .*s.csv: is not in UTF-8; save it as UTF-8 \(Excel: CSV UTF-8"):
        Segments(tmp_path / "s.csv")


def test_labels_of_time_spans(tmp_path: Path) -> None:
    table = tmp_path / "segments.csv"
    table.write_text("recording,start,end,label\nwalk.csv,100,300,walk\nwalk,300,400,sit\nother,0,1,jog\n")
    one, codes = recording(np.arange(10) / 20, np.zeros((10, 1))), Codes()
    segments = Segments(table)
    label = segments.label(one, 1e-3, codes)  # time stamps in ms
    assert [codes.names[code] if code >= 0 else "" for code in label.tolist()] == [
        "",
        "",
        *["walk"] * 4,
        *["sit"] * 2,
        "",
        "",
    ]
    assert segments.unused() == ["other"]
    table.write_text(table.read_text() + "walk,250,350,jog\n")
    with pytest.raises(ValueError, match=r"line 5 \(jog\) overlaps another segment of walk.csv"):
        Segments(table).label(one, 1e-3, Codes())
    table.write_text("start,end,label\n5,6,walk\n")
    with pytest.raises(
        ValueError, match=r"no segment reaches into walk.csv, whose time stamps go from 0 to 0.45, such as line 2"
    ):
        Segments(table).label(one, 1.0, Codes())
    table.write_text("start,end,label\n5,4,walk\n")
    with pytest.raises(ValueError, match="line 2 ends at 4, not after its start 5"):
        Segments(table).label(one, 1.0, Codes())


def test_settings_are_plain() -> None:
    assert json.loads(json.dumps(Cutting(50.0, 128, 64).plain())) == {
        "rate": 50.0,
        "samples": 128,
        "hop": 64,
        "max_gap": None,
    }
