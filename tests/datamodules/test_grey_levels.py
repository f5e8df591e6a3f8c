"""Grey files of more than 8 bits keep their levels through resizing and normalisation; files of 8 bits are read as ever."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image

from datamodules import ImageFolderDataModule, PromptedSegmentationDataModule, PromptSet
from datamodules.images.decoding import FULL, central, squeezed

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60 + 100  # 12 bits: 100 to 3,880


def folder_of(root: Path, values: NDArray[Any], ending: str = "png") -> Path:
    for split in ("train", "val"):
        for place, name in enumerate(("a", "b")):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                Image.fromarray(values + values.dtype.type(number + place)).save(
                    root / split / name / f"{number}.{ending}"
                )
    return root


def data_of(root: Path, **settings: Any) -> ImageFolderDataModule:
    options: dict[str, Any] = {
        "image_size": 8,
        "eval_share": 1.0,
        "batch_size": 4,
        "workers": 0,
        "channels": 1,
        **settings,
    }
    return ImageFolderDataModule(str(root), **options)


def test_pixels_lie_on_a_line_and_are_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    for black, white in (FULL, (100.0, 3880.0), (1000.0, 2000.0)):
        expected = torch.from_numpy(((RAMP - black) / (white - black)).astype(np.float32))
        assert torch.allclose(squeezed(tmp_path / "x.png", 8, 1, (black, white))[0][0], expected, atol=1e-6)
        rgb = central(tmp_path / "x.png", 8, 3, 1.0, (black, white))
        assert torch.allclose(rgb, expected.expand(3, 8, 8), atol=1e-6)
    half = squeezed(tmp_path / "x.png", 4, 1, FULL)[0]
    assert half.unique().numel() == 16  # in 8 bits, two or three of these would fall together
    assert torch.equal(
        squeezed(tmp_path / "x.png", 8, 1)[0][0], torch.from_numpy((RAMP / 257).round().astype(np.uint8))
    )


def test_eight_bits_are_the_same_with_levels_and_without(tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    plain = squeezed(tmp_path / "x.png", 8, 1)[0]
    assert plain.dtype == torch.uint8
    assert torch.equal(squeezed(tmp_path / "x.png", 8, 1, FULL)[0], plain.float() / 255)


@pytest.mark.parametrize(
    ("ending", "kind"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tif", np.float32)]
)
def test_a_batch_keeps_the_levels(
    tmp_path: Path, ending: str, kind: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = data_of(folder_of(tmp_path, RAMP.astype(kind), ending), levels=[0, 4095], mean=[0.5], std=[0.25], flip=False)
    data.setup("fit")
    with caplog.at_level("INFO"):
        data.check_input(("train", "val"))
    assert (
        "16 images have more than 8 bits: values of 100 to 3884 were found, 0 to 4095 become black to white"
        in caplog.text
    )
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].dtype == torch.float32
    normal = data._normalize(batch)["image"]
    assert torch.allclose(normal[0, 0], (torch.from_numpy(RAMP / 4095).float() - 0.5) / 0.25, atol=1e-5)
    augmented = data.augment(next(iter(data.train_dataloader())), epoch=0)["image"]
    assert augmented.shape[1:] == (1, 8, 8)
    assert augmented.isfinite().all()


def test_a_policy_gets_eight_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = data_of(folder_of(tmp_path, RAMP), policy="randaugment", levels=[0, 4095])
    data.setup("fit")
    with caplog.at_level("INFO"):
        data.check_input(("train", "val"))
    assert "randaugment works on 8 bits, so training images are rounded to them" in caplog.text
    image = data.augment(next(iter(data.train_dataloader())), epoch=0)["image"]
    assert len((image * data.std[0] + data.mean[0]).mul(255).sub(0.5).round().unique()) <= 256
    assert image.isfinite().all()


def test_what_has_no_known_range_is_refused_by_name(tmp_path: Path) -> None:
    data = data_of(folder_of(tmp_path, RAMP.astype(np.float32), "tif"))
    with pytest.raises(
        MisconfigurationException, match=r"none of the 8 files .* no known range; say which .* --data.levels"
    ):
        data.setup("fit")
    with pytest.raises(ValueError, match=r"levels is \[5, 5\] but must be \[BLACK, WHITE\], or null"):
        data_of(tmp_path, levels=[5, 5])


def test_segmentation_keeps_the_levels_in_training_and_evaluation(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number in range(12):
        Image.fromarray(RAMP + np.uint16(number)).save(tmp_path / "set" / "images" / f"{number:02}.png")
        Image.fromarray(((RAMP > 2000) * 255).astype(np.uint8)).save(tmp_path / "set" / "masks" / f"{number:02}.png")
    small: dict[str, Any] = {
        "workers": 0,
        "image_size": 8,
        "batch_size": 2,
        "val_fraction": 0.25,
        "test_fraction": 0.25,
    }
    data = PromptedSegmentationDataModule(str(tmp_path), [PromptSet("set", ["bright"])], levels=[0, 4095], **small)
    data.setup("fit")
    data.check_input(("train", "val"))
    batch: Any = next(iter(data.val_dataloader()))
    number = int(data.pairs[int(batch["index"][0])].image.stem)
    assert torch.allclose(
        batch["image"][0], torch.from_numpy((RAMP + number) / 4095).float().expand(3, 8, 8), atol=1e-6
    )
    assert next(iter(data.train_dataloader()))["image"].dtype == torch.float32
