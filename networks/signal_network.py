"""1-D residual network for raw signals: the baseline to which networks on signal images are compared.

    signal (B, S, T) -> stem -> stages -> [mean, maximum] over time -> features (B, D)

    block:  x -> conv1 of 5 samples -> norm -> gelu -> conv2 of 5 samples -> norm -> + -> gelu
            x -> shortcut ------------------------------------------------------------>|

Based on the ResNet of Wang et al. 2017, "Time Series Classification from Scratch" (arXiv 1611.06455), but each stage halves the
number of samples. With the default settings it has 0.4 M parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SignalBlock(nn.Module):
    """A residual block that can downsample the signal by a stride."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, width, 5, stride, padding=2, bias=False)
        self.norm1 = nn.BatchNorm1d(width)
        self.conv2 = nn.Conv1d(width, width, 5, padding=2, bias=False)
        self.norm2 = nn.BatchNorm1d(width)
        same = stride == 1 and channels == width
        self.shortcut = nn.Identity() if same else nn.Conv1d(channels, width, 1, stride, bias=False)

    def forward(self, signal: Tensor) -> Tensor:
        """Map (B, channels, T) to (B, width, T / stride)."""
        values = F.gelu(self.norm1(self.conv1(signal)))
        return F.gelu(self.norm2(self.conv2(values)) + self.shortcut(signal))


class SignalResNet(nn.Module):
    """Computes features of signal windows; see the top of the file.

    Args:
        in_channels: S, number of signals in a window.
        width: Channels of the first stage; the second has twice, the third four times as many.
        blocks: Residual blocks in each of the three stages.

    Raises:
        ValueError: An argument is below 1.
    """

    def __init__(self, in_channels: int, width: int = 48, blocks: int = 1) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("width", width), ("blocks", blocks)):
            if value < 1:
                raise ValueError(f"{name}: 1 or more, got {value}")
        self.stem = nn.Conv1d(in_channels, width, 7, padding=3)
        widths = [width, 2 * width, 4 * width]
        stages = []
        for number, out in enumerate(widths):
            before = widths[max(0, number - 1)]
            first = SignalBlock(before, out, stride=2)
            stages += [first, *(SignalBlock(out, out, stride=1) for _ in range(blocks - 1))]
        self.stages = nn.Sequential(*stages)

    def forward(self, signal: Tensor) -> Tensor:
        """Features (B, 8 width) float32 of normalised signals (B, S, T)."""
        values = self.stages(self.stem(signal))
        return torch.cat([values.mean(dim=2), values.amax(dim=2)], dim=1).float()
