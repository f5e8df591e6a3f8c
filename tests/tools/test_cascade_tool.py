"""Tests tools.cascade: predictions against each stage by itself, sweep and threshold choice against direct counts, the command."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_modules import ImageClassifier, TernaryClassifier
from networks import ResNet, build_resnet, own_names
from tools.cascade import measures
from tools.cascade.__main__ import main
from tools.cascade.measures import NEVER, Evaluated, Sweep, alone, answer, evaluate, sweep
from tools.cascade.stages import Samples, Source, Stage, open_stages, read_samples
from tools.run_data import configured_data

CPU = torch.device("cpu")
DIGITS = "data: {class_path: DigitsDataModule}\n"


def module(seed: int, **settings: Any) -> TernaryClassifier:
    torch.manual_seed(seed)
    given = {"num_classes": 4, "in_channels": 3, "image_size": 8, "mean": [0.5] * 3, "std": [0.2] * 3}
    return TernaryClassifier(architecture="resnet20", quantizer="none", **{**given, **settings})


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """Two networks with different predictions and different normalisation."""
    return [Stage("a", module(0), CPU), Stage("b", module(1, mean=[0.1] * 3, std=[0.4] * 3), CPU)]


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Samples(image, torch.randint(0, 4, (50,), generator=generator))


def write_stage(folder: Path, name: str, architecture: str = "resnet20", **settings: Any) -> str:
    """Write a configuration and a plain file of weights, and return the stage in command-line form."""
    torch.manual_seed(len(name))
    network = build_resnet(architecture, num_classes=10, in_channels=1, quantizer="none")  # type: ignore[arg-type]
    save_file(network.state_dict(), folder / f"{name}.safetensors")
    arguments = {"architecture": architecture, "quantizer": "none", **settings}
    config = {"model": {"class_path": "TernaryClassifier", "init_args": arguments}, **yaml.safe_load(DIGITS)}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{folder / name}.yaml:{folder / name}.safetensors"


# ---- execution ----


def test_extreme_thresholds_give_the_predictions_of_one_stage(stages: list[Stage], samples: Samples) -> None:
    first, second = (alone(stage, samples.image, 16) for stage in stages)
    assert not torch.equal(first, second)
    never, always = (answer(stages, samples.image, threshold, 16) for threshold in (NEVER, 0.0))
    assert torch.equal(never.predicted, second)
    assert not never.exited.any()
    assert torch.equal(always.predicted, first)
    assert always.exited.all()


@pytest.mark.every(4)
@pytest.mark.parametrize("batch_size", [1, 7, 16, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_stage_1_answers_exactly_the_samples_above_the_threshold(
    stages: list[Stage], samples: Samples, batch_size: int, temperature: float
) -> None:
    logits = stages[0].logits(samples.image)
    confidence = (logits / temperature).softmax(1).amax(1)
    threshold = float(confidence.median())
    found = answer(stages, samples.image, threshold, batch_size, temperature)
    expected = torch.where(confidence >= threshold, logits.argmax(1), stages[1].logits(samples.image).argmax(1))
    assert torch.equal(found.exited, confidence >= threshold)
    assert torch.equal(found.predicted, expected)


def test_stage_2_gets_full_batches(samples: Samples, stages: list[Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    logits = stages[1].logits

    def counted(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return logits(images)

    monkeypatch.setattr(stages[1], "logits", counted)
    confidence = stages[0].logits(samples.image).softmax(1).amax(1)
    threshold = float(confidence.sort(descending=True)[0][14])  # stage 1 answers 15 of 50
    answer(stages, samples.image, threshold, 16)
    assert sizes == [16, 16, 3]


def test_each_stage_uses_its_own_normalisation_and_size(samples: Samples) -> None:
    small = Stage("s", module(0, image_size=4, mean=[0.1] * 3), CPU)
    seen = small.prepared(samples.image[:2])
    assert seen.shape == (2, 3, 4, 4)
    large = Stage("l", module(0), CPU).prepared(samples.image)
    torch.testing.assert_close(large, (samples.image / 255 - 0.5) / 0.2)
    whole = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)  # 0.2, at any size
    torch.testing.assert_close(small.prepared(whole), torch.full((1, 3, 4, 4), 0.5))


def test_bf16_computes_in_bfloat16(samples: Samples) -> None:
    exact, rounded = (Stage("a", module(0), CPU, bf16).logits(samples.image) for bf16 in (False, True))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=0, atol=0.05 * float(exact.abs().max()))


def test_flops_match_a_count_by_layer(samples: Samples) -> None:
    stage = Stage("a", module(0), CPU)
    counted: list[float] = []

    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        weights = layer.weight[0].numel()
        counted.append(2 * weights * output[0].numel())

    layers = [layer for layer in stage.module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    stage.logits(samples.image[:1])
    for hook in hooks:
        hook.remove()
    assert stage.flops(samples.image) == sum(counted)


# ---- sweep and choice ----


def random_results(n: int = 200) -> Evaluated:
    random = np.random.default_rng(0)
    confidence = (random.integers(0, 40, n) / 40).astype(np.float32)  # many equal values
    return Evaluated(confidence, random.random(n) < confidence, random.random(n) < 0.8)


def test_sweep_equals_direct_counting() -> None:
    given = random_results()
    swept = sweep(given)
    assert swept.threshold.tolist() == [NEVER, *sorted({float(c) for c in given.confidence}, reverse=True)]
    for i, threshold in enumerate(swept.threshold):
        exits = given.confidence >= threshold
        right = np.where(exits, given.right1, given.right2)
        assert (swept.coverage[i], swept.accuracy[i]) == pytest.approx((exits.mean(), right.mean()))
        assert swept.at(float(threshold)) == i
        if exits.any():
            assert swept.exit_accuracy[i] == pytest.approx(given.right1[exits].mean())
    assert swept.at(0.0) == len(swept.threshold) - 1
    assert swept.cost(1.0, 10.0)[[0, -1]].tolist() == [11.0, 1.0]


def curve(*accuracy: float) -> Sweep:
    n = len(accuracy)
    ones = np.ones(n)
    return Sweep(np.linspace(1, 0, n), np.linspace(0, 1, n), np.array(accuracy), ones)


@pytest.mark.parametrize(
    ("accuracy", "tolerance", "place"),
    [
        ((0.90, 0.92, 0.91, 0.90, 0.88), 0.0, 3),
        ((0.90, 0.92, 0.91, 0.90, 0.88), 0.02, 4),
        ((0.90, 0.92, 0.91, 0.90, 0.88), -0.01, 2),
        ((0.90, 0.92, 0.91, 0.90, 0.88), -0.05, 1),  # no threshold gains this much: the most accurate one
        ((0.90, 0.92, 0.89, 0.91, 0.80), 0.0, 1),  # thresholds below a drop in accuracy are not considered
        ((0.90, 0.80, 0.70), 0.0, 0),  # stage 1 never helps: the first threshold (never)
    ],
)
def test_choose_the_cheapest_threshold_within_the_tolerance(
    accuracy: tuple[float, ...], tolerance: float, place: int
) -> None:
    assert measures.choose_within(curve(*accuracy), tolerance) == place


def test_choose_the_most_accurate_threshold_for_a_budget() -> None:
    swept = curve(0.90, 0.92, 0.91, 0.93, 0.80)  # shares forwarded to stage 2: 1, 0.75, 0.5, 0.25, 0
    assert measures.choose_at_cost(swept, 2, 10, 0.7) == 3
    assert measures.choose_at_cost(swept, 2, 10, 2.0) == 3
    assert measures.choose_at_cost(swept, 2, 10, 0.3) == 4
    with pytest.raises(
        ValueError, match=r"--budget 0.1: no threshold reaches it: stage 1 by itself already takes 0.2 of"
    ):
        measures.choose_at_cost(swept, 2, 10, 0.1)


def test_halves_are_disjoint_and_seeded() -> None:
    first, second = measures.halves(11, seed=1)
    assert (len(first), len(second)) == (6, 5)
    assert sorted([*first, *second]) == list(range(11))
    assert not np.array_equal(first, measures.halves(11, seed=2)[0])


# ---- stages ----


def public_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename our tensors as in pytorch_resnet_cifar10, without the batch-norm counters."""
    parts = {"stem.conv": "conv1", "stem.bn": "bn1", "classifier": "linear"}
    parts |= {f"stages.{i}": f"layer{i + 1}" for i in range(4)}
    parts |= {"shortcut.conv": "shortcut.0", "shortcut.bn": "shortcut.1"}
    renamed = {}
    for name, tensor in state.items():
        for own, theirs in parts.items():
            name = name.replace(own, theirs)
        if not name.endswith("num_batches_tracked"):
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("architecture", ["resnet20", "resnet18"])
def test_public_tensor_names_are_mapped_to_ours(architecture: Any) -> None:
    network = build_resnet(architecture, num_classes=10, quantizer="none")
    state = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    theirs = public_names(network.state_dict())
    assert not state.keys() & theirs.keys()
    assert own_names(theirs).keys() == own_names(state).keys() == state.keys()


