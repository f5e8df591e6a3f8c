"""Tests of networks/segmenters/clip*.py: against transformers' CLIPSeg with the same weights, and tokeniser against known ids."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from networks.segmenters.clip import CLIPSegmenter, DecoderName, HighResolutionDecoder
from networks.segmenters.clip_weights import byte_symbols, load_clipseg, read_merges, tokenizer_of_merges

VOCABULARY = Path(__file__).resolve().parents[3] / "shared/data/weights/clip_bpe_vocab.txt.gz"
PROMPTS = ["segment crack", "taping area"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)


def theirs(model: Any, tokenizer: Any, image: Tensor, prompt: str) -> Tensor:
    """Logits (1, H, W) of transformers' network for one image and one prompt."""
    with torch.no_grad():
        logits: Tensor = model(pixel_values=image[None], **tokenizer([prompt], return_tensors="pt")).logits
    return logits.view(1, *image.shape[-2:])


def images(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [64, 96, 32])  # the size of the position embeddings, larger and smaller
def test_equals_transformers_in_double_precision(side: int) -> None:
    model, tokenizer = load_clipseg("random_tiny")
    model.double().eval()
    net = CLIPSegmenter("random_tiny").double().eval()
    image = images(2, 3, side, side).double()
    index = torch.tensor([0, 0, 1])
    prompts = [*PROMPTS, PROMPTS[1]]
    with torch.no_grad():
        logits = net(image, prompts, index)
    assert logits.std() > 1e-3
    for pair, (prompt, place) in enumerate(zip(prompts, index.tolist(), strict=True)):
        assert (logits[pair] - theirs(model, tokenizer, image[place], prompt)).abs().max() < 1e-9 * logits.std()
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3), "the prompt must matter"


def test_equals_transformers_in_single_precision() -> None:
    model, tokenizer = load_clipseg("random_tiny", seed=3)
    net = CLIPSegmenter("random_tiny", seed=3).eval()
    image = images(1, 3, 64, 64)
    logits = net(image.expand(2, -1, -1, -1), PROMPTS).detach()
    for pair, prompt in enumerate(PROMPTS):
        expected = theirs(model.eval(), tokenizer, image[0], prompt)
        assert (logits[pair] - expected).abs().max() < 1e-3
        assert (logits[pair].sigmoid() - expected.sigmoid()).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("side", [352, 512])
def test_full_size_equals_transformers(side: int) -> None:
    model, tokenizer = load_clipseg("random_rd64")
    net = CLIPSegmenter("random_rd64").eval()
    assert (
        sum(parameter.numel() for parameter in net.parameters()) == 1_127_009
    )  # known parameter count of rd64-refined
    image = images(1, 3, side, side)
    with torch.no_grad():
        logits = net(image, PROMPTS, torch.tensor([0, 0]))
    for pair, prompt in enumerate(PROMPTS):
        expected = theirs(model.eval(), tokenizer, image[0], prompt)
        # random weights give logits of several hundred, in float32
        assert (logits[pair] - expected).abs().max() < 1e-4 * expected.std()
        assert (logits[pair].sigmoid() - expected.sigmoid()).abs().max() < 1e-3


@pytest.mark.parametrize("decoder", ["clipseg", "high_resolution"])
@pytest.mark.parametrize("size", [(1, 1), (50, 71), (64, 128)])
def test_images_of_any_size(decoder: DecoderName, size: tuple[int, int]) -> None:
    net = CLIPSegmenter("random_tiny", decoder=decoder, width=8).eval()
    assert net(images(2, 3, *size), PROMPTS).shape == (2, 1, *size)
    assert net(images(2, 3, *size), [], torch.zeros(0, dtype=torch.int64)).shape == (0, 1, *size)


def test_parameter_count_of_the_high_resolution_decoder() -> None:
    decoder = HighResolutionDecoder(width=768, taps=3, patch=16, text_width=512, channels=64)
    assert (
        sum(parameter.numel() for parameter in decoder.parameters()) == 381_701
    )  # as docs/prompted_segmentation.md says


