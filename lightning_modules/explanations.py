"""Base class of Classifier: heat maps of where in an image the network sees what speaks for a class (Grad-CAM)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from foundation.suggestions import first_names, nearest
from lightning_modules.base import BaseModule
from networks.grad_cam import grad_cam, scaled_heat


@dataclass(frozen=True)
class Explanation:
    """Where a classifier sees what speaks for a class.

    Attributes:
        heat: (H, W) float32, 0 to 1, at the picture's own size, upright. The largest value is about 1, or all are 0 if nothing
            speaks for the class. What the network does not see (outside of the central part) is 0.
        class_name: Name of the class.
        number: Number of that class, from 0.
        probability: Its calibrated probability, 0 to 1.
    """

    heat: NDArray[np.float32]
    class_name: str
    number: int
    probability: float


class Explainable(BaseModule):
    """A classifier of images whose answers can be shown on the image, if its network has a last map of the image."""

    takes_signals: ClassVar[bool] = False
    num_classes: int
    class_names: list[str] | None

    @property
    def explained_network(self) -> nn.Module:
        """The network whose last map is read, see `networks.grad_cam`."""
        return self.network

    def heat_maps(self, images: Tensor, classes: Tensor) -> Tensor:
        """Grad-CAM of classes, in eval mode; no weight, gradient, mode or random generator changes.

        Args:
            images: (B, C, H, W), normalised, any device.
            classes: Numbers of n classes for each image, (B, n) int64.

        Returns:
            (B, n, H, W) float32, 0 to 1, on the module's device. Each map is divided by its largest value; it is 0 where nothing
            speaks for the class.

        Raises:
            ValueError: The module takes signals, has the packed runtime, or its network has no map of the image.
        """
        self._check_pictures()
        if self._runtime != "torch":
            raise ValueError(
                f"heat maps: the runtime {self._runtime} has no gradients; load the run with runtime torch"
            )
        with self.evaluating():
            heat = grad_cam(self.explained_network, images.to(self.device, next(self.parameters()).dtype), classes)
        return scaled_heat(heat, (images.shape[2], images.shape[3]))

    @torch.no_grad()
    def explain(
        self, image: str | Path | Image.Image | NDArray[Any] | Tensor, class_name: str | int | None = None
    ) -> Explanation:
        """Show where in one picture the network sees what speaks for a class, by Grad-CAM; for a module of `load_run`.

        Args:
            image: A file, a PIL image, an array (H, W) or (H, W, C) of uint8, or a tensor (C, H, W) of the network's own size.
            class_name: Name or number of the class; None: the most probable one, with several labels an image the most probable
                label.

        Raises:
            ValueError: As for `heat_maps`; or the picture cannot be read, is more than one, or there is no such class.
        """
        self._check_pictures()
        chosen = None if class_name is None else self._class_number(class_name)
        inputs = self.transform(image)[None].to(self.device)
        chances = self.probabilities_of(self._logits_of(inputs))[0]  # type: ignore[operator]
        number = int(chances.argmax()) if chosen is None else chosen
        heat = self.heat_maps(inputs, torch.tensor([[number]]))[0, 0].cpu()
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        return Explanation(self.transform.on_sample(image, heat), names[number], number, float(chances[number]))

    def _check_pictures(self) -> None:
        if self.takes_signals:
            raise ValueError(
                f"heat maps: a {type(self).__name__} takes windows of signals, and heat is shown on pictures; "
                "classify(windows) gives their classes and probabilities"
            )

    def _class_number(self, given: str | int) -> int:
        names = self.class_names or [str(k) for k in range(self.num_classes)]
        if isinstance(given, str) and given in names:
            return names.index(given)
        if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < self.num_classes:
            return given
        if isinstance(given, str):
            raise ValueError(f"class_name: no class {given!r}{nearest(given, names)} (there: {first_names(names)})")
        raise ValueError(f"class_name: a name, or a number of 0 to {self.num_classes - 1}, got {given!r}")
