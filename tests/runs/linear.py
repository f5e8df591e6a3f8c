"""Linear classifier without batch statistics, so two processes with half the batch must give the result of one process."""

from torch import nn

from lightning_modules import Classifier


class LinearClassifier(Classifier):
    """One linear layer on the pixels."""

    def configure_network(self) -> None:
        assert self.image_size is not None
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(self.in_channels * self.image_size**2, self.num_classes))
