"""Networks: plain `torch.nn.Module`s that know nothing of Lightning, of data sets or of losses.

resnet.py      ResNets for small images: `build_resnet`
timm_network.py  any classification network of timm, with timm's own names; transfer.py: other trainings' weights for it;
               frozen_backbone.py: features of one that is never trained. They are not imported here, for nobody should need
               timm to read a packed network
mlp_head.py    a small head on such features: `MLPHead`. Not imported here, for torch's compiler comes with it
signal_encoder.py  encoder and head for windows of signals, through their images; signal_network.py: without images. Not
               imported here, as timm's are not
ternarize.py   a plain network made ternary, and its full-precision twin: `ternarize`, `warm_start`,
               `effective_state_dict`
ternary.py     the ternary layers and a look at them: `TernaryConv2d`, `TernaryLinear`, `ternary_layers`,
               `ternary_shares`
quantizers.py  the ternary rules: twn, ttq, absmean, learned_threshold
folding.py     batch norms folded into the layers before them: `fold`
packed.py      a trained ternary network in a file as small as its symbols: `read_packed`; packed_writer.py:
               `write_packed`; packed_header.py, trits.py and entropy.py are its parts
segmenter_light.py, segmenter_clip.py  prompted segmenters, for any encoder of timm and by CLIPSeg: `LightSegmenter`,
               `CLIPSegmenter`; segmenter_parts.py: their contract and decoder; segmenter_text.py: prompts without CLIP;
               segmenter_clip_weights.py: CLIPSeg through transformers. Not imported here, as timm's are not

Contract: a classifier maps images (B, C, H, W), float, to logits (B, K), never probabilities. It takes any B, H and W;
in eval mode an image's logits do not depend on what else is in the batch. The layer after the last pooling is called
`classifier`, the first one `stem`; those of timm have timm's names.
"""

from networks.folding import fold
from networks.packed import PackedNetwork, read_packed
from networks.packed_header import PackedError
from networks.packed_writer import PackedSizes, write_packed
from networks.quantizers import QuantizerName, ScaleName, Ternary
from networks.resnet import Architecture, ResNet, build_resnet, own_names
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
    "read_packed",
    "ternarize",
    "ternary_layers",
    "ternary_shares",
    "warm_start",
    "write_packed",
]
