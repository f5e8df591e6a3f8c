"""Benchmark: does the light segmenter collapse on thin, rare cracks? Trains it with several seeds on generated images.

    python -m benchmarks.segmentation.thin_cracks [--seeds 10] [--images 320] [--share 0.25] [--weights FILE] [--output DIR]
        [settings of fit]

Images of datamodules/segmentation/generator.py, 96 px: dark random walks of 1 to 4 px on a noisy wall. Only a share of the images
shows a crack; the masks of the others are empty, so that an empty mask is right for most images. A run has collapsed if its IoU
over the test images is below 0.05. The runs are kept in --output; a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cli import main as run
from datamodules.segmentation.generator import SIZE, picture
from foundation import measuring
from foundation.atomic_files import write_text

CONFIG = "configs/prompt_segmentation_light.yaml"
SETS = "[{folder: cracks, prompts: [segment crack, segment wall crack]}]"
COLLAPSED = 0.05


def write_images(folder: Path, count: int, share: float) -> None:
    """Write `count` images and masks, of which the given share shows a crack."""
    if (folder / "done").is_file():
        return
    for kind in ("images", "masks"):
        (folder / "cracks" / kind).mkdir(parents=True, exist_ok=True)
    shown = np.random.default_rng(0).permutation(count) < round(share * count)
    for number in range(count):
        # the generator leaves every fifth image without a crack; each image gets a background of its own
        image, mask = picture("cracks", 10 * number if shown[number] else 10 * number + 4)
        assert bool(mask.any()) == bool(shown[number])
        for kind, pixels in (("images", image), ("masks", mask)):
            Image.fromarray(pixels).save(folder / "cracks" / kind / f"{number:04d}.png")
    write_text(folder / "done", "")


def metrics_of(options: argparse.Namespace, seed: int, settings: list[str]) -> dict[str, float]:
    """Train and test one seed, or read what an earlier call measured."""
    folder = options.output / f"seed_{seed}"
    if not (folder / "config.yaml").is_file():
        data = ["--data.root", str(options.output / "data"), "--data.sets", SETS, "--data.image_size", str(SIZE)]
        weights = ["--model.weights", options.weights] if options.weights else []
        words = ["fit", "--config", CONFIG, *data, *weights, "--run_dir", str(folder), "--test_after_fit"]
        _command([*words, "--seed_everything", str(seed), *settings])
    elif not (folder / "test_metrics.json").is_file():
        _command(["fit", "--resume", str(folder), "--test_after_fit"])
    metrics: dict[str, float] = json.loads((folder / "test_metrics.json").read_text(encoding="utf-8"))["metrics"]
    return metrics


def _command(words: list[str]) -> None:
    if code := run(words):
        raise SystemExit(code)


def main(args: list[str] | None = None) -> None:
    """Train all seeds and print the table; ``args`` as on the command line, unknown arguments are passed to `main.py fit`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--images", type=int, default=320, help="number of images of all splits")
    parser.add_argument("--share", type=float, default=0.25, help="share of the images that show a crack")
    parser.add_argument("--weights", help="ImageNet's weights of the encoder; without them it starts at random")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/thin_cracks"), help="folder in which the runs are kept"
    )
    options, settings = parser.parse_known_args(args)
    write_images(options.output / "data", options.images, options.share)
    found = [metrics_of(options, seed, settings) for seed in range(options.seeds)]
    shown = ("test/iou", "test/dice", "test/iou_image", "test/nothing_iou_image")
    rows = [[str(seed), *(f"{metrics[name]:.3f}" for name in shown)] for seed, metrics in enumerate(found)]
    means = np.array([[metrics[name] for name in shown] for metrics in found])
    rows.append(["mean", *(f"{value:.3f}" for value in means.mean(axis=0))])
    print(measuring.table(["seed", *shown], rows))
    print(f"collapsed (IoU below {COLLAPSED}): {int((means[:, 0] < COLLAPSED).sum())} of {len(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
