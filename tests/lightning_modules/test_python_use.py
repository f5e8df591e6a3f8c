"""`classify` and `transform` of a loaded run: files, folders, patterns, pictures and arrays; tests/paths compares with predict."""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foundation import in_parts
from foundation.in_parts import samples_of_part
from lightning_modules import Classifier, load_run
from metrics import Predictions, exits_early
from tests.runs.linear import LinearClassifier


@pytest.fixture(scope="module")
def model(finished: Path) -> Classifier:
    loaded = load_run(finished)
    assert isinstance(loaded, Classifier)
    return loaded


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of different sizes and kinds, and a text."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, shape in (("a.png", (8, 8)), ("b.png", (20, 31, 3)), ("c.png", (9, 8, 4))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def chances(found: Predictions) -> list[float]:
    return [one.probability for one in found]


def test_all_ways_to_give_pictures(model: Classifier, photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [photos / name for name in ("a.png", "b.png", "c.png")]
    whole = model.classify(paths)
    assert [one.file for one in whole] == [str(path) for path in paths]
    relative = os.path.relpath(photos)
    assert [one.file for one in model.classify(f"{relative}/*.png")] == [f"{relative}/{path.name}" for path in paths]
    assert whole.probabilities.shape == (3, 10)
    assert [one.class_name for one in whole] == [whole.class_names[one.number] for one in whole]
    assert {one.exits for one in whole} == {None}
    with caplog.at_level("WARNING"):
        assert chances(model.classify(photos)) == pytest.approx(chances(whole), abs=1e-6)
    assert f"1 of the 4 files in {photos} cannot be read as images: notes.txt (no image); left out" in caplog.text
    pictures = [Image.open(path) for path in paths]
    mixed: list[Any] = [str(photos / "a.p*"), pictures[1], np.asarray(pictures[2])]
    for given in (f"{photos}/*.png", pictures, [np.asarray(one) for one in pictures], mixed):
        assert chances(model.classify(given)) == pytest.approx(chances(whole), abs=1e-6)
    for number, path in enumerate(paths):
        assert chances(model.classify(str(path))) == pytest.approx([whole[number].probability], abs=1e-6)
    raw = torch.from_numpy(np.array(pictures[0]))[None]  # has the network's size
    for one in ([raw], np.asarray(pictures[0])[None, ..., None]):
        assert chances(model.classify(one)) == pytest.approx([whole[0].probability], abs=1e-6)
    torch.testing.assert_close(model.classify(raw), whole.probabilities[:1])


def test_the_transform_is_the_input_of_the_network(model: Classifier, photos: Path) -> None:
    inputs = model.transform(photos / "a.png")
    assert (inputs.shape, inputs.dtype) == ((1, 8, 8), torch.float32)
    values = torch.from_numpy(np.array(Image.open(photos / "a.png"))).double() / 255
    torch.testing.assert_close(inputs[0].double(), (values - 0.3049) / 0.3756, atol=1e-6, rtol=0)
    with torch.no_grad():
        chance = model(inputs[None]).softmax(dim=1).max()
    assert float(chance) == pytest.approx(model.classify(photos / "a.png")[0].probability, abs=1e-6)
    with pytest.raises(
        ValueError, match=r"one sample is needed, got 3: give one file, picture or array \(transform.batches"
    ):
        model.transform(photos)


WRONG: list[tuple[Any, str]] = [
    ("nowhere.png", "images nowhere.png: no such folder or image file"),
    ("no*.png", r"images no\*.png: no file has such a name"),
    ([], "no image is given; give a path, a folder"),
    (7, "got int"),
    (np.zeros((8, 8)), r"got ndarray \(8, 8\) of float64"),
    (np.zeros((3, 8, 8), np.uint8), r"an array \(H, W\) or \(H, W, C\) .* got ndarray \(3, 8, 8\) of uint8"),
    ([torch.zeros(1, 4, 4)], r"is needed, got \(1, 4, 4\)"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_wrong_samples(model: Classifier, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        model.classify(given)
    assert "\n" not in str(caught.value)


def test_a_single_file_that_is_no_image(model: Classifier, photos: Path) -> None:
    with pytest.raises(ValueError, match=r"/notes.txt cannot be read as an image \(no image\); give another file"):
        model.classify(photos / "notes.txt")


def test_files_of_several_folders_are_not_counted_in_one(
    model: Classifier, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no image")
    good = next(path for path in sorted(photos.iterdir()) if path.suffix == ".png")
    assert len(model.classify([good, tmp_path / "torn.png"])) == 1
    assert f"1 of the 2 files cannot be read as images: {tmp_path}/torn.png (no image); left out" in caplog.messages


def test_a_module_that_was_not_loaded_from_a_run() -> None:
    module = LinearClassifier(num_classes=2, in_channels=1, image_size=4, mean=[0.5], std=[0.5])
    with pytest.raises(ValueError, match=r"transform: is known to a module that load_run\(RUN_DIR\) returns"):
        module.classify("a.png")


def test_a_large_tensor_is_classified_in_parts(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    assert samples_of_part(3 * 224 * 224) == 55
    images = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = model.classify(images)
    monkeypatch.setattr(in_parts, "PART_BYTES", 3 * 8 * 8 * 4)
    sizes: list[int] = []
    hook = model.network.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    torch.testing.assert_close(model.classify(images), expected)
    hook.remove()
    assert sizes == [3, 3, 1]


def test_a_part_that_does_not_fit_is_halved() -> None:
    seen: list[int] = []

    def small(part: Tensor) -> Tensor:
        seen.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError
        return part + 1

    assert torch.equal(in_parts.in_parts(small, torch.arange(5)), torch.arange(1, 6))
    assert seen == [5, 3, 2, 1, 2]


def test_the_exit_is_compared_in_float32() -> None:
    rows = torch.tensor([[0.93, 0.07], [0.07, 0.93], [0.5, 0.5]])
    found = Predictions.of(rows, None, 0.93, ["a", "b", None])
    assert [(one.class_name, one.exits, one.file) for one in found] == [
        ("0", True, "a"),
        ("1", True, "b"),
        ("0", False, None),
    ]
    assert not exits_early(rows, math.inf).any()
