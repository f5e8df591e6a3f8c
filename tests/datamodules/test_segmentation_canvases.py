"""The canvas cache of prompted segmentation: batches equal those of the files to the bit; one canvas for each image; refusals."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from datamodules import PromptedSegmentationDataModule, PromptSet
from datamodules.images.canvases import CanvasError
from datamodules.segmentation.canvases import CanvasFiles, mask_name
from datamodules.segmentation.loader import SegmentationFiles
from datamodules.segmentation.polygons import Contour
from datamodules.segmentation.prompt_sets import Pair
from tests.datamodules.segmentation_sets import TWO, write_pair, write_two


def folder(
    root: Path, cache: Path | None, sets: list[PromptSet] = TWO, **settings: Any
) -> PromptedSegmentationDataModule:
    given = {"image_size": 16, "batch_size": 3, "workers": 0, "canvas_cache": str(cache) if cache else None, **settings}
    data = PromptedSegmentationDataModule(str(root), sets, **given)
    data.setup("fit")
    data.check_input(("train", "val"))
    return data


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert {*first} == {*second}
        for name, values in first.items():
            if isinstance(values, torch.Tensor):
                assert (values.dtype, values.stride()) == (second[name].dtype, second[name].stride()), name
                assert torch.equal(values, second[name]), name
            else:
                assert values == second[name], name


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of 12 images each, and a polygon set of the images of one of them, in which three images show nothing."""
    root = write_two(tmp_path_factory.mktemp("two"))
    names = [f"w{number:02}" for number in range(12)]
    content = {
        "categories": [{"id": 1, "name": "hole"}],
        "images": [
            {"id": k, "file_name": f"{name}.png", "width": 24 + 4 * (k % 2), "height": 18}
            for k, name in enumerate(names)
        ],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "segmentation": [[1, 1, 9 + k, 2, 5, 12]]} for k in range(9)
        ],
    }
    (root / "holes.json").write_text(json.dumps(content))
    return root


HOLES = PromptSet("walls", ["hole"], annotations="holes.json")


@pytest.mark.every(2)
@pytest.mark.parametrize("positive_share", [0.0, 0.9])
def test_batches_equal_those_of_the_files(two: Path, tmp_path: Path, positive_share: float) -> None:
    settings = {"positive_share": positive_share, "canvas": 30}
    sets = [*TWO, HOLES]
    plain, cached = (folder(two, cache, sets, **settings) for cache in (None, tmp_path / "cache"))
    loaders: list[Any] = [data.train_dataloader() for data in (plain, cached)]
    assert [type(loader._loader.dataset) for loader in loaders] == [SegmentationFiles, CanvasFiles]
    for epoch in range(2):
        for loader in loaders:
            loader.position = lambda epoch=epoch: (epoch, 0)
        equal(*(list(loader) for loader in loaders))
        augmented = [
            [data.augment(batch, epoch) for batch in loader]
            for data, loader in zip((plain, cached), loaders, strict=True)
        ]
        for one, other in zip(*augmented, strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["mask"], other["mask"])
    batch = next(iter(loaders[1]))
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    equal(list(plain.val_dataloader()), list(cached.val_dataloader()))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["train-masks-30", "train-squeezed-30"]
    counts = [
        json.loads((tmp_path / "cache" / name / "header.json").read_text())["count"]
        for name in ("train-squeezed-30", "train-masks-30")
    ]
    train = [cached.pairs[place] for place in cached.splits["train"]["index"].tolist()]
    assert counts == [len({pair.image for pair in train}), len(train)]  # images of both sets of walls are stored once
    assert counts[0] < counts[1]


def test_a_finished_cache_is_read_without_the_files(two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(folder(two, tmp_path).train_dataloader())
    again = folder(two, tmp_path)
    monkeypatch.setattr(SegmentationFiles, "_image", lambda *_: pytest.fail("an image is decoded"))
    monkeypatch.setattr("datamodules.segmentation.canvases.mask_of", lambda _: pytest.fail("a mask is decoded"))
    equal(expected, list(again.train_dataloader()))


@pytest.mark.slow
def test_the_one_thing_that_differs_is_named(tmp_path: Path) -> None:
    root, cache = write_two(tmp_path / "in"), tmp_path / "cache"
    folder(root, cache)
    with pytest.raises(CanvasError, match=r"train-squeezed-28: data is \S+ in the canvas cache, but \S+ here \("):
        folder(root, cache, split_seed=1)
    data = folder(root, cache)
    pair = data.pairs[data.splits["train"]["index"][0]]
    mask = np.asarray(Image.open(pair.mask)).copy()
    mask[::2, ::3] ^= 255
    Image.fromarray(mask).save(pair.mask)  # another size, as it compresses less
    name = re.escape(pair.mask.name)
    with pytest.raises(
        CanvasError, match=rf"train-masks-28: data is .* \(1 file changed, the first is '\S+ mask \S+{name}'"
    ):
        folder(root, cache)


def test_a_cache_within_the_images_is_refused(two: Path) -> None:
    with pytest.raises(ValueError, match=r"canvas_cache is .* but must be a folder outside of the images"):
        folder(two, two / "walls")
    with pytest.raises(ValueError, match="verify_canvases is True but must be false without canvas_cache"):
        folder(two, None, verify_canvases=True)


def test_a_wrong_mask_is_refused_as_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "in"
    for number in range(12):
        write_pair(root / "walls", f"w{number:02}", shift=number)
    monkeypatch.setattr("datamodules.segmentation.listed_sets.check_masks", lambda *_: set())  # which finds it earlier
    data = PromptedSegmentationDataModule(
        str(root), TWO[1:], workers=0, canvas_cache=str(tmp_path / "cache"), image_size=16
    )
    data.setup("fit")
    wrong = data.pairs[data.splits["train"]["index"][2]].mask
    good = wrong.read_bytes()
    Image.fromarray((np.asarray(Image.open(wrong)) > 0).astype(np.uint8)).save(wrong)
    with pytest.raises(MisconfigurationException, match=f"{wrong.name}: its largest value is not 255 but 1"):
        data.check_input(("train", "val"))
    wrong.write_bytes(good[:60])
    for path in sorted((tmp_path / "cache").glob("train-masks-*/*")):
        path.unlink()
    with pytest.raises(
        MisconfigurationException,
        match=r"1 of the 12 files in .*\(the image or its mask is damaged\); repair",
    ):
        data.check_input(("train", "val"))
    assert not list((tmp_path / "cache").glob("train-masks-*/canvases-*"))


def test_a_mask_is_named_by_what_makes_its_pixels() -> None:
    square = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0]])
    pair = Pair(Path("d/images/a.png"), Path("d/masks/a.png"), 0, (8, 9))
    others = [
        pair,
        pair._replace(values=(1,)),
        pair._replace(values=(2,)),
        pair._replace(shapes=(square,)),
        pair._replace(shapes=(square + 1,)),
        pair._replace(shapes=(Contour(square),)),
        pair._replace(shapes=(square,), size=(9, 8)),
        pair._replace(shapes=()),
    ]
    names = [mask_name(other, Path("d")) for other in others]
    assert len({*names}) == len(names)
    assert names[:2] == ["images/a.png mask masks/a.png", "images/a.png mask masks/a.png values [1]"]
    assert mask_name(pair._replace(prompt=3), Path("d")) == names[0]
