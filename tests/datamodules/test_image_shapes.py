"""Images of another height than width, cropped or letterboxed: the same pixels by every way, and the refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import ImageFolderDataModule, transform_of
from datamodules.augmentation import Augmentation
from datamodules.images.decoding import central, letterboxed, squeezed
from datamodules.images.unlabelled import read_images
from datamodules.trained_on import TrainedOn
from foundation.sizes import in_proportion
from tests.datamodules.pictures import write_classes
from transforms import SampleRandom, crop_boxes

SIZE = (12, 20)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_classes(tmp_path_factory.mktemp("classes"), {"a": 8, "b": 8}, suffix=".jpg")


def folder(root: Path, **settings: Any) -> ImageFolderDataModule:
    given = {"image_size": [*SIZE], "batch_size": 4, "workers": 0, **settings}
    data = ImageFolderDataModule(root=str(root), **given)
    data.setup("fit")
    return data


def batches(loader: Any) -> list[dict[str, Tensor]]:
    return [{name: values for name, values in batch.items() if name != "unreadable"} for batch in loader]


def saved(path: Path, height: int, width: int) -> np.ndarray[Any, Any]:
    """Writes a picture whose red and green say where a pixel is."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([255 * rows // (height - 1), 255 * columns // (width - 1), 0 * rows], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("framing", ["crop", "letterbox"])
