"""Stateless random numbers: values compared with Python integers and scipy; uniformity, independence, statelessness."""

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from scipy import special, stats
from torch import Tensor

from transforms import SampleRandom

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]
N = 50_000
MASK = (1 << 64) - 1


def chi_square_p_value(counts: Tensor) -> float:
    return float(stats.chisquare(counts.double().numpy()).pvalue)


def splitmix(word: int) -> int:
    """SplitMix64's finaliser as published, on Python integers reduced to 64 bits."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def reference_bits(seed: int, epoch: int, index: int, name: str) -> int:
    def key(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

    state = splitmix((index * 0x9E3779B97F4A7C15 + key(f"seed {seed} epoch {epoch}")) & MASK)
    return splitmix((state + key(name)) & MASK)


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_those_of_64_bit_integer_arithmetic(device: str) -> None:
    indices = [0, 1, 2, 3, 1000, 2**31 - 1, 2**31, 2**62 + 12345, 2**63 - 1]
    for seed, epoch, name in [(0, 0, "a"), (42, 7, "random_crop/top"), (2**32 - 1, 499, "")]:
        random = SampleRandom(seed, epoch, torch.tensor(indices, device=device))
        words = [reference_bits(seed, epoch, index, name) for index in indices]
        assert [value & MASK for value in random.bits(name).tolist()] == words
        assert random.uniform(name).tolist() == [(word >> 40) / 2**24 for word in words]
        assert random.integers(name, 10).tolist() == [(word >> 33) * 10 >> 31 for word in words]
        assert random.bernoulli(name, 0.3).tolist() == [(word >> 40) / 2**24 < 0.3 for word in words]


def test_draws_never_change_between_versions() -> None:
    """A run that is resumed after an upgrade must continue with the same augmentation."""
    random = SampleRandom(seed=1, epoch=2, index=torch.tensor([3, 4, 50_000]))
    assert random.bits("x").tolist() == [8488805013125262528, 7828277043342816443, -8101620755647144091]
    assert random.integers("x", 1000).tolist() == [460, 424, 560]


@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.bits("x"),
        lambda random: random.uniform("x"),
        lambda random: random.integers("x", 7),
        lambda random: random.bernoulli("x", 0.4),
        lambda random: random.beta("x", 0.3),
    ],
)
def test_draw_depends_only_on_the_sample(draw: Callable[[SampleRandom], Tensor]) -> None:
    index = torch.arange(1000, 1257)
    whole = draw(SampleRandom(5, 3, index))
    order = torch.randperm(257, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(SampleRandom(5, 3, index[order])), whole[order])
    for size in (1, 2, 100):
        parts = [draw(SampleRandom(5, 3, part)) for part in index.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(draw(SampleRandom(5, 3, index[::2])), whole[::2])
    assert torch.equal(draw(SampleRandom(5, 3, index)), whole)


def test_other_draws_neither_change_a_draw_nor_the_global_generator() -> None:
    state = torch.get_rng_state()
    random = SampleRandom(0, 0, torch.arange(10))
    first = random.uniform("x")
    random.uniform("y")
    random.beta("z", 0.7)
    assert torch.equal(random.uniform("x"), first)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 4.0])
def test_beta_is_equal_to_the_bit_on_the_accelerator(alpha: float) -> None:
    index = torch.arange(100_000)
    assert torch.equal(
        SampleRandom(0, 0, index.cuda()).beta("x", alpha).cpu(), SampleRandom(0, 0, index).beta("x", alpha)
    )


@pytest.mark.parametrize("stride", [1, 2, 1000, 2**20, 2**40])
def test_uniform_is_uniform_over_regular_indices(stride: int) -> None:
    uniform = SampleRandom(0, 0, torch.arange(N) * stride).uniform("x")
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert chi_square_p_value(torch.histc(uniform, 256, 0, 1)) > 1e-4
    assert stats.kstest(uniform.double().numpy(), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("high", [2, 3, 9, 25, 1000])
def test_integers_are_uniform(high: int) -> None:
    values = SampleRandom(0, 1, torch.arange(N)).integers("x", high)
    counts = values.bincount()
    assert len(counts) == high
    assert chi_square_p_value(counts) > 1e-4


def test_integers_reach_the_whole_of_a_large_range() -> None:
    values = SampleRandom(0, 1, torch.arange(N)).integers("x", 2**31)
    assert 0 <= int(values.min()) < 2**31 * 1e-4
    assert 2**31 * (1 - 1e-4) < int(values.max()) < 2**31


def test_every_bit_is_fair_and_changes_with_every_bit_of_the_index() -> None:
    """Avalanche: each of the 64 output bits flips with probability 1/2 when any one input bit is flipped."""

    def unpack(words: Tensor) -> Tensor:
        return (words[:, None] >> torch.arange(64)) & 1

    index = torch.arange(4096)
    bits = unpack(SampleRandom(0, 0, index).bits("x"))
    tolerance = 5.5 * 0.5 / math.sqrt(len(index) / 2)  # two of the indices can form the same pair
    assert (bits.double().mean(0) - 0.5).abs().max() < tolerance
    for place in range(63):
        flipped = unpack(SampleRandom(0, 0, index ^ (1 << place)).bits("x"))
        assert ((bits ^ flipped).double().mean(0) - 0.5).abs().max() < tolerance


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((0, 0, "a", 0), (0, 0, "b", 0), id="names"),
        pytest.param((0, 0, "mix/box_row", 0), (0, 0, "mix/box_column", 0), id="similar names"),
        pytest.param((0, 0, "a", 0), (0, 1, "a", 0), id="epochs"),
        pytest.param((0, 0, "a", 0), (1, 0, "a", 0), id="seeds"),
        pytest.param((0, 1, "a", 0), (1, 0, "a", 0), id="seed and epoch exchanged"),
        pytest.param((1, 11, "a", 0), (11, 1, "a", 0), id="digits of seed and epoch"),
        pytest.param((0, 0, "a", 0), (0, 0, "a", 1), id="neighbours"),
        pytest.param((0, 0, "a", 0), (0, 0, "a", 50_000), id="far indices"),
    ],
)
def test_draws_are_independent(one: tuple[int, int, str, int], other: tuple[int, int, str, int]) -> None:
    def draw(seed: int, epoch: int, name: str, offset: int) -> Tensor:
        return SampleRandom(seed, epoch, torch.arange(N) + offset).uniform(name)

    a, b = draw(*one), draw(*other)
    assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 4.5 / math.sqrt(N)
    pairs = (a * 16).long() * 16 + (b * 16).long()
    assert chi_square_p_value(pairs.bincount(minlength=256)) > 1e-4


def test_bernoulli_is_certain_at_0_and_1_and_a_share_between() -> None:
    random = SampleRandom(0, 0, torch.arange(N))
    assert not random.bernoulli("x", 0).any()
    assert random.bernoulli("x", 1).all()
    for p in (0.01, 0.25, 0.9):
        assert abs(float(random.bernoulli("x", p).double().mean()) - p) < 4.5 * math.sqrt(p * (1 - p) / N)


@pytest.mark.parametrize(
    ("alpha", "tolerance"),
    [(a, 4e-7) for a in (0.05, 0.1, 0.2, 0.4, 0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0)]
    + [(a, 1e-6) for a in (0.01, 10.0)]
    + [(a, 5e-5) for a in (0.001, 100.0, 1000.0)],
)
def test_beta_is_the_quantile_of_the_uniform_draw(
    alpha: float, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = torch.cat((torch.arange(2000), torch.arange(2**23 - 2000, 2**23 + 2000), torch.arange(0, 2**24, 997)))
    uniform = torch.cat((steps, 2**24 - 1 - steps)).float() / 2**24
    monkeypatch.setattr(SampleRandom, "uniform", lambda self, name: uniform)
    values = SampleRandom(0, 0, torch.zeros(1, dtype=torch.int64)).beta("x", alpha)
    exact = torch.from_numpy(special.betaincinv(alpha, alpha, uniform.double().numpy()))
    assert values.dtype == torch.float32
    assert (values.double() - exact).abs().max() < tolerance
    assert values[uniform.argsort()].diff().min() >= 0
    assert 0 <= float(values.min()) <= float(values.max()) <= 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 2.5])
def test_beta_is_distributed_as_beta(alpha: float) -> None:
    values = SampleRandom(3, 0, torch.arange(N)).beta("x", alpha)
    edges = torch.from_numpy(stats.beta(alpha, alpha).ppf([place / 20 for place in range(1, 20)]))
    counts = torch.bucketize(values.double(), edges).bincount(minlength=20)
    assert chi_square_p_value(counts) > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SampleRandom(0, -1, torch.arange(3)), "epoch must be 0 or more, got -1"),
        (
            lambda: SampleRandom(0, 0, torch.arange(3.0)),
            r"index must be \(B,\) int64, got shape \(3,\) of torch.float32",
        ),
        (lambda: SampleRandom(0, 0, torch.tensor(3)), r"index must be \(B,\) int64, got shape \(\) of torch.int64"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).integers("x", 0), r"high must be between 1 and 2\^31, got 0"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).integers("x", 2**31 + 1), "got 2147483649"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).bernoulli("x", 1.5), "between 0 and 1, got 1.5"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).bernoulli("x", math.nan), "between 0 and 1, got nan"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).beta("x", 0.0), "alpha must be positive, got 0.0"),
        (lambda: SampleRandom(0, 0, torch.arange(3)).beta("x", math.nan), "alpha must be positive, got nan"),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
