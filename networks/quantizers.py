"""Ternary quantisers TWN, TTQ, AbsMean (BitNet b1.58) and LearnedThreshold (LSQ): map latent float weights to ternary weights.

    latent w (trained) ---> t = round(clip(w / 2 delta, -1, 1)) ---> w_hat (used by the layer):
                            +1 if w > delta                          positive scale
                             0 otherwise                             0
                            -1 if w < -delta                         - negative scale

    rule               threshold delta      scale                          gradient with respect to w, with g = dL/dw_hat
    twn                0.7 mean|w|          mean of |w| over |w| > delta   g
    absmean            0.5 mean|w|          mean|w|                        g
    ttq                0.05 max|w|          learned w_p and w_n            w_p g if t = 1, g if t = 0, w_n g if t = -1
    learned_threshold  s / 2                learned step s                 g if |w| < s, else 0

mean and max run over one output channel (scale="channel": one delta and one scale per channel) or over the whole weight
(scale="layer"). The computation runs in float32 for every weight type, so that autocast does not change a symbol.

>>> AbsMean("layer", out_channels=1).ternary(torch.tensor([[0.9, -0.2, 0.1, -0.8]]))  # mean|w| = 0.5, delta = 0.25
Ternary(symbols=tensor([[ 1,  0,  0, -1]], dtype=torch.int8), positive=tensor([[0.5000]]), negative=tensor([[0.5000]]))
"""

from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

QuantizerName = Literal["twn", "ttq", "absmean", "learned_threshold"]
ScaleName = Literal["layer", "channel"]


class Ternary(NamedTuple):
    """A ternary weight as its symbols and the values of +1 and -1."""

    symbols: Tensor
    """int8, in the weight's shape, values in {-1, 0, 1}."""
    positive: Tensor
    """Value of the symbol +1: (1, 1, ...) with one scale per layer, (out, 1, ...) with one per channel; the weight's dtype."""
    negative: Tensor
    """Value of the symbol -1 without its sign; equal to `positive` for every rule except ttq."""

    def effective_weight(self) -> Tensor:
        """The exact weight that the layer uses: +positive, 0 or -negative."""
        return torch.where(self.symbols > 0, self.positive, torch.where(self.symbols < 0, -self.negative, 0.0))


class _Identity(Function):
    """Gradient of twn and absmean: dL/dw = dL/dw_hat; threshold and scale are treated as constants."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, symbols: Tensor, scale: Tensor) -> Tensor:
        return symbols * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class _TrainedTernary(Function):
    """Gradient of ttq: equation 8 of the paper for w, and equation 7, damped, for the scales (see `_damped_sum`).

    The gradient of w_n has a minus sign from the chain rule, since w_hat = -w_n for the symbol -1.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, symbols: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        ctx.save_for_backward(symbols, positive, negative)
        return (symbols.clamp(min=0) * positive).addcmul_(symbols.clamp(max=0), negative)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        symbols, positive, negative = ctx.saved_tensors
        plus, minus = symbols.clamp(min=0), symbols.clamp(max=0)  # minus holds -1
        latent_grad = (1 - symbols.abs()).addcmul_(plus, positive).addcmul_(minus, negative, value=-1).mul_(grad)
        return latent_grad, None, _damped_sum(plus.mul_(grad), positive), _damped_sum(minus.mul_(grad), negative)


class _LearnedStep(Function):
    """Gradient of learned_threshold: equations 3 (step, damped as in section 2.2) and 5 (w) of LSQ."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, symbols: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(latent, symbols, step)
        return symbols * step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0]
        latent, symbols, step = ctx.saved_tensors
        steps = (latent / step).clamp_(-1, 1)
        latent_grad = steps.abs().lt_(1).mul_(grad)
        step_grad = (symbols * grad).sub_(steps.mul_(latent_grad))  # g (t - w/s) if |w| < s, else g t
        return latent_grad, None, _damped_sum(step_grad, step)


class Quantizer(nn.Module):
    """Base class of the quantisation rules.

    Args:
        scale: `layer`: one threshold and scale for the whole weight; `channel`: one of each per output channel.
        out_channels: First dimension of the weight (out, ...).
    """

    gradient: ClassVar[type[Function]]
    """Autograd function that maps the latent weight and the results of `decompose` to w_hat."""

    def __init__(self, scale: ScaleName, out_channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.out_channels = out_channels

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Symbols as floats, and one scale, or a positive and a negative scale, broadcastable to the symbols."""
        raise NotImplementedError

    def initialize(self, weight: Tensor) -> None:
        """Set the learned parameters, if the rule has any, from a weight (out, ...)."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses, with shape, dtype and memory format of `weight` and the rule's gradient."""
        latent = at_least_float32(weight)
        values: Tensor = self.gradient.apply(latent, *self.decompose(latent.detach()))
        return values.to(weight.dtype)

    @torch.no_grad()
    def ternary(self, weight: Tensor) -> Ternary:
        """The ternary weight as symbols and scales; the tensors are copies."""
        symbols, *scales = self.decompose(at_least_float32(weight))
        positive, negative = (scale.to(weight.dtype, copy=True) for scale in (scales[0], scales[-1]))
        return Ternary(symbols.to(torch.int8), positive, negative)

    def _dims(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(range(0 if self.scale == "layer" else 1, weight.dim()))

    def _learned(self) -> nn.Parameter:
        # one-dimensional like biases and batch-norm weights, so that a rule "no weight decay below two dimensions" excludes it
        return nn.Parameter(torch.ones(1 if self.scale == "layer" else self.out_channels))

    def _spread(self, parameter: Tensor, weight: Tensor) -> Tensor:
        return at_least_float32(parameter).view(-1, *[1] * (weight.dim() - 1))


class TWN(Quantizer):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711): for the given delta, the scale that is L2-optimal for w."""

    gradient = _Identity

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold 0.7 mean|w|; the scale is the mean of all |w| above the threshold, 0 if there are none."""
        dims = self._dims(latent)
        symbols = _symbols(latent, 1.4 * latent.abs().mean(dims, keepdim=True))
        count = symbols.abs().sum(dims, keepdim=True).clamp(min=1)
        return symbols, (symbols * latent).sum(dims, keepdim=True) / count


