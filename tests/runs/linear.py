"""Linear classifier without batch statistics, so two processes with half the batch must give the result of one process."""

from torch import nn

from foundation.sizes import pixels_of_size
from lightning_modules import Classifier


class LinearClassifier(Classifier):
    """One linear layer on the pixels."""

    def configure_network(self) -> None:
        assert self.image_size is not None
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(self.in_channels * pixels_of_size(self.image_size), self.num_classes)
        )
