"""Ternary quantisers: from a latent float weight w to the weight that the layer uses, one class per published rule.

    latent w (trained) ---> t = round(clip(w / 2 delta, -1, 1)) ---> w_hat (used by the layer):
                            +1 if w > delta                          positive scale
                             0 otherwise                             0
                            -1 if w < -delta                         - negative scale

    rule               threshold delta      scale                          gradient of w, with g = dL/dw_hat
    twn                0.7 mean|w|          mean of |w| over |w| > delta   g
    absmean            0.5 mean|w|          mean|w|                        g
    ttq                0.05 max|w|          learned w_p and w_n            w_p g where +, g where 0, w_n g where -
    learned_threshold  s / 2                learned step s                 g where |w| < s, else 0

mean and max run over one output channel (scale="channel": a delta and a scale for each) or over the whole weight
(scale="layer"). The arithmetic is done in float32 whatever the weight's type, so autocast does not move a symbol.

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
    """A ternary weight taken apart: the symbols, and the value that each non-zero symbol stands for."""

    symbols: Tensor
    """int8, the weight's shape, values in {-1, 0, 1}."""
    positive: Tensor
    """What +1 stands for: (1, 1, ...) with one scale a layer, (out, 1, ...) with one a channel; the weight's dtype."""
    negative: Tensor
    """What -1 stands for, with its sign taken off; equal to `positive` for every rule but ttq."""

    def effective_weight(self) -> Tensor:
        """The weight that the layer uses, to the bit: +positive, 0 or -negative."""
        return torch.where(self.symbols > 0, self.positive, torch.where(self.symbols < 0, -self.negative, 0.0))


class _Identity(Function):
    """Gradient of twn and absmean: dL/dw = dL/dw_hat; threshold and scale count as constants."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, symbols: Tensor, scale: Tensor) -> Tensor:
        return symbols * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


class _TrainedTernary(Function):
    """Gradient of ttq: equation 8 of the paper for w, equation 7 damped for the scales (see `_damped_sum`).

    w_n's gradient has the minus of the chain rule, since w_hat = -w_n there.
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
    """Gradient of learned_threshold: LSQ's equations 3 (step, damped as in its section 2.2) and 5 (w)."""

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
        step_grad = (symbols * grad).sub_(steps.mul_(latent_grad))  # g (t - w/s) inside, g t outside
        return latent_grad, None, _damped_sum(step_grad, step)


class Quantizer(nn.Module):
    """Base of the rules: what a layer asks of its quantiser.

    Args:
        scale: `layer`, one threshold and scale for the whole weight, or `channel`, one for each output channel.
        out_channels: First dimension of the weight, (out, ...).
    """

    gradient: ClassVar[type[Function]]
    """Maps the latent weight and what `decompose` made of it to w_hat, and back."""

    def __init__(self, scale: ScaleName, out_channels: int) -> None:
        super().__init__()
        self.scale = scale
        self.out_channels = out_channels

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Symbols as floats, and the scale, or the positive and the negative one, that broadcast against them."""
        raise NotImplementedError

    def initialize(self, weight: Tensor) -> None:
        """Set the learned parameters, where the rule has any, from a weight (out, ...)."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the layer uses, in shape, dtype and memory format of `weight`, with the rule's gradient."""
        latent = at_least_float32(weight)
        values: Tensor = self.gradient.apply(latent, *self.decompose(latent.detach()))
        return values.to(weight.dtype)

    @torch.no_grad()
    def ternary(self, weight: Tensor) -> Ternary:
        """The same weight as symbols and scales; the tensors are copies."""
        symbols, *scales = self.decompose(at_least_float32(weight))
        positive, negative = (scale.to(weight.dtype, copy=True) for scale in (scales[0], scales[-1]))
        return Ternary(symbols.to(torch.int8), positive, negative)

    def _dims(self, weight: Tensor) -> tuple[int, ...]:
        return tuple(range(0 if self.scale == "layer" else 1, weight.dim()))

    def _learned(self) -> nn.Parameter:
        # one-dimensional like biases and batch-norm weights, so that a "no weight decay below two dimensions" spares it
        return nn.Parameter(torch.ones(1 if self.scale == "layer" else self.out_channels))

    def _spread(self, parameter: Tensor, weight: Tensor) -> Tensor:
        return at_least_float32(parameter).view(-1, *[1] * (weight.dim() - 1))