def test_a_text_vector_does_not_depend_on_the_texts_encoded_with_it() -> None:
    """Otherwise a resumed run, which meets the texts in other batches, has other vectors in the last bits."""
    texts = ["crack", "taping area", "segment the long cracks in the old wall"]
    together = CLIPSegmenter("random_tiny").clip.text_vectors(texts)
    clip = CLIPSegmenter("random_tiny").clip
    assert torch.equal(together, torch.cat([clip.text_vectors([text]) for text in reversed(texts)]).flip(0))


def test_towers_run_once_per_image_and_text() -> None:
    net = CLIPSegmenter("random_tiny").eval()
    seen: dict[str, list[int]] = {"vision": [], "text": []}
    for name, key in (("vision", "pixel_values"), ("text", "input_ids")):
        net.clip.towers[name].register_forward_hook(
            lambda module, args, kwargs, output, name=name, key=key: seen[name].append(len(kwargs[key])),
            with_kwargs=True,
        )
    image = images(2, 3, 32, 32)
    with torch.inference_mode():
        first = net(image, [*PROMPTS, *PROMPTS], torch.tensor([0, 0, 1, 1]))
    assert seen == {"vision": [2], "text": [1, 1]}
    # vectors cached in inference mode are usable in a training step
    second = net(image, [*PROMPTS, *PROMPTS], torch.tensor([0, 0, 1, 1]))
    second.sum().backward()
    assert seen == {"vision": [2, 2], "text": [1, 1]}
    assert torch.equal(first, second)
    layers = net.clip.towers["vision"].encoder.layers  # type: ignore[union-attr]
    assert len(layers) == 4  # type: ignore[arg-type]  # of 5, the last tap is 3


def test_text_vectors_do_not_depend_on_the_precision_of_the_first_call() -> None:
    net, image = CLIPSegmenter("random_tiny").eval(), images(1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(image, PROMPTS[:1])
    vector = net.clip.text_vectors(PROMPTS[:1])
    assert vector.dtype == torch.float32
    assert torch.equal(vector, CLIPSegmenter("random_tiny").clip.text_vectors(PROMPTS[:1]))


@pytest.mark.parametrize("decoder", ["clipseg", "high_resolution"])
def test_training_does_not_change_the_towers(decoder: DecoderName) -> None:
    net = CLIPSegmenter("random_tiny", decoder=decoder, width=8).train()
    before, towers = copy.deepcopy(net.state_dict()), net.clip.weights_hash()
    assert all(name.startswith("decoder.") for name in before)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        net(images(2, 3, 32, 32), PROMPTS).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(parameter.grad is None for parameter in net.clip.towers.parameters())
    assert not any(module.training for module in net.clip.towers.modules())
    assert net.clip.weights_hash() == towers
    after = net.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


def test_a_state_dict_restores_the_network() -> None:
    net = CLIPSegmenter("random_tiny", decoder="high_resolution", width=8).eval()
    again = CLIPSegmenter("random_tiny", decoder="high_resolution", width=8).eval()
    image = images(2, 3, 48, 32)
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(image, PROMPTS), net(image, PROMPTS))
    copied = copy.deepcopy(net)
    assert copied.clip is net.clip
    assert torch.equal(copied(image, PROMPTS), net(image, PROMPTS))


def test_random_weights_depend_only_on_the_seed() -> None:
    hashes: list[str] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(hashes))
        hashes.append(CLIPSegmenter("random_tiny", seed=seed).clip.weights_hash())
    assert hashes[0] == hashes[1] != hashes[2]


