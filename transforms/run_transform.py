"""`RunTransform`: turns what people have (files, pictures, arrays) into the input of a run's network, as `main.py predict` does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


class RunTransform(ABC):
    """The preprocessing of a run; `load_run(RUN_DIR).transform` is one."""

    @abstractmethod
    def batches(self, samples: Any) -> Iterator[tuple[list[str | None], Tensor]]:
        """Read samples, a part at a time, so that any number of them fits into the memory.

        Args:
            samples: One sample, a list of samples, or something that means many: a folder, a pattern, a file of windows.

        Yields:
            The file of each of n samples, or None; and the input of the network for them, (n, ...) float32, normalised, on the CPU.

        Raises:
            ValueError: A sample is of a wrong kind or cannot be read, or there is none.
        """

    def __call__(self, sample: Any) -> Tensor:
        """The input of the network for one sample, without the axis of the batch, float32, normalised, on the CPU.

        Args:
            sample: A file, a picture or an array.

        Raises:
            ValueError: The sample is of a wrong kind or cannot be read, or means more than one.
        """
        found = [inputs for _, inputs in self.batches(sample)]
        if sum(map(len, found)) != 1:
            raise ValueError(
                f"one sample is needed, got {sum(map(len, found)):,}: give one file, picture or array (transform.batches(samples) "
                "yields the inputs of several)"
            )
        return found[0][0]

    def on_sample(self, sample: Any, values: Tensor) -> NDArray[np.float32]:
        """Bring values on the network's input of one picture back onto the picture.

        Args:
            sample: What the input was made of.
            values: (H, W) of the input's size, float32, on the CPU.

        Returns:
            (height, width) of the picture; 0 where the network does not see it.

        Raises:
            ValueError: The sample is no picture.
        """
        raise ValueError(f"a {type(self).__name__} prepares no pictures")
