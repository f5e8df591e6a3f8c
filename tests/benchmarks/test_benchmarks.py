"""Benchmarks step_overhead and loader: both sides compute the same, and the reported values are correct; speed is not tested."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import functional as per_image

from benchmarks import loader, step_overhead, turns
from benchmarks.step_overhead import CASES, Case, Result
from benchmarks.tasks import RandomImages
from datamodules import InMemoryLoader
from foundation import measuring

QUICK = ["--repeats", "2", "--threads", "1"]
SPREAD = {"median", "least", "most"}
# forked workers of torchvision's side: Python 3.12 and later warn of threads in the parent
forks = pytest.mark.filterwarnings("ignore:.*is multi-threaded, use of fork:DeprecationWarning")


def case_of(name: str, **changes: Any) -> Case:
    return replace(next(case for case in CASES if case.name == name), **changes)


def tables(printed: str) -> list[list[str]]:
    lines = [line for line in printed.splitlines() if line.startswith("|") and not line.startswith("| -")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_step_overhead_prints_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    step_overhead.main([*QUICK, "--cases", "free", "head", "--steps", "50", "--json", str(file)])
    header, *rows = tables(capsys.readouterr().out)
    assert tuple(header) == step_overhead.HEADER
    assert [row[:2] for row in rows] == [["linear layer on 8x8 images", "128"], ["768-256-2 head on features", "256"]]
    content = json.loads(file.read_text())
    assert content["benchmark"] == "step_overhead"
    assert {"load_average", "load_average_after", "threads", "processor", "versions"} <= content["environment"].keys()
    assert content["environment"]["threads"] == 1
    assert [case["name"] for case in content["cases"]] == ["free", "head"]
    for case in content["cases"]:
        assert set(Result._fields) | {"name", "network", "batch_size", "steps"} == case.keys()
        assert case["weight_difference"] == 0.0
        bare, ours, overhead = (case[name] for name in ("bare", "ours", "overhead"))
        assert bare.keys() == SPREAD
        assert 0 < bare["least"] <= bare["median"] <= bare["most"]
        # the median of two repeats is their mean, and a mean of differences the difference of the means
        assert overhead["median"] == pytest.approx(ours["median"] - bare["median"])
        # without timers on one of the sides, it would be as long as the whole step
        assert 0 < case["rest"]["median"] < ours["median"]
        epoch = 45_000 // case["batch_size"]
        assert case["with_epoch_end"] == pytest.approx(overhead["median"] + case["epoch_end"]["median"] / epoch)


@pytest.mark.slow
def test_bare_loop_and_run_with_everything_on_end_in_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def look(self: Any, trainer: Any, module: Any) -> None:
        seen["callbacks"] = {type(callback).__name__ for callback in trainer.callbacks}
        seen["loggers"] = [type(logger).__name__ for logger in trainer.loggers]
        seen["every"] = trainer.log_every_n_steps
        original(self, trainer, module)

    original = turns.Turns.on_train_start
    monkeypatch.setattr(turns.Turns, "on_train_start", look)
    # validation swaps the averaged weights in and out at the end of each epoch
    metrics = step_overhead.run(case_of("resnet20-twn", batch_size=4, steps=4, turn=2), repeats=2)
    assert metrics.weight_difference == 0.0
    wanted = (
        "ExactResume RunFolder StopOnNonFinite Speed MetricsLog EMA Progress Curves RunSummary WarnOnCollapse WarnOnMemory "
        "Checkpoints StopOnSignal"
    )
    assert {*wanted.split(), "Turns"} == seen["callbacks"]
    assert seen["loggers"] == ["RunTensorBoard"]
    assert seen["every"] == 50


@pytest.mark.slow
def test_a_bare_loop_that_does_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LambdaLR", DoubledLast)
    assert step_overhead.run(case_of("free", batch_size=4, steps=2, turn=1), repeats=2).weight_difference > 0


class DoubledLast(torch.optim.lr_scheduler.LambdaLR):
    """A schedule that is wrong only in the last but one of nine steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, rule: Callable[[int], float]) -> None:
        super().__init__(optimizer, lambda step: rule(step) * (2 if step == 7 else 1))


def test_results_of_a_case_by_hand() -> None:
    case = case_of("free", batch_size=4500, steps=2)  # ten steps in an epoch of 45,000
    seconds = {
        "bare": [9.0, 0.2, 0.4, 0.6],  # of two steps: 100, 200, 300 ms a step; the first epoch is not counted
        "ours": [9.0, 0.3, 0.42, 0.8],  # 150, 210, 400
        "bare_rest": [9.0, 0.002, 0.004, 0.006],
        "ours_rest": [9.0, 0.004, 0.010, 0.010],  # 1, 3, 2 ms more
        "epoch_end": [9.0, 0.310, 0.510],  # with one step of 210
        "weight_difference": 0.5,
    }
    metrics = step_overhead.result(case, seconds)
    assert metrics.bare == pytest.approx((200, 100, 300))
    assert metrics.ours == pytest.approx((210, 150, 400))
    assert metrics.overhead == pytest.approx((50, 10, 100))
    assert metrics.rest == pytest.approx((2, 1, 3))
    assert metrics.ratio == pytest.approx((4 / 3, 1.05, 1.5))
    assert metrics.epoch_end == pytest.approx((200, 100, 300))
    assert metrics.with_epoch_end == pytest.approx(50 + 200 / 10)
    assert metrics.weight_difference == 0.5


