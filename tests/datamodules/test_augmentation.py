"""The image augmentation pipeline: each step against its transform, the order of the steps, masks, independence of the images."""

from typing import Any

import pytest
import torch
from torch import Tensor

import transforms
from datamodules import DataModule, DigitsDataModule
from datamodules.augmentation import Augmentation

PLAIN: dict[str, Any] = {
    "crop_padding": 0,
    "flip": False,
    "policy": "none",
    "randaugment_ops": 2,
    "randaugment_magnitude": 9,
    "mixup_alpha": 1.0,
    "mixup_prob": 0.0,
    "cutmix_alpha": 1.0,
    "cutmix_prob": 0.0,
}
EVERYTHING = {"crop_padding": 2, "flip": True, "policy": "randaugment"}
MIXED = {"mixup_prob": 0.5, "cutmix_prob": 0.5}


def raw(data: DataModule, places: list[int]) -> dict[str, Tensor]:
    return {name: values[places] for name, values in data.splits["train"].items()}


def digits(**settings: Any) -> DigitsDataModule:
    data = DigitsDataModule(batch_size=8, **settings)
    data.setup("fit")
    return data


def test_order_of_the_steps() -> None:
    data = digits(**EVERYTHING, **MIXED)
    data.seed = 3
    batch = raw(data, list(range(40)))
    random = transforms.SampleRandom(3, 5, batch["index"])
    images = transforms.rand_augment(batch["image"], random, 2, 9)
    images = transforms.random_flip(transforms.random_crop(images, 2, random), random)
    images = transforms.normalize(images, (0.3049,), (0.3756,))
    images, targets = transforms.mix(
        images, batch["label"], 10, random, mixup_alpha=1.0, mixup_prob=0.5, cutmix_alpha=1.0, cutmix_prob=0.5
    )
    augmented = data.augment(batch, epoch=5)
    assert torch.equal(augmented["image"], images)
    assert torch.equal(augmented["target"], targets)
    assert torch.equal(augmented["label"], batch["label"])  # the true label is kept, so that accuracy is meaningful
    assert torch.equal(augmented["index"], batch["index"])
    assert batch["image"].dtype == torch.uint8  # the raw batch is unchanged


def test_autoaugment_is_applied() -> None:
    data = digits(policy="autoaugment", crop_padding=0)
    batch = raw(data, list(range(30)))
    random = transforms.SampleRandom(0, 1, batch["index"])
    expected = transforms.normalize(transforms.auto_augment(batch["image"], random), data.mean, data.std)
    assert torch.equal(data.augment(batch, epoch=1)["image"], expected)
    assert not torch.equal(expected, transforms.normalize(batch["image"], data.mean, data.std))


def test_an_image_does_not_depend_on_its_batch() -> None:
    data = digits(**EVERYTHING)
    whole = data.augment(raw(data, list(range(32))), epoch=2)["image"]
    for places in ([0], [31, 5], list(range(31, -1, -1))):
        assert torch.equal(data.augment(raw(data, places), epoch=2)["image"], whole[places])


def test_augmentation_is_a_function_of_seed_epoch_and_index() -> None:
    data = digits(**EVERYTHING, **MIXED)
    batch = raw(data, list(range(32)))
    first = data.augment(batch, epoch=2)["image"]
    torch.rand(5)
    assert torch.equal(data.augment(batch, epoch=2)["image"], first)
    assert not torch.equal(data.augment(batch, epoch=3)["image"], first)
    assert not torch.equal(data.augment({**batch, "index": batch["index"] + 1}, epoch=2)["image"], first)
    data.seed = 1
    assert not torch.equal(data.augment(batch, epoch=2)["image"], first)


def test_without_augmentation_the_batch_is_only_normalised() -> None:
    data = digits(crop_padding=0)
    batch = raw(data, [3, 4])
    augmented = data.augment(batch, epoch=0)
    expected = (batch["image"].double() / 255 - 0.3049) / 0.3756
    assert torch.allclose(augmented["image"].double(), expected, atol=1e-6)
    assert set(augmented) == {"image", "label", "index"}  # no target without mixup and cutmix


