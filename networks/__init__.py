"""Network architectures and layers: plain `torch.nn.Module`s, independent of Lightning, data sets and losses.

resnet.py      ResNets for small images: `build_resnet`
timm_network.py  builds any timm classification network with timm's parameter names; transfer/: loads weights of another
               training into it; frozen_backbone.py: features of a timm network that is never trained. Not imported here, so
               that reading a packed network does not require timm
mlp_head.py    small head on features: `MLPHead`, and batched_heads.py: many heads trained at once. Not imported here, as
               they import torch's compiler
signal_encoder.py  encoder and head for signal windows as images; signal_network.py: 1-D network for signals. Not imported
               here, as they import timm
ternarize.py   conversion of a plain network to a ternary one and back: `ternarize`, `warm_start`, `effective_state_dict`
ternary.py     ternary layers and their statistics: `TernaryConv2d`, `TernaryLinear`, `ternary_layers`, `ternary_shares`
quantizers.py  ternary quantisation rules: twn, ttq, absmean, learned_threshold
folding.py     folds batch norms into the layers before them: `fold`
packed.py      reads a trained ternary network from a small file: `read_packed`; packed_writer.py writes it:
               `write_packed`; packed_header.py and codings/: header and codings of that file
integer/       computes a ternary network with integers: `PackedRuntime` on a CPU, `PackedGpuRuntime` on CUDA. Not imported
               here, as they compile kernels on first use
segmenters/    prompted segmenters with a timm encoder and with CLIPSeg: light.py `LightSegmenter`, clip.py `CLIPSegmenter`,
               parts.py: their interface and decoder; text.py: text encoder without CLIP; clip_weights.py: loads CLIPSeg with
               transformers; tiling.py, one folder up: segments large images in tiles.
               Not imported here, as they import timm

Contract: a classifier maps images (B, C, H, W), float, to logits (B, K), never probabilities. It takes any B, H and W. In
eval mode the logits of an image do not depend on the other images of the batch. The layer after the last pooling is named
`classifier`, the first one `stem`; timm networks keep timm's names.
"""

from networks.folding import fold
from networks.packed import PackedNetwork, read_packed
from networks.packed_header import PackedError
from networks.packed_writer import PackedSizes, write_packed
from networks.quantizers import QuantizerName, ScaleName, Ternary
from networks.resnet import Architecture, ResNet, build_resnet, own_names, public_names
from networks.ternarize import effective_state_dict, ternarize, warm_start
from networks.ternary import (
    ActivationBits,
    TernaryConv2d,
    TernaryLayer,
    TernaryLinear,
    ternary_layers,
    ternary_shares,
)

__all__ = [
    "ActivationBits",
    "Architecture",
    "PackedError",
    "PackedNetwork",
    "PackedSizes",
    "QuantizerName",
    "ResNet",
    "ScaleName",
    "Ternary",
    "TernaryConv2d",
    "TernaryLayer",
    "TernaryLinear",
    "build_resnet",
    "effective_state_dict",
    "fold",
    "own_names",
    "public_names",
    "read_packed",
    "ternarize",
    "ternary_layers",
    "ternary_shares",
    "warm_start",
    "write_packed",
]
