"""Randomised local search that assigns groups of two or more samples to splits so that each class comes close to its shares.

This is the part of grouped_split that has no exact solution. Groups are assigned in descending order of size. Each is assigned at
random to one of the splits that it does not overfill, with probability proportional to the samples still needed. Then single groups
are moved and pairs are exchanged while that lowers the cost, the sum over classes and splits of

    w (max(0, |d| - u)^2 + NEAR d^2)    d: samples too many or too few; u: size of the class's smallest, indivisible group
    ABSENT                              if a split has no sample of a class of which it should have at least one

with w = 1 / (samples of the class)^2. All samples together count as one additional class with the weight of all classes; otherwise
many small classes would be rounded in the same direction. Random draws are hashes of (seed, group name).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from fractions import Fraction

PASSES = 20  # limit of passes over all groups; usually a handful is enough
FEW, ATTEMPTS = 50, 8  # up to 50 groups, the best of 8 starts is used: few groups easily get stuck in a local minimum
EXCHANGED = 200  # pairs among this number of smallest groups are tried: 20,000 pairs
ABSENT = 10.0  # larger than the cost of any wrong share
NEAR = 0.1  # weight of a deviation smaller than the class's smallest group
ALL = "\0all"  # the additional class of all samples; not a possible folder name
GAIN = 1e-12  # a smaller decrease of the cost is a rounding error


def seeded_hash(seed: int, purpose: str, name: str) -> int:
    """Return a pseudo-random integer from 0 to 2**64 - 1 that depends only on the arguments."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{name}".encode("utf-8", "surrogateescape")).digest()[:8])


class WholeGroups:
    """Assignment of groups of two or more samples to splits.

    Args:
        groups: Group name -> number of samples of each class; groups of similar size are assigned in this order.
        totals: Number of samples of each class, including samples outside these groups.
        free: Class -> number of samples that are not in a group of two or more.
        shares: Share of each split; a split with share 0 gets nothing.
    """

    def __init__(
        self, groups: dict[str, Counter[str]], totals: Counter[str], free: dict[str, int], shares: list[Fraction]
    ) -> None:
        self.groups = {name: {ALL: group.total(), **group} for name, group in groups.items()}
        self.splits = [s for s, share in enumerate(shares) if share]
        count = {ALL: totals.total(), **totals}
        free = {ALL: sum(free.values()), **free}
        grouped: Counter[str] = Counter()
        for group in self.groups.values():
            grouped.update(group)
        self.ideal = [{label: float(share * grouped[label]) for label in grouped} for share in shares]
        self.have: list[Counter[str]] = [Counter() for _ in shares]
        self.place: dict[str, int | None] = dict.fromkeys(groups)
        self.weight = {label: 1 / count[label] ** 2 for label in grouped} | {ALL: len(totals) / count[ALL] ** 2}
        self.unit = {label: 0 if label == ALL else min(counts) for label, counts in self._sizes().items()}
        # if there are enough ungrouped samples of a class, they ensure that every split has it
        self.needed = [
            {
                label
                for label in grouped
                if share and (s == 0 or label == ALL or share * count[label] >= 1)
                if free.get(label, 0) < len(self.splits)
            }
            for s, share in enumerate(shares)
        ]

    def _sizes(self) -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = defaultdict(list)
        for group in self.groups.values():
            for label, count in group.items():
                sizes[label].append(count)
        return sizes

    def fill(self, seed: int) -> tuple[dict[str, int], list[Counter[str]]]:
        """Assign all groups.

        Args:
            seed: Seed of the random draws.

        Returns:
            The split of each group, and for each split the number of samples of each class.
        """
        if not self.groups:
            return {}, self.have
        best, places = float("inf"), dict(self.place)
        for attempt in range(ATTEMPTS if len(self.groups) <= FEW else 1):
            self._start(seed, attempt)
            for _ in range(PASSES):
                if not self._move_each() and not self._exchange_pairs():
                    break
            cost = sum(self._cost(s, label) for s in self.splits for label in self.weight)
            if cost < best - GAIN:
                best, places = cost, dict(self.place)
        self._take_out()
        for name, s in places.items():
            self._move(name, s)
        return {name: s for name, s in places.items() if s is not None}, self.have

    def _start(self, seed: int, attempt: int) -> None:
        """Assign all groups from scratch, at random."""
        self._take_out()
        # groups of similar size keep their seeded order, so that seeds differ even if all groups have different sizes
        for name in sorted(self.groups, key=lambda group: -self.groups[group][ALL].bit_length()):
            self._move(name, self._drawn(name, seeded_hash(seed, f"draw {attempt}", name) / 2**64))

    def _take_out(self) -> None:
        for name in self.groups:
            self._move(name, None)

    def _move(self, name: str, to: int | None) -> float:
        """Move a group to another split (None: to no split); returns the change of the cost."""
        group, now = self.groups[name], self.place[name]
        touched = [s for s in (now, to) if s is not None]
        before = sum(self._cost(s, label) for s in touched for label in group)
        if now is not None:
            self.have[now].subtract(group)
        if to is not None:
            self.have[to].update(group)
        self.place[name] = to
        return sum(self._cost(s, label) for s in touched for label in group) - before

    def _cost(self, s: int, label: str) -> float:
        count = self.have[s][label]
        wrong = abs(count - self.ideal[s][label])
        cost = self.weight[label] * (max(0.0, wrong - self.unit[label]) ** 2 + NEAR * wrong**2)
        if not count and label in self.needed[s]:
            cost += ABSENT * (2 if s == 0 else 1)  # the training split needs each class most
        return cost

    def _drawn(self, name: str, draw: float) -> int:
        """Choose a split for a new group: at random among those with room for it, or else the one with the lowest cost."""
        group = self.groups[name]
        room = {s: {label: self.ideal[s][label] - self.have[s][label] for label in group} for s in self.splits}
        fits = [s for s in self.splits if all(count <= room[s][label] for label, count in group.items())]
        if not fits:
            return min(self.splits, key=lambda s: self._price(name, s))
        needs = [sum(self.weight[label] * count * room[s][label] for label, count in group.items()) for s in fits]
        draw *= sum(needs)
        for s, need in zip(fits, needs, strict=True):
            draw -= need
            if draw < 0:
                return s
        return fits[-1]

    def _price(self, name: str, s: int) -> float:
        """Return the change of the cost if a new group is put into split `s`."""
        added = self._move(name, s)
        self._move(name, None)
        return added

    def _move_each(self) -> bool:
        """Move each group to the split with the lowest cost; returns whether any group moved."""
        moved = False
        for name in self.groups:
            for s in self.splits:
                now = self.place[name]
                if s != now:
                    if self._move(name, s) < -GAIN:
                        moved = True
                    else:
                        self._move(name, now)
        return moved

    def _exchange_pairs(self) -> bool:
        """Exchange pairs of groups in different splits if that lowers the cost; returns whether any were exchanged."""
        exchanged = False
        names = sorted(self.groups, key=lambda name: self.groups[name][ALL])[:EXCHANGED]
        for i, first in enumerate(names):
            for second in names[:i]:
                a, b = self.place[first], self.place[second]
                if a != b and self.groups[first] != self.groups[second]:
                    if self._move(first, b) + self._move(second, a) < -GAIN:
                        exchanged = True
                    else:
                        self._move(first, a)
                        self._move(second, b)
        return exchanged
