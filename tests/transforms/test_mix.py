"""MixUp and CutMix: targets, boxes, partners, distributions and invariances.

In most tests, image i is 1 in channel i and 0 elsewhere and has label i, so that a mixed pixel shows the share of each image.
"""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from transforms import SampleRandom, mix

MIXUP = {"mixup_alpha": 1.0, "mixup_prob": 1.0, "cutmix_alpha": 1.0, "cutmix_prob": 0.0}
CUTMIX = {"mixup_alpha": 1.0, "mixup_prob": 0.0, "cutmix_alpha": 1.0, "cutmix_prob": 1.0}
BOTH = {"mixup_alpha": 1.0, "mixup_prob": 0.5, "cutmix_alpha": 1.0, "cutmix_prob": 0.5}


def colours(batch_size: int) -> Tensor:
    return torch.eye(batch_size).view(batch_size, batch_size, 1, 1).repeat(1, 1, 8, 8)


def some_random(batch_size: int, seed: int = 0) -> SampleRandom:
    return SampleRandom(seed, 0, torch.arange(10, 10 + batch_size))


def mix_colours(batch_size: int, settings: dict[str, float], seed: int = 0) -> tuple[Tensor, Tensor]:
    random = some_random(batch_size, seed)
    return mix(colours(batch_size), torch.arange(batch_size), batch_size, random, **settings)


def partners(targets: Tensor) -> list[int]:
    """Return the partner of each image, read from the targets of distinct labels."""
    return [next(j for j in row.nonzero().flatten().tolist() if j != i) for i, row in enumerate(targets)]


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH])
@pytest.mark.parametrize("batch_size", [2, 3, 16, 31])
def test_targets_are_the_shares_of_the_pixels(settings: dict[str, float], batch_size: int) -> None:
    images, targets = mix_colours(batch_size, settings)
    torch.testing.assert_close(images.mean((2, 3)), targets, rtol=0, atol=1e-6)
    torch.testing.assert_close(targets.sum(1), torch.ones(batch_size), rtol=0, atol=1e-6)
    assert ((targets > 0).sum(1) <= 2).all()


def test_cutmix_targets_are_exactly_the_shares_of_the_pixels() -> None:
    images, targets = mix_colours(64, CUTMIX)
    assert torch.equal((images == 1).sum((2, 3)), (targets * 64).long())
    assert torch.equal(images.mean((2, 3)), targets)


def test_mixup_weighs_all_pixels_alike() -> None:
    images, targets = mix_colours(64, MIXUP)
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))
    assert torch.equal(images[:, :, 0, 0], targets)
    assert ((targets.diagonal() > 0) & (targets.diagonal() < 1)).all()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 2.0])
def test_cutmix_pastes_one_box_of_the_drawn_place_and_size(alpha: float) -> None:
    height, width, batch_size = 12, 20, 40
    random = some_random(batch_size)
    images = colours(batch_size)[:, :, :1, :1].repeat(1, 1, height, width)
    mixed, _ = mix(images, torch.arange(batch_size), batch_size, random, **{**CUTMIX, "cutmix_alpha": alpha})
    share = random.beta("mix/cutmix_share", alpha).tolist()
    row, column = (random.integers(f"mix/box_{axis}", size).tolist() for axis, size in [("row", 12), ("column", 20)])
    for i in range(batch_size):  # the box of the paper's equation (2), clipped at the border
        half_height, half_width = int(height * math.sqrt(share[i]) / 2), int(width * math.sqrt(share[i]) / 2)
        own = torch.ones(height, width)
        rows = slice(max(row[i] - half_height, 0), min(row[i] + half_height, height))
        columns = slice(max(column[i] - half_width, 0), min(column[i] + half_width, width))
        own[rows, columns] = 0
        assert torch.equal(mixed[i, i], own)


def test_pixels_are_those_of_the_two_images() -> None:
    """Mixed photos, pixel by pixel in float64, from the weights that the colours show for the same draws."""
    batch_size = 9
    photos = torch.rand(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size)
    weights, _ = mix_colours(batch_size, BOTH)  # (B, B, H, W)
    mixed, _ = mix(photos, labels, batch_size, some_random(batch_size), **BOTH)
    expected = torch.einsum("ijhw,jchw->ichw", weights.double(), photos.double())
    torch.testing.assert_close(mixed.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 3, 5, 17, 32])
