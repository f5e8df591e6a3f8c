"""Cascade head, end to end by its commands: extract features, train, test, predict; and an interrupted extraction."""

import csv
import json
import signal
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import load_file, save_file

from cli import main
from features import CachedSplit, read_header
from lightning_modules import load_run
from tests.datamodules.pictures import write_classes
from tests.runs.killing import ROOT, Kill, forked
from tests.runs.test_two_processes import TWO, start

pytestmark = pytest.mark.slow

EXPORT = all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))
CPU = ["--trainer.accelerator", "cpu"]
BACKBONE = ["--model.backbone", "test_vit", "--model.pretrained", "false", "--model.weights"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of small pictures."""
    return write_classes(tmp_path_factory.mktemp("pictures"), {"cat": 40, "dog": 20})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny vision transformer."""
    path = tmp_path_factory.mktemp("weights") / "test_vit.safetensors"
    with isolate_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("test_vit", img_size=32).state_dict(), path)
    return path


def of_images(pictures: Path, weights: Path) -> list[str]:
    data = ["--data.root", str(pictures), "--data.image_size", "32", "--data.workers", "0", "--data.batch_size", "8"]
    return [*BACKBONE, str(weights), *data, *CPU]


def extraction(pictures: Path, weights: Path, cache: Path) -> list[str]:
    config = ["predict", "--config", "configs/cascade_extract.yaml", *of_images(pictures, weights)]
    return [*config, "--trainer.callbacks.dtype", "float32", "--cache", str(cache)]


