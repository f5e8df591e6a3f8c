"""Tests of distillation and of the ternary classifier's `init_from`: loss, initial weights, exact resume, error messages."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file, save_file

from lightning_modules import TernaryClassifier, load_run
from lightning_modules.distillation import distillation_loss
from networks import ternary_layers
from tests.runs.killing import TINY, Kill, differences, forked, outcome

SHAPE: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "image_size": 8, "architecture": "resnet20"}


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_the_loss_by_hand() -> None:
    student, teacher = [[1.0, 2.0, -1.0], [0.0, 0.5, 0.25]], [[3.0, -1.0, 0.0], [1.0, 0.0, 2.0]]
    for t in (1.0, 4.0):
        pairs = [
            (p, q)
            for s, r in zip(student, teacher, strict=True)
            for p, q in zip(softmax(r, t), softmax(s, t), strict=True)
        ]
        expected = t * t * sum(p * math.log(p / q) for p, q in pairs) / 2
        assert distillation_loss(torch.tensor(student), torch.tensor(teacher), t).item() == pytest.approx(
            expected, rel=1e-5
        )


def test_zero_loss_for_equal_logits_and_gradient_scale_independent_of_temperature() -> None:
    logits = torch.randn(4, 10, requires_grad=True, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(logits, logits.detach() + 3, 2.0).item() == pytest.approx(0, abs=1e-6)
    teacher = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    for t in (1.0, 8.0):
        (gradient,) = torch.autograd.grad(distillation_loss(logits, teacher, t), logits)
        expected = t * ((logits / t).softmax(1) - (teacher / t).softmax(1)) / 4
        torch.testing.assert_close(gradient, expected)


def started(finished: Path, **settings: Any) -> TernaryClassifier:
    torch.manual_seed(1)
    module = TernaryClassifier(**SHAPE, quantizer="ttq", **settings)
    module.setup("fit")
    module.give_weights()
    return module


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 10, (6,), generator=generator)
    return {"image": torch.randn(6, 1, 8, 8, generator=generator), "label": label}


@pytest.mark.slow
def test_teacher_contributes_to_the_training_loss_but_not_to_the_state_dict(finished: Path) -> None:
    without_teacher = started(finished, dropout=0.0)
    taught = started(finished, dropout=0.0, teacher=str(finished), distill_share=0.25, distill_temperature=3.0)
    assert taught.state_dict().keys() == without_teacher.state_dict().keys()
    data = batch()
    teacher = load_run(finished)
    with torch.no_grad():
        logits, soft = without_teacher.train()(data["image"]), teacher(data["image"])
    taught.train().on_fit_start()
    taught.network.load_state_dict(without_teacher.network.state_dict())
    step = taught.shared_step(data, "train")
    hard = torch.nn.functional.cross_entropy(logits, data["label"])
    expected = 0.75 * hard + 0.25 * distillation_loss(logits, soft, 3.0)
    torch.testing.assert_close(step["loss"], expected)
    step["loss"].backward()
    assert all(p.grad is None for p in taught._teacher[0].parameters())
    assert not taught._teacher[0].training
    # the evaluation loss uses only the labels
    torch.testing.assert_close(
        taught.shared_step(data, "val")["loss"], without_teacher.shared_step(data, "val")["loss"], rtol=1e-4, atol=1e-4
    )


def test_class_weights_count_for_the_teachers_part_too() -> None:
    """Otherwise they would be lost with `distill_share: 1`, and nearly so with the default of 0.9."""
    settings: dict[str, Any] = {"class_weights": "balanced", "label_smoothing": 0.1, "distill_share": 0.25}
    module, teacher = (TernaryClassifier(**SHAPE, quantizer="none", dropout=0.0, **settings) for _ in range(2))
    module._teacher, module.class_weight[:] = [teacher.network.eval()], torch.arange(1.0, 11.0)
    data = batch()
    target = torch.nn.functional.one_hot(data["label"], 10).float().lerp(torch.full((6, 10), 0.1), 0.4)
    module.train()
    with torch.no_grad():
        logits, soft = module(data["image"]), module._teacher[0](data["image"])
        for mixed in ({}, {"target": target}):
            shares = mixed.get("target", torch.nn.functional.one_hot(data["label"], 10).float())
            total = weights = torch.zeros(())
            for row, teacher, share in zip(logits, soft, shares, strict=True):
                for c in range(10):
                    hard = torch.nn.functional.cross_entropy(row, torch.tensor(c), label_smoothing=0.1)
                    part = 0.75 * hard + 0.25 * distillation_loss(row[None], teacher[None], 4.0)
                    total, weights = total + share[c] * (c + 1) * part, weights + share[c] * (c + 1)
            torch.testing.assert_close(module.training_loss(logits, {**data, **mixed}), total / weights)


@pytest.mark.every(3)
@pytest.mark.parametrize("source", ["", "checkpoints/best.ckpt", "weights.safetensors"])
def test_init_from_a_run_loads_its_averaged_weights(
    finished: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    state = started(finished, init_from=str(finished / source)).network.state_dict()
    weights = load_file(finished / "weights.safetensors")
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert "does not tell" not in caplog.text  # a run has the same validation images


def test_ternary_network_starts_from_its_full_precision_twin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    torch.manual_seed(5)
    twin = TernaryClassifier(**SHAPE, quantizer="none").network.state_dict()
    save_file({name: tensor.contiguous() for name, tensor in twin.items()}, tmp_path / "twin.safetensors")
    network = started(tmp_path, init_from=str(tmp_path / "twin.safetensors")).network
    assert "a file does not tell which images it was trained on" in caplog.text
    for name, layer in ternary_layers(network).items():
        assert torch.equal(layer.weight, twin[f"{name}.weight"])
        positive = layer.ternary().positive
        large = twin[f"{name}.weight"].clamp(
            min=0
        )  # the learned scale of ttq starts as the mean over the weights with symbol +1
        mask = layer.ternary().symbols > 0
        assert float(positive.mean()) == pytest.approx(
            float(((large * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)).mean()), rel=0.2
        )


@pytest.mark.parametrize("rule", ["twn", "learned_threshold", "none"])
@pytest.mark.slow
def test_init_from_another_rule_loads_only_the_weights(finished: Path, rule: str) -> None:
    module = TernaryClassifier(**SHAPE, quantizer=rule)  # type: ignore[arg-type]
    fresh = TernaryClassifier(**SHAPE, quantizer=rule, init_from=str(finished))  # type: ignore[arg-type]
    fresh.give_weights()
    weights = {k: v for k, v in load_file(finished / "weights.safetensors").items() if ".quantizer." not in k}
    state = fresh.network.state_dict()
    assert state.keys() == module.network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
    for name, layer in ternary_layers(fresh.network).items():
        before = {key: value.clone() for key, value in layer.quantizer.state_dict().items()}
        layer.initialize_quantizer()
        assert all(torch.equal(value, before[key]) for key, value in layer.quantizer.state_dict().items()), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distill_share": 1.5}, "distill_share: a share of the loss, 0 to 1, got 1.5"),
        ({"distill_temperature": 0.0}, "distill_temperature: a value over 0, got 0.0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TernaryClassifier(**SHAPE, **settings)


@pytest.mark.slow
def test_teacher_with_other_classes_raises(finished: Path) -> None:
    module = TernaryClassifier(**{**SHAPE, "num_classes": 7}, teacher=str(finished))
    with pytest.raises(
        MisconfigurationException, match=r"teacher: .* has num_classes 10, this run 7; both must be the same"
    ):
        module.setup("fit")


PUBLIC = (("stem.conv", "conv1"), ("stem.bn", "bn1"), ("classifier", "linear"))


def public_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of pytorch_resnet_cifar10 for a resnet20/32/56, without the counters of batch norms."""
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in PUBLIC:
            name = name.replace(ours, theirs)
        name = re.sub(r"stages\.(\d)", lambda stage: f"layer{int(stage[1]) + 1}", name)
        if tensor.dim() > 0:
            renamed[name] = tensor
    return renamed


