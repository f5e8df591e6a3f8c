"""`StartsFromWeights`: loads initial weights into new runs, not into resumed ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_modules.classification import Classifier

log = logging.getLogger(__name__)

ADAPTED = "timm adapted the first layer (its 3 input channels summed, or repeated in turn and scaled) to the"
ONE_SOURCE = "pretrained and weights: only one of them; add --model.pretrained false to start from {}"


def said_of(setting: str, source: str, lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines of a report about weights, as (logging level, line): the source is named in the first one and in warnings."""
    return [
        (level, f"{setting}: {line}" if number and level < logging.WARNING else f"{setting}: {source}: {line}")
        for number, (level, line) in enumerate(lines)
    ]


class StartsFromWeights(Classifier):
    """Base of classifiers that load initial weights when a new run starts.

    A resumed run takes its weights from the checkpoint and does not read the initial weights again. Lightning restores a checkpoint
    after ``setup`` and before ``configure_optimizers``, so ``configure_optimizers`` is the first hook that knows whether initial
    weights are needed.
    """

    _has_weights = False

    def give_weights(self) -> list[tuple[int, str]]:
        """Load the initial weights into the network, on whichever device it is.

        Returns:
            Lines to log, as (logging level, line).

        Raises:
            ValueError: The weights cannot be loaded or do not fit; the message begins with the setting's name.
        """
        raise RuntimeError(f"{type(self).__name__} must define give_weights")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note that the weights come from the checkpoint, so that no initial weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        self._has_weights = True

    def configure_optimizers(self) -> Any:
        """Load the initial weights of a new run, once, before anything uses them; then see :class:`BaseModule`."""
        if not self._has_weights:
            try:
                report = self.give_weights()
            except ValueError as error:
                raise MisconfigurationException(str(error)) from error
            self._has_weights = True
            for level, line in report:
                log.log(level, line)
        return super().configure_optimizers()
