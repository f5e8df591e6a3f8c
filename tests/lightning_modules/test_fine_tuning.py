"""Tests of fine-tuning image classifiers: loading initial weights, report of loaded tensors, errors, resume by command line."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_modules import ImageClassifier, load_run
from networks.timm_network import build_timm_network
from tests.runs.killing import Kill, differences, forked, outcome

MOBILENET = Path(__file__).resolve().parents[3] / "shared/data/weights/mobilenetv2_100_same_imagenet_fp16.safetensors"
SETTINGS: dict[str, Any] = {"num_classes": 5, "in_channels": 3, "image_size": 64, "architecture": "test_resnet"}


def file_of(network: nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def checkpoint(path: Path, **settings: Any) -> ImageClassifier:
    """Write a checkpoint like that of a run and return its module."""
    torch.manual_seed(3)
    module = ImageClassifier(**{**SETTINGS, **settings})
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}, path)
    return module


def test_weights_with_three_classes_start_a_run_with_five(tmp_path: Path) -> None:
    """The report is returned, rows of the head are matched by class name, and a different normalisation gives a warning."""
    path = tmp_path / "three.ckpt"
    about = {"class_names": ["c", "a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
    source = checkpoint(path, num_classes=3, **about).network.state_dict()
    names = ["a", "b", "c", "d", "e"]
    torch.manual_seed(4)
    module = ImageClassifier(**SETTINGS, weights=str(path), class_names=names, mean=[0.4] * 3, std=[0.2] * 3)
    new = torch.zeros_like(module.network.fc.weight[3:])  # type: ignore[union-attr, index]
    lines = module.give_weights()
    state = module.network.state_dict()
    assert torch.equal(state["fc.weight"], torch.cat([source["fc.weight"][[1, 2, 0]], new]))
    assert all(torch.equal(state[name], source[name]) for name in state if not name.startswith("fc."))
    count = len(state)
    width = state["fc.weight"].shape[1] + 1
    total = sum(tensor.numel() for tensor in state.values())
    share = int(1000 * (total - 2 * width) / total) / 10
    assert lines == [
        (logging.INFO, f"weights: {path}: {count - 2} of {count} tensors loaded ({share:.1f} % of the weights)"),
        (logging.INFO, "weights: head: 3 of 5 classes loaded by name (a, b, c); new: d, e"),
        (
            logging.WARNING,
            f"weights: {path}: trained on images normalised with mean [0.5, 0.5, 0.5], std [0.2, 0.2, 0.2]; "
            "this run uses mean [0.4, 0.4, 0.4], std [0.2, 0.2, 0.2]",
        ),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "test_vit"},
            r"weights: .*: only 0.0 % of the network outside its head could be filled, and min_",
        ),
        (
            {"in_channels": 1},
            "conv1.0, the first layer, is for images of 2 channels in the weights and of 1 in this run",
        ),
    ],
)
def test_weights_that_do_not_fit(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = build_timm_network("test_resnet", num_classes=5, in_channels=2 if "in_channels" in settings else 3)
    path = file_of(given, tmp_path / "weights.safetensors")
    module = ImageClassifier(**{**SETTINGS, **settings}, weights=str(path))
    with pytest.raises(ValueError, match=message) as caught:
        module.give_weights()
    assert len(str(caught.value).splitlines()) == 1


def test_random_frozen_backbone_logs_a_warning() -> None:
    lines = ImageClassifier(**SETTINGS, freeze="backbone").give_weights()
    ways = "give --model.weights FILE, or --model.pretrained true, or --model.freeze none"
    warning = f"freeze: backbone without weights: the frozen backbone is random; {ways}"
    assert lines == [(logging.WARNING, warning)]
    assert ImageClassifier(**SETTINGS).give_weights() == []


@pytest.mark.parametrize("same_classes", [True, False])
def test_pretrained_weights_of_timm(same_classes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are downloaded only for training; a network with another seed replaces timm's download."""
    create, requested = timm.create_model, []

    def with_weights(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        requested.append(pretrained)
        if pretrained:
            torch.manual_seed(9)
        network: Any = create(name, **settings)
        network.pretrained_cfg = {**network.pretrained_cfg, "num_classes": 5 if same_classes else 1000}
        return cast(nn.Module, network)

    monkeypatch.setattr(timm, "create_model", with_weights)
    torch.manual_seed(1)
    module = ImageClassifier(**SETTINGS, pretrained=True, mean=[0.485, 0.456, 0.406], std=[0.2] * 3)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ImageClassifier(**SETTINGS)
    assert requested == [False, False]
    lines = [line for _, line in module.give_weights()]
    assert requested[2:] == [True]
    assert torch.equal(torch.rand(3), expected), "the random state must not change"
    torch.manual_seed(9)
    theirs = create("test_resnet", num_classes=5, in_chans=3, drop_rate=0.0).state_dict()
    state = module.network.state_dict()
    assert all(torch.equal(state[name], theirs[name]) for name in state if not name.startswith("fc."))
    assert torch.equal(
        state["fc.weight"], theirs["fc.weight"] if same_classes else torch.zeros_like(theirs["fc.weight"])
    )
    count = len(state)
    assert f"timm's test_resnet: {count if same_classes else count - 2} of {count} tensors loaded" in lines[0]
    assert "trained on images normalised with mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]; this run" in lines[-1]


def test_error_without_network_access_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: Any) -> nn.Module:
        if pretrained:
            raise ConnectionError("Name or service\nnot known")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", offline)
    message = (
        r"pretrained: timm's weights of test_resnet could not be loaded \(ConnectionError: Name or service not known\); without "
        r"network access load them from a file: --model.weights FILE --model.pretrained false"
    )
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**SETTINGS, pretrained=True).give_weights()


