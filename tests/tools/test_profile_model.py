"""Tests of tools/profile_model: results and tables, choice of the batch size, ladder, out of memory, a small real run."""

import doctest
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tools.profile_model import batches, processes, results, step
from tools.profile_model.__main__ import main
from tools.profile_model.processes import Bench, died
from tools.profile_model.results import (
    ABSENT,
    Row,
    amp_pair,
    candidates,
    choose,
    gains,
    ladder,
    row_of,
    rung_table,
    size_table,
    turns,
)
from tools.profile_model.step import Job, Result, measure
from tools.profile_model.timers import Block

TINY = str(Path(__file__).resolve().parent.parent / "conf" / "digits_ternary_tiny.yaml")
PARTS = {"forward": [0.25, 0.75, 0.5], "backward": [1.0, 1.0, 1.0], "optimizer": [0.5, 0.25, 0.125]}


def metrics(size: int, seconds: list[float], **given: Any) -> Result:
    """A result as a process writes it: in JSON the batch sizes are strings."""
    result: Any = {
        "status": "ok",
        "parts": {str(size): PARTS},
        "whole": {str(size): seconds},
        "flops": {"forward": 10.0, "backward": 20.0},
        "memory": 100,
        "parameters": 7,
        "trainable": 5,
        "arithmetic": "fp32",
        **given,
    }
    return cast(Result, result)


@pytest.mark.parametrize("module", [processes, results, batches, step])
def test_doctests(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


# ---- results ----


def test_row_has_medians_spread_and_share_of_the_peak() -> None:
    row = row_of("4", 4, [metrics(4, [2.0, 8.0, 3.0]), metrics(4, [4.0], memory=300)], {"fp32": 100.0})
    assert (row.step, row.spread, row.memory, row.flops) == (3.5, (2.0, 8.0), 300, 120.0)
    assert row.parts == {"forward": 0.5, "backward": 1.0, "optimizer": 0.25}
    assert row.parts_spread["forward"] == (0.25, 0.75)
    assert row.speed == pytest.approx(4 / 3.5)
    assert row.share == pytest.approx(120 / 3.5 / 100)
    assert row_of("4", 4, [metrics(4, [2.0], flops={})], {"fp32": 100.0}).share is None


def test_one_slow_block_does_not_change_the_median() -> None:
    row = row_of("8", 8, [metrics(8, [1.0, 1.0, 1.0, 50.0, 1.0])], {})
    assert row.step == 1.0


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({8: 50.0, 16: 80.0, 32: 99.0, 64: 100.0}, [16, 32, 64]),
        ({8: 69.9, 16: 70.0, 32: 100.0}, [16, 32]),
        ({1: 96.0, 2: 97.0, 3: 98.0, 4: 99.0, 5: 100.0}, [2, 3, 4, 5]),
        ({8: 5.0}, [8]),
    ],
)
def test_candidates(speeds: dict[int, float], chosen: list[int]) -> None:
    assert candidates(speeds) == chosen


@pytest.mark.parametrize(
    ("speeds", "best"), [({16: 97.0, 32: 100.0}, 16), ({16: 96.9, 32: 100.0}, 32), ({8: 10.0, 64: 9.9}, 8)]
)
def test_smallest_of_equally_fast_sizes_is_chosen(speeds: dict[int, float], best: int) -> None:
    assert choose(speeds) == best


def test_gain_of_a_rung_is_over_the_last_measured_one() -> None:
    rungs = [
        Row("fp32", "ok", size=1, step=6.0),
        Row("cuDNN", ABSENT),
        Row("AMP", "ok", size=1, step=3.0),
        Row("c", "ok", size=1, step=2.0),
    ]
    assert gains(rungs) == [(1.0, 1.0), None, (2.0, 2.0), (1.5, 3.0)]
    lines = rung_table(rungs)
    assert ABSENT in lines[2]
    assert "x" not in lines[2].split(ABSENT)[1]
    assert "3.00x" in lines[4]


class Machine:
    """Simulates the measuring processes: a true speed per size with seeded noise; sizes above ``most`` are out of memory."""

    def __init__(self, speeds: dict[int, float], noise: float, seed: int, most: int = 1 << 30) -> None:
        self.speeds, self.noise, self.most, self.random = speeds, noise, most, random.Random(seed)
        self.jobs: list[Job] = []

    def __call__(self, job: Job) -> Result:
        self.jobs.append(job)
        if job["gemm"]:
            return {"status": "ok", "gemm": dict.fromkeys(job["gemm"], 1e9)}
        plan = [Block(*block) for block in job["plan"]]
        if max(block.size for block in plan) > self.most:
            return {"status": "oom", "reason": "too large"}
        whole: dict[int, list[float]] = {}
        for block in plan:
            if block.kind == "whole":
                seconds = block.size / self.speeds[block.size] * (1 + self.noise * self.random.random())
                whole.setdefault(block.size, []).append(seconds)
        return metrics(plan[0].size, [0.0], whole=whole)


