"""Tests of `load_run` and `Classifier.classify`: bit-identical predictions of a finished run, and error messages."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from datamodules import DigitsDataModule
from lightning_modules import Classifier, TernaryClassifier, load_run
from networks import build_resnet
from tests.runs.killing import forked
from tests.runs.linear import LinearClassifier

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """The test images of the digits data set: (359, 1, 8, 8) uint8."""
    data = DigitsDataModule()
    data.setup("test")
    return data.splits["test"]["image"]


@pytest.fixture(scope="module")
def copied(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run that tests may modify."""
    folder = tmp_path_factory.mktemp("copied") / "run"
    shutil.copytree(finished, folder)
    return folder


def classifier(run: Path, checkpoint: str = "best") -> TernaryClassifier:
    module = load_run(run, checkpoint)
    assert isinstance(module, TernaryClassifier)
    return module


def test_loaded_run_has_the_averaged_weights_of_the_weights_file(finished: Path, images: Tensor) -> None:
    plain = build_resnet("resnet20", num_classes=10, in_channels=1, quantizer="ttq", dropout=0.3)
    plain.load_state_dict(load_file(finished / "weights.safetensors"))
    module = classifier(finished)
    assert not module.training
    assert all(parameter.requires_grad for parameter in module.network.parameters())
    values = (images[:16].double() / 255 - 0.3049) / 0.3756
    with torch.no_grad():
        expected = plain.eval().to(memory_format=torch.channels_last)(values.float())
        assert torch.equal(module(values.float()), expected)
    torch.testing.assert_close(module.classify(images[:16]), expected.softmax(dim=1), atol=1e-5, rtol=1e-4)
    assert (module.class_names, module.mean, module.std) == (NAMES, [0.3049], [0.3756])
    assert module.dropout == 0.3, "settings come from the checkpoint"


@pytest.mark.slow
def test_classify_equals_the_output_of_predict(copied: Path, images: Tensor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert forked(["predict", "--run", str(copied)], log=log) == 0, log.read_text()
    with (copied / "predictions.csv").open() as file:
        written = [(row["class"], row["probability"]) for row in csv.DictReader(file)]
    module = classifier(copied)
    probabilities = torch.cat([module.classify(batch) for batch in images.split(32)])  # the batches of predict
    best, classes = probabilities.max(dim=1)
    assert module.class_names is not None
    found = [(module.class_names[k], f"{c:.6f}") for k, c in zip(classes.tolist(), best.tolist(), strict=True)]
    assert found == written


@pytest.mark.slow
def test_load_a_checkpoint_file_and_the_last_checkpoint(copied: Path) -> None:
    path = copied / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    raw, average = content["state_dict"], content["ema"]["state_dict"]
    average["network.classifier.bias"] += 1  # changed, as the best epoch may be the last
    torch.save(content, path)
    expected = {**raw, **average}
    assert not all(torch.equal(value, raw[name]) for name, value in expected.items()), "otherwise the test is trivial"
    for module in (classifier(path), classifier(copied, "last"), classifier(copied, "last.ckpt")):
        assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
    best = classifier(copied).state_dict()
    assert not torch.equal(best["network.classifier.bias"], expected["network.classifier.bias"])


@pytest.mark.slow
def test_old_checkpoint_without_class_names(copied: Path) -> None:
    content = torch.load(copied / "checkpoints" / "best.ckpt", weights_only=True)
    del content["hyper_parameters"]["class_names"]
    torch.save(content, copied / "checkpoints" / "old.ckpt")
    module, new = classifier(copied, "old"), classifier(copied)
    assert module.class_names is None
    assert torch.equal(module.classify(torch.zeros(1, 8, 8)), new.classify(torch.zeros(1, 8, 8)))


def test_class_is_read_from_the_newest_configuration(copied: Path) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    for number, name in ((9, "gone.Model"), (10, "TernaryClassifier")):  # 10 is newer than 9
        config["model"]["class_path"] = name
        (copied / f"config.resume-{number}.yaml").write_text(yaml.safe_dump(config))
    assert type(load_run(copied)) is TernaryClassifier
    for number in (9, 10):
        (copied / f"config.resume-{number}.yaml").unlink()


def with_class(folder: Path, name: str) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": name}}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN: list[tuple[Any, str]] = [
    (lambda run: shutil.rmtree(run), "no such run folder or checkpoint"),
    (lambda run: (run / "config.yaml").unlink(), "is not a run folder, it has no config.yaml"),
    (lambda run: (run / "config.yaml").write_text("a: ["), "is not the configuration of a run"),
    (lambda run: (run / "config.yaml").write_text("model: {}"), "it names no model.class_path"),
    (lambda run: with_class(run, "nowhere.Model"), "nowhere.Model cannot be imported: No module named 'nowhere'"),
    (lambda run: with_class(run, "TernaryClasifier"), "TernaryClasifier cannot be imported"),
    (lambda run: with_class(run, "torch.nn.Linear"), "torch.nn.Linear is no BaseModule"),
    (lambda run: with_class(run, "tests.runs.linear.LinearClassifier"), "best.ckpt: is not of LinearClassifier"),
    (
        lambda run: (run / "checkpoints" / "best.ckpt").unlink(),
        r"\(there: last\); a best one is .*--ckpt last\), or go on: .* fit --resume",
    ),
    (lambda run: shutil.rmtree(run / "checkpoints"), r"has no checkpoint best \(there: none\)"),
    (lambda run: cut(run / "checkpoints" / "best.ckpt"), "best.ckpt: cannot be read, it is cut short or no checkpoint"),
    (lambda run: (run / "checkpoints" / "best.ckpt").write_text(""), "best.ckpt: cannot be read"),
    (lambda run: torch.save({"a": 1}, run / "checkpoints" / "best.ckpt"), "is no checkpoint of a training run"),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN, ids=[message[:30] for _, message in BROKEN])