@pytest.mark.skipif(not MOBILENET.is_file(), reason=f"{MOBILENET} does not exist")
def test_real_weights_with_another_padding_give_other_features() -> None:
    """With the right padding the network is the one of the weights: ImageNet's head on its features gives the same logits."""
    settings = {**SETTINGS, "architecture": "mobilenetv2_100", "num_classes": 1000}
    module = ImageClassifier(
        **settings,
        network_args={"pad_type": "same"},
        weights=str(MOBILENET),
        min_loaded=1.0,
        freeze="norm_statistics",  # its batch norms are folded
    )
    module.give_weights()
    network = timm.create_model("mobilenetv2_100", pad_type="same")
    network.load_state_dict({name: tensor.float() for name, tensor in load_file(MOBILENET).items()})
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(module.eval()(images), network.eval()(images), atol=1e-4, rtol=1e-4)


# ---- the command line ----


def config(path: Path, weights: Path) -> str:
    path.write_text(
        f"""seed_everything: 3
trainer:
  accelerator: cpu
  max_epochs: 2
  callbacks: [{{class_path: EMA, init_args: {{decay: 0.9}}}}]
checkpoint: {{last_every_n_steps: 2}}
model:
  class_path: ImageClassifier
  init_args: {{architecture: test_resnet, network_args: {{stem_type: deep}}, weights: {weights}, dropout: 0.2, drop_path: 0.1,
              layer_decay: 0.7, backbone_lr: 0.5, lr: 0.05, schedule: one_cycle, freeze: norm_statistics}}
data:
  class_path: DigitsDataModule
  init_args: {{batch_size: 16, train_fraction: 0.1, mixup_prob: 0.5}}
"""
    )
    return str(path)


@pytest.mark.slow
def test_a_run_resumes_exactly_and_loads_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = file_of(build_timm_network("test_resnet", num_classes=7, in_channels=1), tmp_path / "start.safetensors")
    log = tmp_path / "log"
    arguments = ["fit", "--config", config(tmp_path / "tiny.yaml", start), "--run_dir"]
    assert forked([*arguments, str(tmp_path / "unbroken")], log=log) == 0, log.read_text()
    assert log.read_text().count(f"weights: {start}: ") == 1
    assert "not fitting (2): fc.weight (7, " in log.read_text()
    assert "eval mode" not in log.read_text()
    assert forked([*arguments, str(tmp_path / "broken")], Kill("backward", 11), log) == -9
    resume = ["fit", "--resume", str(tmp_path / "broken")]
    again = tmp_path / "again"
    assert forked(resume, Kill("backward", 3), again) == -9
    assert "tensors loaded" not in again.read_text(), "a resumed run uses the weights of its checkpoint"
    start.unlink()
    assert forked(resume, log=again) == 0, again.read_text()
    assert not differences(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))
    for setting, value in (("freeze", "none"), ("layer_decay", "1.0"), ("network_args.stem_type", "''")):
        shutil.copytree(tmp_path / "broken", tmp_path / f"changed_{setting}")
        target = str(tmp_path / f"changed_{setting}")
        flags = ["--trainer.max_epochs", "3", f"--model.{setting}", value]
        assert forked(["fit", "--resume", target, *flags], log=tmp_path / "refused") == 2
        assert "cannot change in a resumed run" in (tmp_path / "refused").read_text()
        (tmp_path / "refused").unlink()

    def no_download(*_: Any, **__: Any) -> Callable[..., Any]:
        raise AssertionError("loading a run asks nobody for weights")

    monkeypatch.setattr("lightning_modules.image_classifier.read_weights", no_download)
    monkeypatch.setattr(ImageClassifier, "_download", no_download)
    module = load_run(tmp_path / "broken")
    assert isinstance(module, ImageClassifier)
    assert not module.training
    weights = load_file(tmp_path / "broken" / "weights.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.network.state_dict().items())
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    plain = build_timm_network("test_resnet", num_classes=10, in_channels=1, network_args={"stem_type": "deep"})
    plain.load_state_dict(weights)
    with torch.no_grad():
        expected = plain.eval()((images.double() / 255 - 0.3049).float() / 0.3756).softmax(dim=1)
    torch.testing.assert_close(module.classify(images), expected, atol=1e-5, rtol=1e-4)
