"""Tests of the light segmenter (segmenters/light.py, parts.py, text.py): prompts, pairs, sizes, thin lines."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from networks.segmenters.light import LightSegmenter
from networks.segmenters.parts import PromptedDecoder, decoder_strides, pad_to_multiple, pairs
from networks.segmenters.text import HashedTextEncoder, fnv1a, ngrams, prompt_weights, words_of

MOBILENET = Path(__file__).resolve().parents[3] / "shared/data/weights/mobilenetv2_100_same_imagenet_fp16.safetensors"


def small(encoder: str = "test_efficientnet", **settings: object) -> LightSegmenter:
    torch.manual_seed(0)
    return LightSegmenter(encoder, width=8, text_width=8, **settings)  # type: ignore[arg-type]


def with_random_film(net: LightSegmenter) -> LightSegmenter:
    """Give the network random FiLM weights, so that prompts differ, which they do not in a new network."""
    for name, parameter in net.named_parameters():
        if "film" in name:
            nn.init.normal_(parameter, std=0.3)
    return net.eval()


# --- prompts


def test_fnv1a_equals_the_reference_code() -> None:
    # from the test vectors of the reference code
    assert [fnv1a(text) for text in ("", "a", "foobar")] == [0x811C9DC5, 0xE40C292C, 0xBF9CF968]


def test_weights_of_a_prompt_by_hand() -> None:
    rows = 2048
    expected = torch.zeros(rows)
    for word, parts in (("a", ["<a>"]), ("tap", ["<tap>", "<ta", "tap", "ap>", "<tap", "tap>"])):
        assert ngrams(word) == parts
        for part in parts:
            expected[fnv1a(part) % rows] += 1 / (2 * len(parts))
    assert torch.allclose(prompt_weights("A  tap", rows), expected)
    assert float(prompt_weights("segment wall cracks", rows).sum()) == pytest.approx(1)


def test_synonyms_that_share_words_have_similar_vectors() -> None:
    torch.manual_seed(0)
    text = HashedTextEncoder()
    crack, cracks, order, other = text(["segment crack", "segment cracks", "Crack, segment!", "fissure"])
    assert torch.equal(crack, order)
    assert (crack - cracks).norm() < 0.6 * (crack - other).norm()


@pytest.mark.parametrize("prompt", ["", "  ", "_!?"])
def test_prompt_without_a_word_raises(prompt: str) -> None:
    with pytest.raises(ValueError, match="prompts: at least a letter or a digit is needed, got "):
        small()(torch.zeros(1, 3, 8, 8), [prompt])


def test_words_of_other_scripts() -> None:
    assert words_of("\uff23rack in Straße, Ħoll") == ["crack", "in", "strasse", "ħoll"]  # the first is a full-width C


# --- pairs and sizes


@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64)])
@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_logits_have_the_size_of_the_image(encoder: str, size: tuple[int, int]) -> None:
    net = small(encoder).eval()
    logits = net(torch.randn(2, 3, *size), ["crack", "tape", "crack"], torch.tensor([1, 0, 0]))
    assert logits.shape == (3, 1, *size)
    assert logits.isfinite().all()


def test_all_parameters_get_gradients() -> None:
    net = small()
    net(torch.randn(2, 3, 32, 32), ["a", "b"]).square().sum().backward()
    # FiLM starts at zero, so the parameters before it initially have gradients that are zero, but not None
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        with_random_film(net).train()
    net.zero_grad()
    net(torch.randn(2, 3, 32, 32), ["a", "b"]).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.text.parameters())  # type: ignore[union-attr]


def test_pairs_equal_separate_calls_and_the_encoder_runs_once() -> None:
    net = with_random_film(small())
    images = torch.randn(2, 3, 40, 48)
    prompts, index = pairs([["crack", "taping area"], ["taping area"]])
    assert prompts == ["crack", "taping area", "taping area"]
    assert index.tolist() == [0, 0, 1]
    calls: list[int] = []
    handle = net.encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    logits = net(images, prompts, index)
    handle.remove()
    assert calls == [2]
    for pair, (prompt, place) in enumerate(zip(prompts, index.tolist(), strict=True)):
        assert torch.allclose(logits[pair], net(images[place : place + 1], [prompt])[0], atol=1e-5)
    assert not torch.allclose(logits[0], logits[1], atol=1e-2), "the prompt must matter"


def test_no_pairs() -> None:
    assert small()(torch.zeros(2, 3, 8, 9), [], torch.zeros(0, dtype=torch.int64)).shape == (0, 1, 8, 9)


@pytest.mark.parametrize(
    ("prompts", "index", "given"),
    [(["a"], None, "got 1"), (["a", "b"], [0], "got 2"), ("ab", None, "got one text, 'ab'")],
)
def test_prompts_must_match_images(prompts: list[str] | str, index: list[int] | None, given: str) -> None:
    place = None if index is None else torch.tensor(index)
    with pytest.raises(ValueError, match=f"prompts: a list of .* is needed.* {given}"):
        small()(torch.zeros(2, 3, 8, 8), prompts, place)


def test_padding_repeats_edges() -> None:
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to_multiple(image, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert pad_to_multiple(image, 1) is image


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
def test_half_precision(way: str) -> None:
    net, image = with_random_film(small()), torch.randn(2, 3, 40, 48)
    expected = net(image, ["crack", "tape"])
    if way == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(image, ["crack", "tape"])
    else:
        logits = net.bfloat16()(image.bfloat16(), ["crack", "tape"])
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.1 * expected.std()


# --- the decoder


def test_a_line_of_one_pixel_reaches_the_logits() -> None:
    """The encoder gets a constant image, so that only the path from the image can distinguish the images."""
    torch.manual_seed(0)
    decoder = PromptedDecoder([6], [16], text_width=4, width=8).eval()
    image = torch.zeros(1, 3, 64, 64)
    line = image.clone()
    line[..., 31] = 1
    features, text, index = [torch.randn(1, 6, 4, 4)], torch.randn(1, 4), torch.zeros(1, dtype=torch.int64)
    change = (decoder(line, features, text, index) - decoder(image, features, text, index))[0, 0].abs()
    near, far = change[:, 28:36].mean(), change[:, :20].mean()
    assert near > 10 * far
    # all four pixels of a position have their own logits
    assert not torch.allclose(change[:, 30], change[:, 31], rtol=1e-2)


def test_film_is_initially_the_identity() -> None:
    net = small().eval()
    image = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    logits = net(image, ["crack", "tape"])
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.allclose(net.state_dict()["decoder.head.0.bias"].sigmoid(), torch.tensor(0.1))


def test_presence_shifts_all_logits_of_a_pair_equally() -> None:
    torch.manual_seed(0)
    decoder = PromptedDecoder([5, 6], [8, 16], text_width=4, width=8).eval()
    image, text, index = torch.randn(2, 3, 32, 32), torch.randn(3, 4), torch.tensor([1, 0, 1])
    features = [torch.randn(2, 5, 4, 4), torch.randn(2, 6, 2, 2)]
    before = decoder(image, features, text, index)
    torch.nn.init.normal_(decoder.presence.head.weight)
    moved = decoder(image, features, text, index) - before
    assert torch.allclose(moved, moved.mean(dim=(1, 2, 3), keepdim=True).expand_as(moved), atol=1e-5)
    # by hand: the mean of the coarsest feature, normalised, and the text
    pooled = torch.nn.functional.layer_norm(features[1].mean(dim=(2, 3)), [6])[index]
    linear = torch.nn.functional.linear
    weights = dict(decoder.presence.named_parameters())
    parts = [
        linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        for x, name in ((pooled, "of_image.1"), (text, "of_text"))
    ]
    hidden = (parts[0] + parts[1]).clamp(min=0)
    assert torch.allclose(moved.mean(dim=(1, 2, 3)), (hidden @ decoder.presence.head.weight.T)[:, 0], atol=1e-5)
    assert moved[0].mean() != moved[2].mean(), "the same image, another prompt"


def test_strides_of_an_encoder_with_full_resolution_features() -> None:
    assert decoder_strides([1, 2, 4]) == [4, 2]
    decoder = PromptedDecoder([3, 5, 7], [1, 2, 4], text_width=4, width=8)
    features = [torch.randn(1, 3, 16, 16), torch.randn(1, 5, 8, 8), torch.randn(1, 7, 4, 4)]
    logits: Tensor = decoder(torch.randn(1, 3, 16, 16), features, torch.randn(1, 4), torch.tensor([0]))
    assert logits.shape == (1, 1, 16, 16)


def test_maps_of_other_sizes_are_resized_to_their_level() -> None:
    decoder = PromptedDecoder([3, 5, 7], [2, 4, 8], text_width=4, width=8).eval()
    image, rest = torch.randn(1, 3, 32, 48), (torch.randn(1, 4), torch.tensor([0]))
    # without padding, as in Xception; a 1x1 convolution gives the same before and after the resizing
    features = [torch.randn(1, 3, 13, 21), torch.randn(1, 5, 7, 11), torch.randn(1, 7, 4, 6)]
    aligned = [
        nn.functional.interpolate(one, size=size, mode="bilinear")
        for one, size in zip(features, [(16, 24), (8, 12), (4, 6)], strict=True)
    ]
    torch.testing.assert_close(decoder(image, features, *rest), decoder(image, aligned, *rest))


def test_an_encoder_of_hooks_gives_logits_and_takes_weights_of_the_whole_network() -> None:
    net = small("legacy_xception").eval()
    whole = timm.create_model("legacy_xception").state_dict()
    assert net.fill_encoder(whole).share == 1
    assert torch.equal(net.encoder.state_dict()["body.conv1.weight"], whole["conv1.weight"])
    assert net(torch.randn(1, 3, 40, 64), ["crack"]).shape == (1, 1, 40, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "halonet_h1"}, "encoder: halonet_h1 does not take images of 32 x 64 pixels: AssertionError$"),
        ({"encoder": "mobilenetv2_10"}, "encoder: timm has no mobilenetv2_10; the nearest are .*mobilenetv2_100"),
        ({"encoder": "mixer_s32_224"}, "encoder: mixer_s32_224 takes images of one size only"),
        (
            {"network_args": {"pad_typ": "same"}},
            "encoder: timm cannot build .*pad_typ.*; leave them out, --model.network_args null",
        ),
        ({"network_args": {"in_chans": 1}}, "network_args: in_chans cannot be given here, images have 3 channels"),
        ({"width": 9}, "width: an even number of channels is needed, got 9"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LightSegmenter(**{"encoder": "test_efficientnet", **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext", "test_vit"])
def test_encoder_loads_weights_of_the_whole_network(encoder: str) -> None:
    torch.manual_seed(1)
    whole = timm.create_model(encoder)
    net = small(encoder)
    report = net.fill_encoder(whole.state_dict())
    assert report.share == 1
    sizes: Any = {"dynamic_img_size": True} if encoder == "test_vit" else {}
    reference = timm.create_model(encoder, features_only=True, **sizes).eval()
    inner = getattr(reference, "model", reference)
    flat = {name.replace(".", "_"): tensor for name, tensor in whole.state_dict().items()}
    inner.load_state_dict({name: flat[name.replace(".", "_")] for name in inner.state_dict()})
    image = torch.randn(1, 3, 64, 64)
    for mine, theirs in zip(net.eval().encoder(image), reference(image), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_of_another_network_raise() -> None:
    with pytest.raises(ValueError, match="and min_loaded requires 100"):
        small().fill_encoder(timm.create_model("test_resnet").state_dict())


@pytest.mark.skipif(not MOBILENET.exists(), reason="the weights of MobileNetV2 do not exist")
def test_real_mobilenet_and_its_size() -> None:
    net = LightSegmenter("mobilenetv2_100", network_args={"pad_type": "same"})
    assert net.fill_encoder(load_file(MOBILENET)).share == 1
    assert sum(parameter.numel() for parameter in net.parameters()) < 2_050_000


def test_the_recipe_has_less_than_two_million_weights() -> None:
    given = yaml.safe_load(Path("configs/prompt_segmentation_light.yaml").read_text(encoding="utf-8"))["model"][
        "init_args"
    ]
    net = LightSegmenter(given["encoder"], network_args=given["network_args"], text_rows=given["text_rows"])
    assert len(net.text.table) == 512
    assert 1_980_000 < sum(parameter.numel() for parameter in net.parameters()) < 2_000_000


@pytest.mark.slow
def test_compiled_parts_are_not_compiled_again_for_other_prompts() -> None:
    net, plain = small().eval(), small().eval()
    torch._dynamo.reset()
    counter = CompileCounter()
    net.compile(backend=counter)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for prompts in (["crack", "tape"], ["wall crack", "joint tape"], ["seam", "crack"]):
            assert torch.equal(net(images, prompts), plain(images, prompts))
    assert counter.frame_count == 2  # the encoder and the decoder, once each
    assert [*net.state_dict()] == [*plain.state_dict()]


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_resnet", "test_vit"])
def test_frozen_stages_are_those_of_the_first_feature_maps(encoder: str) -> None:
    net = small(encoder).eval()
    net.freeze_stages(1)
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen
    assert all(name.startswith("encoder.") for name in frozen)
    image = torch.randn(1, 3, net.multiple, net.multiple)
    before = net.features(image)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.startswith("encoder.") and name not in frozen:
                parameter.add_(1)
    after = net.features(image)
    assert torch.equal(after[0], before[0])
    if len(after) > 1:  # the others are trained
        assert not torch.equal(after[-1], before[-1])


def test_frozen_stages_get_no_gradient_and_keep_their_statistics() -> None:
    net = small("test_efficientnet").train()
    net.freeze_stages(2)
    statistics = {name: value.clone() for name, value in net.named_buffers() if "running" in name}
    net(torch.randn(2, 3, 32, 32), ["crack", "tape"]).sum().backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    changed = {
        name for name, value in net.named_buffers() if "running" in name and not torch.equal(value, statistics[name])
    }
    trained = {name.rpartition(".")[0] for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert changed == {name for name in statistics if name.rpartition(".")[0] in trained}
    assert 0 < len(changed) < len(statistics)
    net.freeze_stages(0)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())


def test_an_encoder_has_so_many_stages() -> None:
    net = small("test_efficientnet")
    with pytest.raises(ValueError, match=f"frozen_stages: 0 to {net.stages}, the stages of this encoder, got 9"):
        net.freeze_stages(9)
