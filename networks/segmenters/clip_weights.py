"""Loads CLIPSeg and its tokeniser with transformers: from the Hugging Face hub, a local folder, or with random weights.

Only a model name on the hub needs network access. transformers is imported lazily, as its import takes seconds.
"""

import gzip
import re
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from foundation.hub import hub_or_cache

# networks with random weights: differences from the defaults of CLIPSegConfig. random_rd64 has the sizes of clipseg-rd64-refined.
_TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
RANDOM: dict[str, dict[str, Any]] = {
    "random_tiny": {
        "vision_config": {**_TINY, "num_hidden_layers": 5, "image_size": 64, "patch_size": 16},
        "text_config": {**_TINY, "num_hidden_layers": 2},
        "projection_dim": 32,
        "extract_layers": [1, 2, 3],
        "reduce_dim": 16,
        "decoder_intermediate_size": 32,
        "use_complex_transposed_convolution": True,
    },
    "random_rd64": {
        "vision_config": {"image_size": 224, "patch_size": 16},
        "text_config": {},
        "use_complex_transposed_convolution": True,
    },
}
START, END = "<|startoftext|>", "<|endoftext|>"
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # OWNER/NAME, or a name of the hub itself
MERGES = 49_152 - 256 - 2  # merges in CLIP's vocabulary; the file holds more

LONGEST = 16 << 20  # bytes of a vocabulary; CLIP's has 3 million


def load_clipseg(weights: str, vocabulary: str | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Load CLIPSeg and its tokeniser.

    Args:
        weights: A model name on the hub such as `CIDAS/clipseg-rd64-refined`, a folder of `save_pretrained`, or `random_tiny` or
            `random_rd64`: random weights of a small network or of the size of CLIPSeg rd64, for tests and speed measurements.
        vocabulary: CLIP's `bpe_simple_vocab_16e6.txt`, gzipped or not, for weights without a tokeniser. For random weights without
            it, each byte is a token.
        seed: Seed of random weights, which do not depend on the global random state.

    Returns:
        `CLIPSegForImageSegmentation` and `CLIPTokenizer`.

    Raises:
        ValueError: The model or the tokeniser cannot be loaded.
    """
    if weights in RANDOM:
        tokenizer = tokenizer_of_merges([] if vocabulary is None else read_merges(vocabulary))
        return _random(weights, tokenizer, seed), tokenizer
    return _saved(weights), _saved_tokenizer(weights) if vocabulary is None else tokenizer_of_merges(
        read_merges(vocabulary)
    )


def read_merges(path: str) -> list[tuple[str, str]]:
    """Read the byte-pair merges of CLIP's vocabulary, in order.

    Raises:
        ValueError: The file does not exist or has another content.
    """
    try:
        with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
            content = file.read(LONGEST + 1)  # a few bytes can unpack to thousands of times as many
        if len(content) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST:,} bytes")
        text = content.decode("utf-8")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"vocabulary: {path} cannot be read ({error})") from error
    lines = text.split("\n")[1 : MERGES + 1]  # the first line is a comment
    found = [line.split() for line in lines if line.strip()]
    merges = [(pair[0], pair[1]) for pair in found if len(pair) == 2]
    if not merges or len(merges) != len(found):
        raise ValueError(f"vocabulary: {path} holds no byte pairs; CLIP's bpe_simple_vocab_16e6.txt.gz is needed")
    return merges


def byte_symbols() -> list[str]:
    """The printable symbol of each byte in byte-level BPE, in the order of CLIP's vocabulary.

    Bytes that are printable in Latin-1 come first and represent themselves; the others are mapped to U+0100 and following.

    >>> symbols = byte_symbols()
    >>> len(set(symbols)), symbols[0], symbols[188:190]
    (256, '!', ['Ā', 'ā'])
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def tokenizer_of_merges(merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokeniser with OpenAI's token ids: bytes, word-final bytes, merged pairs, start, end."""
    from transformers import CLIPTokenizer

    symbols = byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    tokenizer: Any = CLIPTokenizer  # Any, as its annotations omit the accepted list of pairs
    return tokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)


def _random(name: str, tokenizer: Any, seed: int) -> Any:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    sizes = RANDOM[name]
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**sizes["text_config"], "vocab_size": len(tokenizer), **tokens, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPSegConfig(**{**sizes, "text_config": text})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPSegForImageSegmentation(config)


def _saved(weights: str) -> Any:
    import transformers

    local = Path(weights).is_dir()
    if local and not (Path(weights) / "config.json").is_file():
        raise ValueError(f"weights: {weights} holds no config.json, so it is no folder of save_pretrained")
    network: Any = transformers.CLIPSegForImageSegmentation
    if not local and not HUB_NAME.fullmatch(weights):
        raise ValueError(
            f"weights: there is no folder {weights}; give a folder of save_pretrained, or a name on the hub"
        )
    try:
        with nullcontext() if local else hub_or_cache():
            model, found = network.from_pretrained(
                weights, local_files_only=local, output_loading_info=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError) as error:
        where = weights if local else f"{weights}, which is no folder here and so a name on the hub"
        raise ValueError(
            f"weights: CLIPSeg cannot be loaded from {where}: {' '.join(str(error).split())[:300]}"
        ) from error
    lacking = sorted(name for name in found["missing_keys"] if not name.endswith("position_ids"))
    if lacking:
        raise ValueError(f"weights: {weights} lacks {len(lacking)} tensors of CLIPSeg, among them {lacking[0]}")
    return model


def _saved_tokenizer(weights: str) -> Any:
    from transformers import CLIPTokenizer

    files = ("tokenizer.json", "vocab.json")
    if Path(weights).is_dir() and not any((Path(weights) / name).is_file() for name in files):
        raise ValueError(
            f"vocabulary: {weights} holds no tokeniser ({' or '.join(files)}); give CLIP's bpe_simple_vocab_16e6.txt.gz"
        )
    try:
        with nullcontext() if Path(weights).is_dir() else hub_or_cache():
            return CLIPTokenizer.from_pretrained(weights, local_files_only=Path(weights).is_dir())
    except (OSError, ValueError) as error:
        raise ValueError(f"vocabulary: no tokeniser from {weights}: {' '.join(str(error).split())[:300]}") from error
