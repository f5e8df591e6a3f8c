"""Batch transforms on any device: image augmentation, normalisation, resizing, MixUp/CutMix, signal augmentation and encoding.

Contract: every transform is a pure function of a batch and a `SampleRandom`. It uses no random generator and keeps no state, never
changes its input (it may return it) unless told to, and raises ValueError for an invalid setting. The result for an image is the
same in any batch, on any rank and after a resume; only the partner that `mix` chooses depends on the other images of the batch.

    random = SampleRandom(seed, epoch, batch["index"])
    images = rand_augment(batch["image"], random)                            # uint8; likewise auto_augment
    images = random_flip(random_crop(images, 4, random), random)             # any dtype
    images = normalize(images, mean, std)                                    # float32
    images, targets = mix(images, batch["label"], num_classes, random, ...)  # float32, soft targets

Windows of signals (B, S, T) are augmented in the same way. `encode` converts them to images and uses no random numbers:

    signals = rotation(jitter(batch["signal"], random), random)              # float32
    images = arrange(encode(signals, "line_plot", 64), "channels")           # float32 in [0, 1]

Random draws are named `transform/quantity`; no two transforms share a name. A transform that is applied twice in an epoch uses the
same random numbers twice.
"""

from transforms.color import color_jitter
from transforms.geometric import random_crop, random_flip
from transforms.mix import mix
from transforms.nearest import nearest_resized
from transforms.normalize import normalize
from transforms.policies import auto_augment, rand_augment
from transforms.random_erasing import random_erasing
from transforms.resized_crop import crop_boxes, random_resized_crop, resize, resized_box
from transforms.sample_random import SampleRandom
from transforms.signal_augmentation import channel_dropout, jitter, rotation, scaling, time_warp
from transforms.signal_fields import gramian_angular_field, markov_transition_field
from transforms.signal_image import Encoder, Mode, arrange, check_signals, encode, window_mean
from transforms.signal_line_plot import line_plot
from transforms.signal_recurrence import recurrence_plot
from transforms.signal_segments import log_spectrogram, segment_stack
from transforms.turn import random_turn

__all__ = [
    "Encoder",
    "Mode",
    "SampleRandom",
    "arrange",
    "auto_augment",
    "channel_dropout",
    "check_signals",
    "color_jitter",
    "crop_boxes",
    "encode",
    "gramian_angular_field",
    "jitter",
    "line_plot",
    "log_spectrogram",
    "markov_transition_field",
    "mix",
    "nearest_resized",
    "normalize",
    "rand_augment",
    "random_crop",
    "random_erasing",
    "random_flip",
    "random_resized_crop",
    "random_turn",
    "recurrence_plot",
    "resize",
    "resized_box",
    "rotation",
    "scaling",
    "segment_stack",
    "time_warp",
    "window_mean",
]
