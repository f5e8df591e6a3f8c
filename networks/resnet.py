"""ResNets for small images (CIFAR, digits), and `build_resnet`, which builds one with ternary or full-precision layers.

    image (B,C,H,W) -> stem -> stages -> mean over H,W -> dropout -> classifier -> logits (B,K)

    block:  x -> conv1 3x3 -> bn1 -> relu -> conv2 3x3 -> bn2 -> + -> relu
            x -> shortcut ------------------------------------->|

The stem is one 3x3 convolution with stride 1 and without max pooling, to keep the full resolution of small images. The
first block of every stage except the first halves H and W and doubles C.

    architecture   stage widths     blocks / stage   shortcut where the shape changes              parameters (K=10)
    resnet18       64 128 256 512   2                "projection": 1x1 convolution (option B)      11,173,962
    resnet20       16 32 64         3                "padding": every 2nd pixel, zero channels     269,722
    resnet32       16 32 64         5                (option A, no parameters)                     464,154
    resnet56       16 32 64         9                                                              853,018

He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385: resnet20/32/56 as in section 4.2,
resnet18 as in table 1, but with the stem above.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from networks.quantizers import QuantizerName, ScaleName
from networks.ternarize import ternarize
from networks.ternary import ActivationBits, check_choice

# parameter names of published ResNets for CIFAR (patterns), and the names used here
_PUBLIC_NAMES = (
    (r"^(conv|bn)1\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"\.(shortcut|downsample)\.0\.", ".shortcut.conv."),
    (r"\.(shortcut|downsample)\.1\.", ".shortcut.bn."),
    (r"^(linear|fc)\.", "classifier."),
)

Architecture = Literal["resnet18", "resnet20", "resnet32", "resnet56"]
Shortcut = Literal["projection", "padding"]

_ARCHITECTURES: dict[Architecture, tuple[tuple[int, ...], int, Shortcut]] = {
    "resnet18": ((64, 128, 256, 512), 2, "projection"),
    "resnet20": ((16, 32, 64), 3, "padding"),
    "resnet32": ((16, 32, 64), 5, "padding"),
    "resnet56": ((16, 32, 64), 9, "padding"),
}


def build_resnet(
    architecture: Architecture,
    *,
    num_classes: int,
    in_channels: int = 3,
    quantizer: QuantizerName | Literal["none"] = "twn",
    scale: ScaleName = "channel",
    full_precision: Sequence[str] = ("stem", "classifier"),
    activation_bits: ActivationBits = 32,
    dropout: float = 0.0,
) -> "ResNet":
    """Build a ResNet whose layers are ternary, except those named in `full_precision`.

    With the same seed, the ternary network and its full-precision twin (`quantizer="none"`) get the same weights and leave the
    random number generator in the same state.

    Args:
        architecture: See the table at the top of networks/resnet.py.
        num_classes: K, the length of the logits.
        in_channels: C of the images: 3 for colour, 1 for grey.
        quantizer: Ternary rule (networks/quantizers.py), or `none` for the full-precision twin; for the twin the settings
            below are checked, but have no effect.
        scale: One scale and threshold for each output `channel`, or one for the `layer`.
        full_precision: Layers that stay in full precision, given by whole parts of their dotted names: `stem`, `classifier`,
            `shortcut` (only resnet18, as other shortcuts have no weights), `stages.0`, `stages.0.1.conv2`.
        activation_bits: 8 rounds the input of each ternary layer to int8, 32 does not round.
        dropout: Probability in [0, 1) of zeroing a feature before the classifier, in training.

    Raises:
        ValueError: An argument is out of range or has an unknown value, or an entry of `full_precision` matches no layer.
    """
    check_choice("architecture", architecture, _ARCHITECTURES)
    for name, count in (("num_classes", num_classes), ("in_channels", in_channels)):
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, got {count}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    widths, blocks, shortcut = _ARCHITECTURES[architecture]
    network = ResNet(widths, blocks, shortcut, num_classes=num_classes, in_channels=in_channels, dropout=dropout)
    ternarize(network, quantizer=quantizer, scale=scale, full_precision=full_precision, activation_bits=activation_bits)
    return network


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a published CIFAR ResNet to the names used here; names used here do not change.

    resnet20/32/56 of pytorch_resnet_cifar10 and resnet18 of pytorch-cifar are the same networks with other names
    (`layer1.0.conv1.weight`, `linear.weight`).

    >>> list(own_names({"conv1.weight": Tensor(), "layer3.0.bn1.bias": Tensor(), "linear.bias": Tensor()}))
    ['stem.conv.weight', 'stages.2.0.bn1.bias', 'classifier.bias']
    """
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, ours in _PUBLIC_NAMES:
            name = re.sub(pattern, ours, name)
        renamed[name] = tensor
    return renamed


def public_names(names: Iterable[str]) -> set[str]:
    """All names that `own_names` renames to the given ones: where prefixes of a file end is seen from them.

    >>> sorted(public_names(["stages.2.0.shortcut.bn.bias", "classifier.bias"]))
    ['fc.bias', 'layer3.0.downsample.1.bias', 'layer3.0.shortcut.1.bias', 'linear.bias']
    """
    found = set()
    for name in names:
        name = re.sub(r"^stem\.(conv|bn)\.", r"\g<1>1.", name)
        name = re.sub(r"^stages\.(\d)\.", lambda match: f"layer{int(match[1]) + 1}.", name)
        name = name.replace(".shortcut.conv.", ".shortcut.0.").replace(".shortcut.bn.", ".shortcut.1.")
        found |= {name.replace(".shortcut.", f".{word}.") for word in ("shortcut", "downsample")}
    ends = ("linear.", "fc.")
    return {n.replace("classifier.", end) if n.startswith("classifier.") else n for n in found for end in ends}


class ResNet(nn.Module):
    """Residual network of basic blocks, in full precision.

    Args:
        widths: Channels of each stage.
        blocks: Residual blocks in each stage.
        shortcut: `projection` or `padding`, used if a block changes the shape.
        num_classes: Length of the logits.
        in_channels: Channels of the images.
        dropout: Probability of zeroing a feature before the classifier.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        shortcut: Shortcut,
        *,
        num_classes: int,
        in_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            OrderedDict(conv=_conv3x3(in_channels, widths[0]), bn=nn.BatchNorm2d(widths[0]), relu=nn.ReLU(inplace=True))
        )
        self.stages = nn.Sequential()
        channels = widths[0]
        for width in widths:
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and len(self.stages) > 0 else 1
                stage.append(BasicBlock(channels, width, stride, shortcut))
                channels = width
            self.stages.append(stage)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) of any size; typical sizes are 8x8 and 32x32."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Last map (B, widths[-1], H', W') of images (B, C, H, W); the sides are halved once by every stage except the first."""
        features: Tensor = self.stages(self.stem(images))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Logits (B, K) of the last map."""
        logits: Tensor = self.classifier(self.dropout(F.adaptive_avg_pool2d(features, 1).flatten(1)))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: relu(f(x) + shortcut(x)), (B, C, H, W) -> (B, C', H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "projection":
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))
        else:
            self.shortcut = PaddingShortcut(out_channels - in_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H/stride, W/stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class PaddingShortcut(nn.Module):
    """Parameter-free shortcut (option A): takes every `stride`-th pixel and pads zero channels, half of them in front."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + new_channels, H/stride, W/stride), sides rounded up."""
        front = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.new_channels - front))


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    # no bias, as a batch norm follows every convolution
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