@forks
@pytest.mark.slow
def test_loader_prints_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "loader.json"
    loader.main([*QUICK, "--images", "640", "--workers", "1", "--json", str(file)])
    header, *rows = tables(capsys.readouterr().out)
    assert header == ["pipeline", "images", "torchvision, 1 workers, images/s", "ours, images/s", "ratio"]
    assert [row[:2] for row in rows] == [[loader.PIPELINES["none"], "640"], [loader.PIPELINES["randaugment"], "128"]]
    content = json.loads(file.read_text())
    assert content["benchmark"] == "loader"
    assert (content["repeats"], content["workers"], content["batch_size"]) == (2, 1, 128)
    assert {"load_average", "load_average_after", "threads"} <= content["environment"].keys()
    assert [pipeline["policy"] for pipeline in content["pipelines"]] == ["none", "randaugment"]
    for pipeline in content["pipelines"]:
        assert all(pipeline[name].keys() == SPREAD for name in loader.Result._fields)
        ours, peer, ratio = pipeline["ours"], pipeline["torchvision"], pipeline["ratio"]
        assert ours["least"] / peer["most"] <= ratio["least"] <= ratio["most"] <= ours["most"] / peer["least"]


@pytest.mark.slow
def test_each_of_our_images_is_one_that_torchvision_could_have_made() -> None:
    module = RandomImages(20, crop_padding=loader.PADDING, flip=True)
    data = module.read_part("train")
    transform = loader.peer_transform(module.mean, module.std, "none")
    samples = loader.InMemoryCIFAR10(data["image"], data["label"], transform=lambda image: image)
    batch = next(iter(InMemoryLoader(data, 20, keep="all", shuffle=True)))
    images = module.augment(batch, epoch=3)["image"]
    flips, places = set(), set()
    for image, index, label in zip(images, batch["index"].tolist(), batch["label"].tolist(), strict=True):
        picture, its_label = samples[index]
        assert its_label == label
        padded = per_image.pad(picture, loader.PADDING)
        matches = []
        for top in range(9):
            for left in range(9):
                window = per_image.crop(padded, top, left, 32, 32)
                for flip, version in enumerate((window, per_image.hflip(window))):
                    for last in transform.transforms[-2:]:  # ToTensor, Normalize
                        version = last(version)
                    if torch.allclose(image, version, atol=1e-5):
                        matches.append((flip, top, left))
        assert len(matches) == 1
        flips.add(matches[0][0])
        places.add(matches[0][1:])
    assert flips == {0, 1}
    assert len(places) > 10


def test_an_epoch_that_does_not_serve_every_image_is_no_measurement() -> None:
    assert loader.our_epochs(300, "none")() == loader.peer_epochs(300, "none", workers=0)() == 300
    with pytest.raises(RuntimeError, match="an epoch served 256 images of 300"):
        loader.images_per_s(lambda: 256, 300)


def test_doctests_of_measuring() -> None:
    results = doctest.testmod(measuring)
    assert results.attempted >= 5
    assert not results.failed


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (step_overhead.main, ["--repeats", "1"], "--repeats: 2 or more, got 1"),
        (step_overhead.main, ["--threads", "0"], "--threads: 1 or more, got 0"),
        (step_overhead.main, ["--steps", "70"], "--steps: a multiple of 50, so that each repeat logs as often, got 70"),
        (step_overhead.main, ["--cases", "vgg"], "invalid choice: 'vgg'"),
        (loader.main, ["--images", "4"], "--images: 5 or more, --workers: 0 or more, got 4 and 2"),
        (loader.main, ["--workers", "-1"], "got 50000 and -1"),
    ],
)
def test_bad_arguments(
    main: Callable[[list[str]], None], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--threads", "1", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("turn", "steps"), [(0, 4), (3, 4), (8, 4)])
def test_bad_turns(turn: int, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps: a multiple of turn, got {steps} and {turn}"):
        turns.Turns(turn, steps, "times.json")


def test_a_failed_run_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = partial(step_overhead.config, case_of("free", model={"class_path": "NoSuchClass"}))
    monkeypatch.setattr(step_overhead, "config", lambda case, repeats, folder: broken(repeats, folder))
    with pytest.raises(RuntimeError, match=r"(?s)free ended with exit code 2:.*NoSuchClass"):
        step_overhead.run(case_of("free"), repeats=2)