@pytest.mark.parametrize("fit", ["validation", "training"])
def test_batches_and_their_canvases_are_equal_to_the_bit(classes: Path, tmp_path: Path, framing: Any, fit: str) -> None:
    plain, cached = (folder(classes, framing=framing, canvas_cache=cache) for cache in (None, str(tmp_path / "cache")))
    cached.prepare_sizes([cached.train_size])
    names = {path.name for path in (tmp_path / "cache").iterdir()}
    kinds = ("squeezed", "central") if framing == "crop" else ("letterbox", "letterbox")
    assert names == {f"train-{kinds[0]}-14x23", f"val-{kinds[1]}-12x20"}
    of = "val_dataloader" if fit == "validation" else "train_dataloader"
    served = [batches(getattr(data, of)()) for data in (plain, cached)]
    for one, other in zip(*served, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert ("aspect" in one) == (framing == "crop" and fit == "training")
        image = plain.augment(dict(one), 0)["image"] if fit == "training" else one["image"]
        assert image.shape[-2:] == SIZE


@pytest.mark.parametrize("settings", [{}, {"framing": "letterbox", "pad_value": 0.25}, {"levels": [0.0, 200.0]}])
def test_predict_and_transform_have_the_pixels_of_evaluation(classes: Path, settings: dict[str, Any]) -> None:
    data = folder(classes, **settings)
    (batch, *_) = batches(data.val_dataloader())
    names = [data.files("val")[place] for place in batch["index"].tolist()]
    wanted = data._normalize(dict(batch))["image"]
    transform = transform_of({"trained_on": data.training_record()})
    for name, one in zip(names, wanted, strict=True):
        assert torch.equal(transform(classes / name), one)
    predicted = folder(classes, images=[str(classes / name) for name in names], **settings)
    predicted.setup("predict")
    (given,) = batches(predicted.predict_dataloader())
    assert torch.equal(given["image"], batch["image"])


def test_a_letterboxed_picture_is_whole_and_in_the_middle(tmp_path: Path) -> None:
    saved(tmp_path / "wide.png", 30, 90)
    found = letterboxed(tmp_path / "wide.png", (40, 60), 3, 0.5)
    assert found.shape == (3, 40, 60)
    assert (found[:, :10] == 128).all()  # 60 x 20 pixels of picture between two borders of 10
    assert (found[:, 30:] == 128).all()
    inner = found[:, 10:30].float()
    assert inner[0, 0].max() < 10
    assert inner[0, -1].min() > 245
    assert inner[1, :, 0].max() < 5
    assert inner[1, :, -1].min() > 250
    assert letterboxed(tmp_path / "wide.png", (40, 60), 1, 0.0)[:, :10].max() == 0
    saved(tmp_path / "tall.png", 90, 30)
    assert (letterboxed(tmp_path / "tall.png", 30, 3, 1.0)[:, :, :10] == 255).all()


def test_the_central_part_has_the_proportions_of_the_result(tmp_path: Path) -> None:
    saved(tmp_path / "x.png", 101, 201)
    found = central(tmp_path / "x.png", (20, 20), 3, 0.5).float()
    assert torch.equal(found, central(tmp_path / "x.png", 20, 3, 0.5).float())
    wide = central(tmp_path / "x.png", (10, 40), 3, 1.0).float()  # the full width, a quarter of that as height
    assert wide[1, :, 0].max() < 8
    assert wide[1, :, -1].min() > 247
    middle = wide[0].mean(dim=1)
    assert (middle[-1] - middle[0]).item() == pytest.approx(255 * 0.9 * 50 / 100, abs=4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("read", [lambda p: squeezed(p, (16, 48), 3)[0], lambda p: letterboxed(p, (16, 48), 3, 0.5)])
def test_a_jpeg_is_decoded_no_smaller_than_needed(tmp_path: Path, turned: bool, read: Any) -> None:
    pixels = saved(tmp_path / "x.png", 160, 480)
    stored = np.ascontiguousarray(np.rot90(pixels)) if turned else pixels
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(stored).save(tmp_path / "x.jpg", quality=95, exif=exif)
    jpeg, png = (read(tmp_path / name).float() for name in ("x.jpg", "x.png"))
    assert (jpeg - png).abs().mean() < 3


def test_crops_have_the_proportions_of_the_result() -> None:
    """Of whole pictures, squeezed to a canvas or not, crops with a ratio of 1 are not distorted."""
    random = SampleRandom(3, 0, torch.arange(500))
    pictures = torch.full((500,), 2.0)  # width / height before they were squeezed to 60 x 60
    boxes = crop_boxes(60, 60, random, (0.1, 0.3), (1.0, 1.0), pictures, SIZE)
    ratio = 2.0 * boxes[:, 3] / boxes[:, 2]
    assert ratio.mean().item() == pytest.approx(20 / 12, rel=0.01)
    boxes = crop_boxes(60, 100, random, (0.1, 0.3), (1.0, 1.0), pictures, SIZE)
    ratio = 2.0 * (boxes[:, 3] / 100) / (boxes[:, 2] / 60)
    assert ratio.mean().item() == pytest.approx(20 / 12, rel=0.01)
    letterbox = crop_boxes(60, 100, random, (0.1, 0.3), (1.0, 1.0), None, SIZE)
    assert (letterbox[:, 3] / letterbox[:, 2]).mean().item() == pytest.approx(20 / 12, rel=0.01)


def test_masks_are_cut_as_their_images() -> None:
    random = SampleRandom(0, 0, torch.arange(6))
    image = torch.randint(0, 2, (6, 3, 40, 40), generator=torch.Generator().manual_seed(0)).float()
    image = image.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :120, :120]
    batch = {"image": image, "mask": image[:, :1], "aspect": torch.full((6,), 1.5), "label": torch.zeros(6).long()}
    augmented = Augmentation(flip=True, crop_scale=0.3)(
        batch, random, num_classes=2, mean=[0.0] * 3, std=[1.0] * 3, size=(48, 80)
    )
    assert augmented["mask"].shape == (6, 1, 48, 80)
    assert (augmented["image"][:, :1] - augmented["mask"]).abs().mean() < 0.12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": [96]}, None),
        ({"image_size": [0, 20]}, r"image_size is \[0, 20\] but must be 1 pixel or more, or \[HEIGHT, WIDTH\]"),
        ({"image_size": [1, 2, 3]}, r"image_size is \[1, 2, 3\] but must be"),
        ({"pad_value": 0.2}, "pad_value is 0.2 but must be left out without framing letterbox"),
        ({"framing": "letterbox", "pad_value": 2.0}, r"pad_value is 2.0 but must be 0 \(black\) to 1 \(white\)"),
        ({"framing": "letterbox", "eval_share": 0.5}, "eval_share is 0.5 but must be left out with framing letterbox"),
        ({"framing": "squash"}, "framing is 'squash' but must be crop or letterbox"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert ImageFolderDataModule(**settings).image_size == 96
        return
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(**settings)


def test_another_shape_in_evaluation_is_refused(classes: Path) -> None:
    record = TrainedOn(**folder(classes, framing="letterbox").training_record())
    for settings, message in (
        ({}, "data.framing was letterbox in training and is crop now.*--data.framing letterbox"),
        (
            {"framing": "letterbox", "image_size": 16},
            r"data.image_size was \[12,20\] in training and is 16 now.* give --data.image_size \[12,20\]",
        ),
        ({"framing": "letterbox", "pad_value": 0.0}, "data.pad_value was 0.5 in training and is 0.0 now"),
    ):
        with pytest.raises(Exception, match=message):
            folder(classes, **settings).match(record)


def test_cached_images_of_prediction_are_letterboxed_as_recorded(tmp_path: Path) -> None:
    saved(tmp_path / "x.png", 30, 90)
    _, images = read_images(tmp_path, SIZE, 3, {"framing": "letterbox", "pad_value": 0.0})
    assert torch.equal(images[0], letterboxed(tmp_path / "x.png", SIZE, 3, 0.0))


def test_sizes_in_proportion_keep_the_steps_of_a_network() -> None:
    assert in_proportion(96, (96, 160)) == (96, 160)
    assert in_proportion(64, (96, 160)) == (64, 112)
    assert in_proportion(32, (64, 96)) == (32, 48)
    assert in_proportion(50, (100, 150)) == (50, 76)
    assert in_proportion(100, (100, 150)) == (100, 150)
