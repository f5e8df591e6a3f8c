"""Loss and accuracy of an epoch, accumulated as a few sums; exact for any number of processes and any batch sizes.

    loss = sum(batch loss * batch size) / samples,     acc = hits on unmixed samples / unmixed samples
    acc_mix = sum over all samples of the predicted class's share of the target / samples

A sample is mixed (MixUp, CutMix) if no share of its soft target is 1. Accuracy on hard labels is meaningless for mixed samples, so
they are left out of ``acc`` and counted by their shares in ``acc_mix``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

MOST_WAITING = 16  # batches that are counted together

_SET_IN_A_STEP = {"samples", "sums", "mixed", "_waiting", "_computed", "_update_count"}


def hit_share(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each sample's soft target that belongs to the predicted class, and which samples are unmixed.

    Args:
        predicted: Class ids (B,).
        target: Soft targets (B, K).

    Returns:
        Shares (B,) float in [0, 1] (0 or 1 for unmixed samples) and a mask (B,) bool, True for unmixed samples.

    >>> hit_share(torch.tensor([0, 0]), torch.tensor([[0.7, 0.3], [0.0, 1.0]]))
    (tensor([0.7000, 0.0000]), tensor([False,  True]))
    """
    return target.gather(1, predicted[:, None])[:, 0].float(), target.amax(dim=1) == 1


def _state(name: str) -> property:
    """Property for a state of `ClassificationSums` that counts all waiting batches before it is read or set."""

    def read(self: ClassificationSums) -> Tensor:
        self._count_waiting()
        return cast(Tensor, self.__dict__[name])

    def write(self: ClassificationSums, value: Tensor) -> None:
        self._count_waiting()
        self.__dict__[name] = value

    return property(read, write)


class ClassificationSums(Metric):
    """Loss and accuracy of an epoch: ``loss``, ``acc`` and, if samples were mixed, ``acc_mix``; the module docstring defines them.

    ``update`` does not synchronise with the host. On a CPU it queues a few batches and counts them together, because these small
    operations are slow between the steps of a convolutional network, when their data are not in the processor's caches. ``compute``
    returns a dict of floats; a metric without samples is left out.
    """

    full_state_update = False
    samples, sums, mixed = _state("samples"), _state("sums"), _state("mixed")

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        super().__init__()
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum")
        # over all samples: loss, target shares of the predicted classes
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        # over batches with mixed samples: samples, their target shares, unmixed samples, hits among the unmixed samples
        self.add_state("mixed", torch.zeros(4), dist_reduce_fx="sum")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets states directly: they change in every step, and nn.Module's handling of parameters is not needed for them."""
        if name in _SET_IN_A_STEP:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def update(self, loss: Tensor, logits: Tensor, label: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            loss: Mean loss of the batch ().
            logits: (B, K).
            label: Class ids (B,).
            target: Soft targets (B, K), or None if no sample is mixed. Loss, label and target must not be changed in place later.
        """
        loss, predicted = loss.detach(), logits.argmax(dim=1)
        self._waiting.append((loss, predicted, label, target))
        # count at once on an accelerator: the next step overwrites the outputs of a CUDA graph (compile_mode reduce-overhead)
        if len(self._waiting) == MOST_WAITING or not predicted.is_cpu:
            self._count_waiting()

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        """Replaces torchmetrics' wrapper of `update`: counts the call. Gradients are turned off later, when batches are counted."""

        @functools.wraps(update)
        def counted(*args: Tensor | None, **kwargs: Tensor | None) -> None:
            self._computed = None
            self._update_count += 1
            update(*args, **kwargs)

        return counted

    # Few operations, because on an accelerator they run in every step. Not in place, because a state that was reset in inference
    # mode cannot be changed in place outside it. Losses are added one by one, so that rounding does not depend on when a state is
    # read.

    @torch.no_grad()
    def _count_waiting(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        if all(target is None for *_, target in waiting):
            self._count_unmixed([one[0] for one in waiting], [one[1] for one in waiting], [one[2] for one in waiting])
            return
        for loss, predicted, label, target in waiting:
            if target is None:
                self._count_unmixed([loss], [predicted], [label])
            else:
                self._count_mixed(loss, predicted, target)

    def _count_unmixed(self, losses: list[Tensor], predictions: list[Tensor], labels: list[Tensor]) -> None:
        predicted, label = (values[0] if len(values) == 1 else torch.cat(values) for values in (predictions, labels))
        total, hits = self.sums.unbind()
        for loss, own in zip(losses, labels, strict=True):
            total = total + loss.float() * own.shape[0]
        self.samples = self.samples + label.shape[0]
        self.sums = torch.stack([total, hits + (predicted == label).sum()])

    def _count_mixed(self, loss: Tensor, predicted: Tensor, target: Tensor) -> None:
        size = target.shape[0]
        share, unmixed = hit_share(predicted, target)
        hits = share.sum()
        self.samples = self.samples + size
        self.sums = self.sums + torch.stack([loss.float() * size, hits])
        self.mixed = self.mixed + torch.stack([hits.new_full((), size), hits, unmixed.sum(), (share * unmixed).sum()])

    def compute(self) -> dict[str, float]:
        """Loss and accuracies of the epoch; needs one transfer to the host."""
        values = torch.cat([self.samples[None], self.sums, self.mixed]).tolist()
        samples, loss, hits, mixed, mixed_hits, unmixed, unmixed_hits = values
        unmixed, unmixed_hits = unmixed + samples - mixed, unmixed_hits + hits - mixed_hits
        metrics: dict[str, float] = {}
        if samples:
            metrics["loss"] = loss / samples
        if unmixed:
            metrics["acc"] = unmixed_hits / unmixed
        if samples != unmixed:
            metrics["acc_mix"] = hits / samples
        return metrics
