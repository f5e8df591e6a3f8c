"""callbacks/ema.py: decay, warm-up and the update of the average."""

from types import SimpleNamespace

import pytest
import torch

from callbacks.ema import EMA, effective_decay, update_average


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_values_after_three_updates(decay: float) -> None:
    weights = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
    average = [torch.zeros(2), torch.tensor(0.0)]
    for _ in range(3):
        update_average(average, weights, decay)
    share = 1 - decay**3
    torch.testing.assert_close(average, [weight * share for weight in weights])


def test_decay_zero_copies_bit_for_bit() -> None:
    weights = [torch.randn(1000)]
    average = [torch.randn(1000)]
    update_average(average, weights, 0.0)
    assert torch.equal(average[0], weights[0])
    assert average[0].data_ptr() != weights[0].data_ptr()


def test_warmup_grows_to_the_decay() -> None:
    decays = [effective_decay(0.9, t, True) for t in range(200)]
    assert decays[0] == pytest.approx(0.1)
    assert decays == sorted(decays)
    assert decays[-1] == 0.9
    assert effective_decay(0.9, 0, False) == 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"decay": 1.0}, "decay: at least 0 and under 1, got 1.0"), ({"start_step": -1}, "start_step: 0 or more, got -1")],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("steps", "fits"), [(1, 0.5), (20, 0.5), (100, 0.9), (690, 0.98)])
def test_a_half_life_longer_than_the_run_is_said(steps: int, fits: float, caplog: pytest.LogCaptureFixture) -> None:
    module = SimpleNamespace(stages=lambda: [SimpleNamespace(steps=steps)])
    trainer = SimpleNamespace(global_step=0, max_epochs=1, max_steps=-1)
    caplog.set_level("INFO")
    for decay in (fits, 0.0, 0.999):
        EMA(decay).on_train_start(trainer, module)  # type: ignore[arg-type]
    (record,) = caplog.records
    assert f"the run only {steps}: " in record.getMessage()
    assert record.getMessage().endswith(f"; give --trainer.callbacks.EMA.decay {fits:g}")
    trainer.max_epochs, trainer.global_step = -1, 0
    EMA(0.999).on_train_start(trainer, module)  # type: ignore[arg-type]
    assert len(caplog.records) == 1, "a run without an end has no length"
