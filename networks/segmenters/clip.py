"""CLIPSeg segmenter (Lüddecke and Ecker 2022, arXiv 2112.10003): frozen CLIP towers and a trainable decoder, original or sharper.

    image  -> CLIP's image tower, layers 3, 6 and 9, once per image        |
    prompt -> CLIP's text tower, once per text, then cached                | -> decoder -> logits (N, 1, H, W)
    image  -> convolutions of 2x2 pixels, for decoder high_resolution      |

Only the decoder is registered in the module. The towers do not appear in `parameters()` and `state_dict()`, so that optimisers,
weight averaging and other processes never get them, and a checkpoint holds the 5 MB of the decoder instead of 500 MB. Loading a
checkpoint requires the same towers, which `weights_hash` identifies. The image tower is cut after the last layer that is used;
the implementation in transformers runs all layers.

Images must be normalised by ImageNet's mean (0.485, 0.456, 0.406) and std (0.229, 0.224, 0.225), as in the training of CLIPSeg.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.segmenters.clip_weights import load_clipseg
from networks.segmenters.parts import PairSegmenter, PromptedDecoder
from networks.segmenters.text import words_of

DecoderName = Literal["clipseg", "high_resolution"]


class FrozenCLIP:
    """CLIP's two towers in eval mode, without gradients. Not an `nn.Module`, so that its owner does not register its tensors.

    Copies of a network share it, as it never changes.

    Args:
        model: `CLIPSegForImageSegmentation`.
        tokenizer: The tokeniser of the model.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        config = model.config
        self.layers = list(config.extract_layers)
        self.patch: int = config.vision_config.patch_size
        self.width: int = config.vision_config.hidden_size
        self.text_width: int = config.projection_dim
        self.tokens: int = config.text_config.max_position_embeddings
        self.tokenizer = tokenizer
        vision = model.clip.vision_model
        vision.encoder.layers = vision.encoder.layers[: max(self.layers) + 1]
        parts = {"vision": vision, "text": model.clip.text_model, "projection": model.clip.text_projection}
        self.towers = nn.ModuleDict(parts).requires_grad_(False).eval()
        self._vectors: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def follow(self, tensor: Tensor) -> None:
        """Move the towers to the device and dtype of a tensor if they differ."""
        if self._like.device != tensor.device or self._like.dtype != tensor.dtype:
            self.towers.to(tensor.device, tensor.dtype)
            self._vectors.clear()

    @property
    def _like(self) -> Tensor:
        """A parameter of the towers, from which device and dtype are read."""
        return next(self.towers.parameters())

    @torch.no_grad()
    def taps(self, image: Tensor) -> list[Tensor]:
        """Outputs of the tapped layers, each (B, 1 + patches, width), for images (B, 3, H, W).

        The sides of the images must be divisible by the patch size. Position embeddings are interpolated if the images have another
        size than CLIP's.
        """
        image = image.to(self._like.dtype)
        found = self.towers["vision"](pixel_values=image, output_hidden_states=True, interpolate_pos_encoding=True)
        return [found.hidden_states[layer + 1] for layer in self.layers]  # entry 0 is the input of the first layer

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """CLIP's text vectors (P, text_width) of P texts.

        Raises:
            ValueError: A text contains no word.
        """
        for text in dict.fromkeys(texts):
            if text not in self._vectors:
                self._vectors[text] = self._encode(text)
        return torch.stack([self._vectors[text] for text in texts])

    def _encode(self, text: str) -> Tensor:
        """Vector (text_width,) of one text, by itself and without padding: its last bits would depend on the texts in its batch."""
        words_of(text)
        tokens = self.tokenizer([text], truncation=True, max_length=self.tokens, return_tensors="pt")
        device = self._like.device
        # cached vectors must be usable outside inference mode and must not depend on the precision of the first call
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            pooled = self.towers["text"](**{name: value.to(device) for name, value in tokens.items()}).pooler_output
            return self.towers["projection"](pooled)[0]  # type: ignore[no-any-return]

    def weights_hash(self) -> str:
        """Hexadecimal SHA-256 of the names, shapes and float32 values of the towers' tensors."""
        digest = hashlib.sha256()
        for name, tensor in self.towers.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return digest.hexdigest()


