"""Benchmark: adapters (LoRA) against training of the head or of all weights: memory and time of a step, and a small accuracy check.

    python -m benchmarks.adapters [--architecture vit_small_patch16_224] [--size 224] [--batch_size 16] [--json FILE]
    python -m benchmarks.adapters --digits [--few 20] [--seeds 3] [--json FILE]

steps     Each way of training takes its steps in a process of its own, on random images, on the GPU if there is one: time of a step
          after two to warm up, and the memory above that before the network was built (on a CPU the largest resident memory).
--digits  A ViT of 0.2 million weights is trained from scratch on scikit-learn's digits 0 to 4, and then adapted to digits 5 to 9
          from a few images of each, in each way at several learning rates. The table has the accuracy on all other images of the
          digits 5 to 9. Each way has the rate with the best mean there, which favours all of them alike. A small check, no figure
          for a ViT with published weights.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from foundation import measuring
from foundation.measuring import Spread
from lightning_modules import ImageClassifier
from lightning_modules.optimizers import build_optimizer
from networks.timm_network import build_timm_network

WAYS: dict[str, dict[str, Any]] = {"head": {"freeze": "backbone"}, "lora": {"adapter": "lora"}, "full": {}}
RATES = {"head": (3e-3, 3e-2, 3e-1), "lora": (1e-3, 3e-3, 1e-2), "full": (1e-4, 3e-4, 1e-3), "from scratch": (1e-3,)}
DIGITS: dict[str, Any] = {
    "num_classes": 5,
    "in_channels": 1,
    "image_size": 8,
    "architecture": "vit_tiny_patch16_224",
    "network_args": {"patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4},
}
BATCH = 32


class Part(NamedTuple):
    """Images (n, 1, 8, 8) float32 in 0 to 1 and labels (n,) of five of the digits."""

    image: Tensor
    label: Tensor


def step(way: str, architecture: str, size: int, batch_size: int, steps: int, weights: str) -> dict[str, Any]:
    """Take training steps in this process.

    Args:
        way: ``head``, ``lora`` or ``full``.
        architecture: Name of a timm network.
        size: Height and width of the images in pixels.
        batch_size: Images of a step.
        steps: Number of measured steps, 1 or more.
        weights: File with weights of the architecture.

    Returns:
        ``ms``, time of each step after two to warm up; ``mb``, memory of network and steps; ``trained``, number of weights.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = 0 if device == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made: dict[str, Any] = {"architecture": architecture, "image_size": size, "optimizer": "adamw", "lr": 1e-4}
    module = ImageClassifier(num_classes=10, in_channels=3, weights=weights, **made, **WAYS[way])
    module.give_weights()
    module.to(device).train()
    optimizer = build_optimizer("adamw", module.parameter_groups(), 1e-4, 0.9, True)
    image = torch.rand(batch_size, 3, size, size, device=device)
    label = torch.arange(batch_size, device=device) % 10
    times = []
    for _ in range(2 + steps):
        start = time.perf_counter()
        module.training_loss(module(image), {"label": label}).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    most = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return {"ms": times[2:], "mb": (most - 1024 * before) / 1e6, "trained": trained}