@pytest.mark.every(2)
@pytest.mark.parametrize("architecture", ["resnet20", "resnet56"])
def test_a_file_of_public_weights_teaches(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(3)
    source = TernaryClassifier(**{**SHAPE, "architecture": architecture}, quantizer="none").network.eval()
    torch.save({"state_dict": public_names(source.state_dict())}, tmp_path / "public.th")
    module = TernaryClassifier(**SHAPE, quantizer="ttq", teacher=str(tmp_path / "public.th"))
    module.setup("fit")
    (teacher,) = module._teacher
    image = batch()["image"]
    with torch.no_grad():
        torch.testing.assert_close(teacher(image), source(image), rtol=1e-5, atol=1e-4)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_file_of_another_network_cannot_teach(tmp_path: Path) -> None:
    other = TernaryClassifier(**{**SHAPE, "num_classes": 7}, quantizer="none").network
    save_file(
        {name: tensor.contiguous() for name, tensor in other.state_dict().items()}, tmp_path / "seven.safetensors"
    )
    module = TernaryClassifier(**SHAPE, teacher=str(tmp_path / "seven.safetensors"))
    with pytest.raises(
        MisconfigurationException, match=r"is not a resnet18, .* resnet56 of 10 classes and 1 channels; of others"
    ):
        module.setup("fit")


@pytest.mark.slow
def test_command_line_error_creates_no_run_folder(finished: Path, tmp_path: Path) -> None:
    for flag, message in (
        ("--model.teacher", "teacher: nowhere: no such run folder, checkpoint or file of weights"),
        ("--model.init_from", "init_from: nowhere: no such run folder, checkpoint or file of weights"),
    ):
        log = tmp_path / flag
        assert forked(["fit", "--config", TINY, "--run_dir", str(tmp_path / "run"), flag, "nowhere"], log=log) == 2
        assert message in log.read_text()
        assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_is_named(tmp_path: Path) -> None:
    twin = TernaryClassifier(**SHAPE, quantizer="none")
    tensors = {name: tensor for name, tensor in twin.network.state_dict().items() if not name.startswith("stem")}
    (tmp_path / "checkpoints").mkdir()
    torch.save(
        {"state_dict": {f"network.{name}": tensor for name, tensor in tensors.items()}, "hyper_parameters": {}},
        tmp_path / "checkpoints" / "best.ckpt",
    )
    there = {"class_path": "lightning_modules.ImageClassifier", "init_args": {"architecture": "mobilenetv2_100"}}
    (tmp_path / "config.yaml").write_text(json.dumps({"model": there}))
    with pytest.raises(ValueError, match=r"^init_from: .*: the weights lack 'stem") as error:
        TernaryClassifier(**SHAPE, init_from=str(tmp_path)).give_weights()
    assert str(error.value).endswith(
        f"; {tmp_path} is a run of ImageClassifier with mobilenetv2_100, this run is of TernaryClassifier with resnet20: "
        "give a run of the same architecture"
    )


@pytest.mark.slow
def test_distilled_run_resumes_exactly_without_init_from(finished: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    shutil.copyfile(finished / "weights.safetensors", start)
    flags = ["--model.teacher", str(finished), "--model.init_from", str(start), "--trainer.max_epochs", "2"]
    arguments = ["fit", "--config", TINY, *flags, "--run_dir"]
    assert forked([*arguments, str(tmp_path / "unbroken")], log=tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert forked([*arguments, str(tmp_path / "broken")], Kill("backward", 11), tmp_path / "log") == -9
    start.unlink()
    assert forked(["fit", "--resume", str(tmp_path / "broken")], log=tmp_path / "log") == 0, (
        tmp_path / "log"
    ).read_text()
    assert not differences(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))
