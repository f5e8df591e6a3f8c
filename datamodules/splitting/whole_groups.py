"""Places whole groups in splits, so that each class comes near its shares: the part of grouped_split that has no exact answer.

The largest groups come first. Each is drawn by chance, in proportion to what is still needed, among the splits that it does not
overfill; then groups are moved and exchanged one by one while that lowers the cost, the sum over classes and splits of

    w (max(0, |d| - u)^2 + NEAR d^2)    d: samples too many or too few; u: the class's smallest group, which cannot be halved
    ABSENT                              where a split has nothing of a class that it should have a sample or more of

with w = 1 / (samples of the class)^2. All samples together count like one more class, with the weight of all classes: many small
classes would else be rounded the same way. Draws are hashes of (seed, name of the group).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from fractions import Fraction

PASSES = 20  # over all groups, of moving and exchanging; a handful is enough as a rule
FEW, ATTEMPTS = 50, 8  # up to so many groups the best of eight starts is taken: a few groups are easily stuck
EXCHANGED = 200  # smallest groups that are tried in pairs: 20,000 pairs
ABSENT = 10.0  # above the cost of any wrong share
NEAR = 0.1  # what a deviation counts that is smaller than the class's smallest group
ALL = "\0all"  # the class of all samples; no name of a folder
GAIN = 1e-12  # below it a lower cost is rounding


def seeded_hash(seed: int, purpose: str, name: str) -> int:
    """A number from 0 to 2**64 - 1 that looks random and depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{name}".encode("utf-8", "surrogateescape")).digest()[:8])


class WholeGroups:
    """Groups of two or more samples and the splits they are in.

    Args:
        groups: Name of a group -> samples of each class in it; those of like size are placed in this order.
        totals: Samples of each class, in groups or not.
        free: Class -> samples in no group of two or more.
        shares: Share of each split; nothing is put into one without.
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
        # where single samples are enough, they will see to it that no split is without the class
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
        """Place all groups.

        Args:
            seed: Seed of the draws.

        Returns:
            The split of each group, and for each split its samples of each class.
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
        """Place all groups anew, by chance."""
        self._take_out()
        # groups of like size keep their seeded order, so that seeds differ also where no two groups are of one size
        for name in sorted(self.groups, key=lambda group: -self.groups[group][ALL].bit_length()):
            self._move(name, self._drawn(name, seeded_hash(seed, f"draw {attempt}", name) / 2**64))

    def _take_out(self) -> None:
        for name in self.groups:
            self._move(name, None)

    def _move(self, name: str, to: int | None) -> float:
        """Put a group elsewhere (None: nowhere); returns what is added to the cost."""
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
            cost += ABSENT * (2 if s == 0 else 1)  # training needs each class most
        return cost

    def _drawn(self, name: str, draw: float) -> int:
        """A split for a new group: by chance among those with room for it, or else the one of least cost."""
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
        """What placing a new group would add to the cost."""
        added = self._move(name, s)
        self._move(name, None)
        return added

    def _move_each(self) -> bool:
        """Move each group to where it costs least; returns whether any moved."""
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
        """Exchange two groups of different splits where that costs less; returns whether any were."""
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