def test_broken_runs(breaks: Any, message: str, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    breaks(run)
    with pytest.raises(ValueError, match=message) as caught:
        load_run(run)
    assert len(str(caught.value).splitlines()) == 1


# ---- classify ----

SETTINGS: dict[str, Any] = {"num_classes": 3, "in_channels": 2, "image_size": 4}


@pytest.fixture
def linear() -> LinearClassifier:
    torch.manual_seed(0)
    return LinearClassifier(mean=[0.2, 0.7], std=[0.5, 0.25], class_names=["a", "b", "c"], **SETTINGS)


def test_classify_by_hand(linear: LinearClassifier) -> None:
    images = torch.randint(0, 256, (5, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    layer = linear.network[1]  # type: ignore[index]
    values = images.double() / 255
    values[:, 0], values[:, 1] = (values[:, 0] - 0.2) / 0.5, (values[:, 1] - 0.7) / 0.25
    logits = values.flatten(1) @ layer.weight.double().T + layer.bias.double()
    expected = (logits - logits.logsumexp(dim=1, keepdim=True)).exp().float()
    for given in (images, images.float() / 255, images.double() / 255):
        probabilities = linear.classify(given)
        torch.testing.assert_close(probabilities, expected)
        assert probabilities.dtype == torch.float32
        assert not probabilities.requires_grad
    torch.testing.assert_close(linear.classify(images[2]), expected[2:3])
    assert linear.classify(images[:0]).shape == (0, 3)
    torch.testing.assert_close(linear.double().classify(images), expected)


def test_normalisation_is_bit_identical_to_the_datamodule(images: Tensor, finished: Path) -> None:
    expected = DigitsDataModule()._normalize({"image": images})["image"]
    assert torch.equal(classifier(finished)._normalized(images), expected)


def test_classify_does_not_change_the_training_mode() -> None:
    module = TernaryClassifier(architecture="resnet20", mean=[0.3], std=[0.4], **{**SETTINGS, "in_channels": 1}).train()
    module.network.stem.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    image = torch.rand(1, 4, 4)
    first = module.classify(image)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert module.training
    assert module.network.classifier.training  # type: ignore[union-attr]
    assert not module.network.stem.training  # type: ignore[union-attr]
    assert torch.equal(module.eval().classify(image), first), "classify uses eval mode for any mode of the module"


BAD: list[tuple[Tensor, str]] = [
    (torch.zeros(5, 3, 4, 4), r"a tensor of shape \(B, 2, 4, 4\) or \(2, 4, 4\) is needed, got \(5, 3, 4, 4\)"),
    (torch.zeros(4, 4), r"is needed, got \(4, 4\)"),
    (torch.zeros(1, 2, 4, 5), r"is needed, got \(1, 2, 4, 5\)"),
    (torch.zeros(1, 1, 2, 4, 4), r"is needed, got \(1, 1, 2, 4, 4\)"),
    (
        torch.zeros(2, 4, 4, dtype=torch.int64),
        "uint8 in 0 to 255 or floating point in 0 to 1 is needed, got torch.int64",
    ),
    (torch.full((2, 4, 4), 255.0), "must be in 0 to 1, not normalised, got 255 to 255"),
    (torch.full((2, 4, 4), -0.5), "must be in 0 to 1, not normalised, got -0.5 to -0.5"),
    (torch.full((2, 4, 4), torch.nan), "must be in 0 to 1"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[-25:] for _, message in BAD])
def test_bad_images(bad: Tensor, message: str, linear: LinearClassifier) -> None:
    with pytest.raises(ValueError, match=message):
        linear.classify(bad)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="class_names: one for each of the 3 classes, got 2"):
        LinearClassifier(class_names=["a", "b"], **SETTINGS)
    module: Classifier = LinearClassifier(**SETTINGS)
    with pytest.raises(ValueError, match="mean and std: unknown to this module"):
        module.classify(torch.zeros(2, 4, 4))


def test_class_names_that_differ_from_the_data_raise(tmp_path: Path) -> None:
    (tmp_path / "names.yaml").write_text("model:\n  init_args:\n    class_names: [a, b]\n")
    log = tmp_path / "log"
    arguments = ["fit", "--config", "tests/conf/digits_ternary_tiny.yaml", "--config", str(tmp_path / "names.yaml")]
    assert forked([*arguments, "--trainer.fast_dev_run", "true"], log=log) == 2
    assert "model.class_names: ['a', 'b'] is given, but the data has ['0', '1'" in log.read_text()
