"""Benchmark: our CLIPSeg against transformers' CLIPSeg for several prompts per image, with the same weights.

    python -m benchmarks.segmentation.clipseg [--repeats 5] [--size 352] [--prompts TEXT ...] [--batch 1]
        [--threads N] [--json FILE]

Weights are random, with the size of CLIPSeg rd64-refined; neither speed nor equality depends on their values. The sides:

- ours: image tower once per image, only up to the last layer that is used; text vectors from the cache
- once per prompt: transformers' `CLIPSegForImageSegmentation` called for each prompt, with tokenised texts
- in one batch: the same network called once, with the images repeated for each prompt

Reported differences: of the logits, relative to their standard deviation, and of the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foundation import measuring
from foundation.measuring import Spread, interleave
from networks.segmenters.clip import CLIPSegmenter
from networks.segmenters.clip_weights import load_clipseg

OURS, EACH, BATCHED = "ours", "transformers, once per prompt", "transformers, in one batch"


class Sides(NamedTuple):
    """The compared implementations; each call returns logits (B, P, H, W) of B images and P prompts."""

    ours: Callable[[], Tensor]
    each: Callable[[], Tensor]
    batched: Callable[[], Tensor]


def sides(weights: str, prompts: Sequence[str], batch: int, size: int, device: torch.device) -> Sides:
    """Builds both networks with the same weights, and the input.

    Args:
        weights: `random_rd64` or `random_tiny`.
        prompts: P texts.
        batch: Number of images B in a call.
        size: Height and width of the images in pixels, a multiple of 16.
        device: Device of networks and input.
    """
    ours = CLIPSegmenter(weights).to(device).eval()
    theirs, tokenizer = load_clipseg(weights)
    theirs = theirs.to(device).eval()
    image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    tokens = {
        name: value.to(device) for name, value in tokenizer(list(prompts), padding=True, return_tensors="pt").items()
    }
    index = torch.arange(batch, device=device).repeat_interleave(len(prompts))

    def once(place: int) -> Tensor:
        own: dict[str, Any] = {name: value[place].expand(batch, -1) for name, value in tokens.items()}
        logits: Tensor = theirs(pixel_values=image, **own).logits
        return logits.view(batch, size, size)

    def batched() -> Tensor:
        own = {name: value.repeat(batch, 1) for name, value in tokens.items()}
        logits: Tensor = theirs(pixel_values=image.repeat_interleave(len(prompts), dim=0), **own).logits
        return logits.view(batch, len(prompts), size, size)

    return Sides(
        ours=lambda: ours(image, list(prompts) * batch, index).view(batch, len(prompts), size, size),
        each=lambda: torch.stack([once(place) for place in range(len(prompts))], dim=1),
        batched=batched,
    )


class Differences(NamedTuple):
    """Largest differences between our output and transformers' called once per prompt: relative logits, and probabilities."""

    relative: float
    probability: float


@torch.inference_mode()
def differences(both: Sides) -> Differences:
    """Compares the outputs of both networks; the module docstring defines the differences."""
    mine, theirs = both.ours(), both.each()
    relative = float((mine - theirs).abs().max() / theirs.std())
    return Differences(relative, float((mine.sigmoid() - theirs.sigmoid()).abs().max()))


def seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of a call, including synchronisation with a GPU."""
    begin = perf_counter()
    with torch.inference_mode():
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return perf_counter() - begin


def main(args: list[str] | None = None) -> None:
    """Measures and prints the table; ``args`` as on the command line."""
    parser = measuring.arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", type=int, default=352, help="side of the images in pixels, a multiple of 16")
    parser.add_argument(
        "--prompts", nargs="+", default=["crack", "taping area"], metavar="TEXT", help="prompts of each image"
    )
    parser.add_argument("--batch", type=int, default=1, help="images in a call")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--weights", choices=["random_rd64", "random_tiny"], default="random_rd64", help="size of the network"
    )
    options, before = measuring.begin(parser, args)
    if options.size < 16 or options.size % 16:
        parser.error(f"--size: a multiple of 16 is needed, got {options.size}")
    if options.batch < 1:
        parser.error(f"--batch: 1 or more, got {options.batch}")
    device = torch.device(options.device)
    both = sides(options.weights, options.prompts, options.batch, options.size, device)
    found = differences(both)  # also warms up
    seconds(both.batched, device)
    calls = {OURS: both.ours, EACH: both.each, BATCHED: both.batched}
    measured = interleave({name: partial(seconds, call, device) for name, call in calls.items()}, options.repeats)
    spreads = {name: Spread.of([1000 * value for value in values]) for name, values in measured.items()}
    ratios = {
        name: Spread.of([theirs / mine for theirs, mine in zip(values, measured[OURS], strict=True)])
        for name, values in measured.items()
    }
    rows = [[name, spreads[name].text(0), ratios[name].text(2)] for name in calls]
    print(measuring.table(("side", "ms per call", "time / ours"), rows))
    print(
        f"\n{options.batch} image(s) of {options.size} x {options.size}, {len(options.prompts)} prompts, {options.weights}, "
        f"on {options.device}; median (least .. most) of {options.repeats} repeats"
    )
    print(
        f"largest difference: {found.relative:.1e} of the logits' standard deviation, {found.probability:.1e} in probability"
    )
    content = {
        "benchmark": "clipseg",
        "repeats": options.repeats,
        "device": options.device,
        "size": options.size,
        "batch": options.batch,
        "prompts": options.prompts,
        "weights": options.weights,
        "ms": {name: spread._asdict() for name, spread in spreads.items()},
        "ratio": {name: spread._asdict() for name, spread in ratios.items()},
        "differences": found._asdict(),
    }
    measuring.report(before, content, options.json)


if __name__ == "__main__":
    main()
