"""Encoders that cut a signal into overlapping segments: the segments themselves as rows, or their log spectra as columns."""

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.signal_scaling import Ranges, precise, resized, unit_interval


def segment_stack(
    signals: Tensor, size: int, ranges: Ranges = None, segment: int | None = None, hop: int = 1
) -> Tensor:
    """Encode by stacking overlapping segments of a window as the rows of a grey image.

    The idea is TiViT's (Roschmann et al. 2025, arXiv:2506.08641), whose authors feed such images to frozen vision transformers.
    Row r is the segment that begins at floor(r (T - segment) / (rows - 1) + 1/2), with rows = 1 + ceil((T - segment) / hop): the
    first row begins and the last one ends with the window, and neighbours are at most `hop` samples apart. A column is a place in
    the segment. A rhythm becomes slanted stripes, which stand upright where the hop is a whole number of periods.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels, to which the stack is resized.
        ranges: Values that become black and white, see `encode`.
        segment: Samples of a row, 1 to T; None for the square root of T, rounded, at which patches of a network see as much of
            the time within as between rows.
        hop: Samples between the beginnings of two rows, 1 or more; `segment` for no overlap.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: A setting is out of its range.
    """
    length = signals.shape[-1]
    width = round(length**0.5) if segment is None else segment
    if not 1 <= width <= length:
        raise ValueError(f"segment must be between 1 and the {length} samples, got {segment}")
    if hop < 1:
        raise ValueError(f"hop must be 1 sample or more, got {hop}")
    gaps = -(-(length - width) // hop)
    device = signals.device
    starts = torch.arange(gaps + 1, device=device) * (length - width)
    starts = (2 * starts + gaps) // max(1, 2 * gaps)  # one row, at 0, where there are no gaps
    places = starts.unsqueeze(-1) + torch.arange(width, device=device)  # (rows, width)
    values, _ = unit_interval(precise(signals), ranges)
    return resized(values.float()[..., places], size).clamp_(0, 1)


def log_spectrogram(
    signals: Tensor, size: int, ranges: Ranges = None, segment: int | None = None, hop: int = 2, decibels: float = 60.0
) -> Tensor:
    """Encode by the power of each frequency over time, in decibels.

    Short-time Fourier transform with a periodic Hann window about every `hop`-th sample; the signal is mirrored at its ends. Its
    columns are times, rows frequencies from half the sampling rate at the top to 0 at the bottom. The mean is not taken out: the
    lowest row of an accelerometer that feels gravity is its posture.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels, to which the spectrogram is resized.
        ranges: White (0 dB) is the peak power of a sine that fills its signal's range, see `encode`. None: the largest power of the
            window in this signal.
        segment: Samples of the Hann window, even, 4 to 2 (T - 1); None for half of the signal. It tells frequencies apart that
            differ by two periods in a segment.
        hop: Samples between columns before resizing, 1 or more.
        decibels: From black to white, positive.

    Returns:
        (B, S, N, N) float32 in [0, 1]; no power at all gives 0.

    Raises:
        ValueError: A setting is out of its range.
    """
    batch_size, count, length = signals.shape
    segment = length // 4 * 2 if segment is None else segment
    if segment % 2 or not 4 <= segment <= 2 * (length - 1):
        raise ValueError(
            f"segment must be an even number of samples from 4 to 2 (T - 1), {2 * (length - 1)}, got {segment}"
        )
    if hop < 1:
        raise ValueError(f"hop must be 1 sample or more, got {hop}")
    if not decibels > 0:
        raise ValueError(f"decibels must be positive, got {decibels}")
    values = F.pad(precise(signals), (segment // 2, segment // 2), mode="reflect")
    window = torch.hann_window(segment, dtype=values.dtype, device=values.device)
    spectrum = torch.stft(
        values.flatten(0, 1), segment, hop, window=window, center=False, return_complex=True
    )  # (B S, frequencies, columns)
    power = torch.view_as_real(spectrum).square().sum(-1).unflatten(0, (batch_size, count))
    if ranges is None:
        full = power.flatten(2).amax(-1)
    else:
        low, high = torch.as_tensor(ranges, dtype=values.dtype, device=values.device).unbind(-1)
        full = ((high - low) / 2 * segment / 4).square()  # amplitude times half the sum of the window, segment / 2
    level = 10 * torch.log10(power / full[..., None, None].clamp(min=torch.finfo(power.dtype).tiny))
    image = (1 + level / decibels).clamp_(0, 1)  # the logarithm of 0 is minus infinity, black
    return resized(image.flip(-2), size).clamp_(0, 1)