@pytest.mark.parametrize("settings", [{"mixup_prob": 0.01}, {"cutmix_prob": 1.0}])
def test_every_batch_has_a_target_with_mixup_or_cutmix(settings: dict[str, float]) -> None:
    data = digits(**settings)
    for places in ([0], [1, 2, 3]):
        target = data.augment(raw(data, places), epoch=0)["target"]
        assert target.shape == (len(places), 10)
        assert torch.allclose(target.sum(1), torch.ones(len(places)))


def test_train_size_resizes_after_the_crop_and_does_not_change_evaluation() -> None:
    data = digits(crop_padding=1, flip=True)
    batch = raw(data, list(range(12)))
    random = transforms.SampleRandom(0, 1, batch["index"])
    expected = transforms.random_flip(transforms.random_crop(batch["image"], 1, random), random)
    expected = transforms.normalize(transforms.resize(expected, 6), data.mean, data.std)
    data.train_size = 6
    assert torch.equal(data.augment(batch, epoch=1)["image"], expected)
    assert data.image_size == 8
    assert data._normalize(batch)["image"].shape[-1] == 8


def test_a_smaller_train_size_may_be_a_window_of_the_padded_image() -> None:
    data = digits(crop_padding=1, flip=True, shrink="crop")
    batch = raw(data, list(range(12)))
    random = transforms.SampleRandom(0, 1, batch["index"])
    window = transforms.random_flip(transforms.random_crop(batch["image"], 1, random, size=6), random)
    data.train_size = 6
    assert torch.equal(data.augment(batch, 1)["image"], transforms.normalize(window, data.mean, data.std))
    data.train_size = 8  # equal to the image size: no smaller window
    assert torch.equal(data.augment(batch, 1)["image"], digits(crop_padding=1, flip=True).augment(batch, 1)["image"])


def test_canvases_are_cropped_flipped_turned_and_coloured_in_this_order() -> None:
    images = torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8)
    batch = {"image": images, "label": torch.arange(8), "mask": images[:, :1] > 100}
    random = transforms.SampleRandom(0, 0, torch.arange(8))
    kinds: dict[str, Any] = {"num_classes": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "size": 16}
    crops = transforms.random_resized_crop(images, 16, random, (0.4, 1.0), (1.0, 1.0))
    turned = transforms.random_turn(transforms.random_flip(crops, random), random)
    coloured = transforms.color_jitter(turned, random, 0.4)
    settings = Augmentation(flip=True, crop_scale=0.4, crop_ratio=1.0, turn=True, color_jitter=0.4)
    result = settings(dict(batch), random, **kinds)
    assert torch.equal(result["image"], transforms.normalize(coloured, [0.5] * 3, [0.2] * 3))
    boxes = transforms.crop_boxes(20, 20, random, (0.4, 1.0), (1.0, 1.0))
    masks = transforms.random_flip(transforms.nearest_resized(batch["mask"], 16, boxes), random)
    assert torch.equal(result["mask"], transforms.random_turn(masks, random))


def test_erasing_is_between_normalisation_and_mixing() -> None:
    batch = {"image": torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8), "label": torch.arange(8)}
    random = transforms.SampleRandom(0, 0, torch.arange(8))
    kinds: dict[str, Any] = {"num_classes": 8, "mean": [0.5] * 3, "std": [0.2] * 3, "size": 16}
    plain = transforms.normalize(batch["image"], [0.5] * 3, [0.2] * 3)
    erased = Augmentation(erasing_prob=0.7)(batch, random, **kinds)["image"]
    assert torch.equal(erased, transforms.random_erasing(plain, random, 0.7))
    assert not torch.equal(erased, plain)
    both = Augmentation(erasing_prob=0.7, mixup_prob=1.0)(batch, random, **kinds)
    shares = {"mixup_alpha": 1.0, "mixup_prob": 1.0, "cutmix_alpha": 1.0, "cutmix_prob": 0.0}
    mixed, target = transforms.mix(erased, batch["label"], 8, random, **shares)
    assert torch.equal(both["image"], mixed)
    assert torch.equal(both["target"], target)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"crop_padding": 2, "flip": True}, 16),
        ({"crop_padding": 2, "flip": True, "shrink": "crop"}, 10),
        ({"crop_padding": 2, "flip": True}, 8),
        ({"flip": True, "crop_scale": 0.3}, 12),
    ],
)
def test_masks_move_with_their_images(settings: dict[str, Any], size: int) -> None:
    """An image that equals its mask before the augmentation still agrees with it afterwards, except at interpolated edge pixels."""
    masks = torch.zeros(40, 1, 16, 16, dtype=torch.uint8)
    masks[:, :, 3:9, 2:12] = 255
    batch = {"image": masks, "mask": masks, "label": torch.zeros(40, dtype=torch.int64)}
    kinds: dict[str, Any] = {"num_classes": 2, "mean": [0.0], "std": [1.0], "size": size}
    made = Augmentation(**settings)(batch, transforms.SampleRandom(0, 0, torch.arange(40)), **kinds)
    image, mask = made["image"], made["mask"]
    assert mask.shape == (40, 1, size, size)
    assert set(mask.unique().tolist()) == {0, 255}
    sharp = (image > 0.99) | (image < 0.01)  # pixels that are not interpolated
    assert sharp.float().mean() > 0.5
    assert torch.equal((image > 0.5)[sharp], (mask > 0)[sharp])
    assert len({tuple(row.flatten().tolist()) for row in mask}) > 10  # each image has separate random numbers