@pytest.mark.parametrize("seed", range(5))
def test_partners_form_one_cycle_through_the_batch(batch_size: int, seed: int) -> None:
    _, targets = mix_colours(batch_size, MIXUP, seed)
    partner = partners(targets)
    seen, place = [], 0
    for _ in range(batch_size):
        seen.append(place)
        place = partner[place]
    assert sorted(seen) == list(range(batch_size))
    assert place == 0


def test_partners_change_with_the_seed() -> None:
    assert partners(mix_colours(32, MIXUP, 0)[1]) != partners(mix_colours(32, MIXUP, 1)[1])


def test_each_method_is_applied_to_its_share_of_the_samples() -> None:
    """With probabilities p and q: MixUp p (1 - q / 2), CutMix q (1 - p / 2), neither (1 - p)(1 - q)."""
    batch_size, p, q = 20_000, 0.6, 0.3
    images = torch.arange(batch_size, dtype=torch.float64).view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    settings = {"mixup_alpha": 1.0, "mixup_prob": p, "cutmix_alpha": 1.0, "cutmix_prob": q}
    mixed, _ = mix(images, labels, 1, some_random(batch_size), **settings)
    random = some_random(batch_size)
    both = random.bernoulli("mix/mixup", p) & random.bernoulli("mix/cutmix", q)
    prefer_mixup = random.bernoulli("mix/prefer_mixup", 0.5)
    fractional = (mixed != mixed.round()).flatten(1).all(1)  # MixUp: all pixels between two integers
    unmixed = (mixed == images).flatten(1).all(1)
    assert fractional[both & prefer_mixup].all()
    assert not fractional[both & ~prefer_mixup].any()
    assert abs(float(fractional.double().mean()) - p * (1 - q / 2)) < 4.5 * 0.5 / math.sqrt(batch_size)
    # a drawn CutMix box can be empty, so these two values are bounds
    changed_box = ~fractional & ~unmixed
    assert float(changed_box.double().mean()) < q * (1 - p / 2) + 4.5 * 0.5 / math.sqrt(batch_size)
    assert float(unmixed.double().mean()) > (1 - p) * (1 - q) - 4.5 * 0.5 / math.sqrt(batch_size)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixups_share_is_distributed_as_beta(alpha: float) -> None:
    batch_size = 20_000
    labels = torch.arange(batch_size) % 2
    images = labels.double().view(-1, 1, 1, 1)
    settings = {**MIXUP, "mixup_alpha": alpha}
    mixed, _ = mix(images, labels, 2, some_random(batch_size), **settings)
    share = mixed.flatten()
    strictly_mixed = (share != 0) & (share != 1)  # about half of the partners have the other class
    edges = torch.from_numpy(stats.beta(alpha, alpha).ppf([place / 20 for place in range(1, 20)]))
    counts = torch.bucketize(share[strictly_mixed], edges).bincount(minlength=20)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_cutmixs_area_is_that_of_the_drawn_share_where_nothing_is_clipped() -> None:
    """Rounding to pixels and clipping only make a box smaller; without clipping at most two pixels are lost on each axis."""
    size, batch_size = 32, 2000
    images = torch.arange(float(batch_size)).view(-1, 1, 1, 1).repeat(1, 1, size, size)
    random = some_random(batch_size)
    mixed, _ = mix(images, torch.zeros(batch_size, dtype=torch.int64), 1, random, **CUTMIX)
    area = (mixed != images).flatten(1).double().mean(1)
    share = random.beta("mix/cutmix_share", 1.0).double()
    half = share.sqrt() * size / 2
    centres = [random.integers(f"mix/box_{axis}", size).double() for axis in ("row", "column")]
    whole = torch.stack([(centre >= half) & (centre + half <= size) for centre in centres]).all(0)
    assert int(whole.sum()) > 200
    assert (area <= share).all()
    assert (share - area)[whole].max() < 4 / size


def test_draws_of_a_sample_do_not_depend_on_its_batch() -> None:
    """In a batch of 2 and in a batch of 16, a sample has the same method, share and box."""
    large, _ = mix_colours(16, BOTH)
    for i in range(15):
        pair = SampleRandom(0, 0, torch.tensor([10 + i, 10 + i + 1]))
        small, _ = mix(colours(2), torch.arange(2), 2, pair, **BOTH)
        assert torch.equal(small[0, 0], large[i, i])


