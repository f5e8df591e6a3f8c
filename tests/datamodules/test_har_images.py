"""HAR batches in each image mode: shapes, pixels compared with the encoders, augmentation, and feature caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import transforms
from datamodules import HARDataModule
from datamodules.extraction import everything
from datamodules.signals.har_generator import write_generated
from datamodules.signals.images import PIXELS, SignalImages

MODES = {
    "signals": (9, 128, None),
    "flatten": (1, 24, (9, 1, 24, 24)),
    "grid": (1, 24, (1, 24, 24)),
    "channels": (9, 24, (9, 24, 24)),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Generated data of four training subjects and one test subject, two windows of each activity."""
    folder = tmp_path_factory.mktemp("har")
    return str(write_generated(folder, subjects=range(1, 6), test_subjects=(2,), windows=2))


def read(root: str, **settings: Any) -> HARDataModule:
    data = HARDataModule(root=root, **{"image_size": 24, "batch_size": 8, **settings})
    data.setup("fit")
    return data


def rows(data: HARDataModule, *places: int) -> dict[str, torch.Tensor]:
    return {name: values[list(places)] for name, values in data.splits["train"].items()}


@pytest.mark.parametrize("mode", MODES)
def test_header_and_batch_agree(root: str, mode: str) -> None:
    channels, size, shape = MODES[mode]
    data = read(root, mode=mode)
    assert (data.in_channels, data.image_size, data.train_size) == (channels, size, size)
    pixels = (0.0, 1.0) if mode == "signals" else (0.08, 0.15)
    assert (data.mean, data.std) == ((pixels[0],) * channels, (pixels[1],) * channels)
    for batch in (data._normalize(rows(data, 3, 9)), data.augment(rows(data, 3, 9), epoch=1)):
        assert (batch["signal"].shape, batch["label"].shape, batch["subject"].shape) == ((2, 9, 128), (2,), (2,))
        assert ("image" in batch) == (shape is not None)
        if shape:
            assert (batch["image"].shape, batch["image"].dtype) == ((2, *shape), torch.float32)


@pytest.mark.parametrize("mode", MODES)
def test_compressed_signals_are_a_second_half(root: str, mode: str) -> None:
    """Each signal twice: asinh of its distance from its mean in the window, computed here by numpy, on the normalised signal."""
    plain, twice = (read(root, mode=mode, asinh_scale=scale) for scale in (None, 0.1))
    channels, size, shape = MODES[mode]
    assert twice.in_channels == (channels if channels == 1 else 18)
    assert (twice.signals, twice.images_per_window) == (18, 18 if mode == "flatten" else 1)
    assert len(twice.mean) == len(twice.std) == twice.in_channels
    signal = plain._normalize(rows(plain, 3, 9))["signal"].double().numpy()
    second = np.arcsinh((signal - signal.mean(axis=2, keepdims=True)) / 0.1) / 2
    wanted = torch.from_numpy(np.concatenate([signal, second], axis=1)).float()
    for batch in (twice._normalize(rows(twice, 3, 9)), twice.augment(rows(twice, 3, 9), epoch=1)):
        if shape is None:
            assert batch["signal"].shape == (2, 18, size)
        else:
            assert batch["image"].shape == (2, *(18 if length == 9 else length for length in shape))
    batch = twice._normalize(rows(twice, 3, 9))
    if mode == "signals":
        torch.testing.assert_close(batch["signal"], wanted)
        assert torch.equal(batch["signal"][:, :9], plain._normalize(rows(plain, 3, 9))["signal"])
    else:
        assert batch["signal"].shape == (2, 9, 128)
        torch.testing.assert_close(batch["image"], plain.signal_images(wanted, size), atol=1e-4, rtol=1e-4)
    assert wanted[:, 9:].abs().max() < 3, "within the encoder's range"


def test_images_match_the_encoded_signals(root: str) -> None:
    settings = {"encoder": "line_plot", "encoder_range": 2.5, "encoder_args": {"width": 2.0}}
    data = read(root, mode="flatten", **settings)
    batch = data._normalize(rows(data, 5, 0))
    mean, std = PIXELS["line_plot"][0]
    for place in range(2):
        for signal in range(9):
            one_signal = batch["signal"][place : place + 1, signal : signal + 1]
            expected = transforms.line_plot(one_signal, 24, (-2.5, 2.5), width=2.0)[0, 0]
            torch.testing.assert_close(batch["image"][place, signal, 0] * std + mean, expected)
    as_channels = read(root, mode="channels", **settings)._normalize(rows(data, 5, 0))["image"]
    assert torch.equal(as_channels, batch["image"][:, :, 0])
    # the tiles of a grid are encoded at a third of the size; signal 4 is in the middle
    tiles = read(root, mode="grid", **settings)._normalize(rows(data, 5, 0))
    small = transforms.line_plot(tiles["signal"][:, 4:5], 8, (-2.5, 2.5), width=2.0)[:, 0]
    torch.testing.assert_close(tiles["image"][:, 0, 8:16, 8:16] * std + mean, small)


def test_unused_tiles_of_a_grid_are_black() -> None:
    images = SignalImages(
        mode="grid", encoder="segment_stack", image_size=26, image_mean=0.25, image_std=0.5, image_channels=3
    )
    image = images(torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(0)), 26)
    assert image.shape == (2, 3, 26, 26)  # tiles of 8 px; 7 of 9 are used
    assert torch.equal(image[:, 0], image[:, 2])
    black = image[:, 0] == -0.5
    assert black[:, 24:].all()
    assert black[:, :, 24:].all()
    assert black[:, 16:, 8:].all()
    assert not black[:, 16:24, :8].all()


