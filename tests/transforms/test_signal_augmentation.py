"""Signal augmentation: identities, distributions, and one rotation and one time warp compared with numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from transforms import SampleRandom, channel_dropout, jitter, rotation, scaling, time_warp

Augmentation = Callable[..., Tensor]
ALL: list[Augmentation] = [jitter, scaling, rotation, time_warp, channel_dropout]
every = pytest.mark.parametrize("augment", ALL, ids=lambda function: function.__name__)


def some_signals(batch_size: int, signals: int = 9, length: int = 40) -> Tensor:
    return torch.randn(batch_size, signals, length, generator=torch.Generator().manual_seed(0))


def some_random(batch_size: int, epoch: int = 0, seed: int = 0) -> SampleRandom:
    return SampleRandom(seed, epoch, torch.arange(50, 50 + batch_size))


@every
def test_nothing_is_changed_by_strength_0_or_probability_0(augment: Augmentation) -> None:
    signals = some_signals(4)
    assert augment(signals, some_random(4), strength=0.0) is signals
    assert augment(signals, some_random(4), strength=0.5, p=0.0) is signals


@every
def test_a_window_comes_out_the_same_in_any_batch_and_the_batch_is_left_alone(augment: Augmentation) -> None:
    signals, index = some_signals(17), torch.arange(17) * 5
    before, state = signals.clone(), torch.get_rng_state()
    changed = augment(signals, SampleRandom(0, 3, index), strength=0.5, p=0.7)
    for chosen in (torch.tensor([4]), torch.tensor([16, 2, 9])):
        some = augment(signals[chosen], SampleRandom(0, 3, index[chosen]), strength=0.5, p=0.7)
        assert torch.equal(some, changed[chosen])
    assert torch.equal(signals, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert changed.dtype == torch.float32


@every
def test_probability_is_the_share_of_changed_windows_and_the_others_keep_their_bits(augment: Augmentation) -> None:
    signals = some_signals(4000, length=6)
    changed = (augment(signals, some_random(4000), strength=0.9, p=0.3) != signals).flatten(1).any(1)
    assert abs(float(changed.double().mean()) - 0.3) < 4.5 * (0.3 * 0.7 / 4000) ** 0.5


@every
def test_draws_change_with_the_epoch_and_the_seed(augment: Augmentation) -> None:
    signals = some_signals(8)
    first = augment(signals, some_random(8), strength=0.5)
    assert not torch.equal(augment(signals, some_random(8, epoch=1), strength=0.5), first)
    assert not torch.equal(augment(signals, some_random(8, seed=1), strength=0.5), first)


def test_noise_of_jitter_is_normal_white_and_of_the_signals_own_scale() -> None:
    signals = some_signals(40, 3, 128) * torch.tensor([1.0, 10.0, 0.01])[:, None] + 5
    noise = (jitter(signals, some_random(40), strength=0.1) - signals).double()
    relative = noise / signals.double().std(-1, correction=0, keepdim=True) / 0.1
    for signal in range(2):  # the amplitude of the third signal is near rounding error
        assert stats.kstest(relative[:, signal].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((relative[:, :2, 1:] * relative[:, :2, :-1]).mean())) < 4.5 / (80 * 127) ** 0.5
    assert abs(float((relative[:, 0] * relative[:, 1]).mean())) < 4.5 / (40 * 128) ** 0.5
    constant = torch.full((2, 3, 9), 1.5)
    assert torch.equal(jitter(constant, some_random(2), strength=0.5), constant)


def test_scaling_has_one_log_normal_factor_for_a_triple() -> None:
    signals = some_signals(500, 6, 5)
    factors = scaling(signals, some_random(500), strength=0.3).double() / signals.double()
    torch.testing.assert_close(
        factors, factors[:, ::3, :1].repeat_interleave(3, 1).expand(-1, -1, 5), rtol=1e-6, atol=0
    )
    logs = factors[:, ::3, 0].log() / 0.3
    assert stats.kstest(logs.flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(float((logs[:, 0] * logs[:, 1]).mean())) < 4.5 / 500**0.5


def test_rotation_keeps_norms_and_angles_and_is_one_for_all_triples() -> None:
    signals = some_signals(30)
    turned = rotation(signals, some_random(30), strength=180.0).double().unflatten(1, (3, 3))
    triples = signals.double().unflatten(1, (3, 3))
    torch.testing.assert_close(turned.norm(dim=2), triples.norm(dim=2), rtol=1e-5, atol=1e-6)
    # a single matrix explains all triples of a window at all times; it is a rotation without mirroring
    for before, after in zip(triples, turned, strict=True):
        x, y = (each.permute(1, 0, 2).flatten(1).numpy() for each in (before, after))
        matrix = y @ np.linalg.pinv(x)
        np.testing.assert_allclose(matrix @ x, y, atol=1e-5)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(matrix) > 0


def test_rotation_has_uniform_angles_up_to_the_strength_and_axes_on_the_sphere() -> None:
    unit = (
        torch.eye(3).expand(3000, 3, 3).contiguous()
    )  # the signal at time t is the unit vector e_t, so the result is the matrix
    matrices = rotation(unit, some_random(3000), strength=40.0).double().numpy()
    angles = np.degrees(np.arccos(((np.trace(matrices, axis1=1, axis2=2) - 1) / 2).clip(-1, 1)))
    assert stats.kstest(angles / 40, "uniform").pvalue > 1e-3
    axes = np.stack([matrices[:, 2, 1] - matrices[:, 1, 2], matrices[:, 0, 2] - matrices[:, 2, 0]], 1)
    large = angles > 5
    axes = axes[large] / (2 * np.sin(np.radians(angles[large])))[:, None]
    for axis in axes.T:  # Archimedes: each coordinate of a uniform point of the sphere is uniform
        assert stats.kstest((axis + 1) / 2, "uniform").pvalue > 1e-3


def test_time_warp_reads_a_smooth_increasing_time() -> None:
    length = 60
    times = torch.arange(length, dtype=torch.float32).expand(200, 2, -1)  # a signal whose value is the time
    read = time_warp(times, some_random(200), strength=0.6, waves=3).double()
    torch.testing.assert_close(read[:, 0], read[:, 1])
    assert torch.equal(read[..., 0], torch.zeros(200, 2, dtype=torch.float64))
    torch.testing.assert_close(read[..., -1], torch.full((200, 2), length - 1.0, dtype=torch.float64))
    speed = read.diff(dim=-1)
    assert speed.min() > 0.4 - 1e-4
    assert speed.max() < 1.6 + 1e-4
    assert speed.min() < 0.7
    # three sine waves only
    t, k = np.arange(length), np.arange(1, 4)
    waves = np.sin(np.pi * np.outer(k, t) / (length - 1)) / k[:, None] * 0.6 * (length - 1) / (np.pi * 3)
    shift = (read[:, 0] - times[:, 0].double()).numpy()
    shares, *_ = np.linalg.lstsq(waves.T, shift.T, rcond=None)
    np.testing.assert_allclose(shares.T @ waves, shift, atol=2e-5)
    assert stats.kstest((shares.flatten() + 1) / 2, "uniform").pvalue > 1e-3


def test_time_warp_interpolates_all_signals_alike() -> None:
    signals = some_signals(5)
    times = torch.arange(40, dtype=torch.float32).expand(5, 1, -1)
    warped = time_warp(torch.cat((signals, times), 1), some_random(5), strength=0.5)
    for window in range(5):
        places = warped[window, -1].double().numpy()
        for signal in range(9):
            expected = np.interp(places, np.arange(40), signals[window, signal].double().numpy())
            np.testing.assert_allclose(warped[window, signal].numpy(), expected, atol=3e-5)


def test_dropped_signals_are_0_and_one_always_stays() -> None:
    signals = some_signals(2000) + 10
    kept = channel_dropout(signals, some_random(2000), strength=0.2) != 0
    assert torch.equal(kept, kept[..., :1].expand_as(kept))
    assert abs(float(kept[..., 0].double().mean()) - 0.8) < 4.5 * (0.16 / 18000) ** 0.5
    all_but_one = (channel_dropout(signals, some_random(2000), strength=1.0) != 0)[..., 0]
    assert (all_but_one.sum(1) == 1).all()
    assert (all_but_one.sum(0) > 150).all()


X, R = some_signals(4), some_random(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jitter(X, R, -0.1), "strength must be 0 or more, got -0.1"),
        (lambda: scaling(X, R, -1.0), "strength must be 0 or more, got -1.0"),
        (lambda: rotation(X, R, 181.0), "strength must be 0 to 180, got 181.0"),
        (lambda: time_warp(X, R, 1.0), "strength must be 0 to below 1, got 1.0"),
        (lambda: time_warp(X, R, 0.5, waves=0), "waves must be 1 or more, got 0"),
        (lambda: channel_dropout(X, R, 1.5), "strength must be 0 to 1, got 1.5"),
        (lambda: jitter(X, R, 0.1, p=2.0), "p must be a probability between 0 and 1, got 2.0"),
        (lambda: jitter(X[0], R), r"signals must be \(B, S, T\) float32, got shape \(9, 40\) of float32"),
        (lambda: jitter(X.double(), R), "signals must be .* of float64"),
        (lambda: rotation(X[:, :8], R), "signals must be ordered in triples x, y, z, got 8 of them"),
        (lambda: scaling(X[:, :4], R), "signals must be ordered in triples x, y, z, got 4 of them"),
        (lambda: jitter(X[:3], R), "random has 4 samples on cpu, but there are 3 windows on cpu"),
        (lambda: jitter(X.to("meta"), R), "there are 4 windows on meta"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
