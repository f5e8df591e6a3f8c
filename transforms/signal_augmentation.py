"""Augmentation of inertial signals: jitter, scaling, rotation, time warp and channel dropout (Um et al. 2017, arXiv:1706.00527).

Each function takes (B, S, T) float32 signals, a `SampleRandom`, a strength, and the probability p that a window is changed, and
returns (B, S, T). Random numbers are drawn per window, so the result for a window is the same in any batch. Strength 0 or p 0
returns the input; a window that is not selected stays equal to the bit.

Signals are ordered in triples x, y, z of one sensor, as in UCI HAR: body acceleration, total acceleration, angular velocity.
"""

import math

import torch
from torch import Tensor

from transforms.checks import check_probability
from transforms.sample_random import SampleRandom


def jitter(signals: Tensor, random: SampleRandom, strength: float = 0.05, p: float = 1.0) -> Tensor:
    """Adds white noise, as from a noisier sensor.

    Args:
        signals: (B, S, T) float32.
        random: Draws `jitter/*`.
        strength: Standard deviation of the noise relative to the standard deviation of the signal in its window, 0 or more. The
            signal of a person who stands still therefore stays quiet.
        p: Probability that a window is changed.

    Returns:
        (B, S, T) float32.

    Raises:
        ValueError: A setting is out of range, or signals and random do not match.
    """
    if not _changes(signals, random, strength, p):
        return signals
    noise = _normal(random, "jitter/noise", signals.shape[1] * signals.shape[2]).view_as(signals)
    deviation = signals.std(-1, correction=0, keepdim=True)
    return _chosen(signals, signals + strength * deviation * noise, random, "jitter/change", p)


