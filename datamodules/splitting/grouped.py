"""Stratified split that never divides a group, as a pure function of labels, groups, shares and a seed.

    quotas     per class: share x samples, rounded to the floor or the ceiling such that the totals of the splits also match their
               shares; the first split (training) gets at least one sample of each class
    groups     groups of two or more samples are assigned as a whole (datamodules/splitting/whole_groups.py)
    singles    groups of one sample fill each class up to its quotas

If all groups have one sample, the quotas are met exactly. Order and random draws are hashes of (seed, group name), so a split does
not depend on the order of the samples. The method resembles scikit-learn's StratifiedGroupKFold, which makes a single pass over the
groups and does not support unequal shares.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from datamodules.splitting.whole_groups import WholeGroups, seeded_hash


class GroupedSplit(NamedTuple):
    """A split, with the counts that it reached and the ideal counts.

    Attributes:
        assignment: (N,) the split of each sample, as an index into the shares.
        counts: Class -> number of samples in each split; classes sorted.
        ideal: Class -> share x number of samples of that class, for each split.
    """

    assignment: list[int]
    counts: dict[str, list[int]]
    ideal: dict[str, list[float]]

    def largest_deviation(self) -> tuple[float, str, int]:
        """Return the largest difference between a count and its ideal, in samples, with its class and split."""
        return max(
            (
                (abs(n - m), name, s)
                for name in self.counts
                for s, (n, m) in enumerate(zip(*self._of(name), strict=True))
            ),
            key=lambda item: item[0],
        )

    def absent(self) -> list[tuple[str, int]]:
        """Return the pairs of class and split where the split should have samples of the class but has none."""
        return [
            (name, s)
            for name in self.counts
            for s, (n, m) in enumerate(zip(*self._of(name), strict=True))
            if m and not n
        ]

    def _of(self, name: str) -> tuple[list[int], list[float]]:
        return self.counts[name], self.ideal[name]


def grouped_split(labels: Sequence[str], groups: Sequence[str], shares: Sequence[float], seed: int) -> GroupedSplit:
    """Split samples so that no group is divided and the shares of each class are met as closely as whole groups allow.

    Args:
        labels: (N,) class of each sample.
        groups: (N,) group of each sample; a group may contain several classes. A sample with a unique group name is unconstrained.
        shares: (S,) share of each split, 0 to 1, that sum to 1; the first one is for training and must be positive.
        seed: Seed of the split.

    Returns:
        The split. If no group has two or more samples, every count is within one sample of its ideal.

    Raises:
        ValueError: Shares are out of range, lengths differ, or a split with a positive share would get no sample.
    """
    exact = exact_shares(shares)
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels, but {len(groups)} groups; give one label and one group per sample")
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    totals = Counter(labels)
    singles: dict[str, list[str]] = defaultdict(list)
    large: dict[str, Counter[str]] = {}
    for group in sorted(members, key=lambda name: seeded_hash(seed, "order", name)):
        if len(members[group]) == 1:
            singles[labels[members[group][0]]].append(group)
        else:
            large[group] = Counter(sorted(labels[index] for index in members[group]))
    free = {name: len(of_class) for name, of_class in singles.items()}
    places, have = WholeGroups(large, totals, free, exact).fill(seed)
    for name, quota in _quotas(totals, exact).items():
        needed = [quota[s] - have[s][name] if share else None for s, share in enumerate(exact)]
        places.update(_fill(singles.get(name, []), needed))
    assignment = [places[group] for group in groups]
    _check_none_empty(assignment, exact, len(members))
    counted = Counter(zip(labels, assignment, strict=True))
    return GroupedSplit(
        assignment,
        {name: [counted[name, s] for s in range(len(exact))] for name in sorted(totals)},
        {name: [float(share * totals[name]) for share in exact] for name in sorted(totals)},
    )


def join_groups(groups: Sequence[str], together: Sequence[Sequence[int]]) -> list[str]:
    """Merge groups that must stay in one split, for example because they share an image.

    Args:
        groups: (N,) group of each sample.
        together: Sets of sample positions; all groups of one set are merged.

    Returns:
        (N,) groups; a merged group has the alphabetically first of its names.
    """
    parent = {name: name for name in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for samples in together:
        names = sorted(root(groups[index]) for index in samples)
        for name in names[1:]:
            first, second = sorted((root(names[0]), root(name)))
            parent[second] = first
    return [root(name) for name in groups]


def exact_shares(shares: Sequence[float]) -> list[Fraction]:
    """Convert shares to exact fractions of their decimal notation, so that 0.7 of 10 is exactly 7.

    Args:
        shares: (S,) at least two numbers from 0 to 1 that sum to 1, the first above 0.

    Returns:
        The shares as fractions that sum to exactly 1.

    Raises:
        ValueError: The shares do not meet these conditions.
    """
    exact = [Fraction(repr(float(share))) for share in shares if share == share and abs(share) != float("inf")]
    if (
        len(exact) != len(shares)
        or len(exact) < 2
        or min(exact) < 0
        or exact[0] == 0
        or abs(float(sum(exact)) - 1) > 1e-6
    ):
        given = " ".join(f"{share:g}" for share in shares)
        raise ValueError(
            f"shares {given}: expected two or more values from 0 to 1, the first above 0, that sum to 1, such as 0.8 0.1 0.1"
        )
    return [share / sum(exact) for share in exact]


def _quotas(totals: Counter[str], shares: list[Fraction]) -> dict[str, list[int]]:
    """Compute integer counts for each class and split, each the floor or the ceiling of its ideal."""
    carry = [Fraction(0)] * len(shares)  # how many samples each split lacks after the previous classes
    quotas = {}
    for name in sorted(totals):
        ideal = [share * totals[name] for share in shares]
        quota = [int(value) for value in ideal]
        rest = totals[name] - sum(quota)
        order = [s for s, value in enumerate(ideal) if value > quota[s]]
        order.sort(key=lambda s: float(quota[s] - ideal[s] - carry[s]))
        if quota[0] == 0:
            order.sort(key=lambda s: s != 0)
        for s in order[:rest]:
            quota[s] += 1
        carry = [before + value - given for before, value, given in zip(carry, ideal, quota, strict=True)]
        quotas[name] = quota
    return quotas


def _fill(groups: list[str], needed: list[int | None]) -> dict[str, int]:
    """Assign each of these one-sample groups to the split that needs most; None marks a split without a share."""
    left = {s: count for s, count in enumerate(needed) if count is not None}
    counts: Counter[int] = Counter()
    for _ in groups:
        most = max(left, key=lambda s: (left[s], -s))
        left[most] -= 1
        counts[most] += 1
    places = [s for s in sorted(counts) for _ in range(counts[s])]
    return dict(zip(groups, places, strict=True))


def _check_none_empty(assignment: list[int], shares: list[Fraction], num_groups: int) -> None:
    for s, share in enumerate(shares):
        if share and s not in assignment:
            raise ValueError(
                f"split {s + 1} of {len(shares)} (share {float(share):g}) would have no sample: {len(assignment)} samples in "
                f"{num_groups} groups are too few; raise its share, set it to 0, or use smaller groups"
            )
