"""Shared parts of the prompted segmenters: image-prompt pairs, padding, and the prompt-conditioned U-Net decoder (FiLM).

B: images, N: pairs of an image and a prompt, C: channels, T: length of a prompt's vector.

Interface of a segmenter: `network(image (B, 3, H, W), prompts, image_index (N,)) -> (N, 1, H, W)`, the logits for the pairs of
`prompts[i]` and image `image_index[i]`, at the size of the images, which may be any. Results that depend only on the image are
computed once per image, results that depend only on the text once per distinct text. `pairs` converts a list of prompts per image
to this form.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# initial probability that a pixel belongs to the object, so that the first steps are not spent on learning that most are empty
PRIOR = 0.1


def pairs(prompts: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """Flatten a list of prompts per image into the prompt and the image index of each pair.

    >>> pairs([["crack", "tape"], [], ["crack"]])
    (['crack', 'tape', 'crack'], tensor([0, 0, 2]))
    """
    index = [image for image, listed in enumerate(prompts) for _ in listed]
    return [prompt for listed in prompts for prompt in listed], torch.tensor(index, dtype=torch.int64)


def pair_images(images: int, prompts: Sequence[str], image_index: Tensor | None, device: torch.device) -> Tensor:
    """Index of the image of each pair, (N,) int64 on the device; without `image_index` each image has one prompt.

    Raises:
        ValueError: The numbers of prompts and of images do not match.
    """
    count = images if image_index is None else len(image_index)
    if isinstance(prompts, str) or len(prompts) != count:
        given = f"one text, {prompts!r}" if isinstance(prompts, str) else f"{len(prompts)}"
        raise ValueError(
            f"prompts: a list of {count} is needed, one for each image or entry of image_index, got {given}"
        )
    return torch.arange(images, device=device) if image_index is None else image_index.to(device)


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The distinct prompts, and the index of each prompt among them.

    >>> distinct(["b", "a", "b"])
    (['b', 'a'], [0, 1, 0])
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Pad images (B, C, H, W) by repeating their right and lower edges until both sides are divisible by `multiple`."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


class PairSegmenter(nn.Module):
    """Base of the segmenters: pairs of an image and a prompt, each image and each text computed once.

    A subclass defines ``multiple``, ``vectors``, ``features``, ``decoded`` and ``decoder``, and ``encoder`` if it is trained.
    """

    multiple: int
    """Number of pixels that divides both sides of the images that ``features`` and ``decoded`` take."""

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile encoder and decoder with the arguments of `torch.compile`.

        Not the whole network: texts are no tensors, so a graph would be built for every list of prompts, until torch gives up.
        """
        for name in ("encoder", "decoder"):
            if isinstance(part := getattr(self, name, None), nn.Module):
                part.compile(*args, **kwargs)

    def forward(self, image: Tensor, prompts: Sequence[str], image_index: Tensor | None = None) -> Tensor:
        """Logits for pairs of an image and a prompt.

        Args:
            image: (B, 3, H, W), normalised, of any size.
            prompts: N texts.
            image_index: Index of the image of each prompt (N,), int64; None if each image has exactly one prompt.

        Returns:
            Logits (N, 1, H, W).

        Raises:
            ValueError: The numbers of prompts and images do not match, or a prompt contains no word.
        """
        index = pair_images(len(image), prompts, image_index, image.device)
        texts, places = distinct(prompts)
        height, width = image.shape[-2:]
        if not texts:
            return image.new_zeros(0, 1, height, width)
        vectors = self.vectors(texts)[places]
        padded = pad_to_multiple(image, self.multiple)
        return self.decoded(padded, self.features(padded), vectors, index)[..., :height, :width]

    @abstractmethod
    def vectors(self, prompts: Sequence[str]) -> Tensor:
        """Vectors (P, T) of P prompts; raises a ValueError if one contains no word."""

    @abstractmethod
    def features(self, image: Tensor) -> list[Tensor]:
        """Tensors that depend on the images (B, 3, H, W) only."""

    @abstractmethod
    def decoded(self, image: Tensor, features: list[Tensor], vectors: Tensor, image_index: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of N pairs, from images and their features, and the vector (N, T) and the image (N,) of each pair."""


class PromptedBlock(nn.Module):
    """3x3 convolution, normalisation, FiLM by the prompt, ReLU: maps (N, C, H, W) and (N, T) to (N, C', H, W).

    FiLM (Perez et al. 2018, arXiv 1709.07871): multiply each channel by 1 + a(prompt) and add b(prompt); a and b start at 0.
    """

    def __init__(self, channels: int, out_channels: int, text_width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        # statistics per sample: batches are small, and in batch statistics the prompts of one image would dominate
        self.norm = nn.GroupNorm(_groups(out_channels), out_channels)
        self.film = nn.Linear(text_width, 2 * out_channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Output of the block, with the height and width of `x`."""
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        return F.relu(torch.addcmul(shift, self.norm(self.convolution(x)), 1 + scale))


class Presence(nn.Module):
    """Presence score of an image and a prompt, added to all logits of the pair: whether the object is in the image at all.

    A single position of the image cannot decide this. SAM 3 (2025, arXiv 2511.16719) has a token for it. The score starts at 0.

    Args:
        channels: Channels of the image features.
        text_width: Length T of a prompt's vector.
        width: Width of the hidden layer.
    """

    def __init__(self, channels: int, text_width: int, width: int) -> None:
        super().__init__()
        self.of_image = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.of_text = nn.Linear(text_width, width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, feature: Tensor, text: Tensor, image_index: Tensor) -> Tensor:
        """Score (N, 1, 1, 1) from features (B, C, H, W), prompt vectors (N, T) and the image index of each pair (N,)."""
        hidden = self.of_image(feature.mean(dim=(2, 3)))[image_index] + self.of_text(text)
        score: Tensor = self.head(F.relu(hidden))
        return score[..., None, None]


def _groups(channels: int) -> int:
    return math.gcd(channels, 4)


def decoder_strides(strides: Sequence[int]) -> list[int]:
    """Strides of the decoder's levels, coarsest first: the strides of the features, 2, and halvings in wider gaps.

    >>> decoder_strides([16, 16, 16]), decoder_strides([1, 4, 8, 16, 32]), decoder_strides([14])
    ([16, 8, 4, 2], [32, 16, 8, 4, 2], [14, 7, 3, 2])
    """
    wanted = sorted({*(max(stride, 2) for stride in strides), 2}, reverse=True)
    passed = wanted[:1]
    for stride in wanted[1:]:
        while passed[-1] > 2 * stride:
            passed.append(passed[-1] // 2)
        passed.append(stride)
    return passed


class PromptedDecoder(nn.Module):
    """U-Net decoder (Ronneberger et al. 2015, arXiv 1505.04597) with FiLM by the prompt at each level and a path from the image.

    Each level doubles the side, adds the encoder's features of that size, projected to the level's channels once per image, and
    applies a :class:`PromptedBlock`. The last level has half of the image's side and also gets convolutions of the image itself,
    because lines of one or two pixels are lost in the encoder's features and upsampling cannot restore them. There each position
    holds its 2x2 pixels as channels and outputs their four logits (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158). This
    keeps all pixels at a fraction of the cost of convolutions at full size. A score for whether the object is in the image at all
    is added to all logits of a pair (:class:`Presence`).

    Args:
        channels: Channels of each of the encoder's features.
        strides: Strides of the features: the image's side divided by theirs. Several may be equal.
        text_width: Length T of a prompt's vector.
        width: Channels, an even number; the last level has half of them.
        in_channels: Channels of the images.

    Raises:
        ValueError: The width is not even.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], text_width: int, width: int = 48, in_channels: int = 3
    ) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"width: an even number of channels is needed, got {width}")
        self.feature_strides, self.strides = list(strides), decoder_strides(strides)
        widths = [width if stride > 2 else width // 2 for stride in self.strides]
        of_stride = dict(zip(self.strides, widths, strict=True))
        self.laterals = nn.ModuleList(
            # a feature with stride 1 is rearranged to stride 2, with 2x2 pixels as channels
            nn.Conv2d(count if stride > 1 else 4 * count, of_stride[max(stride, 2)], 1)
            for count, stride in zip(channels, strides, strict=True)
        )
        self.image_path = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * in_channels, of_stride[2], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(of_stride[2], of_stride[2], 3, padding=1),
        )
        self.blocks = nn.ModuleList(
            PromptedBlock(count, following, text_width)
            for count, following in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        self.coarsest = self.feature_strides.index(max(self.feature_strides))
        self.presence = Presence(channels[self.coarsest], text_width, width)
        self.head = nn.Sequential(nn.Conv2d(widths[-1], 4, 3, padding=1), nn.PixelShuffle(2))
        nn.init.constant_(self.head[0].bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, image: Tensor, features: Sequence[Tensor], text: Tensor, image_index: Tensor) -> Tensor:
        """Logits for pairs of an image and a prompt.

        Args:
            image: (B, C, H, W), with sides that are multiples of all strides and of 2.
            features: Features of the encoder, each (B, C', H / stride, W / stride). Maps of other sizes, which encoders with
                convolutions without padding give (Xception, NASNet), are resized to the level that they are added to.
            text: Vector of each pair's prompt (N, T).
            image_index: Index of each pair's image (N,).

        Returns:
            (N, 1, H, W).
        """
        added = self._of_images(image, features)
        x: Tensor | None = None
        for stride, block in zip(self.strides, self.blocks, strict=True):
            if x is not None:
                size = [math.ceil(side / stride) for side in image.shape[-2:]]
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            if stride in added:
                own = added[stride] if x is None else _resized(added[stride], x)
                own = own.index_select(0, image_index)
                x = own if x is None else x + own
            x = block(x, text)
        logits: Tensor = self.head(x) + self.presence(features[self.coarsest], text, image_index)
        return logits

    def _of_images(self, image: Tensor, features: Sequence[Tensor]) -> dict[int, Tensor]:
        """Tensor to add at each stride, per image: (B, channels of the level, H / stride, W / stride)."""
        added: dict[int, Tensor] = {2: self.image_path(image)}
        for stride, lateral, feature in zip(self.feature_strides, self.laterals, features, strict=True):
            brought = lateral(feature if stride > 1 else F.pixel_unshuffle(feature, 2))
            place = max(stride, 2)
            added[place] = added[place] + _resized(brought, added[place]) if place in added else brought
        return added


def _resized(feature: Tensor, like: Tensor) -> Tensor:
    """A feature map at the height and width of another one."""
    if feature.shape[-2:] == like.shape[-2:]:
        return feature
    return F.interpolate(feature, size=like.shape[-2:], mode="bilinear", align_corners=False)
