"""Tests of image classifiers with adapters: frozen weights, small checkpoints, parameter groups, loading, errors, composition."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from lightning_modules import ImageClassifier, load_run
from lightning_modules.pretrained import read_weights
from networks.adapters import adapted_layers, is_adapter
from networks.timm_network import build_timm_network

SETTINGS: dict[str, Any] = {
    "num_classes": 5,
    "in_channels": 3,
    "image_size": 32,
    "architecture": "test_vit",
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ViT with three classes, trained elsewhere."""
    return write_source(tmp_path_factory.mktemp("source") / "vit.safetensors", seed=5)


def write_source(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    network = build_timm_network("test_vit", num_classes=3, image_size=32)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def adapted(source: Path, **settings: Any) -> ImageClassifier:
    torch.manual_seed(7)
    return ImageClassifier(**{**SETTINGS, "adapter": "lora", "weights": str(source), "lora_rank": 2, **settings})


def trained(module: ImageClassifier) -> ImageClassifier:
    """The module with its weights read and other values in everything that is trained."""
    module.give_weights()
    torch.manual_seed(8)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05)
    return module.eval()


def write_run(folder: Path, module: ImageClassifier) -> Path:
    """Write a folder like that of a run, with the checkpoint that the module saves."""
    content: dict[str, Any] = {"state_dict": dict(module.state_dict()), "hyper_parameters": dict(module.hparams)}
    content["pytorch-lightning_version"] = lightning.__version__
    module.on_save_checkpoint(content)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(content, folder / "checkpoints" / "best.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"class_path": "lightning_modules.ImageClassifier"}}))
    return folder


def test_the_weights_below_the_adapters_are_those_of_the_file(source: Path) -> None:
    module = adapted(source)
    lines = [line for _, line in module.give_weights()]
    saved = read_weights(str(source), module.network.state_dict().keys()).tensors
    state = module.network.state_dict()
    count = len(saved)
    assert lines[0].startswith(f"weights: {source}: {count - 2} of {count} tensors loaded (")
    assert lines[1].startswith("weights: not fitting (2): head.weight (3, 64) there, (5, 64) here")
    assert len(lines) == 2, "adapters are no missing tensors"
    assert all(torch.equal(state[name], saved[name]) for name in module.frozen_names())
    assert {*module.frozen_names()} == {name for name in saved if not name.startswith("head.")}
    assert all(not layer.lora_B.any() and layer.lora_A.any() for layer in adapted_layers(module.network).values())
    assert not state["head.weight"].any(), "a new head starts at zero, as without adapters"


def test_a_step_changes_adapters_and_head_only(source: Path) -> None:
    """Decay included: AdamW with a large weight decay leaves every frozen tensor as it is, to the bit."""
    module = trained(adapted(source)).train()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    groups = [{**group, "lr": 0.1} for group in module.parameter_groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    module(torch.rand(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in module.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if is_adapter(name) or name.startswith("head.")}


def test_parameter_groups(source: Path) -> None:
    """Adapters are decayed as matrices, also of rank 1; `backbone_lr` and `layer_decay` are of the adapters."""
    (weights, vectors) = adapted(source, lora_rank=1, weight_decay=0.1).parameter_groups()
    assert (weights["name"], weights["weight_decay"], vectors["name"], vectors["weight_decay"]) == (
        "weights",
        0.1,
        "vectors",
        0.0,
    )
    assert [tuple(p.shape) for p in vectors["params"]] == [(5,)], "only the head's bias"
    head, bias, backbone = adapted(source, lora_rank=1, lr=1.0, backbone_lr=0.5).parameter_groups()
    assert [group["name"] for group in (head, bias, backbone)] == ["head_weights", "head_vectors", "backbone_weights"]
    assert (head["lr"], backbone["lr"], len(backbone["params"])) == (1.0, 0.5, 48)
    layered = adapted(source, lr=1.0, layer_decay=0.5, lora_targets=["qkv"]).parameter_groups()
    rates = {group["name"]: group["lr"] for group in layered}
    assert rates["head_weights"] == 1.0
    assert [rates[f"layer{n:02d}_weights"] for n in (6, 5, 1)] == [0.5**1, 0.5**2, 0.5**6]


@pytest.mark.slow
def test_a_checkpoint_holds_what_is_trained_and_loads_with_the_rest(source: Path, tmp_path: Path) -> None:
    module = trained(adapted(source))
    run = write_run(tmp_path / "run", module)
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    network = {name.removeprefix("network.") for name in content["state_dict"] if name.startswith("network.")}
    assert network == {name for name, p in module.network.named_parameters() if p.requires_grad}
    assert content["adapter"]["weights_from"] == {"file": str(source)}
    loaded = load_run(run)
    assert isinstance(loaded, ImageClassifier)
    state = module.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.network.state_dict().items())
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(loaded.classify(images), module.classify(images), atol=0, rtol=0)
    plain = build_timm_network("test_vit", num_classes=5, image_size=32).eval()
    plain.load_state_dict(loaded.deployed_network.state_dict())
    torch.testing.assert_close(plain((images - 0.5) / 0.2), loaded.logits(images), atol=1e-5, rtol=1e-5)
    # another training starts from the merged weights
    other = ImageClassifier(**{**SETTINGS, "weights": str(run)})
    other.give_weights()
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in other.network.state_dict().items())


def test_averaged_weights_of_a_checkpoint(source: Path, tmp_path: Path) -> None:
    module = trained(adapted(source))
    run = write_run(tmp_path / "run", module)
    path = run / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    average = {name: tensor + 1 for name, tensor in content["state_dict"].items() if name.startswith("network.")}
    torch.save({**content, "ema": {"state_dict": average, "updates": 3}}, path)
    state = {f"network.{name}": tensor for name, tensor in load_run(run).network.state_dict().items()}
    assert all(torch.equal(state[name], tensor) for name, tensor in average.items())


@pytest.mark.slow
def test_frozen_weights_that_have_moved_or_are_others(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_source(tmp_path / "here.safetensors", seed=5)
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", trained(adapted(Path("here.safetensors"))))
    monkeypatch.chdir("/")
    load_run(run)  # the path was relative to the folder of the start
    place.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        ValueError, match=r"the frozen weights of test_vit with hash .* are needed; name their file"
    ) as caught:
        load_run(run)
    assert "best.ckpt: weights: here.safetensors: no such" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    load_run(run, weights=source)  # the same weights in another file
    other = write_source(tmp_path / "other.safetensors", seed=6)
    with pytest.raises(
        ValueError, match=r"other\.safetensors has frozen weights with hash .*, but the adapters were trained on"
    ):
        load_run(run, weights=other)


def test_files_without_the_weights_below(source: Path, tmp_path: Path) -> None:
    module = trained(adapted(source))
    path = tmp_path / "weights.safetensors"
    save_file({n: p.detach() for n, p in module.network.named_parameters() if p.requires_grad}, path)
    with pytest.raises(ValueError, match="holds adapters without the weights below them; give the run's folder"):
        read_weights(str(path), module.network.state_dict().keys())
    with pytest.raises(ValueError, match="the checkpoint has no entry adapter"):
        module.on_load_checkpoint({"state_dict": {}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": None}, "adapter: lora adapts trained weights, and none are given; add --model.weights FILE or"),
        ({"lora_rank": 0}, "lora_rank: 1 or more, got 0"),
        ({"lora_alpha": 0.0}, "lora_alpha: a factor over 0, got 0.0"),
        ({"lora_targets": []}, r"lora_targets: names of layers, such as \[qkv, proj\], got \[\]"),
        (
            {"lora_targets": ["fc9"]},
            "lora_targets: no linear layer 'fc9' in VisionTransformer; there are fc1, fc2, proj, qkv",
        ),
        ({"architecture": "test_resnet"}, "adapter: lora adapts linear layers, and ResNet has none outside its head"),
        (
            {"freeze": "norm_statistics"},
            "freeze: norm_statistics trains all weights, and adapter lora freezes the backbone",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str, source: Path) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(source, **settings)


def test_settings_without_effect(source: Path) -> None:
    assert "adapter none" in ImageClassifier(**SETTINGS, lora_rank=4).unused_settings()["lora_rank"]
    unused = adapted(source, drop_path=0.1, backbone_lr=0.5).unused_settings()
    assert unused["drop_path"] == "adapter lora"
    assert not {"backbone_lr", "layer_decay", "lora_rank"} & unused.keys()


def test_images_of_other_sizes(source: Path) -> None:
    """As in the stages of progressive resizing: an adapted ViT takes them, and so does the merged network."""
    module, larger = trained(adapted(source)), torch.rand(2, 3, 48, 48)
    torch.testing.assert_close(module.deployed_network(larger), module(larger), atol=1e-5, rtol=1e-5)
    assert module(larger).shape == (2, 5)


def test_the_backbone_stays_in_eval_mode(source: Path) -> None:
    module = adapted(source, dropout=0.5, network_args={"proj_drop_rate": 0.5}).train()
    modes = {name: part.training for name, part in module.network.named_modules()}
    assert modes["head_drop"]
    assert not any(mode for name, mode in modes.items() if name.startswith("blocks"))
    assert logging.WARNING not in [level for level, _ in module.give_weights()]