def test_order_of_the_batch_does_not_matter() -> None:
    batch_size = 21
    photos = torch.rand(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(batch_size) % 4
    index = torch.arange(batch_size) * 7
    order = torch.randperm(batch_size, generator=torch.Generator().manual_seed(1))
    images, targets = mix(photos, labels, 4, SampleRandom(0, 0, index), **BOTH)
    shuffled = mix(photos[order], labels[order], 4, SampleRandom(0, 0, index[order]), **BOTH)
    assert torch.equal(shuffled[0], images[order])
    assert torch.equal(shuffled[1], targets[order])


@pytest.mark.parametrize("settings", [MIXUP, CUTMIX, BOTH])
def test_inputs_are_not_changed_and_no_generator_is_used(settings: dict[str, float]) -> None:
    images, labels = colours(6), torch.arange(6)
    before, state = images.clone(), torch.get_rng_state()
    mixed, _ = mix(images, labels, 6, some_random(6), **settings)
    assert not torch.equal(mixed, before)
    assert torch.equal(images, before)
    assert torch.equal(labels, torch.arange(6))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_mix_gives_the_images_and_hard_targets() -> None:
    off = {"mixup_alpha": 1.0, "mixup_prob": 0.0, "cutmix_alpha": 1.0, "cutmix_prob": 0.0}
    for batch_size, settings in [(5, off), (1, BOTH), (1, CUTMIX)]:
        images, labels = colours(batch_size), torch.arange(batch_size)
        mixed, targets = mix(images, labels, 7, some_random(batch_size), **settings)
        assert mixed is images
        assert torch.equal(targets, F.one_hot(labels, 7).float())


def test_targets_are_not_smoothed_and_equal_labels_stay_one_hot() -> None:
    images, labels = colours(8), torch.full((8,), 3)
    _, targets = mix(images, labels, 10, some_random(8), **BOTH)
    torch.testing.assert_close(targets, F.one_hot(labels, 10).float(), rtol=0, atol=1e-6)
    assert (targets[:, [0, 1, 2, 4, 5, 6, 7, 8, 9]] == 0).all()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_memory_format_are_kept(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    images = colours(12).to(dtype).contiguous(memory_format=memory_format)
    mixed, targets = mix(images, torch.arange(12), 12, some_random(12), **BOTH)
    assert mixed.dtype == dtype
    assert targets.dtype == torch.float32
    assert mixed.is_contiguous(memory_format=memory_format)
    tolerance = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(mixed.mean((2, 3), dtype=torch.float64).float(), targets, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mixup_prob": 1.5}, "mixup_prob must be a probability between 0 and 1, got 1.5"),
        ({"cutmix_prob": -0.1}, "cutmix_prob must be a probability between 0 and 1, got -0.1"),
        ({"mixup_alpha": 0.0}, "mixup_alpha must be positive, got 0.0; mixup_prob 0 switches mixup off"),
        ({"cutmix_alpha": -1.0}, "cutmix_alpha must be positive, got -1.0; cutmix_prob 0 switches cutmix off"),
        ({"images": colours(4).byte()}, "images must be float32 or .*, got uint8"),
        ({"images": colours(4)[0]}, r"images must be \(B, C, H, W\), got shape \(4, 8, 8\)"),
        ({"random": some_random(3)}, "random has 3 samples, but there are 4 images"),
        ({"labels": torch.arange(3)}, r"labels must be \(4,\) int64, got shape \(3,\) of torch.int64"),
        ({"labels": torch.arange(4.0)}, r"labels must be \(4,\) int64, got shape \(4,\) of torch.float32"),
        ({"num_classes": 3}, "labels must be in 0 to 2, got 0 to 3: there are 3 classes"),
        ({"labels": torch.arange(4) - 1}, "labels must be in 0 to 3, got -1 to 2"),
    ],
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], message: str) -> None:
    right = {"images": colours(4), "labels": torch.arange(4), "num_classes": 4, "random": some_random(4), **BOTH}
    with pytest.raises(ValueError, match=message):
        mix(**{**right, **changed})
