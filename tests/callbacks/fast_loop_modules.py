"""Small modules and data for comparing FastEpochLoop with Lightning's loop; each module overrides one thing."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader


class Data(LightningDataModule):
    """Seven batches of four samples, for training and validation."""

    def train_dataloader(self) -> DataLoader[Any]:
        random = torch.Generator().manual_seed(0)
        samples = [
            {"image": torch.randn(5, generator=random), "label": number % 3, "weight": 0.5} for number in range(28)
        ]
        return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


class HookedData(Data):
    """Changes a batch before, during and after its transfer to the device."""

    def on_before_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] + 1}

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "image": batch["image"] ** 2}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> dict[str, Tensor]:
        return {**batch, "image": batch["image"] - 2}


class Small(LightningModule):
    """A linear layer with dropout; each subclass overrides one aspect."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = torch.nn.Linear(5, 3), torch.nn.Dropout(0.2)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.dropout(self.linear(batch["image"])), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return {"loss": self.loss(batch), "label": batch["label"]}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        schedule = LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WithAdamW(Small):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}]


class Logs(Small):
    """Logs in each step and in every second step; does not log in the second epoch."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.current_epoch != 1:
            self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            if batch_idx % 2:
                self.log_dict({"train/twice": 2 * loss, "train/size": 4.0}, on_step=True)
        return loss


class Skips(Small):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 3 else self.loss(batch)


class ReturnsMapping(Small):
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        return UserDict(loss=self.loss(batch), more=batch_idx)


class LeavesGradients(Small):
    """Runs an extra backward pass in the training step, whose gradients must be cleared."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.loss(batch).backward()
        return self.loss(batch)


class Clips(Small):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        assert gradient_clip_val is None
        self.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="value")


class OwnBackward(Small):
    def backward(self, loss: Tensor) -> None:
        (2 * loss).backward()


class OwnStep(Small):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        with torch.no_grad():
            self.linear.weight.mul_(0.9)


class OwnHook(Small):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.linear.weight.grad.mul_(3)  # type: ignore[union-attr]


class EndsEpoch(Small):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class WithoutIndex(Small):
    def training_step(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return self.loss(batch)


class FromIterator(Small):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return self.loss(next(dataloader_iter)[0])


class WithAdam(Small):
    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": LambdaLR(optimizer, lambda step: 0.9**step), "interval": "step"}]


class WithStepLR(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, 1, gamma=0.5)]


class EverySecond(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        schedule = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step", "frequency": 2}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Plateau(Small):
    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.1)
        plateau = {"scheduler": ReduceLROnPlateau(optimizer, patience=0), "monitor": "val/loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": plateau}


class Manual(Small):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