def test_stage_from_a_plain_weights_file(tmp_path: Path) -> None:
    stage = write_stage(tmp_path, "own", mean=[0.25])
    torch.manual_seed(3)
    network = build_resnet("resnet20", num_classes=10, in_channels=1, quantizer="none").eval()
    save_file(public_names(network.state_dict()), tmp_path / "own.safetensors")
    (made, _), data = open_stages([Source.of(stage)] * 2, tmp_path / "own.yaml", None, CPU, False)
    assert (made.module.mean, made.module.std) == ([0.25], list(data.std))
    assert made.module.class_names == list("0123456789")
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = network((images / 255 - 0.25) / data.std[0])
    torch.testing.assert_close(made.logits(images), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_stage_from_a_run_reproduces_its_test_accuracy(finished: Path) -> None:
    (stage, _), data = open_stages([Source.of(str(finished))] * 2, finished / "config.yaml", None, CPU, False)
    samples = read_samples(data, "test", None, 0)
    tested = json.loads((finished / "test_metrics.json").read_text())
    accuracy = evaluate([stage, stage], samples, 64).right1.mean()
    assert accuracy == pytest.approx(tested["metrics"]["test/acc"], abs=1e-6)


# ---- the command ----


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    return [write_stage(tmp_path, "small"), write_stage(tmp_path, "larger", "resnet32")]


def test_command_writes_consistent_files(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([*two, "--limit", "60", "--repeats", "1", "--output", str(out)]) == 0
    report = json.loads((out / "cascade.json").read_text())
    rows = list(csv.DictReader((out / "cascade.csv").read_text().splitlines()))
    assert sorted(path.name for path in out.iterdir()) == ["cascade.csv", "cascade.json", "cascade.png"]
    assert report["data"]["samples"] == 30  # the other half was used to choose the threshold
    assert float(rows[0]["accuracy"]) == report["measured"]["stage 2"]["accuracy"]
    assert float(rows[-1]["accuracy"]) == report["measured"]["stage 1"]["accuracy"]
    assert rows[0]["threshold"] == "never"
    cascade, first, second = (report["measured"][name] for name in ("cascade", "stage 1", "stage 2"))
    assert cascade["flops"] == pytest.approx(first["flops"] + (1 - report["coverage"]) * second["flops"])
    assert f"{100 * cascade['accuracy']:.2f}" in capsys.readouterr().out


@pytest.mark.every(2)
@pytest.mark.parametrize(("threshold", "same_as"), [("never", "stage 2"), ("0", "stage 1")])
def test_a_given_threshold(two: list[str], tmp_path: Path, threshold: str, same_as: str) -> None:
    flags = ["--limit", "40", "--repeats", "1", "--output", str(tmp_path / "out")]
    assert main([*two, *flags, "--threshold", threshold]) == 0
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert report["data"]["samples"] == 40
    assert report["measured"]["cascade"]["accuracy"] == report["measured"][same_as]["accuracy"]
    assert report["coverage"] == (0 if threshold == "never" else 1)


@pytest.mark.slow
def test_the_stored_threshold_is_used(finished: Path, tmp_path: Path) -> None:
    path = (run := shutil.copytree(finished, tmp_path / "run")) / "checkpoints" / "best.ckpt"
    record = {"temperature": 2.0, "threshold": 0.15}
    torch.save({**torch.load(path, weights_only=True), "calibration": record}, path)
    flags = ["--limit", "40", "--repeats", "1", "--output", str(tmp_path / "out")]
    assert main([str(run), str(finished), *flags]) == 0
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert (report["threshold"], report["temperature"], report["data"]["samples"]) == (0.15, 2.0, 40)
    assert main([str(run), str(finished), *flags, "--tolerance", "0"]) == 0
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert "on the validation split (40 samples)" in report["chosen"]


@pytest.mark.slow
def test_a_stored_never_is_said(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = (run := shutil.copytree(finished, tmp_path / "run")) / "checkpoints" / "best.ckpt"
    record = {"temperature": 2.0, "threshold": "never", "target": 0.995}
    torch.save({**torch.load(path, weights_only=True), "calibration": record}, path)
    assert main([str(run), str(finished), "--limit", "20", "--repeats", "1", "--output", str(tmp_path / "out")]) == 0
    said = "note: the threshold stored in stage 1's checkpoint is never: no threshold of its calibration reached an exit accuracy"
    assert f"{said} of 0.995; stage 2 answers every sample" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "cascade.json").read_text())
    assert (report["threshold"], report["coverage"]) == ("never", 0)
    assert sum("is never" in note for note in report["notes"]) == 1


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "high"], "--threshold: must be a number of 0 or more, never or stored, got high"),
        (["--threshold", "nan"], "--threshold: must be a number of 0 or more"),
        (["--threshold", "stored", "--limit", "9"], "--threshold stored: the checkpoint of small has no threshold"),
        (["--threshold", "1", "--budget", "1"], "--threshold 1: fixes the threshold that --budget would choose"),
        (["--tolerance", "1", "--budget", "1"], "--tolerance and --budget: give only one of them"),
        (["--budget", "0"], "--budget: must be a share above 0"),
        (["--limit", "0"], "--limit: must be 1 or more, got 0"),
        (["--split", "val", "--choose_on", "val"], "--choose_on val: --split val measures on the same samples"),
        (["--limit", "1"], "--choose_on half: needs 2 samples or more"),
        (["--data.root", "data"], "--data.root: DigitsDataModule reads no folder"),
        (
            ["--data.split_sed", "1"],
            "--data.split_sed: DigitsDataModule has no such setting, did you mean 'split_seed'?",
        ),
        (["--split", "train"], "invalid choice: 'train'"),
    ],
)
def test_invalid_flags_end_in_one_line(
    two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main([*two, *flags, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 7, "class_names": None}, "shape"),
        ({"class_names": list("1023456789")}, "classes or their order differ"),
        ({"image_size": 64}, "takes images of 64 pixels, but the data has images of 8 pixels"),
        ({"architecture": "resnet56"}, "which the network needs"),
    ],
)
def test_stages_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], message: str
) -> None:
    good = write_stage(tmp_path, "good")
    write_stage(tmp_path, "bad")
    config = yaml.safe_load((tmp_path / "bad.yaml").read_text())
    config["model"]["init_args"] |= settings
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    bad = f"{tmp_path / 'bad'}.yaml:{tmp_path / 'bad'}.safetensors"
    assert main([good, bad]) == 2
    error = capsys.readouterr().err
    assert message in error or "in the network" in error
    assert error.count("\n") == 1


