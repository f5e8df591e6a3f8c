"""`DigitsDataModule`: images compared with scikit-learn, mean and std, the test split, defaults."""

import torch
from sklearn.datasets import load_digits

from datamodules import DigitsDataModule


def test_images_equal_those_from_scikit_learn() -> None:
    digits = load_digits()
    data = DigitsDataModule()
    parts = [data.read_part("train"), data.read_part("test")]
    assert [len(part["label"]) for part in parts] == [1438, 359]
    assert sorted(torch.cat([part["index"] for part in parts]).tolist()) == list(range(1797))
    for part in parts:
        images, index = part["image"], part["index"].numpy()
        assert (images.dtype, images.shape[1:]) == (torch.uint8, (1, 8, 8))
        assert torch.equal(images[:, 0].double(), (torch.from_numpy(digits.images[index]) * 255 / 16).round())
        assert part["label"].tolist() == digits.target[index].tolist()
    assert {0, 255} <= set(parts[0]["image"].flatten().tolist())


def test_mean_and_std_match_the_training_images() -> None:
    data = DigitsDataModule()
    images = data.read_part("train")["image"].double() / 255
    assert data.mean == (round(images.mean().item(), 4),)
    assert data.std == (round(images.std(correction=0).item(), 4),)


def test_test_split_is_stratified_and_depends_on_split_seed() -> None:
    tests = {}
    for seed in (0, 1):
        for fraction in (0.1, 0.4):
            data = DigitsDataModule(split_seed=seed, val_fraction=fraction)
            tests[seed, fraction] = data.read_part("test")["index"].tolist()
    assert tests[0, 0.1] == tests[0, 0.4]
    assert tests[0, 0.1] != tests[1, 0.1]
    target = torch.from_numpy(load_digits().target)
    counts = torch.bincount(target[tests[0, 0.1]])
    assert (counts - 0.2 * torch.bincount(target)).abs().max() <= 0.5


def test_header_and_defaults() -> None:
    data = DigitsDataModule()
    assert (data.num_classes, data.image_size, data.in_channels) == (10, 8, 1)
    assert data.class_names == list("0123456789")
    # no flip, because a mirrored digit is not a valid digit
    assert (data.augmentation.crop_padding, data.augmentation.flip) == (1, False)