def all_steps(architecture: str, size: int, batch_size: int, steps: int) -> list[dict[str, Any]]:
    """Measure each way in a process of its own; see :func:`step` for arguments and values."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.safetensors")
        for way in WAYS:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                pool.apply(_write_weights, (architecture, size, weights))
            with multiprocessing.get_context("fork").Pool(1) as pool:
                rows.append({"way": way, **pool.apply(step, (way, architecture, size, batch_size, steps, weights))})
    return rows


def _write_weights(architecture: str, size: int, weights: str) -> None:
    network = build_timm_network(architecture, num_classes=10, image_size=size)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)


def digits(seed: int, few: int) -> tuple[Part, Part, Part]:
    """All images of the digits 0 to 4; `few` of each of 5 to 9, drawn by the seed; the others of 5 to 9."""
    data = load_digits()
    image = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    label = torch.tensor(data.target)
    order = torch.randperm(len(label), generator=torch.Generator().manual_seed(seed))
    chosen = [order[label[order] == digit] for digit in range(10)]
    parts = (torch.cat(chosen[:5]), torch.cat([c[:few] for c in chosen[5:]]), torch.cat([c[few:] for c in chosen[5:]]))
    first, new, rest = (Part(image[rows], label[rows] % 5) for rows in parts)
    return first, new, rest


def train(module: ImageClassifier, part: Part, epochs: int, seed: int) -> ImageClassifier:
    """Train with AdamW and a rate that falls to 0 in a cosine; returns the module in eval mode."""
    optimizer = build_optimizer("adamw", module.parameter_groups(), module.lr, 0.9, False)
    random = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(part.label) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(part.label), generator=random).split(BATCH):
            module.training_loss(module(part.image[rows]), {"label": part.label[rows]}).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return module.eval()


@torch.no_grad()
def accuracy(module: ImageClassifier, part: Part) -> float:
    """Share of the images of a part that are classified rightly, 0 to 1."""
    return float((module(part.image).argmax(1) == part.label).float().mean())


def on_digits(few: int, seeds: int, epochs: Mapping[str, int]) -> list[dict[str, Any]]:
    """Accuracy on new digits of each way: mean, least and most over the seeds; ``images`` is n.

    Args:
        few: Training images of each new digit, 1 to 150.
        seeds: Number of seeds; each has its own first network, its own few images and its own test images.
        epochs: Epochs of the ``first`` training, and of ``adapting``.
    """
    found: dict[tuple[str, float], list[float]] = {}
    images = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            first, new, rest = digits(seed, few)
            images += len(rest.label)
            torch.manual_seed(seed)
            base = train(ImageClassifier(**DIGITS, lr=1e-3, optimizer="adamw"), first, epochs["first"], seed)
            path = Path(folder) / f"{seed}.safetensors"
            state = base.network.state_dict().items()
            save_file({name: tensor.contiguous() for name, tensor in state if not name.startswith("head.")}, path)
            for way, rates in RATES.items():
                for rate in rates:
                    torch.manual_seed(seed)
                    start = {} if way == "from scratch" else {"weights": str(path), **WAYS[way]}
                    module = ImageClassifier(**DIGITS, lr=rate, optimizer="adamw", **start)
                    module.give_weights()
                    scored = accuracy(train(module, new, epochs["adapting"], seed), rest)
                    found.setdefault((way, rate), []).append(scored)
    rows = []
    for way, rates in RATES.items():
        rate = max(rates, key=lambda one: statistics.mean(found[way, one]))
        of_rates = {f"{one:g}": found[way, one] for one in rates}
        rows.append({"way": way, "rate": rate, "acc": found[way, rate], "images": images, "rates": of_rates})
    return rows


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and return the results."""
    parser = measuring.arguments("Adapters (LoRA) against training of the head only and of all weights.")
    parser.add_argument("--architecture", default="vit_small_patch16_224", help="timm network of the steps")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images of the steps")
    parser.add_argument("--batch_size", type=int, default=16, help="images of a step")
    parser.add_argument("--digits", action="store_true", help="the small accuracy check in place of the steps")
    parser.add_argument("--few", type=int, default=20, help="training images of each new digit")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the accuracy check")
    parser.add_argument("--epochs", type=int, nargs=2, default=(20, 60), help="epochs of first training and adapting")
    options, before = measuring.begin(parser, args)
    if options.digits:
        rows = on_digits(options.few, options.seeds, dict(zip(("first", "adapting"), options.epochs, strict=True)))
        header = ["trained", "learning rate", "accuracy, mean (least .. most)", "test images"]
        cells = [
            [
                row["way"],
                f"{row['rate']:g}",
                f"{statistics.mean(row['acc']):.1%} ({min(row['acc']):.1%} .. {max(row['acc']):.1%})",
                f"{row['images']:,}",
            ]
            for row in rows
        ]
    else:
        rows = all_steps(options.architecture, options.size, options.batch_size, options.repeats)
        header = ["trained", "weights trained", "memory, MB", "ms a step (least .. most)"]
        cells = [[row["way"], f"{row['trained']:,}", f"{row['mb']:,.0f}", Spread.of(row["ms"]).text(0)] for row in rows]
    print(measuring.table(header, cells))
    content = {"rows": rows}
    measuring.report(before, content, options.json)
    return content


if __name__ == "__main__":
    main()