def bench(machine: Any, tmp_path: Path, printed: list[str] | None = None) -> Bench:
    lines = printed if printed is not None else []
    return Bench(
        ["--config", "x"], {}, tmp_path, "cpu", None, 10, lambda what, text: lines.append(f"{what} {text}"), machine
    )


def test_a_peak_that_cannot_be_measured_is_an_error_with_its_reason(tmp_path: Path) -> None:
    timed = bench(lambda job: {"status": "failed", "reason": "exit code 1: no such module"}, tmp_path)
    with pytest.raises(ValueError, match=r"peak .* cannot be measured: failed, exit code 1: no such module"):
        timed.peaks()


@pytest.mark.slow
def test_a_package_tools_in_the_working_directory_does_not_hide_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools").mkdir()
    Path("tools", "__init__.py").write_text("raise SystemExit('the wrong tools')")
    timed = bench(processes.in_subprocess, tmp_path)
    assert timed.peaks()["fp32"] > 0


@pytest.mark.parametrize("seed", range(20))
def test_chosen_size_is_within_ten_percent_of_the_best(seed: int, tmp_path: Path) -> None:
    speeds = {8: 300.0, 16: 500.0, 32: 640.0, 64: 700.0, 128: 690.0, 256: 600.0}
    timed = bench(Machine(speeds, 0.25, seed, most=256), tmp_path)
    timed.peaks()
    rows = timed.sweep([*speeds, 512])
    assert [row.status for row in rows] == ["ok"] * 6 + ["oom"]
    again = timed.again(rows)
    assert all(len(values) == 5 for values in again.values())
    assert speeds[timed.best(rows, again)] >= 0.9 * max(speeds.values())


def test_candidates_are_timed_in_turns_alternately_backwards(tmp_path: Path) -> None:
    machine = Machine({8: 100.0, 16: 100.0}, 0.0, 0)
    timed = bench(machine, tmp_path)
    timed.again(timed.sweep([8, 16]))
    order = [size for size, _, kind in machine.jobs[-1]["plan"] if kind == "whole"]
    assert order == turns([8, 16]) == [8, 16, 16, 8, 8, 16, 16, 8, 8, 16]


def test_largest_candidate_is_dropped_if_they_do_not_fit_together(tmp_path: Path) -> None:
    timed = bench(Machine({8: 100.0, 16: 100.0, 32: 100.0}, 0.0, 0), tmp_path)
    rows = timed.sweep([8, 16, 32])
    timed.measure = Machine({8: 100.0, 16: 100.0}, 0.0, 0, most=16)
    assert sorted(timed.again(rows)) == [8, 16]


def test_ladder_adds_flags_and_names_unsupported_rungs(tmp_path: Path) -> None:
    machine = Machine({8: 100.0}, 0.0, 0)
    rows = bench(machine, tmp_path).rungs(ladder("bf16-mixed"), 8)
    assert [row.status for row in rows] == ["ok", "ok", ABSENT, ABSENT, "ok", "ok"]
    flags = [" ".join(job["arguments"][2:]) for job in machine.jobs]
    assert len(flags) == 8  # forwards and backwards
    assert flags[:4] == flags[:3:-1]
    assert "--trainer.precision=32-true" in flags[0]
    assert "--model.compile=false" in flags[0]
    assert "--trainer.precision=bf16-mixed" in flags[3]
    assert "--model.channels_last=true" in flags[3]
    assert "--model.compile=true" in flags[3]
    assert not any("benchmark=true" in one or "matmul_precision=high " in one for one in flags)
    assert machine.jobs[3]["plan"][0][2] == "warm"  # operations of compiled code are not counted


def test_failing_rung_adds_no_flags_to_later_rungs(tmp_path: Path) -> None:
    machine = Machine({8: 100.0}, 0.0, 0)

    def failing(job: Job) -> Result:
        if "--model.channels_last=true" in job["arguments"] and "--model.compile=true" not in job["arguments"]:
            return {"status": "failed", "reason": "no"}
        return machine(job)

    rows = bench(failing, tmp_path).rungs(ladder("bf16-mixed"), 8)
    assert [row.status for row in rows] == ["ok", "ok", ABSENT, ABSENT, "failed", "ok"]
    assert "--model.channels_last=false" in machine.jobs[-1]["arguments"]


@pytest.mark.parametrize(
    ("code", "stderr", "limit", "status"),
    [
        (-9, "", None, "oom"),
        (-6, "terminate called after bad_alloc\n", 10**9, "oom"),
        (1, "libgomp: Thread creation failed: Resource temporarily unavailable\n", 10**9, "oom"),
        (-11, "", None, "failed"),
        (1, "Traceback\nValueError: x\n", 10**9, "failed"),
    ],
)
def test_status_of_a_process_that_died(code: int, stderr: str, limit: int | None, status: str) -> None:
    assert died(code, stderr, limit)["status"] == status


# ---- the command ----


