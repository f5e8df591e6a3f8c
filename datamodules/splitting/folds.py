"""k-fold cross-validation: one of k parts of the training data is tested, by whole groups and stratified by class.

    fold 2/5    the second of five parts is the test split; the other four are divided into training and validation

All folds of one seed are parts of one division, so that each sample is tested in exactly one of them.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules.splitting.grouped import grouped_split
from datamodules.splitting.stratified import strata

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """One fold.

    Attributes:
        number: Which one, 1 to ``count``.
        count: Number of folds, 2 or more.
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str | None) -> Fold | None:
        """Parse a setting such as ``2/5``; None stays None.

        Raises:
            ValueError: The text is no fold.
        """
        if text is None:
            return None
        found = re.fullmatch(r"(\d+)/(\d+)", str(text).strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
            raise ValueError(f"fold: one of two or more parts, such as 2/5 for the second of five, got {text!r}")
        return cls(int(found[1]), int(found[2]))

    def held(self, names: Sequence[str], groups: Sequence[str], seed: int) -> Tensor:
        """Whether each of N samples is in this fold, (N,) bool.

        Args:
            names: (N,) class of each sample.
            groups: (N,) group of each sample; a group is never divided.
            seed: Seed of the division into folds.

        Raises:
            MisconfigurationException: There are fewer groups than folds.
        """
        if (there := len({*groups})) < self.count:
            raise MisconfigurationException(
                f"--data.fold {self}: {there:,} groups cannot be divided into {self.count} folds; give at most {there}"
            )
        if self.number == 1 and (rare := self.rare(names, groups)):
            log.warning(f"--data.fold {self}: {rare}")
        split = grouped_split(names, groups, [1 / self.count] * self.count, seed)
        return torch.tensor(split.assignment) == self.number - 1

    def rare(self, names: Sequence[str], groups: Sequence[str]) -> str:
        """What to say of classes in fewer groups than there are folds; empty if there is none."""
        found: dict[str, set[str]] = defaultdict(set)
        for name, group in zip(names, groups, strict=True):
            found[name].add(group)
        few = [f"{name!r} in {len(of)}" for name, of in sorted(found.items()) if len(of) < self.count]
        return (
            f"classes in fewer groups than {self.count} folds, which some folds do not test: {', '.join(few)}"
            if few
            else ""
        )

    def parts(self, names: Sequence[str], groups: Sequence[str], val_fraction: float, seed: int) -> dict[str, Tensor]:
        """Positions of the samples of train, val and test, ascending; arguments as for :meth:`held`.

        Args:
            names: (N,) classes.
            groups: (N,) groups.
            val_fraction: Share of the samples outside of the fold that is for validation, 0 to below 1.
            seed: Seed of both divisions.
        """
        held = self.held(names, groups, seed)
        rest = (~held).nonzero().flatten()
        chosen = rest.tolist()
        inner = grouped_split(
            [names[i] for i in chosen], [groups[i] for i in chosen], [round(1 - val_fraction, 12), val_fraction], seed
        )
        val = torch.tensor(inner.assignment) == 1
        return {"train": rest[~val], "val": rest[val], "test": held.nonzero().flatten()}

    def part(self, data: Mapping[str, Tensor], part: Literal["train", "test"], seed: int) -> dict[str, Tensor]:
        """The samples of the fold, or all others, of a data set in memory.

        Args:
            data: ``label`` (N,) or (N, K), other values of N rows; ``subject`` (N,) is the group, if it is there.
            part: ``test`` for the fold, ``train`` for the others.
            seed: Seed of the division into folds.
        """
        names = [str(number) for number in strata(data["label"]).tolist()]
        groups = [
            str(number) for number in (data["subject"] if "subject" in data else torch.arange(len(names))).tolist()
        ]
        held = self.held(names, groups, seed)
        chosen = (held if part == "test" else ~held).nonzero().flatten()
        return {name: values.index_select(0, chosen.to(values.device)) for name, values in data.items()}

    def __str__(self) -> str:
        """As the setting is written."""
        return f"{self.number}/{self.count}"
