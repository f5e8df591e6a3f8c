"""Tests of reading initial weights: every kind of file gives the same tensors, and errors are one line; loading into new runs."""

from __future__ import annotations

import argparse
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_modules import Classifier, ImageClassifier, load_run
from lightning_modules.pretrained import SavedWeights, read_weights
from lightning_modules.pretrained.reading import _named_as

SETTINGS: dict[str, Any] = {"num_classes": 3, "in_channels": 1, "image_size": 32, "architecture": "test_resnet"}
ABOUT: dict[str, Any] = {"class_names": ["a", "b", "c"], "mean": [0.5], "std": [0.25]}


@pytest.fixture(scope="module")
def network() -> dict[str, Tensor]:
    """State dict of a network with values that no initialisation produces."""
    torch.manual_seed(7)
    state = ImageClassifier(**SETTINGS).network.state_dict()
    return {k: 0.1 + torch.rand_like(v) if v.is_floating_point() else v + 3 for k, v in state.items()}


@pytest.fixture(scope="module")
def run(network: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose best checkpoint holds `network` as averaged weights, and other raw weights."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(8)
    module = ImageClassifier(**SETTINGS, **ABOUT)
    average = {f"network.{name}": tensor for name, tensor in network.items()}
    content = {
        "state_dict": module.state_dict(),
        "ema": {"state_dict": {**module.state_dict(), **average}, "updates": 5},
        "hyper_parameters": dict(module.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text("model: {class_path: ImageClassifier}\n")
    save_file({k: v.contiguous() for k, v in network.items()}, folder / "weights.safetensors")
    return folder


def saved(content: Any) -> Callable[[Path, Path], Path]:
    def write(_: Path, target: Path) -> Path:
        torch.save(content, target / "weights.pth")
        return target / "weights.pth"

    return write


def checkpoint_only(run: Path, target: Path) -> Path:
    return Path(shutil.copyfile(run / "checkpoints" / "best.ckpt", target / "moved.ckpt"))


def prefixed(network: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in network.items()}


def zeros(network: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in network.items()}


class Runs:
    """An object that fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code of a weights file was run')",)


SOURCES: dict[str, Callable[[dict[str, Tensor]], Callable[[Path, Path], Path]]] = {
    "run": lambda network: lambda run, _: run,
    "checkpoint": lambda network: lambda run, _: run / "checkpoints" / "best.ckpt",
    "moved": lambda network: checkpoint_only,
    "safetensors": lambda network: lambda run, _: run / "weights.safetensors",
    "plain": saved,
    "ordered": lambda network: saved(dict(network.items())),
    **{
        key: lambda network, key=key: saved({key: network, "epoch": 3})  # type: ignore[misc]
        for key in ("state_dict", "model", "model_ema", "network", "model_state_dict", "net")
    },
    "teacher": lambda network: saved(
        {"student": prefixed(zeros(network), "module.backbone."), "teacher": prefixed(network, "backbone.")}
    ),
    "average beside": lambda network: saved({"model": zeros(network), "model_ema": network}),
    "average by prefix": lambda network: saved({**prefixed(zeros(network), "net."), **prefixed(network, "ema_net.")}),
    "path": lambda network: saved(
        {"state_dict": prefixed(network, "encoder.0."), "hyper_parameters": {"root": Path()}}
    ),
    "runs": lambda network: saved({"net": network, "args": Runs()}),
    "averaged": lambda network: saved({"state_dict": {}, "state_dict_ema": prefixed(network, "module.")}),
    "timm": lambda network: saved({"state_dict": network, "args": argparse.Namespace(lr=1.0), "epoch": 3}),
    **{
        prefix: lambda network, prefix=prefix: saved(prefixed(network, prefix))  # type: ignore[misc]
        for prefix in ("module.", "network.", "_orig_mod.", "model.", "module._orig_mod.model.")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_weights(kind: str, network: dict[str, Tensor], run: Path, tmp_path: Path) -> None:
    source = SOURCES[kind](network)(run, tmp_path)
    found = read_weights(str(source), network.keys())
    assert found.tensors.keys() == network.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in network.items())
    names, *normalisation = found[1:4]
    ours = kind in ("run", "checkpoint", "moved")
    assert (names, normalisation) == ((["a", "b", "c"], [[0.5], [0.25]]) if ours else (None, [None, None]))
    module = ImageClassifier(**SETTINGS, weights=str(source))
    module.give_weights()
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(module.eval()(images), load_run(run)(images))


def test_what_is_taken_of_several_networks_in_a_file_is_logged(
    network: dict[str, Tensor], run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for kind, said in (
        ("teacher", "teacher is taken of student, teacher"),
        ("average by prefix", "the tensors of ema_net.* are taken, not those of net."),
    ):
        read_weights(str(SOURCES[kind](network)(run, tmp_path)), network.keys())
        assert said in caplog.text


def test_prefix_that_is_part_of_the_name_is_kept() -> None:
    tensors = {"model.a": torch.ones(1), "module.model.b": torch.zeros(1), "model.c": torch.ones(1)}
    assert _named_as(tensors, {"model.a", "model.b", "c"})[0].keys() == {"model.a", "model.b", "c"}
    both = {"model.c": torch.zeros(1), "c": torch.ones(1)}
    assert _named_as(both, {"c"})[0]["c"] == 1
    assert _named_as(dict(reversed(both.items())), {"c"})[0]["c"] == 1


class Unsafe:
    """A class that must not be unpickled."""


def cut(run: Path, target: Path) -> Path:
    path = checkpoint_only(run, target)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def written(name: str, content: bytes) -> Callable[[Path, Path], Path]:
    def write(_: Path, target: Path) -> Path:
        (target / name).write_bytes(content)
        return target / name

    return write


BROKEN: list[tuple[Callable[[Path, Path], Path], str]] = [
    (lambda run, target: target / "gone", "gone: no such run folder, checkpoint or file of weights"),
    (lambda run, target: target, "is not a run folder, it has no config.yaml"),
    (cut, "moved.ckpt: cannot be read: it is truncated or not a weights file"),
    (written("a.pth", b""), "a.pth: cannot be read: it is truncated or not a weights file"),
    (written("a.pth", b"text"), "a.pth: cannot be read: it is truncated"),
    (
        written("a.csv", b"text"),
        r"a.csv: is a table, not weights; give a run folder, a checkpoint \(.ckpt\), a .safetensors",
    ),
    (written("a.onnx", b"text"), "a.onnx: is in a format that is not read; give a run folder"),
    (written("a.safetensors", b"text"), "a.safetensors: cannot be read as safetensors"),
    (saved(Unsafe()), "is a Python object of .*Unsafe, which is never loaded; save its state_dict"),
    (saved({"model": Runs()}), r"holds no state dict \(it has model\)"),
    (written("a.pth", pickle.dumps(argparse.Namespace(), protocol=2)), "a.pth: cannot be read"),
    (saved([torch.zeros(1)]), "holds no state dict but data of type list"),
    (saved({"epoch": 1, "lr": 0.1}), r"holds no state dict \(it has epoch, lr\)"),
    (saved({}), r"holds no state dict \(it has nothing\)"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN, ids=[message[:40] for _, message in BROKEN])
def test_broken_sources(make: Callable[[Path, Path], Path], message: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(str(make(run, tmp_path)), [])
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_without_a_best_checkpoint(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copyfile(run / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=r"has no checkpoint best \(there: none\)"):
        read_weights(str(tmp_path), [])


def test_weights_of_a_command_line_run(finished: Path) -> None:
    """From a real run folder, the averaged weights and the class names are read."""
    expected = load_file(finished / "weights.safetensors")
    found = read_weights(str(finished), expected.keys())
    assert isinstance(found, SavedWeights)
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    assert found.class_names == [str(digit) for digit in range(10)]
    assert (found.mean, found.std) == ([0.3049], [0.3756])


# ---- a new run, a resumed run ----


@pytest.fixture
def no_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace `BaseModule.configure_optimizers`, which needs a Trainer; loading the weights before it does not."""
    monkeypatch.setattr(Classifier, "configure_optimizers", lambda self: None)


@pytest.mark.usefixtures("no_optimizer")
def test_weights_are_loaded_once_and_the_report_is_logged(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = ImageClassifier(**SETTINGS, weights=str(run), mean=[0.5], std=[0.5])
    for stage in ("fit", "test"):
        module.setup(stage)
    assert not caplog.records, "no initial weights are loaded for main.py test"
    with caplog.at_level(logging.INFO):
        module.configure_optimizers()
    logged = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert logged[0] == (logging.INFO, f"weights: {run}: 92 of 92 tensors loaded (100.0 % of the weights)")
    assert logged[-1][0] == logging.WARNING
    assert logged[-1][1].endswith(
        "trained on images normalised with mean [0.5], std [0.25]; this run uses mean [0.5], std [0.5]"
    )
    head: Any = module.network.get_submodule("fc")
    torch.nn.init.zeros_(head.weight)
    module.configure_optimizers()
    assert head.weight.eq(0).all(), "a second fit must not load the weights again"


@pytest.mark.usefixtures("no_optimizer")
def test_folded_batch_norms_raise_unless_their_statistics_are_frozen(tmp_path: Path) -> None:
    source = ImageClassifier(**SETTINGS).network.state_dict()
    state = {name: torch.ones_like(tensor) if name.endswith("bias") else tensor for name, tensor in source.items()}
    torch.save(state, tmp_path / "folded.pth")
    with pytest.raises(MisconfigurationException, match=r"15 batch norms have mean 0 and variance 1.*norm_statistics"):
        ImageClassifier(**SETTINGS, weights=str(tmp_path / "folded.pth")).configure_optimizers()
    for part in ("norm_statistics", "backbone"):
        module = ImageClassifier(**SETTINGS, weights=str(tmp_path / "folded.pth"), freeze=part)
        module.configure_optimizers()
        assert module.network.state_dict()["bn1.bias"].eq(1).all()


@pytest.mark.usefixtures("no_optimizer")
def test_source_is_not_read_when_a_checkpoint_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ImageClassifier(**SETTINGS, weights="gone")
    module.setup("fit")
    with pytest.raises(MisconfigurationException, match="weights: gone: no such run folder, checkpoint or file of"):
        module.configure_optimizers()
    module.on_load_checkpoint({"state_dict": {}})
    monkeypatch.setattr(ImageClassifier, "give_weights", lambda self: pytest.fail("a resumed run has its own weights"))
    module.configure_optimizers()