class OriginalDecoder(nn.Module):
    """CLIPSeg's original decoder with transformers' weights: transformer on the taps, FiLM by the prompt, transposed convolutions.

    Reimplemented here because the forward pass in transformers accepts only square images and projects the taps again for each
    prompt of an image.

    Args:
        decoder: `CLIPSegDecoder` of transformers.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.reduces, self.layers = decoder.reduces, decoder.layers
        self.film_mul, self.film_add = decoder.film_mul, decoder.film_add
        self.transposed_convolution = decoder.transposed_convolution
        self.conditional_layer: int = decoder.conditional_layer

    def forward(
        self, image: Tensor, taps: Sequence[Tensor], vectors: Tensor, image_index: Tensor, patch: int
    ) -> Tensor:
        """Logits (N, 1, H, W) of N pairs; see :class:`CLIPSegmenter`."""
        x: Any = 0
        for place, (tap, reduce, layer) in enumerate(zip(reversed(taps), self.reduces, self.layers, strict=True)):
            x = reduce(tap).index_select(0, image_index) + x
            if place == self.conditional_layer:
                x = self.film_mul(vectors)[:, None] * x + self.film_add(vectors)[:, None]
            x = _transformer_layer(layer, x)
        maps = _as_map(x, image, patch)
        logits: Tensor = self.transposed_convolution(maps)
        return logits


class HighResolutionDecoder(nn.Module):
    """Decoder of the light segmenter applied to the taps, with its path from the image; see networks/segmenters/parts.py.

    Args:
        width: Channels of a tap.
        taps: Number of taps.
        patch: Side of a patch in pixels.
        text_width: Length of CLIP's text vectors.
        channels: Channels of the decoder, an even number.
    """

    def __init__(self, width: int, taps: int, patch: int, text_width: int, channels: int) -> None:
        super().__init__()
        # normalise, as taps and text vectors have different scales
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(taps))
        self.prompt = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, channels))
        self.decoder = PromptedDecoder([width] * taps, [patch] * taps, channels, channels)

    def forward(
        self, image: Tensor, taps: Sequence[Tensor], vectors: Tensor, image_index: Tensor, patch: int
    ) -> Tensor:
        """Logits (N, 1, H, W) of N pairs; see :class:`CLIPSegmenter`."""
        maps = [_as_map(norm(tap), image, patch) for norm, tap in zip(self.norms, taps, strict=True)]
        logits: Tensor = self.decoder(image, maps, self.prompt(vectors), image_index)
        return logits


class CLIPSegmenter(PairSegmenter):
    """Segments the object that a prompt names; see networks/segmenters/parts.py for the interface.

    Results are best for images of CLIPSeg's training size, 352 x 352, or above.

    Args:
        weights: A model name on the Hugging Face hub such as `CIDAS/clipseg-rd64-refined`, a folder of `save_pretrained`, or
            `random_tiny` or `random_rd64`, which have random weights.
        decoder: `clipseg`: the pretrained decoder; `high_resolution`: a new one, with a path from the image for thin structures.
        vocabulary: CLIP's `bpe_simple_vocab_16e6.txt.gz`, for weights without a tokeniser.
        width: Channels of the new decoder, an even number.
        seed: Seed of random weights.

    Raises:
        ValueError: The weights or the tokeniser cannot be loaded, or a setting has an invalid value.
    """

    def __init__(
        self,
        weights: str = "CIDAS/clipseg-rd64-refined",
        *,
        decoder: DecoderName = "clipseg",
        vocabulary: str | None = None,
        width: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if decoder not in get_args(DecoderName):
            raise ValueError(f"decoder: one of {', '.join(get_args(DecoderName))}, got {decoder}")
        model, tokenizer = load_clipseg(weights, vocabulary, seed)
        self.clip = FrozenCLIP(model, tokenizer)
        self.multiple = self.clip.patch
        self.decoder: nn.Module
        if decoder == "clipseg":
            self.decoder = OriginalDecoder(model.decoder)
        else:
            sizes = (self.clip.width, len(self.clip.layers), self.clip.patch, self.clip.text_width)
            self.decoder = HighResolutionDecoder(*sizes, channels=width)

    def vectors(self, prompts: Sequence[str]) -> Tensor:
        """See :class:`PairSegmenter`: of CLIP's text tower."""
        self.clip.follow(next(self.decoder.parameters()))
        return self.clip.text_vectors(prompts)

    def features(self, image: Tensor) -> list[Tensor]:
        """See :class:`PairSegmenter`: the outputs of the tapped layers of the image tower."""
        return self.clip.taps(image)

    def decoded(self, image: Tensor, features: list[Tensor], vectors: Tensor, image_index: Tensor) -> Tensor:
        """See :class:`PairSegmenter`."""
        logits: Tensor = self.decoder(image, features, vectors, image_index, self.clip.patch)
        # with patches of 32 pixels the transposed convolutions output another size
        if logits.shape[-2:] != image.shape[-2:]:
            logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return logits


def _as_map(x: Tensor, image: Tensor, patch: int) -> Tensor:
    """Remove the class token from tokens (B, 1 + h w, D) and reshape the others to maps (B, D, h, w)."""
    height, width = (side // patch for side in image.shape[-2:])
    maps: Tensor = x[:, 1:].transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)
    return maps


def _transformer_layer(layer: Any, x: Tensor) -> Tensor:
    """Forward pass of a `CLIPSegDecoderLayer` (post-norm); written out, as its signature differs between transformers releases."""
    attention = layer.self_attn
    heads = [
        part(x).view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    mixed = F.scaled_dot_product_attention(*heads)
    x = layer.layer_norm1(x + attention.out_proj(mixed.transpose(1, 2).flatten(2)))
    result: Tensor = layer.layer_norm2(x + layer.mlp(x))
    return result
