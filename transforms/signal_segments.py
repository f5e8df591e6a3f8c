"""Signal encoders segment stack (overlapping segments as rows) and log spectrogram (log spectra of segments as columns)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from transforms.signal_scaling import Ranges, precise, resized, unit_interval


def segment_stack(
    signals: Tensor, size: int, ranges: Ranges = None, segment: int | None = None, hop: int = 1
) -> Tensor:
    """Encodes signals as segment stacks: overlapping segments of a window are the rows of a grey image.

    The idea is from TiViT (Roschmann et al. 2025, arXiv:2506.08641), which feeds such images to frozen vision transformers. Row r
    is the segment that starts at floor(r (T - segment) / (rows - 1) + 1/2), with rows = 1 + ceil((T - segment) / hop). The
    first row starts at the start of the window and the last row ends at its end; neighbouring rows are at most `hop` samples apart.
    A column is a position within the segment. A periodic signal gives slanted stripes, which are vertical if the hop is a whole
    number of periods.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels, to which the stack is resized.
        ranges: Values that are mapped to black and white, see `encode`.
        segment: Samples of a row, 1 to T; None for the rounded square root of T, for which a network's patches cover as much time
            within rows as between rows.
        hop: Samples between the starts of two rows, 1 or more; equal to `segment` for no overlap.

    Returns:
        (B, S, N, N) float32 in [0, 1].

    Raises:
        ValueError: A setting is out of range.
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
    starts = (2 * starts + gaps) // max(1, 2 * gaps)  # a single row, at 0, if there are no gaps
    places = starts.unsqueeze(-1) + torch.arange(width, device=device)  # (rows, width)
    values, _ = unit_interval(precise(signals), ranges)
    return resized(values.float()[..., places], size).clamp_(0, 1)


def log_spectrogram(
    signals: Tensor, size: int, ranges: Ranges = None, segment: int | None = None, hop: int = 2, decibels: float = 60.0
) -> Tensor:
    """Encodes signals as log spectrograms: power of each frequency over time, in decibels.

    Uses a short-time Fourier transform with a periodic Hann window centred on every `hop`-th sample; the signal is mirrored at its
    ends. Columns are times; rows are frequencies from half the sampling rate at the top to 0 at the bottom. The mean is not
    removed: for an accelerometer that measures gravity, the lowest row shows the posture.

    Args:
        signals: (B, S, T) float32.
        size: Height and width N in pixels, to which the spectrogram is resized.
        ranges: White (0 dB) is the peak power of a sine that fills the range of its signal, see `encode`. None: white is the
            largest power in the window of this signal.
        segment: Samples of the Hann window, even, 4 to 2 (T - 1); None for half of the signal. Frequencies can be distinguished if
            they differ by two periods per segment.
        hop: Samples between columns before resizing, 1 or more.
        decibels: Range from black to white, positive.

    Returns:
        (B, S, N, N) float32 in [0, 1]; a signal without any power gives 0.

    Raises:
        ValueError: A setting is out of range.
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
        full = (
            (high - low) / 2 * segment / 4
        ).square()  # amplitude times half the sum of the window; the sum is segment / 2
    level = 10 * torch.log10(power / full[..., None, None].clamp(min=torch.finfo(power.dtype).tiny))
    image = (1 + level / decibels).clamp_(0, 1)  # the logarithm of 0 is minus infinity, which becomes black
    return resized(image.flip(-2), size).clamp_(0, 1)
