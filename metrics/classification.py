"""Loss and accuracy of an epoch from a handful of sums: exact on any number of processes and any batch sizes.

    loss = sum(batch loss * batch size) / samples,     acc = hits on unmixed samples / unmixed samples
    acc_mix = sum over all samples of the target's share of the predicted class / samples

A sample is mixed when none of its soft target's shares is 1. Accuracy on hard labels means nothing for those, so they are left
out of ``acc`` and counted by their shares in ``acc_mix``.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

_SET_IN_A_STEP = {"samples", "sums", "mixed", "_computed", "_update_count"}


def hit_share(logits: Tensor, label: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Share of each sample's target that the predicted class holds, and which samples are unmixed.

    Args:
        logits: (B, K).
        label: Class ids (B,).
        target: Soft targets (B, K), or None when no sample is mixed.

    Returns:
        Shares (B,) float in [0, 1] (0 or 1 where unmixed) and a mask (B,) bool, True where unmixed.

    >>> hit_share(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))[0]
    tensor([1., 0.])
    """
    predicted = logits.argmax(dim=1)
    if target is None:
        return (predicted == label).float(), torch.ones_like(label, dtype=torch.bool)
    return target.gather(1, predicted[:, None])[:, 0].float(), target.amax(dim=1) == 1


class ClassificationSums(Metric):
    """Sums behind ``loss``, ``acc`` and, when samples were mixed, ``acc_mix``; see the top of the file.

    ``update`` moves nothing to the host. ``compute`` returns a dict of floats; a figure without samples is left out.
    """

    full_state_update = False
    samples: Tensor
    sums: Tensor
    mixed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("samples", torch.zeros(()), dist_reduce_fx="sum")
        # of all samples: loss, share of the targets hit
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")
        # of batches with mixed samples: samples, their hits, unmixed samples, hits among those
        self.add_state("mixed", torch.zeros(4), dist_reduce_fx="sum")

    def __setattr__(self, name: str, value: Any) -> None:
        """States are set in every step; nn.Module's search for parameters is not needed for them."""
        if name in _SET_IN_A_STEP:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def update(self, loss: Tensor, logits: Tensor, label: Tensor, target: Tensor | None = None) -> None:
        """Add a batch: ``loss`` () is its mean; the others as in :func:`hit_share`."""
        # few operations, for they are a part of every step; not in place, for a state that was reset in inference mode could
        # not be changed outside it
        size = label.shape[0]
        self.samples = self.samples + size
        if target is None:
            hits = (logits.detach().argmax(dim=1) == label).sum()
        else:
            share, unmixed = hit_share(logits.detach(), label, target)
            hits = share.sum()
            batch = torch.stack([hits.new_full((), size), hits, unmixed.sum(), (share * unmixed).sum()])
            self.mixed = self.mixed + batch
        self.sums = self.sums + torch.stack([loss.detach().float() * size, hits])

    def compute(self) -> dict[str, float]:
        """The epoch's figures; one transfer to the host."""
        values = torch.cat([self.samples[None], self.sums, self.mixed]).tolist()
        samples, loss, hits, mixed, mixed_hits, unmixed, unmixed_hits = values
        unmixed, unmixed_hits = unmixed + samples - mixed, unmixed_hits + hits - mixed_hits
        figures: dict[str, float] = {}
        if samples:
            figures["loss"] = loss / samples
        if unmixed:
            figures["acc"] = unmixed_hits / unmixed
        if samples != unmixed:
            figures["acc_mix"] = hits / samples
        return figures