@pytest.fixture(scope="module")
def cache(pictures: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an uninterrupted extraction."""
    folder = tmp_path_factory.mktemp("caches") / "cache"
    assert main(extraction(pictures, weights, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head trained on the cache and tested in the same process."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = ["fit", "--config", "configs/cascade_cached.yaml", "--data.cache", str(cache), *CPU]
    short = ["--trainer.max_epochs", "3", "--data.batch_size", "8", "--test_after_fit"]
    assert main([*config, *short, "--run_dir", str(folder)]) == 0
    return folder


def same(one: Path, other: Path) -> bool:
    """Whether two caches hold the same samples, however they are divided into shards."""
    headers = [read_header(folder) for folder in (one, other)]
    if headers[0].identity != headers[1].identity or headers[0].splits.keys() != headers[1].splits.keys():
        return False
    for split, entry in headers[0].splits.items():
        a, b = (CachedSplit(folder, head, split) for folder, head in zip((one, other), headers, strict=True))  # type: ignore[arg-type]
        rows = torch.arange(entry.count)
        if not (torch.equal(a.index, b.index) and torch.equal(a.label, b.label)):
            return False
        # the other samples of the batch can change the last bits of a matrix product
        if not torch.allclose(a.take(rows), b.take(rows), rtol=0, atol=1e-5):
            return False
    return True


def test_a_new_test_command_gives_the_metrics_of_fit(run: Path) -> None:
    after_fit = json.loads((run / "test_metrics.json").read_text())["metrics"]
    assert main(["test", "--run", str(run), *CPU]) == 0
    assert json.loads((run / "test_metrics.json").read_text())["metrics"] == after_fit
    assert {"test/acc", "test/auroc", "test/ece", "test/exit_coverage_0.9", "test/balanced_acc"} <= after_fit.keys()


def test_the_files_of_a_run_hold_only_the_head(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "backbone" in name]
    assert checkpoint["backbone"]["backbone"] == "test_vit"
    assert all("head" in name for name in load_file(run / "weights.safetensors"))


def test_images_are_predicted_by_the_head_that_saw_only_features(
    run: Path, pictures: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = str(ROOT / "configs" / "cascade_train.yaml")
    monkeypatch.chdir(tmp_path)
    command = ["predict", "--config", config, *of_images(pictures, weights), "--data.images", str(pictures)]
    assert main([*command, "--ckpt", str(run / "checkpoints" / "best.ckpt")]) == 0
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    module = load_run(run)
    module.weights = str(weights)
    assert {row["class"] for row in rows} <= {"cat", "dog"}
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert module.classify(images).sum(1).tolist() == pytest.approx([1, 1])  # type: ignore[operator]


def test_other_weights_are_refused_by_name(
    run: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    with isolate_rng():
        torch.manual_seed(1)
        save_file(timm.create_model("test_vit", img_size=32).state_dict(), other)
    command = ["test", "--config", "configs/cascade_train.yaml", *of_images(pictures, other)]
    assert main([*command, "--ckpt", str(run / "checkpoints" / "best.ckpt")]) == 2
    assert "weights_hash" in capfd.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.weights_hash", "f" * 64], "--data.weights_hash is"),
        (["--data.backbone", "resnet50"], "--data.backbone is 'resnet50'"),
        (["--model.backbone", "resnet50"], "backbone: resnet50 is given"),
        (["--model", "ImageClassifier"], "needs images; the data serves features"),
    ],
    ids=["weights", "data", "model", "class"],
)
def test_a_cache_that_does_not_fit_is_refused(
    cache: Path, tmp_path: Path, flags: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(ROOT / "configs" / "cascade_cached.yaml")]
    if "ImageClassifier" in flags:
        config = ["--data", "CachedFeaturesDataModule"]
    command = ["fit", *config, "--data.cache", str(cache), "--data.batch_size", "8", *flags, *CPU]
    command += ["--run_dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_cache_without_a_writer_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "--config", "configs/digits_ternary.yaml", "--ckpt", "best", "--cache", str(tmp_path / "c")]
    assert main(command) == 2
    assert "use --config configs/cascade_extract.yaml" in capfd.readouterr().err


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_extraction_goes_on(
    cache: Path, pictures: Path, weights: Path, tmp_path: Path, signum: int, code: int
) -> None:
    command, log = extraction(pictures, weights, tmp_path / "cache"), tmp_path / "log"
    # each shard holds few samples, so that some shards exist when the extraction is stopped
    command += ["--trainer.callbacks.shard_mb", "0.02"]
    assert forked(command, Kill("predict", 3, signum), log) == code, log.read_text()
    assert not (tmp_path / "cache" / "header.json").exists()
    shards = list((tmp_path / "cache").glob("*.safetensors"))
    assert shards or signum == signal.SIGKILL
    assert forked(command, log=log) == 0, log.read_text()
    assert same(cache, tmp_path / "cache")


def test_two_processes_extract_what_one_does(cache: Path, pictures: Path, weights: Path, tmp_path: Path) -> None:
    command, log = extraction(pictures, weights, tmp_path / "cache"), tmp_path / "log"
    assert forked([*command, "--trainer.limit_predict_batches", "1"], log=log) == 0, log.read_text()
    assert start([*command, *TWO], log).wait() == 0, log.read_text()
    assert same(cache, tmp_path / "cache")
    writers = {path.name.split("-")[1] for path in (tmp_path / "cache").glob("*.safetensors")}
    assert writers == {"r000", "r001"}, log.read_text()


@pytest.mark.skipif(not EXPORT, reason="needs the extra `export`")
def test_int8_of_a_head_on_features_takes_the_images_of_the_extraction(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tools.export.__main__ import main as export
    from tools.export.quantized_weights import read_integers

    path, flags = tmp_path / "head.onnx", ["--method", "minmax", "--max_drop", "30"]
    assert export([str(run), "--int8", str(path), *flags]) == 2
    message = (
        "its data are cached features, but an int8 file is calibrated and verified with images; give the configuration"
    )
    assert message in capsys.readouterr().err
    config = tmp_path / "images.yaml"
    text = Path("configs/cascade_extract.yaml").read_text()
    config.write_text(text.replace("image_size: 256", "image_size: 32\n    workers: 0"))
    assert export([str(run), "--int8", str(path), *flags, "--data", str(config), "--data.root", str(pictures)]) == 0
    assert "same class as trained 100.00 %" in capsys.readouterr().out
    assert len(read_integers(path)) > 10  # the products of a transformer with weights
