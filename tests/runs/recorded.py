"""A small classifier with batch norm and dropout that writes down the samples of each training batch, in each process."""

import os
from typing import Any

from torch import nn

from foundation.sizes import pixels_of_size
from lightning_modules import Classifier


class RecordedClassifier(Classifier):
    """Two layers on the pixels; appends `epoch step rank index,index,...` of each batch to the file LVR_RECORD.RANK."""

    def configure_network(self) -> None:
        assert self.image_size is not None
        pixels = self.in_channels * pixels_of_size(self.image_size)
        hidden = nn.Sequential(nn.Linear(pixels, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.network = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(8, self.num_classes))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        index = ",".join(map(str, batch["index"].tolist()))
        rank = self.trainer.global_rank
        with open(f"{os.environ['LVR_RECORD']}.{rank}", "a", encoding="utf-8") as file:
            file.write(f"{self.trainer.current_epoch} {self.trainer.global_step} {rank} {index}\n")
        return super().training_step(batch, batch_idx)
