"""Benchmark thin_cracks: the share of images with a crack, and that a second call goes on instead of training again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.segmentation.thin_cracks import main, write_images


def test_the_share_of_images_with_a_crack(tmp_path: Path) -> None:
    write_images(tmp_path, 40, 0.25)
    masks = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "cracks" / "masks").iterdir())]
    shown = [bool(mask.any()) for mask in masks]
    assert (len(masks), sum(shown)) == (40, 10)
    assert shown[:10] != [True] * 10  # not the first ones
    images = {path.read_bytes() for path in (tmp_path / "cracks" / "images").iterdir()}
    assert len(images) == 40


@pytest.mark.slow
def test_a_run_of_one_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seeds", "1", "--images", "40", "--output", str(tmp_path), "--trainer.max_epochs", "1"]
    tiny = ["--model.encoder", "test_efficientnet", "--model.network_args", "null", "--data.workers", "0"]
    main([*words, *tiny])
    first = capsys.readouterr().out
    assert "collapsed (IoU below 0.05): " in first
    assert (tmp_path / "seed_0" / "test_metrics.json").is_file()
    main([*words, *tiny])
    second = capsys.readouterr().out
    assert second.splitlines()[-4:] == first.splitlines()[-4:]
    assert "epoch 1/1" not in second
