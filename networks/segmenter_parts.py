"""What prompted segmenters share: which pair is of which image, padding, and the decoder that a prompt steers.

B images, N pairs of an image and a prompt, C channels, T length of a prompt's vector.

Contract of a segmenter: `network(image (B, 3, H, W), prompts, image_index (N,)) -> (N, 1, H, W)`: logits of the pairs of
`prompts[i]` and image `image_index[i]`, at the image's own size, which may be any. What depends on the image alone is computed once
per image, what depends on the text alone once per different text. `pairs` brings a list of prompts per image into this form.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = (
    0.1  # share of pixels that a fresh network takes for the object, so that the first steps are not spent on emptiness
)


def pairs(prompts: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """Prompts and image of each pair, from a list of prompts per image.

    >>> pairs([["crack", "tape"], [], ["crack"]])
    (['crack', 'tape', 'crack'], tensor([0, 0, 2]))
    """
    index = [image for image, listed in enumerate(prompts) for _ in listed]
    return [prompt for listed in prompts for prompt in listed], torch.tensor(index, dtype=torch.int64)


def pair_images(images: int, prompts: Sequence[str], image_index: Tensor | None, device: torch.device) -> Tensor:
    """The image of each pair, (N,) int64 on the device; without an index each image has one prompt.

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
    """The different texts, and the place of each prompt's text among them.

    >>> distinct(["b", "a", "b"])
    (['b', 'a'], [0, 1, 0])
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W) with their right and lower edges repeated until both sides are multiples."""
    height, width = image.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(image, (0, right, 0, bottom), mode="replicate") if bottom or right else image


class PromptedBlock(nn.Module):
    """3x3 convolution, normalisation, FiLM by the prompt, ReLU: (N, C, H, W) and (N, T) to (N, C', H, W).

    FiLM (Perez et al. 2018, arXiv 1709.07871): each channel times 1 + a(prompt), plus b(prompt); at first both are 0.
    """

    def __init__(self, channels: int, out_channels: int, text_width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        # of each sample alone: batches are small, and the prompts of one image would be half of the statistics
        self.norm = nn.GroupNorm(_groups(out_channels), out_channels)
        self.film = nn.Linear(text_width, 2 * out_channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """The block's output, of the size of `x`."""
        scale, shift = self.film(text)[:, :, None, None].chunk(2, dim=1)
        return F.relu(torch.addcmul(shift, self.norm(self.convolution(x)), 1 + scale))


class Presence(nn.Module):
    """One number for an image and a prompt, which is added to all logits of the pair: whether the object is there at all.

    A place of the image alone cannot tell that; SAM 3 (2025, arXiv 2511.16719) has a token for it. At first it is 0.

    Args:
        channels: Of the features that it looks at.
        text_width: Length T of a prompt's vector.
        width: Of its hidden layer.
    """

    def __init__(self, channels: int, text_width: int, width: int) -> None:
        super().__init__()
        self.of_image = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.of_text = nn.Linear(text_width, width)
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, feature: Tensor, text: Tensor, image_index: Tensor) -> Tensor:
        """(N, 1, 1, 1) of features (B, C, H, W), vectors (N, T) and the image of each pair (N,)."""
        hidden = self.of_image(feature.mean(dim=(2, 3)))[image_index] + self.of_text(text)
        score: Tensor = self.head(F.relu(hidden))
        return score[..., None, None]


def _groups(channels: int) -> int:
    return math.gcd(channels, 4)


def decoder_strides(strides: Sequence[int]) -> list[int]:
    """Strides that a decoder goes through, coarsest first: those of the features, 2, and steps of two in wider gaps.

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
    """A U-Net's way up (Ronneberger et al. 2015, arXiv 1505.04597) steered by a prompt at each level, with a path from the image.

    Each level doubles the side, adds the encoder's features of that size, brought to its channels once per image, and goes through
    a :class:`PromptedBlock`. The last level has half of the image's side and also gets convolutions of the image itself: a line of
    one or two pixels is gone from an encoder's features, and no upsampling brings it back. There each place holds the 2x2 pixels
    under it as channels, and gives their four logits (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158): nothing of the
    image is lost, at a fraction of the cost of convolutions at its full size. One number that says whether the object is in the
    image at all comes to all logits of a pair (:class:`Presence`).

    Args:
        channels: Channels of each of the encoder's features.
        strides: Their strides: an image's side over theirs. Several may be equal.
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
            # a feature of full size comes with 2x2 pixels as channels
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
        """Logits of pairs.

        Args:
            image: (B, C, H, W), with sides that are multiples of all strides and of 2.
            features: The encoder's, each (B, C', H / stride, W / stride).
            text: Vector of each pair's prompt (N, T).
            image_index: Image of each pair (N,).

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
                own = added[stride].index_select(0, image_index)
                x = own if x is None else x + own
            x = block(x, text)
        logits: Tensor = self.head(x) + self.presence(features[self.coarsest], text, image_index)
        return logits

    def _of_images(self, image: Tensor, features: Sequence[Tensor]) -> dict[int, Tensor]:
        """What is added at each stride, by image: (B, channels of the level, H / stride, W / stride)."""
        added: dict[int, Tensor] = {2: self.image_path(image)}
        for stride, lateral, feature in zip(self.feature_strides, self.laterals, features, strict=True):
            brought = lateral(feature if stride > 1 else F.pixel_unshuffle(feature, 2))
            place = max(stride, 2)
            added[place] = added[place] + brought if place in added else brought
        return added
