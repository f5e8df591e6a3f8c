"""The grouped split: counts against hand calculation and exhaustive search, order, seeds, and every error message."""

import itertools
import random
from collections import Counter, defaultdict
from math import ceil, floor

import pytest

from datamodules.splitting.grouped import grouped_split, join_groups

SHARES = (0.8, 0.1, 0.1)


def singles(sizes: dict[str, int]) -> tuple[list[str], list[str]]:
    labels = [name for name, size in sizes.items() for _ in range(size)]
    return labels, [f"{name}/{index}" for index, name in enumerate(labels)]


def random_groups(rng: random.Random, groups: int, largest: int, classes: str) -> tuple[list[str], list[str]]:
    names = [f"g{group}" for group in range(groups) for _ in range(rng.randint(1, largest))]
    return rng.choices(classes, k=len(names)), names


def totals(counts: dict[str, list[int]]) -> list[int]:
    return [sum(column) for column in zip(*counts.values(), strict=True)]


def test_counts_by_hand() -> None:
    labels, groups = singles({"cat": 10, "dog": 20, "fox": 100})
    split = grouped_split(labels, groups, SHARES, 0)
    assert split.counts == {"cat": [8, 1, 1], "dog": [16, 2, 2], "fox": [80, 10, 10]}
    assert split.counts == {
        name: [labels_of(split.assignment, labels, name, s) for s in range(3)] for name in split.counts
    }
    assert split.largest_deviation()[0] == 0
    # no floating-point rounding error
    assert grouped_split(labels, groups, (0.7, 0.29, 0.01), 0).counts["fox"] == [70, 29, 1]


def labels_of(assignment: list[int], labels: list[str], name: str, s: int) -> int:
    return sum(label == name and place == s for label, place in zip(labels, assignment, strict=True))


@pytest.mark.parametrize("shares", [SHARES, (0.7, 0.15, 0.15), (0.5, 0.5, 0.0), (0.334, 0.333, 0.333), (0.05, 0.95)])
def test_singles_are_within_one_of_every_share(shares: tuple[float, ...]) -> None:
    rng = random.Random(1)
    sizes = {f"c{number}": rng.randint(1, 300) for number in range(60)} | {
        f"small{n}": rng.randint(1, 6) for n in range(60)
    }
    labels, groups = singles(sizes)
    split = grouped_split(labels, groups, shares, 3)
    for name, size in sizes.items():
        for count, share in zip(split.counts[name], shares, strict=True):
            assert floor(share * size + 1e-9) <= count <= ceil(share * size - 1e-9)
        assert split.counts[name][0] >= 1  # every class has a training sample
    if shares[0] < 0.3:  # many classes of one or two samples get one training sample
        return
    assert all(abs(count - share * len(labels)) <= 2 for count, share in zip(totals(split.counts), shares, strict=True))
    assert split.largest_deviation()[0] < 1


def test_small_classes_are_not_all_rounded_in_the_same_direction() -> None:
    """1,000 classes of 5 samples: 4 for training; the fifth is for validation in half of the classes, else for testing."""
    split = grouped_split(*singles({f"c{number}": 5 for number in range(1000)}), SHARES, 0)
    assert totals(split.counts) == [4000, 500, 500]
    assert {count[0] for count in split.counts.values()} == {4}
    pairs = [f"c{index // 4}" for index in range(1600)]  # 400 classes of two pairs, which cannot meet their shares
    split = grouped_split(pairs, [f"p{index // 2}" for index in range(1600)], SHARES, 0)
    assert all(abs(count - share * 1600) <= 24 for count, share in zip(totals(split.counts), SHARES, strict=True))
    assert min(count[0] for count in split.counts.values()) >= 2


@pytest.mark.parametrize("seed", range(8))
def test_groups_stay_whole_and_single_samples_compensate(seed: int) -> None:
    rng = random.Random(seed)
    labels, groups = random_groups(rng, 60, 12, "ab")
    more, free = singles({"a": 200, "b": 150})
    split = grouped_split(labels + more, groups + free, SHARES, seed)
    places = defaultdict(set)
    for group, place in zip(groups + free, split.assignment, strict=True):
        places[group].add(place)
    assert {len(of_group) for of_group in places.values()} == {1}
    assert split.largest_deviation()[0] < 1


def error(counts: list[list[int]], shares: tuple[float, ...]) -> float:
    """Sum of squared errors of the counts (classes, splits), relative to the squared class size; infinite if a class is absent."""
    if not all(map(all, counts)):
        return float("inf")
    return sum((n / sum(row) - share) ** 2 for row in counts for n, share in zip(row, shares, strict=True))