class TWN(Quantizer):
    """Ternary weight networks (Li et al. 2016, arXiv 1605.04711): given delta, the scale that is nearest to w in L2."""

    gradient = _Identity

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold 0.7 mean|w|; scale the mean of |w| over the threshold, 0 where nothing is over it."""
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
    """Trained ternary quantisation (Zhu et al. 2017, arXiv 1612.01064): +1 and -1 stand for two learned values."""

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
        """Each scale becomes the mean of |w| over its symbol, or over both symbols where no weight has its own."""
        latent, dims = at_least_float32(weight), self._dims(weight)
        symbols = self.decompose(latent)[0]
        for parameter, sign in ((self.positive, 1), (self.negative, -1)):
            own = symbols == sign
            # a scale of 0 would cut the gradient of every weight that takes the symbol later
            members = torch.where(own.any(dims, keepdim=True), own, symbols != 0)
            count = members.sum(dims, keepdim=True).clamp(min=1)
            parameter.copy_(((latent.abs() * members).sum(dims, keepdim=True) / count).flatten())


class LearnedThreshold(Quantizer):
    """LSQ with three levels (Esser et al. 2020, arXiv 1902.08153): one learned step s is the scale, s/2 the threshold.

    Only |s| is used: an optimiser step that carries s below 0 neither swaps the signs nor empties the layer.
    """

    gradient = _LearnedStep

    def __init__(self, scale: ScaleName, out_channels: int) -> None:
        super().__init__(scale, out_channels)
        self.step = self._learned()

    def decompose(self, latent: Tensor) -> tuple[Tensor, ...]:
        """Threshold s/2, where rounding w/s goes from 0 to 1; scale s."""
        step = self._spread(self.step, latent).abs().clamp(min=torch.finfo(latent.dtype).tiny)
        return _symbols(latent, step.detach()), step

    @torch.no_grad()
    def initialize(self, weight: Tensor) -> None:
        """The step becomes 2 mean|w|, the paper's start, kept over 0 since |s| has no gradient at 0."""
        mean = at_least_float32(weight).abs().mean(self._dims(weight), keepdim=True)
        self.step.copy_((2 * mean).clamp(min=torch.finfo(mean.dtype).eps).flatten())


QUANTIZERS: dict[QuantizerName, type[Quantizer]] = {
    "twn": TWN,
    "ttq": TTQ,
    "absmean": AbsMean,
    "learned_threshold": LearnedThreshold,
}


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor itself, or in float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _damped_sum(grads: Tensor, scale: Tensor) -> Tensor:
    """Gradient of a scale: the sum over the weights that share it, times 1 / sqrt(their number), as in LSQ.

    Undamped, a scale moves so much further than the weights for their sizes that ttq trained by SGD at the weights'
    learning rate swings its scales through 0 and learns little; its paper's equation 7 has the sum alone.
    """
    damping: float = (scale.numel() / grads.numel()) ** 0.5
    return grads.sum_to_size(scale.shape) * damping


def _symbols(latent: Tensor, step: Tensor) -> Tensor:
    """-1, 0 or 1 as floats: w / step rounded and clipped, so that the threshold is step / 2 and lies in the 0.

    Rounding is used and not comparisons with torch.where, which took 20 times as long on a CPU. A weight of NaN stays
    NaN: a diverged network must not look like one of zeros.
    """
    steps = latent / step.clamp(min=torch.finfo(latent.dtype).tiny)  # an all-zero weight must not give 0/0
    return steps.clamp_(-1, 1).round_().add_(0.0)  # -0 becomes 0