def test_masks_with_policy_or_mixing_are_an_error() -> None:
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    batch = {"image": images, "mask": images, "label": torch.zeros(2, dtype=torch.int64)}
    kinds: dict[str, Any] = {"num_classes": 2, "mean": [0.0], "std": [1.0], "size": 8}
    for settings in ({"policy": "randaugment"}, {"mixup_prob": 0.5}):
        with pytest.raises(ValueError, match="do not transform masks"):
            Augmentation(**settings)(batch, transforms.SampleRandom(0, 0, torch.arange(2)), **kinds)


def test_strength_multiplies_magnitude_and_probabilities() -> None:
    whole = Augmentation(
        randaugment_magnitude=9, mixup_prob=0.8, cutmix_prob=0.2, erasing_prob=0.25, color_jitter=0.3, flip=True
    )
    assert whole.at(1.0) is whole
    half = whole.at(0.5)
    assert (half.randaugment_magnitude, half.mixup_prob, half.cutmix_prob, half.erasing_prob) == (4, 0.4, 0.1, 0.125)
    much = whole.at(4.0)
    assert (much.randaugment_magnitude, much.mixup_prob, much.cutmix_prob, much.erasing_prob) == (30, 1.0, 0.8, 1.0)
    assert (half.color_jitter, much.color_jitter) == (0.15, 1.0)
    assert (half.flip, half.mixup_alpha) == (True, whole.mixup_alpha)
    data = digits(mixup_prob=1.0, crop_padding=0)
    data.strength = 0.0
    batch = raw(data, [1, 2, 3])
    assert torch.equal(data.augment(batch, 0)["image"], digits(crop_padding=0).augment(batch, 0)["image"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding is -1 but must be 0 or more"),
        ({"policy": "best"}, "policy is 'best' but must be none, randaugment or autoaugment"),
        ({"randaugment_ops": 0}, "randaugment_ops is 0 but must be 1 or more"),
        ({"randaugment_magnitude": 31}, "randaugment_magnitude is 31 but must be 0 to 30"),
        ({"mixup_alpha": 0.0}, r"mixup_alpha is 0\.0 but must be above 0"),
        ({"cutmix_alpha": -1.0}, r"cutmix_alpha is -1\.0 but must be above 0"),
        ({"mixup_prob": 1.5}, r"mixup_prob is 1\.5 but must be 0 to 1"),
        ({"shrink": "cut"}, "shrink is 'cut' but must be resize or crop"),
        ({"erasing_prob": 2.0}, r"erasing_prob is 2\.0 but must be 0 to 1"),
        ({"crop_scale": 1.5}, r"crop_scale is 1\.5 but must be above 0, up to 1"),
        ({"crop_ratio": 0.9}, r"crop_ratio is 0\.9 but must be 1 or more"),
        ({"cutmix_prob": -0.5}, r"cutmix_prob is -0\.5 but must be 0 to 1"),
    ],
)
def test_invalid_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**{**PLAIN, **settings})