def scaling(signals: Tensor, random: SampleRandom, strength: float = 0.1, p: float = 1.0) -> Tensor:
    """Multiplies each sensor by a factor exp(strength z), z standard normal, as for a stronger person or an uncalibrated sensor.

    Args:
        signals: (B, S, T) float32, S a multiple of 3; the signals of a triple share one factor, so that directions do not change.
        random: Draws `scaling/*`.
        strength: Standard deviation of the logarithm of the factor, 0 or more.
        p: Probability that a window is changed.

    Returns:
        (B, S, T) float32.

    Raises:
        ValueError: A setting is out of range, or signals and random do not match.
    """
    _check_triples(signals)
    if not _changes(signals, random, strength, p):
        return signals
    factors = torch.exp(strength * _normal(random, "scaling/factor", signals.shape[1] // 3))
    scaled = signals * factors.repeat_interleave(3, 1).unsqueeze(-1)
    return _chosen(signals, scaled, random, "scaling/change", p)


def rotation(signals: Tensor, random: SampleRandom, strength: float = 15.0, p: float = 1.0) -> Tensor:
    """Rotates the sensor frame, as for a phone that is carried in another orientation; one rotation for all triples of a window.

    The axis is uniform on the sphere, the angle uniform between 0 and the strength. Gravity is rotated too, so large angles remove
    the difference between lying and standing.

    Args:
        signals: (B, S, T) float32, S a multiple of 3.
        random: Draws `rotation/*`.
        strength: Largest angle in degrees, 0 to 180.
        p: Probability that a window is changed.

    Returns:
        (B, S, T) float32; the norm of each triple does not change.

    Raises:
        ValueError: A setting is out of range, or signals and random do not match.
    """
    _check_triples(signals)
    if not _changes(signals, random, strength, p, most=180.0):
        return signals
    matrix = _rotations(random, math.radians(strength))[..., None, None]  # (B, 3, 3, 1, 1)
    x, y, z = signals.unflatten(1, (-1, 3)).unbind(2)  # (B, S / 3, T)
    # written out, because a matrix product can round differently for other batch sizes
    turned = [matrix[:, row, 0] * x + matrix[:, row, 1] * y + matrix[:, row, 2] * z for row in range(3)]
    return _chosen(signals, torch.stack(turned, 2).flatten(1, 2), random, "rotation/change", p)


def time_warp(signals: Tensor, random: SampleRandom, strength: float = 0.2, p: float = 1.0, waves: int = 4) -> Tensor:
    """Speeds time up and down smoothly, in the same way for all signals of a window.

    Sample t of the output is read, by linear interpolation, at

        t + strength L / (pi waves) sum_k a_k / k sin(pi k t / L),    k = 1 to waves, L = T - 1, a_k uniform in [-1, 1]

    so that the speed is 1 + strength / waves sum_k a_k cos(pi k t / L). It lies between 1 - strength and 1 + strength, and time
    never runs backwards. The first and the last sample do not change.

    Args:
        signals: (B, S, T) float32.
        random: Draws `time_warp/*`.
        strength: Largest relative change of the speed, 0 to below 1.
        p: Probability that a window is changed.
        waves: Number of sine waves, 1 or more; more waves let the speed change more often.

    Returns:
        (B, S, T) float32.

    Raises:
        ValueError: A setting is out of range, or signals and random do not match.
    """
    if waves < 1:
        raise ValueError(f"waves must be 1 or more, got {waves}")
    if strength >= 1:
        raise ValueError(f"strength must be 0 to below 1, got {strength}")
    if not _changes(signals, random, strength, p):
        return signals
    last = signals.shape[-1] - 1
    time = torch.arange(last + 1, dtype=torch.float32, device=signals.device)
    shares = 2 * _uniform(random, "time_warp/wave", waves) - 1  # (B, waves)
    places = time.expand(len(signals), -1)
    for k in range(1, waves + 1):
        wave = strength * last / (math.pi * waves * k) * torch.sin(time * (math.pi * k / last))
        places = places + shares[:, k - 1 : k] * wave
    places = places.clamp(0, last).unsqueeze(1)  # (B, 1, T)
    left = places.long().clamp(max=last - 1)
    earlier, later = (signals.gather(-1, i.expand_as(signals)) for i in (left, left + 1))
    return _chosen(signals, torch.lerp(earlier, later, places - left), random, "time_warp/change", p)


def channel_dropout(signals: Tensor, random: SampleRandom, strength: float = 0.1, p: float = 1.0) -> Tensor:
    """Sets whole signals to 0, as for a loose wire. The signal with the largest draw is always kept, so at least one remains.

    Args:
        signals: (B, S, T) float32.
        random: Draws `channel_dropout/*`.
        strength: Probability that a signal is dropped, 0 to 1.
        p: Probability that a window is changed.

    Returns:
        (B, S, T) float32.

    Raises:
        ValueError: A setting is out of range, or signals and random do not match.
    """
    if not _changes(signals, random, strength, p, most=1.0):
        return signals
    draws = _uniform(random, "channel_dropout/signal", signals.shape[1])
    dropped = (draws < strength) & (draws < draws.amax(1, keepdim=True))
    return _chosen(signals, signals.masked_fill(dropped.unsqueeze(-1), 0), random, "channel_dropout/change", p)


def _uniform(random: SampleRandom, name: str, count: int) -> Tensor:
    """Return (B, count) uniform numbers; the random bits of each window are the start index of its own sequence of draws."""
    starts = random.bits(name).unsqueeze(-1) + torch.arange(count, device=random.index.device)
    return SampleRandom(0, 0, starts.flatten()).uniform(name).view(-1, count)


def _normal(random: SampleRandom, name: str, count: int) -> Tensor:
    """Return (B, count) standard normal numbers; none is infinite, because the draws are shifted to the centre of their cells."""
    normal: Tensor = math.sqrt(2) * torch.erfinv(2 * _uniform(random, name, count) - 1 + 2.0**-24)
    return normal


def _rotations(random: SampleRandom, largest: float) -> Tensor:
    """Return (B, 3, 3) rotations about uniform axes by angles up to the largest, in radians (Rodrigues' formula)."""
    draws = _uniform(random, "rotation/frame", 3)
    height, around, angle = 2 * draws[:, 0] - 1, 2 * math.pi * draws[:, 1], largest * draws[:, 2]
    radius = (1 - height.square()).clamp(min=0).sqrt()
    x, y, z = radius * around.cos(), radius * around.sin(), height
    zero = torch.zeros_like(x)
    cross = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).view(-1, 3, 3)
    square = (cross.unsqueeze(-1) * cross.unsqueeze(1)).sum(2)  # not a matrix product, see `rotation`
    sine, rest = angle.sin()[:, None, None], (1 - angle.cos())[:, None, None]
    return torch.eye(3, device=draws.device) + sine * cross + rest * square


def _chosen(signals: Tensor, changed: Tensor, random: SampleRandom, name: str, p: float) -> Tensor:
    return torch.where(random.bernoulli(name, p)[:, None, None], changed, signals)


def _changes(signals: Tensor, random: SampleRandom, strength: float, p: float, most: float = math.inf) -> bool:
    """Check the arguments that all functions share, and return whether any window can change."""
    if signals.ndim != 3 or signals.dtype != torch.float32:
        shape, dtype = tuple(signals.shape), str(signals.dtype).removeprefix("torch.")
        raise ValueError(f"signals must be (B, S, T) float32, got shape {shape} of {dtype}")
    if len(random.index) != len(signals) or random.index.device != signals.device:
        raise ValueError(
            f"random has {len(random.index)} samples on {random.index.device}, but there are {len(signals)} windows on "
            f"{signals.device}: one sample per window on the same device is needed"
        )
    check_probability("p", p)
    if not 0 <= strength <= most:
        raise ValueError(f"strength must be 0 {'or more' if most == math.inf else f'to {most:g}'}, got {strength}")
    return strength > 0 and p > 0


def _check_triples(signals: Tensor) -> None:
    if signals.ndim == 3 and signals.shape[1] % 3:
        raise ValueError(f"signals must be ordered in triples x, y, z, got {signals.shape[1]} of them")