@pytest.mark.slow
def test_small_run_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[Job] = []

    def here(job: Job) -> Result:
        jobs.append(job)
        if job["gemm"]:
            return {"status": "ok", "gemm": {"fp32": 1e12, "bf16": 2e12}}
        return measure(job)

    output = tmp_path / "profile"
    arguments = ["--config", TINY, "--batch_sizes", "4", "2", "--steps", "1", "--amp", "--output", str(output)]
    assert main([*arguments, "--device", "cpu"], here) == 0
    out = capsys.readouterr().out
    assert "one training batch of DigitsDataModule" in out
    assert f"{len(jobs)}/{len(jobs)} " in out  # the expected number of jobs is the actual one
    content = json.loads((output / "profile.json").read_text())
    assert [row["name"] for row in content["sizes"]] == ["2", "4"]
    assert content["best_batch_size"] in (2, 4)
    assert content["flops_per_sample"] > 0
    assert content["sizes"][0]["flops"] * 2 == content["sizes"][1]["flops"]
    assert content["parameters"] >= content["trainable"] > 0
    (pair,) = content["ladders"].values()
    assert [row["name"] for row in pair] == ["fp32", "AMP (bf16-mixed)"]
    assert content["peak_flops_per_s"] == {"fp32": 1e12, "bf16": 2e12}
    row = content["sizes"][0]
    assert row["share"] == pytest.approx(row["flops"] / row["step"] / 1e12)
    assert (output / "profile.png").read_bytes()[:4] == b"\x89PNG"
    assert "profile_model" in (output / "profile.txt").read_text()
    assert len(jobs) in (7, 8)  # peak, two sizes, perhaps the candidates in turns, two rungs twice
    assert not Path(jobs[1]["batch"]).exists()  # the temporary folder of the processes is deleted


@pytest.mark.slow
def test_a_step_of_a_real_run_is_measured(tmp_path: Path) -> None:
    real: list[Result] = []

    def first_only(job: Job) -> Result:
        if job["gemm"]:
            return {"status": "ok", "gemm": {"fp32": 1e12, "bf16": 2e12}}
        real[:] = real or [measure(job)]
        return real[0]

    flags = ["--batch_sizes", "4", "--steps", "1", "--device", "cpu", "--output", str(tmp_path / "profile")]
    assert main(["--config", TINY, *flags], first_only) == 0
    assert real[0]["status"] == "ok"


@pytest.mark.slow
def test_size_out_of_memory_is_a_row(tmp_path: Path) -> None:
    output = tmp_path / "profile"
    arguments = ["--batch_sizes", "8", "262144", "--memory_limit", "1.5", "--steps", "1", "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, "-m", "tools.profile_model", "--config", TINY, *arguments, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    content = json.loads((output / "profile.json").read_text())
    assert [row["status"] for row in content["sizes"]] == ["ok", "oom"]
    assert content["best_batch_size"] == 8
    assert " oom " in ended.stdout


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("could not create a memory object"), "oom"),
        (FileNotFoundError("weights"), "refused"),
    ],
)
def test_status_of_errors_in_a_step(monkeypatch: pytest.MonkeyPatch, error: Exception, status: str) -> None:
    def fail(job: Job) -> None:
        raise error

    monkeypatch.setattr(step, "ProfileCLI", fail)
    job: Any = {"gemm": []}
    assert measure(job)["status"] == status


def test_other_errors_are_not_reported_as_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(job: Job) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(step, "ProfileCLI", fail)
    job: Any = {"gemm": []}
    with pytest.raises(RuntimeError, match="shapes"):
        measure(job)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config: which data? give --config FILE"),
        (["--config", TINY, "--batch_sizes", "0"], "--batch_sizes is [0] but must be 1 or more"),
        (["--config", TINY, "--steps", "0"], "--steps is 0 but must be 1 or more"),
        (["--config", TINY, "--memory_limit", "-1"], "--memory_limit is -1.0 but must be above 0"),
        (["--config", TINY, "--output", TINY], "is a file; give a folder"),
        (["--config", TINY, "--batch_sizes", "x"], "invalid int value"),
        (["--config", TINY, "--model.lrr", "1"], "no such setting"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_if_no_size_works_the_error_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine({}, 0.0, 0, most=0)
    assert main(["--config", TINY, "--output", str(tmp_path / "out"), "--device", "cpu"], machine) == 2
    assert "none of the sizes works: oom, too large" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_cuda_device_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert main(["--config", TINY, "--device", "cuda"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_table_shows_why_a_size_was_not_measured() -> None:
    rows = [row_of("8", 8, [metrics(8, [0.5, 0.25, 1.0])], {"fp32": 960.0}), Row("16", "oom", "too large", 16)]
    lines = size_table(rows, {8: [16.0, 20.0, 12.0]}, 8)
    assert "16 (12 .. 20)  <- best" in lines[1]
    assert "50.0%" in lines[1]
    assert lines[2].split() == ["16", "oom", "too", "large"]
    assert amp_pair("bf16-mixed")[1].flags == {"trainer.precision": "bf16-mixed"}
