"""Text encoder of the light segmenter: hashed words and character n-grams, without vocabulary file or pretrained text network.

    word   = mean of the table rows of its n-grams, e.g. of "<crack>": <cr, cra, rac, ack, ck>, <cra, ... and the word itself
    prompt = MLP(mean of its words)

Synonyms that share words or stems with training prompts ("crack", "cracks", "wall crack") therefore have similar vectors. Synonyms
that share nothing ("fissure") do not, and must be listed as synonyms in training. Word order, case and punctuation are ignored.
N-grams follow fastText (Bojanowski et al. 2017, arXiv 1607.04606). They are hashed by FNV-1a, which, unlike Python's hash, is the
same in every process. Two n-grams may share a row; training adapts to such collisions.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

LENGTHS = (3, 4, 5)  # lengths of the n-grams; shorter ones carry little information, longer ones are nearly whole words
WORD = re.compile(r"[^\W_]+")


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, in lower case.

    Raises:
        ValueError: The prompt contains no word.

    >>> words_of("Segment wall_crack!")
    ['segment', 'wall', 'crack']
    """
    words = WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())
    if not words:
        raise ValueError(f"prompts: at least a letter or a digit is needed, got {prompt!r}")
    return words


def ngrams(word: str) -> list[str]:
    """The word enclosed in < and >, and its n-grams.

    >>> ngrams("tape")
    ['<tape>', '<ta', 'tap', 'ape', 'pe>', '<tap', 'tape', 'ape>', '<tape', 'tape>']
    """
    marked = f"<{word}>"
    return [marked, *(marked[i : i + n] for n in LENGTHS if n < len(marked) for i in range(len(marked) - n + 1))]


def fnv1a(text: str) -> int:
    """32-bit FNV-1a hash of the text in UTF-8.

    >>> hex(fnv1a("a"))
    '0xe40c292c'
    """
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


@lru_cache(maxsize=1024)
def prompt_weights(prompt: str, rows: int) -> Tensor:
    """Weight of each table row in a prompt: (rows,) float32, sum 1. Cached, so it must not be changed in place."""
    words = words_of(prompt)
    weights = [0.0] * rows
    for word in words:
        parts = ngrams(word)
        for part in parts:
            weights[fnv1a(part) % rows] += 1 / (len(words) * len(parts))
    return torch.tensor(weights)


class HashedTextEncoder(nn.Module):
    """Maps prompts to vectors; see the top of the file.

    Args:
        width: Length T of a prompt's vector.
        rows: Number of rows of the table that n-grams are hashed into.
        row_width: Length of a row.
    """

    def __init__(self, width: int = 64, rows: int = 2048, row_width: int = 32) -> None:
        super().__init__()
        # rows of n-grams that do not occur in training keep these values, which are small compared with trained rows
        self.table = nn.Parameter(torch.randn(rows, row_width))
        self.mlp = nn.Sequential(nn.Linear(row_width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Vectors (P, T) of P prompts.

        Raises:
            ValueError: A prompt contains no word.
        """
        weights = torch.stack([prompt_weights(prompt, len(self.table)) for prompt in prompts])
        # a dense product, as the table is small: no sparse gradients, and the same result on every device
        vectors: Tensor = self.mlp(weights.to(self.table.device, self.table.dtype) @ self.table)
        return vectors
