"""`transform_of`: the preprocessing of a run from its checkpoint's record is that of the datamodule, value by value."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from datamodules import DataModule, HARDataModule, ImageFolderDataModule, transform_of
from datamodules.signals.har_generator import write_generated
from datamodules.signals.transform import WindowTransform
from tests.datamodules.pictures import write_classes


@pytest.fixture(scope="module")
def har(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_generated(tmp_path_factory.mktemp("har"), subjects=range(1, 7), test_subjects=(2,), windows=2)


def of(data: DataModule) -> Any:
    data.setup("fit")
    return transform_of({"trained_on": data.training_record()})


def inputs(transform: Any, samples: Any) -> Tensor:
    return torch.cat([part for _, part in transform.batches(samples)])


SETTINGS: list[dict[str, Any]] = [
    {"mode": "signals", "asinh_scale": 0.1},
    {"mode": "flatten", "encoder": "line_plot", "image_size": 16, "image_channels": 3, "encoder_range": None},
    {"mode": "grid", "encoder": "gramian_angular_field", "image_size": 24, "image_mean": 0.1, "image_std": 0.2},
    {
        "mode": "channels",
        "encoder": "recurrence_plot",
        "image_size": 16,
        "encoder_args": {"threshold": "point"},
        "asinh_scale": 0.3,
    },
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings["mode"])
def test_windows(har: Path, settings: dict[str, Any]) -> None:
    data = HARDataModule(root=str(har), batch_size=8, **settings)
    transform = of(data)
    windows = data.read_part("test")["signal"][:3]
    prepared = data.prepared(windows)
    wanted = prepared["signal" if settings["mode"] == "signals" else "image"]
    assert torch.equal(inputs(transform, windows.numpy()), wanted)
    assert torch.equal(transform(windows[0].numpy()), wanted[0])
    assert torch.equal(inputs(transform, [windows[0], windows[1:]]), wanted)


def test_a_file_of_windows_is_matched_by_name(har: Path, tmp_path: Path) -> None:
    data = HARDataModule(root=str(har), batch_size=8)
    transform = of(data)
    windows, names = data.read_part("test")["signal"][:2].numpy(), np.array(data.signal_names)
    np.savez(tmp_path / "new.npz", signal=windows[:, ::-1], signal_names=names[::-1])
    ((files, found),) = transform.batches(tmp_path / "new.npz")
    assert files == [f"{tmp_path / 'new.npz'}: window 0", f"{tmp_path / 'new.npz'}: window 1"]
    assert torch.equal(found, inputs(transform, windows))
    cut: dict[str, Any] = {
        "recordings": np.array(["a.csv"]),
        "recording": np.zeros(2, int),
        "start": np.array([0.0, 1.28]),
    }
    np.savez(tmp_path / "cut.npz", signal=windows, signal_names=names, **cut)
    ((files, _),) = transform.batches(tmp_path / "cut.npz")
    assert files == ["a.csv at 0.00 s", "a.csv at 1.28 s"], "as the column file of predictions.csv"
    ((files, _),) = transform.batches([tmp_path / "cut.npz", tmp_path / "new.npz"])
    assert files[0] == f"{tmp_path / 'cut.npz'}: a.csv at 0.00 s", "of several files, which one"
    np.savez(tmp_path / "other.npz", signal=windows, signal_names=np.array([f"{name}_2" for name in names]))
    assert isinstance(transform, WindowTransform)
    for wrong, message in (
        (tmp_path / "other.npz", "has other signals than the checkpoint was trained on"),
        (tmp_path / "nowhere.npz", "does not exist"),
        (windows[:, :3], r"an array \(9, 128\) or \(N, 9, 128\) in physical units is needed, got \(2, 3, 128\)"),
        (windows * np.nan, "a value is not a finite number"),
        ([], "none is given"),
        (7, "got int"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs(transform, wrong)


def test_grey_values_of_more_than_8_bits(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", {"cat": 10, "dog": 10})
    values = np.random.default_rng(0).integers(0, 4096, (30, 40), dtype=np.uint16)
    (tmp_path / "new").mkdir()
    Image.fromarray(values).save(tmp_path / "new" / "a.png")
    Image.new("RGB", (30, 40), "teal").save(tmp_path / "new" / "b.png")
    settings: dict[str, Any] = {
        "root": str(root),
        "image_size": 16,
        "workers": 0,
        "batch_size": 4,
        "levels": [0.0, 4095.0],
    }
    data = ImageFolderDataModule(images=str(tmp_path / "new"), **settings)
    data.setup("predict")
    batch: Any = next(iter(data.predict_dataloader()))
    found = inputs(of(ImageFolderDataModule(**settings)), tmp_path / "new")
    assert torch.equal(found, data._normalize(batch)["image"])


def test_a_checkpoint_that_says_nothing() -> None:
    with pytest.raises(ValueError, match="the checkpoint does not say what it was trained on; train the run again"):
        transform_of({"hyper_parameters": {}})
