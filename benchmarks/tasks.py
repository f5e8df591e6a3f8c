"""Random image and feature datamodules and a perceptron for the benchmarks, which measure only time, not accuracy."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules import DataModule
from foundation.sizes import pixels_of_size
from lightning_modules import Classifier


class RandomImages(DataModule):
    """Random uint8 images in memory, equally many of each class.

    Args:
        num_images: Images of the training data, including the validation split.
        size: Height and width in pixels.
        channels: Channels of an image.
        classes: Number of classes.
        **kwargs: Settings of every datamodule, see `DataModule`.
    """

    def __init__(self, num_images: int, size: int = 32, channels: int = 3, classes: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_images, self.size, self.channels, self.classes = num_images, size, channels, classes

    @property
    def class_names(self) -> list[str]:
        """Class numbers as text."""
        return [str(number) for number in range(self.classes)]

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.size

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.channels

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of a uniform distribution on 0..1."""
        return (0.5,) * self.channels

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of a uniform distribution on 0..1."""
        return (12**-0.5,) * self.channels

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Draws the images from a fixed seed; see `DataModule.read_part`."""
        shape, generator = (self.num_images, self.channels, self.size, self.size), torch.Generator().manual_seed(0)
        index = torch.arange(self.num_images)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return {"image": image, "label": index % self.classes, "index": index}


class RandomFeatures(RandomImages):
    """Random feature vectors (B, channels) instead of images, without augmentation and normalisation."""

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Draws the vectors from a fixed seed."""
        generator, index = torch.Generator().manual_seed(0), torch.arange(self.num_images)
        image = torch.randn(self.num_images, self.channels, generator=generator)
        return {"image": image, "label": index % self.classes, "index": index}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        """Returns the batch unchanged."""
        return batch

    def augment(self, batch: dict[str, Tensor], epoch: int) -> dict[str, Tensor]:
        """Returns the batch unchanged."""
        return batch


class Perceptron(Classifier):
    """Linear layers with ReLU between them on the flattened input.

    Args:
        hidden: Width of each hidden layer; an empty list gives a linear classifier.
        **kwargs: Settings of every classifier, see `Classifier`.
    """

    def __init__(self, *, hidden: list[int], **kwargs: Any) -> None:
        self.hidden = list(hidden)
        super().__init__(**kwargs)

    def configure_network(self) -> None:
        """Builds the layers."""
        assert self.in_channels is not None
        assert self.image_size is not None
        assert self.num_classes is not None
        widths = [self.in_channels * pixels_of_size(self.image_size), *self.hidden, self.num_classes]
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(len(widths) - 1):
            layers += [nn.ReLU()] if i else []
            layers += [nn.Linear(widths[i], widths[i + 1])]
        self.network = nn.Sequential(*layers)