def test_the_result_is_close_to_the_best_of_all_splits() -> None:
    """Seven groups of two classes can be assigned in 2,187 ways."""
    shares, ratios = (0.6, 0.2, 0.2), []
    for seed in range(12):
        labels, groups = random_groups(random.Random(seed), 7, 40, "aab")
        names = sorted(set(groups))
        size = Counter(zip(labels, groups, strict=True))

        best = float("inf")
        for places in itertools.product(range(3), repeat=len(names)):
            counts = [[0] * 3, [0] * 3]
            for name, s in zip(names, places, strict=True):
                counts[0][s] += size["a", name]
                counts[1][s] += size["b", name]
            best = min(best, error(counts, shares))
        split = grouped_split(labels, groups, shares, seed)
        ratios.append(error([split.counts["a"], split.counts["b"]], shares) / best)
    ratios.sort()  # above 1 also because the split minimises the error of the totals, which is not counted here
    assert ratios[len(ratios) // 2] < 1.2
    assert ratios[-1] < 4


@pytest.mark.slow
def test_large_groups_are_also_held_out() -> None:
    """Validation does not consist only of small groups: over seeds, a group's probability does not decrease with its size."""
    sizes = [2] * 100 + [10] * 20
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    held_out: Counter[int] = Counter()
    for seed in range(20):
        split = grouped_split(["a"] * len(groups), groups, SHARES, seed)
        held_out.update(
            sizes[int(name[1:])] for name in {g for g, s in zip(groups, split.assignment, strict=True) if s}
        )
    assert 0.1 < held_out[2] / 2000 < 0.3  # expected: one fifth
    assert 0.1 < held_out[10] / 400 < 0.3


def test_a_group_too_large_for_a_split_goes_to_training() -> None:
    labels, groups = singles({"a": 40, "b": 40})
    split = grouped_split(labels + ["a"] * 50 + ["b"] * 60, groups + ["big"] * 110, SHARES, 0)
    assert set(split.assignment[-110:]) == {0}
    assert split.counts == {"a": [72, 9, 9], "b": [80, 10, 10]}


def test_every_class_is_in_every_split_if_it_has_the_groups() -> None:
    """Three equal groups per class: each split gets the class, for any shares."""
    labels = [name for name in "abc" for _ in range(300)]
    groups = [f"{name}{index % 3}" for index, name in enumerate(labels)]
    split = grouped_split(labels, groups, SHARES, 0)
    assert split.counts == {name: [100, 100, 100] for name in "abc"}
    assert split.largest_deviation() == (140.0, "a", 0)
    assert split.ideal["a"] == [240, 30, 30]
    two = grouped_split(labels, [group.replace("2", "1") for group in groups], SHARES, 0)
    assert all(counts[0] for counts in two.counts.values())
    assert {name for name, _ in two.absent()} == set("abc")


def test_the_order_of_the_samples_does_not_matter() -> None:
    rng = random.Random(5)
    labels, groups = random_groups(rng, 80, 6, "abc")
    more, free = singles({"a": 50, "b": 30, "c": 7})
    samples = list(zip(labels + more, groups + free, strict=True))
    places = dict(zip(samples, grouped_split(labels + more, groups + free, SHARES, 1).assignment, strict=True))
    rng.shuffle(samples)
    again = grouped_split([label for label, _ in samples], [group for _, group in samples], SHARES, 1)
    assert dict(zip(samples, again.assignment, strict=True)) == places


@pytest.mark.slow
def test_seeds_give_different_splits() -> None:
    labels, groups = singles({"a": 100, "b": 100})
    grouped = [f"g{index // 4}" for index in range(200)]
    for names in (groups, grouped):
        splits = {tuple(grouped_split(labels, names, SHARES, seed).assignment) for seed in range(5)}
        assert len(splits) == 5


def test_joined_groups() -> None:
    assert join_groups(["d", "c", "b", "a", "c", "e"], []) == ["d", "c", "b", "a", "c", "e"]
    assert join_groups(["d", "c", "b", "a", "c", "e"], [[0, 2], [4, 2], [5, 5]]) == ["b", "b", "b", "a", "b", "e"]
    assert join_groups(["d", "c", "b", "a"], [[0, 1], [2, 3], [1, 3]]) == ["a"] * 4


@pytest.mark.parametrize(
    "shares", [(0.8, 0.1), (0.8, 0.3, -0.1), (0.0, 0.5, 0.5), (1.0,), (float("nan"), 1.0), (0.9, float("inf"))]
)
def test_errors_for_invalid_shares(shares: tuple[float, ...]) -> None:
    given = " ".join(f"{share:g}" for share in shares)
    with pytest.raises(
        ValueError, match=f"shares {given}: expected two or more values from 0 to 1, the first above 0, that sum to 1"
    ):
        grouped_split(["a"], ["g"], shares, 0)


def test_errors_for_samples_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="2 labels, but 1 groups"):
        grouped_split(["a", "b"], ["g"], SHARES, 0)
    with pytest.raises(ValueError, match=r"split 2 of 3 \(share 0.1\) would have no sample: 5 samples in 1 group"):
        grouped_split(["a"] * 5, ["g"] * 5, SHARES, 0)
    with pytest.raises(ValueError, match=r"split 3 of 3 \(share 0.1\) would have no sample: 5 samples in 5 groups"):
        grouped_split(*singles({"a": 5}), SHARES, 0)
