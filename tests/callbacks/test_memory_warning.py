"""WarnOnMemory: the bytes that autograd keeps against a count by hand, when it warns, and that it leaves the run as it is."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from callbacks import WarnOnMemory
from callbacks.failures.memory import BEYOND_SAVED, STATE, saved_bytes
from cli import main
from foundation import memory
from tests.lightning_modules.random_photos import PIXELS, photos, quiet
from tests.runs.killing import TINY, outcome
from tests.runs.linear import LinearClassifier


def classifier(network: nn.Module) -> LinearClassifier:
    module = LinearClassifier(**PIXELS)
    module.network, module.channels_last = network, False  # else Flatten copies
    return module


def test_saved_bytes_by_hand() -> None:
    """A convolution keeps its input, ReLU its output, batch norm in eval mode its input (which is the convolution's output)."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16 * 16, 2)
    )
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = classifier(network).train()
    state = torch.get_rng_state()
    maps = 16 * 16 * 4
    assert saved_bytes(module, 16) == 3 * maps + 8 * maps + 8 * maps
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_layers_keep_nothing() -> None:
    frozen = nn.Conv2d(3, 8, 3).requires_grad_(False)
    module = classifier(nn.Sequential(frozen, nn.Flatten(), nn.Linear(8 * 14 * 14, 2)))
    assert saved_bytes(module, 16) == 8 * 14 * 14 * 4


@pytest.mark.parametrize(
    ("share", "advice"),
    [
        (2.0, None),
        (0.7, "--data.batch_size 8 --trainer.accumulate_grad_batches 2 (as many samples an optimiser step)"),
        (0.3, "--data.batch_size 4 --trainer.accumulate_grad_batches 4"),
        (0.01, "give a smaller --data.image_size or another --model.architecture"),
    ],
)
def test_warns_if_the_batch_does_not_fit(
    share: float, advice: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = classifier(
        nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2)
        )
    )
    weights = STATE * sum(parameter.nbytes for parameter in module.parameters())
    needed = weights + BEYOND_SAVED * 16 * (32 * 32 * 4 * (3 + 64) + 64 * 4)
    free = int(weights + share * (needed - weights)) if share >= 0.3 else int(share * needed)
    monkeypatch.setattr("callbacks.failures.memory.free_memory", lambda: free)
    trainer = quiet(tmp_path, max_steps=1, callbacks=[WarnOnMemory()])
    with caplog.at_level(logging.WARNING):
        trainer.fit(module, datamodule=photos(batch_size=16))
    found = [record.getMessage() for record in caplog.records if record.getMessage().startswith("memory:")]
    assert len(found) == (advice is not None)
    if advice is not None:
        assert f"a step of 16 samples of 32 px needs about {needed / 1e9:.1f} GB" in found[0]
        assert advice in found[0]


@pytest.mark.slow
def test_the_run_stays_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--config", TINY, "--trainer.max_epochs", "1"]
    assert main([*words, "--run_dir", str(tmp_path / "with")]) == 0
    monkeypatch.setattr(WarnOnMemory, "on_fit_start", lambda *_: None)
    assert main([*words, "--run_dir", str(tmp_path / "without")]) == 0
    state = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("with", "without")
    ]
    assert all(torch.equal(value, state[1]["state_dict"][key]) for key, value in state[0]["state_dict"].items())
    assert outcome(tmp_path / "with").keys() == outcome(tmp_path / "without").keys()


@pytest.mark.parametrize(
    ("limit", "left"),
    [("1000000000", 600_000_000 + 50), ("max", None)],
    ids=["limit", "no limit"],
)
def test_limit_of_a_container(limit: str, left: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("max", limit), ("current", "400000000"), ("stat", "anon 7\ninactive_file 50\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_of_machine", lambda: 2_000_000_000)
    assert memory.free_memory() == (2_000_000_000 if left is None else left)
