"""Prompts as vectors without a vocabulary: words and their character n-grams, hashed, so that no text network or file is needed.

    word   = mean of the rows of its n-grams, as of "<crack>": <cr, cra, rac, ack, ck>, <cra, ... and the word itself
    prompt = MLP(mean of its words)

A synonym that shares words or stems with the prompts of training ("crack", "cracks", "wall crack") is therefore near them, whatever
else is in it; one that shares nothing ("fissure") is not, and must be given as a synonym in training. Word order, case and
punctuation do not count. N-grams as in fastText (Bojanowski et al. 2017, arXiv 1607.04606), hashed by FNV-1a, which unlike
Python's own hash is the same in each process. Two n-grams may share a row; what follows learns with it.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

LENGTHS = (3, 4, 5)  # of the n-grams; shorter ones say little, longer ones are nearly the words
WORD = re.compile(r"[^\W_]+")


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, in lower case.

    Raises:
        ValueError: There are none.

    >>> words_of("Segment wall_crack!")
    ['segment', 'wall', 'crack']
    """
    words = WORD.findall(unicodedata.normalize("NFKC", prompt).casefold())
    if not words:
        raise ValueError(f"prompts: at least a letter or a digit is needed, got {prompt!r}")
    return words


def ngrams(word: str) -> list[str]:
    """The word between < and >, and its n-grams.

    >>> ngrams("tape")
    ['<tape>', '<ta', 'tap', 'ape', 'pe>', '<tap', 'tape', 'ape>', '<tape', 'tape>']
    """
    marked = f"<{word}>"
    return [marked, *(marked[i : i + n] for n in LENGTHS if n < len(marked) for i in range(len(marked) - n + 1))]


def fnv1a(text: str) -> int:
    """FNV-1a of the text's UTF-8, 32 bits.

    >>> hex(fnv1a("a"))
    '0xe40c292c'
    """
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


@lru_cache(maxsize=1024)
def prompt_weights(prompt: str, rows: int) -> Tensor:
    """How much each row of the table counts in a prompt: (rows,) float32, sum 1; not to be changed in place."""
    words = words_of(prompt)
    weights = [0.0] * rows
    for word in words:
        parts = ngrams(word)
        for part in parts:
            weights[fnv1a(part) % rows] += 1 / (len(words) * len(parts))
    return torch.tensor(weights)


class HashedTextEncoder(nn.Module):
    """Prompts to vectors; see the top of the file.

    Args:
        width: Length T of a prompt's vector.
        rows: Rows of the table that n-grams are hashed into.
        row_width: Numbers in a row.
    """

    def __init__(self, width: int = 64, rows: int = 2048, row_width: int = 32) -> None:
        super().__init__()
        # rows of n-grams that training never met stay as they are here: small beside those that it needed
        self.table = nn.Parameter(torch.randn(rows, row_width))
        self.mlp = nn.Sequential(nn.Linear(row_width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """Vectors (P, T) of P prompts.

        Raises:
            ValueError: A prompt has no word.
        """
        weights = torch.stack([prompt_weights(prompt, len(self.table)) for prompt in prompts])
        # a dense product, for the table is small: no sparse gradients, and the same on every device
        vectors: Tensor = self.mlp(weights.to(self.table.device, self.table.dtype) @ self.table)
        return vectors