class AbsMean(Quantizer):
    """BitNet b1.58 (Ma et al. 2024, arXiv 2402.17764): t = round(clip(w / mean|w|, -1, 1)), scale mean|w|."""

    gradient = _Identity

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold 0.5 mean|w|; scale mean|w|."""
        scale = latent.abs().mean(self._dims(latent), keepdim=True)
        return _symbols(latent, scale), scale


class TTQ(Quantizer):
    """Trained ternary quantisation (Zhu et al. 2017, arXiv 1612.01064): one learned value for +1 and one for -1."""

    gradient = _TrainedTernary

    def __init__(self, scale: ScaleName, out_channels: int) -> None:
        super().__init__(scale, out_channels)
        self.positive = self._learned()
        self.negative = self._learned()

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold 0.05 max|w|; the learned scales."""
        symbols = _symbols(latent, 0.1 * latent.abs().amax(self._dims(latent), keepdim=True))
        return symbols, self._spread(self.positive, latent), self._spread(self.negative, latent)

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set each scale to the mean of |w| over the weights with its symbol, or with either symbol if none has its own."""
        latent, dims = at_least_float32(weight), self._dims(weight)
        symbols = self.decompose(latent)[0]
        for parameter, sign in ((self.positive, 1), (self.negative, -1)):
            own = symbols == sign
            # a scale of 0 would cut the gradient of every weight that takes the symbol later
            members = torch.where(own.any(dims, keepdim=True), own, symbols != 0)
            count = members.sum(dims, keepdim=True).clamp(min=1)
            parameter.copy_(((latent.abs() * members).sum(dims, keepdim=True) / count).flatten())


class LearnedThreshold(Quantizer):
    """LSQ with three levels (Esser et al. 2020, arXiv 1902.08153): the learned step s is the scale, s/2 the threshold.

    Only |s| is used, so that an optimiser step that makes s negative neither swaps the signs nor zeroes the layer.
    """

    gradient = _LearnedStep

    def __init__(self, scale: ScaleName, out_channels: int) -> None:
        super().__init__(scale, out_channels)
        self.step = self._learned()

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold s/2, at which w/s rounds from 0 to 1; scale s."""
        step = self._spread(self.step, latent).abs().clamp(min=torch.finfo(latent.dtype).tiny)
        return _symbols(latent, step.detach()), step

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """Set the step to 2 mean|w| as in the paper, but above 0, since |s| has no gradient at 0."""
        mean = at_least_float32(weight).abs().mean(self._dims(weight), keepdim=True)
        self.step.copy_((2 * mean).clamp(min=torch.finfo(mean.dtype).eps).flatten())


QUANTIZERS: dict[QuantizerName, type[Quantizer]] = {
    "twn": TWN,
    "ttq": TTQ,
    "absmean": AbsMean,
    "learned_threshold": LearnedThreshold,
}


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or converted to float32 if its type has fewer bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _damped_sum(grads: Tensor, scale: Tensor) -> Tensor:
    """Gradient of a scale: the sum over the weights that share it, times 1 / sqrt(their number), as in LSQ.

    Without damping, a scale changes much more, relative to its size, than the weights do. With SGD at the weights' learning
    rate the scales of ttq then oscillate through 0 and the network learns little. Equation 7 of the ttq paper has no damping.
    """
    damping: float = (scale.numel() / grads.numel()) ** 0.5
    return grads.sum_to_size(scale.shape) * damping


def _symbols(latent: Tensor, step: Tensor) -> Tensor:
    """-1, 0 or 1 as floats: w / step rounded and clipped; the threshold is step / 2, and a weight equal to it becomes 0.

    Rounding is used because comparisons with torch.where took 20 times as long on a CPU. NaN weights stay NaN, so that a
    diverged network does not look like one with zero weights.
    """
    steps = latent / step.clamp(min=torch.finfo(latent.dtype).tiny)  # an all-zero weight must not give 0/0
    return steps.clamp_(-1, 1).round_().add_(0.0)  # -0 becomes 0
