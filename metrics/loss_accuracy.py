"""Loss and accuracy of an epoch from a handful of sums: exact on any number of processes and any batch sizes.

    loss = sum(batch loss * batch size) / samples,     acc = hits on unmixed samples / unmixed samples
    acc_mix = sum over all samples of the target's share of the predicted class / samples

A sample is mixed when none of its soft target's shares is 1. Accuracy on hard labels means nothing for those, so they are left
out of ``acc`` and counted by their shares in ``acc_mix``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

MOST_WAITING = 16  # batches

_SET_IN_A_STEP = {"samples", "sums", "mixed", "_waiting", "_computed", "_update_count"}


def hit_share(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each sample's target that the predicted class holds, and which samples are unmixed.

    Args:
        predicted: Class ids (B,).
        target: Soft targets (B, K).

    Returns:
        Shares (B,) float in [0, 1] (0 or 1 where unmixed) and a mask (B,) bool, True where unmixed.

    >>> hit_share(torch.tensor([0, 0]), torch.tensor([[0.7, 0.3], [0.0, 1.0]]))
    (tensor([0.7000, 0.0000]), tensor([False,  True]))
    """
    return target.gather(1, predicted[:, None])[:, 0].float(), target.amax(dim=1) == 1


def _state(name: str) -> property:
    """A state of `ClassificationSums`; whoever reads or sets it finds every batch counted."""

    def read(self: ClassificationSums) -> Tensor:
        self._count_waiting()
        return cast(Tensor, self.__dict__[name])

    def write(self: ClassificationSums, value: Tensor) -> None:
        self._count_waiting()
        self.__dict__[name] = value

    return property(read, write)


class ClassificationSums(Metric):
    """Sums behind ``loss``, ``acc`` and, when samples were mixed, ``acc_mix``; see the top of the file.

    ``update`` moves nothing to the host. On a CPU it keeps what is to be counted of a few batches and counts them together: between
    the steps of a convolutional network the operations of one batch, small as they are, find nothing in the caches. ``compute``
    returns a dict of floats; a figure without samples is left out.
    """

    full_state_update = False
    samples, sums, mixed = _state("samples"), _state("sums"), _state("mixed")

    def __init__(self) -> None:
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []
        super().__init__()
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum")
        # of all samples: loss, share of the targets hit
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        # of batches with mixed samples: samples, their hits, unmixed samples, hits among those
        self.add_state("mixed", torch.zeros(4), dist_reduce_fx="sum")

    def __setattr__(self, name: str, value: Any) -> None:
        """States are set in every step; nn.Module's search for parameters is not needed for them."""
        if name in _SET_IN_A_STEP:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def update(self, loss: Tensor, logits: Tensor, label: Tensor, target: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            loss: Its mean loss ().
            logits: (B, K).
            label: Class ids (B,).
            target: Soft targets (B, K), or None when no sample is mixed. Neither they nor loss and label may be changed later.
        """
        loss, predicted = loss.detach(), logits.argmax(dim=1)
        self._waiting.append((loss, predicted, label, target))
        # what a CUDA graph (compile_mode reduce-overhead) returned is overwritten by the next step
        if len(self._waiting) == MOST_WAITING or not predicted.is_cpu:
            self._count_waiting()

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        """Count the call; gradients, which torchmetrics' own wrapping turns off here, are off while batches are counted."""

        @functools.wraps(update)
        def counted(*args: Tensor | None, **kwargs: Tensor | None) -> None:
            self._computed = None
            self._update_count += 1
            update(*args, **kwargs)

        return counted

    # Few operations, for on an accelerator they are a part of every step. Not in place, for a state that was reset in inference
    # mode could not be changed outside it. Losses are added one by one: rounding must not depend on who read a state, and when.

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
        """The epoch's figures; one transfer to the host."""
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