def test_several_labels_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the data has one label an image: the most probable label is not the answer of such a network."""
    torch.manual_seed(0)
    data = configured_data(Path(write_stage(tmp_path, "good").partition(":")[0]), None)
    linked = {"num_classes": 10, "in_channels": 1, "image_size": 8, "mean": list(data.mean), "std": list(data.std)}
    made = ImageClassifier(architecture="test_resnet", task="multilabel", **linked)  # type: ignore[arg-type]
    tensors = {name: tensor.contiguous() for name, tensor in made.network.state_dict().items()}
    save_file(tensors, tmp_path / "several.safetensors")
    model = {"class_path": "ImageClassifier", "init_args": {"architecture": "test_resnet", "task": "multilabel"}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump({"model": model, **yaml.safe_load(DIGITS)}))
    several = f"{tmp_path}/several.yaml:{tmp_path}/several.safetensors"
    assert main([several, f"{tmp_path}/good.yaml:{tmp_path}/good.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "has several labels an image (--model.task multilabel), but a cascade answers with one class" in error
    assert error.count("\n") == 1


def test_missing_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path)]) == 2
    assert "no such run folder" in capsys.readouterr().err


def test_configurations_of_the_public_stages_can_be_built() -> None:
    folder = Path(__file__).resolve().parents[2] / "configs" / "stages"
    found = sorted(folder.glob("*.yaml"))
    assert len(found) == 2
    for path in found:
        settings = yaml.safe_load(path.read_text())["model"]["init_args"]
        made = TernaryClassifier(num_classes=10, in_channels=3, **settings)
        assert isinstance(made.network, ResNet)
        assert made.architecture in path.name.replace("cifar10_", "")
        assert type(configured_data(path)).__name__ == "CIFAR10DataModule"