def test_three_channels_are_equal(root: str) -> None:
    data = read(root, mode="flatten", image_channels=3)
    image = data._normalize(rows(data, 1))["image"]
    assert (data.in_channels, len(data.mean), image.shape) == (3, 3, (1, 9, 3, 24, 24))
    assert torch.equal(image[:, :, 0], image[:, :, 2])


def test_encoder_range_null_scales_each_window_by_its_extremes(root: str) -> None:
    data = read(root, mode="channels", encoder="segment_stack", encoder_range=None, image_mean=0.0, image_std=1.0)
    batch = data._normalize(rows(data, 2))
    torch.testing.assert_close(batch["image"], transforms.segment_stack(batch["signal"], 24))


def test_training_may_use_another_image_size(root: str) -> None:
    data = read(root, mode="channels")
    data.train_size = 16
    assert data.augment(rows(data, 0), 0)["image"].shape[-1] == 16
    assert data._normalize(rows(data, 0))["image"].shape[-1] == 24


def test_augmentation_depends_on_seed_epoch_and_index(root: str) -> None:
    data = read(root, rotation=20.0, scaling=0.2, time_warp=0.2, jitter=0.05, channel_dropout=0.2)
    first = data.augment(rows(data, 3, 7, 11), epoch=4)["signal"]
    assert torch.equal(data.augment(rows(data, 11), epoch=4)["signal"], first[2:])
    assert not torch.equal(data.augment(rows(data, 11), epoch=5)["signal"], first[2:])
    data.seed = 1
    assert not torch.equal(data.augment(rows(data, 11), epoch=4)["signal"], first[2:])
    data.strength = 0.0
    still = data.augment(rows(data, 3, 7), epoch=4)["signal"]
    assert torch.equal(still, data._normalize(rows(data, 3, 7))["signal"])


def test_rotation_is_before_the_normalisation_and_dropout_after_it(root: str) -> None:
    data = read(root, rotation=30.0)
    random = transforms.SampleRandom(0, 2, data.splits["train"]["index"][:3])
    turned = transforms.rotation(data.splits["train"]["signal"][:3], random, 30.0)
    mean, std = data.signal_scale
    torch.testing.assert_close(data.augment(rows(data, 0, 1, 2), 2)["signal"], (turned - mean[:, None]) / std[:, None])
    dropped = read(root, channel_dropout=1.0).augment(rows(data, 0, 1, 2), 2)["signal"]
    assert (dropped == 0).all(-1).sum(1).tolist() == [8, 8, 8]  # one signal is kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "tiles"}, "mode is 'tiles' but must be signals, flatten, grid or channels"),
        ({"encoder": "gaf"}, "encoder is 'gaf' but must be one of gramian_angular_field, "),
        ({"encoder_range": 0.0}, r"encoder_range is 0\.0 but must be above 0, or null"),
        ({"image_size": 4}, "image_size is 4 but must be 8 pixels or more"),
        ({"image_channels": 2}, "image_channels is 2 but must be 1 or 3"),
        ({"image_std": 0.0}, r"image_std is 0\.0 but must be above 0, or null"),
        ({"rotation": 181.0}, r"rotation is 181\.0 but must be 0 to 180 degrees"),
        ({"scaling": -1.0}, r"scaling is -1\.0 but must be 0 or more"),
        ({"time_warp": 1.0}, r"time_warp is 1\.0 but must be 0 to below 1"),
        ({"jitter": -0.1}, r"jitter is -0\.1 but must be 0 or more"),
        ({"channel_dropout": 1.5}, r"channel_dropout is 1\.5 but must be 0 to 1"),
        ({"augment_prob": 2.0}, r"augment_prob is 2\.0 but must be 0 to 1"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        HARDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_args": {"bins": 4}}, "gramian_angular_field has the settings ranges, method, got bins"),
        ({"encoder": "line_plot", "encoder_args": {"width": "wide"}}, "the settings do not fit the signals: "),
        (
            {"encoder": "segment_stack", "encoder_args": {"segment": 129}},
            "segment must be between 1 and the 128 samples, got 129",
        ),
    ],
)
def test_setup_checks_the_encoder_settings(root: str, settings: dict[str, Any], message: str) -> None:
    data = HARDataModule(root=root, mode="channels", **settings)
    with pytest.raises(MisconfigurationException, match=message) as caught:
        data.setup("fit")
    assert "\n" not in str(caught.value)


def test_description_for_a_feature_cache(root: str) -> None:
    data = read(root, mode="grid", encoder="line_plot", encoder_args={"width": 2.0}, val_subjects=2)
    data.extract(None, views=1, left=everything)
    described = data.identity_of_data()
    assert described.split == {"val_subjects": 2, "val_subject_id": None, "split_seed": 0}
    assert described.transform == {"mode": "grid", "encoder": "line_plot", "encoder_range": 3.0, "encoder.width": 2.0}
    assert described.data == read(root).identity_of_data().data  # the fingerprint does not depend on the mode


@pytest.mark.parametrize("mode", MODES)
def test_encoding_does_not_depend_on_the_batch(root: str, mode: str) -> None:
    data = read(root, mode=mode, encoder="recurrence_plot")
    name = "signal" if mode == "signals" else "image"
    together = data._normalize(rows(data, 1, 2, 3))[name]
    torch.testing.assert_close(data._normalize(rows(data, 2))[name], together[1:2], atol=1e-6, rtol=0)


def test_an_extraction_of_two_splits_reads_no_test_part(root: str) -> None:
    data = HARDataModule(root=root, mode="grid", image_size=24, jitter=0.1)
    data.extract(["train", "val"], views=2, left=everything)
    data.setup("predict")
    assert set(data.splits) == {"train", "val"}
    described = data.identity_of_data().transform
    assert (described["views.jitter"], described["mode"]) == (0.1, "grid")
