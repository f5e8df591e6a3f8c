"""Classifier for images of any size with batch norm and dropout, to test that resuming and image-size stages keep their state."""

from torch import nn

from lightning_modules import Classifier


class PooledClassifier(Classifier):
    """One convolution, averaged over the image."""

    def configure_network(self) -> None:
        self.network = nn.Sequential(
            nn.Conv2d(self.in_channels, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8, self.num_classes),
        )