def test_towers_follow_the_dtype() -> None:
    net = CLIPSegmenter("random_tiny").eval()
    single = net.clip.text_vectors(PROMPTS)
    assert net.double()(images(2, 3, 32, 32).double(), PROMPTS).dtype == torch.float64
    assert net.clip.text_vectors(PROMPTS).dtype == torch.float64
    assert torch.allclose(net.clip.text_vectors(PROMPTS).float(), single, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("decoder", ["clipseg", "high_resolution"])
@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
def test_half_precision(way: str, decoder: DecoderName) -> None:
    torch.manual_seed(0)
    net, image = CLIPSegmenter("random_tiny", decoder=decoder, width=8).eval(), images(2, 3, 48, 32)
    expected = net(image, PROMPTS)
    if way == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(image, PROMPTS)
    else:
        logits = net.bfloat16()(image.bfloat16(), PROMPTS)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.std()


def test_saved_folder(tmp_path: Path) -> None:
    model, tokenizer = load_clipseg("random_tiny", seed=5)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vocabulary: .* holds no tokeniser .*; give CLIP's bpe_simple_vocab"):
        CLIPSegmenter(str(tmp_path))
    tokenizer.save_pretrained(tmp_path)
    image = images(2, 3, 32, 32)
    saved, made = CLIPSegmenter(str(tmp_path)).eval(), CLIPSegmenter("random_tiny", seed=5).eval()
    # weights at other addresses may be summed in another order, as on processors without AVX-512
    torch.testing.assert_close(saved(image, PROMPTS), made(image, PROMPTS), rtol=1e-5, atol=1e-4)
    assert saved.clip.weights_hash() == made.clip.weights_hash()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "EMPTY"}, "weights: .* holds no config.json, so it is no folder of save_pretrained"),
        ({"decoder": "unet"}, "decoder: one of clipseg, high_resolution, got unet"),
        ({"vocabulary": "EMPTY/none.txt"}, r"vocabulary: .*none\.txt cannot be read"),
        ({"vocabulary": __file__}, "vocabulary: .* holds no byte pairs; CLIP's bpe_simple_vocab"),
        ({"decoder": "high_resolution", "width": 7}, "width: an even number of channels is needed, got 7"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {
        name: value.replace("EMPTY", str(tmp_path)) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    with pytest.raises(ValueError, match=message):
        CLIPSegmenter(**{"weights": "random_tiny", **given})  # type: ignore[arg-type]


def test_unreachable_hub_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import CLIPSegForImageSegmentation

    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to\n'https://huggingface.co'")

    monkeypatch.setattr(CLIPSegForImageSegmentation, "from_pretrained", offline)
    monkeypatch.setattr("foundation.hub._reachable", lambda address: True)
    message = (
        "CLIPSeg cannot be loaded from some/name, which is no folder here and so a name on the hub: We couldn't connect"
    )
    with pytest.raises(ValueError, match=f"weights: {message} to 'https"):
        CLIPSegmenter("some/name")


@pytest.mark.parametrize("weights", ["/no/where/clipseg", "./clipseg", "runs/a/clipseg", "clipseg/"])
def test_a_folder_that_does_not_exist_is_no_name_on_the_hub(weights: str) -> None:
    with pytest.raises(ValueError, match=f"^weights: there is no folder {weights}; give a folder of save_pretrained"):
        CLIPSegmenter(weights)


def test_prompt_without_a_word_raises() -> None:
    with pytest.raises(ValueError, match="prompts: at least a letter or a digit is needed, got ' '"):
        CLIPSegmenter("random_tiny")(torch.zeros(1, 3, 16, 16), [" "])


# --- the tokeniser


def test_tokens_of_a_small_vocabulary_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "merges.txt.gz"
    file.write_bytes(gzip.compress(b"#version\nc r\ncr a\na t</w>\n"))
    tokenizer = tokenizer_of_merges(read_merges(str(file)))
    symbols = byte_symbols()
    end = 512 + 3 + 1
    t_end, c, at = 256 + symbols.index("t"), 512, 512 + 2
    # "crat": cr + at; "cra" + "t" is not reached, for "cra" is merged first: cra, t</w>
    assert tokenizer("Crat").input_ids == [end - 1, c + 1, t_end, end]
    assert tokenizer("at").input_ids == [end - 1, at, end]


@pytest.mark.skipif(not VOCABULARY.exists(), reason="CLIP's vocabulary is not here")
def test_tokens_of_clip() -> None:
    tokenizer = tokenizer_of_merges(read_merges(str(VOCABULARY)))
    assert len(tokenizer) == 49_408
    # ids as of OpenAI's clip.tokenize
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A  Photo of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
