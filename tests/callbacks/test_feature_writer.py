"""callbacks/feature_writer.py: every sample is extracted once and correctly, also after interruptions; bad input is refused."""

import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import transforms
from callbacks import FeatureWriter
from callbacks.feature_writer import HEAD_BATCH, training_command
from datamodules import CachedFeaturesDataModule, DataModule, DigitsDataModule, ImageFolderDataModule
from features import CachedSplit, read_header
from tests.datamodules.pictures import write_classes

Content = dict[str, tuple[Tensor, Tensor, Tensor]]


class Pixels(LightningModule):
    """A module whose features are the pixels of the image."""

    def __init__(self, width: int = 64, weights: str = "a", fails_at: int = -1) -> None:
        super().__init__()
        self.width, self.weights, self.fails_at, self.served = width, weights, fails_at, 0

    def backbone_identity(self) -> dict[str, Any]:
        """Identity of a backbone that does not exist."""
        named = {"backbone": "pixels", "weights_hash": self.weights * 64, "layers": [-1], "pooling": "native"}
        return {**named, "feature_width": self.width}

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        if self.served == self.fails_at:
            raise RuntimeError("the plug was pulled")
        self.served += 1
        if "views" in batch:
            features = torch.stack([view.flatten(1) for view in batch["views"]], dim=1)
        else:
            features = batch["image"].flatten(1)
        return {"features": features, "label": batch["label"], "index": batch["index"]}


def extract(data: DataModule, cache: Path, module: Pixels | None = None, **settings: Any) -> Pixels:
    module = module or Pixels()
    limits = {name: settings.pop(name) for name in ("limit_predict_batches", "fast_dev_run") if name in settings}
    writer = FeatureWriter(str(cache), **{"dtype": "float32", **settings})
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(callbacks=[writer], accelerator="cpu", **silent, **limits)  # type: ignore[arg-type]
    trainer.predict(module, datamodule=data, return_predictions=False)
    return module


def digits(**settings: Any) -> DigitsDataModule:
    return DigitsDataModule(batch_size=64, eval_batch_size=100, **settings)


def content(cache: Path) -> Content:
    header = read_header(cache)
    splits = {name: CachedSplit(cache, header, name) for name in header.splits}  # type: ignore[arg-type]
    return {
        name: (split.take(torch.arange(len(split.index) * split.views)), split.label, split.index)
        for name, split in splits.items()
    }


def equal(a: Content, b: Content) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("whole") / "cache"
    extract(digits(), cache)
    return cache


def test_every_sample_of_every_split_is_extracted(whole: Path) -> None:
    data = digits()
    data.setup("fit")
    data.setup("test")
    found = content(whole)
    assert list(found) == ["train", "val", "test"]
    for name, (features, label, index) in found.items():
        split = data.splits[name]
        order = split["index"].argsort()
        assert torch.equal(index, split["index"][order])
        assert torch.equal(label, split["label"][order])
        wanted = transforms.normalize(split["image"][order], data.mean, data.std).flatten(1)
        torch.testing.assert_close(features, wanted, rtol=0, atol=1e-6)
    identity = read_header(whole).identity
    assert (identity.image_size, identity.class_names) == (8, tuple(map(str, range(10))))
    assert identity.split == {"val_fraction": 0.1, "train_fraction": 1.0, "split_seed": 0}
    assert identity.transform == {}


def test_the_cache_can_be_loaded(whole: Path) -> None:
    data = CachedFeaturesDataModule(str(whole), batch_size=100)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert sum(len(batch["index"]) for batch in batches) == read_header(whole).splits["val"].count
    assert batches[0]["features"].shape[1] == 64


@pytest.mark.parametrize("fails_at", [0, 1, 12, 14, 17])
def test_an_interrupted_extraction_continues(whole: Path, tmp_path: Path, fails_at: int) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(RuntimeError, match="plug"):
        extract(digits(), cache, Pixels(fails_at=fails_at))
    with pytest.raises(MisconfigurationException, match="not finished; run the same command again"):
        _ = CachedFeaturesDataModule(str(cache)).header
    second = extract(digits(), cache)
    assert second.served == 19 - fails_at
    assert equal(content(cache), content(whole))


def test_a_complete_cache_is_not_changed(whole: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    assert extract(digits(), whole).served == 0
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_a_missing_header_is_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(FeatureWriter, "_finish", lambda *arguments: None)
    extract(digits(), cache)
    assert not (cache / "header.json").exists()
    monkeypatch.undo()
    assert extract(digits(), cache).served == 0
    assert equal(content(cache), content(whole))


def test_a_limited_extraction_is_not_finished(whole: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(digits(), cache, limit_predict_batches=2)
    assert not (cache / "header.json").exists()
    extract(digits(), cache)
    assert equal(content(cache), content(whole))


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    extract(digits(), tmp_path / "cache", fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_views_equal_the_augmentations_of_the_epochs(tmp_path: Path) -> None:
    data = digits(policy="randaugment", mixup_prob=1.0, train_fraction=0.1)
    extract(data, tmp_path / "cache", views=3)
    features, _, index = content(tmp_path / "cache")["train"]
    source = digits(policy="randaugment", train_fraction=0.1)
    source.setup("fit")
    order = source.splits["train"]["index"].argsort()
    batch = {name: values[order] for name, values in source.splits["train"].items()}
    assert torch.equal(index, batch["index"])
    views = features.view(len(index), 3, -1)
    for number in range(3):
        torch.testing.assert_close(views[:, number], source.augment(batch, number)["image"].flatten(1))
    assert not torch.equal(views[:, 0], views[:, 1])
    transform = read_header(tmp_path / "cache").identity.transform
    assert transform["views.policy"] == "randaugment"
    assert transform["views.seed"] == 0
    assert content(tmp_path / "cache")["val"][0].shape == (len(content(tmp_path / "cache")["val"][1]), 64)


def test_image_files_with_one_that_cannot_be_read(tmp_path: Path) -> None:
    folder = write_classes(tmp_path / "pictures", {"cat": 20, "dog": 20}, suffix=".jpg")
    broken = folder / "cat" / "007.jpg"
    broken.write_bytes(broken.read_bytes()[:400])  # the header is complete

    def data() -> ImageFolderDataModule:
        return ImageFolderDataModule(str(folder), image_size=8, batch_size=8, workers=0)

    cache = tmp_path / "cache"
    assert extract(data(), cache, Pixels(192)).served > 0
    header = read_header(cache)
    assert sum(entry.count for entry in header.splits.values()) == 39
    assert header.identity.transform == {"eval_share": 0.875}
    assert (cache / "files.jsonl").is_file()
    assert extract(data(), cache, Pixels(192)).served == 0
    (folder / "dog" / "000.jpg").unlink()
    with pytest.raises(MisconfigurationException, match=r"1 file removed, the first is 'dog/000.jpg'"):
        extract(data(), cache, Pixels(192))


def test_folders_of_splits_without_a_test_split(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_classes(tmp_path / "pictures" / part, {"cat": 4, "dog": 4})
    data = ImageFolderDataModule(str(tmp_path / "pictures"), image_size=8, batch_size=4, workers=0)
    FeatureWriter().claim(data)  # as main.py does, before the datamodule looks for its test split
    assert data.extraction is not None
    assert data.extraction.splits == ("train", "val")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Limit the size of every file to 50 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cache = tmp_path / "cache"
    extract(digits(), cache, limit_predict_batches=1, shard_mb=0.04)
    kept = {path.name: path.read_bytes() for path in cache.glob("*.safetensors")}
    assert kept
    request.getfixturevalue("full_disk")
    with pytest.raises(MisconfigurationException, match=r"cannot be written|no space|too large") as failure:
        extract(digits(), cache)
    assert "\n" not in str(failure.value)
    assert {path.name: path.read_bytes() for path in cache.glob("*.safetensors")}.items() >= kept.items()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    extract(digits(), cache)
    assert equal(content(cache), content(whole))


@pytest.mark.parametrize(
    ("data", "module", "settings", "message"),
    [
        (digits(), Pixels(weights="b"), {}, "weights_hash is aaaaaaaaaaaa in the cache, but bbbbbbbbbbbb is wanted"),
        (digits(), Pixels(), {"dtype": "float16"}, 'dtype is "float32" in the cache, but "float16" is wanted'),
        (digits(split_seed=1), Pixels(), {}, "split.split_seed is 0 in the cache, but 1 is wanted"),
        (digits(), Pixels(), {"views": 2}, "transform.views.autoaugment|transform.views"),
    ],
    ids=["weights", "dtype", "split", "views"],
)
def test_a_cache_with_other_settings_is_refused(
    whole: Path, data: DataModule, module: Pixels, settings: dict[str, Any], message: str
) -> None:
    before = sorted(path.name for path in whole.iterdir())
    with pytest.raises(MisconfigurationException, match=message):
        extract(data, whole, module, **settings)
    assert sorted(path.name for path in whole.iterdir()) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8' but must be float32, float16 or bfloat16"),
        ({"splits": ["all"]}, "splits is .'all'. but must be train, val or test"),
        ({"splits": []}, "splits is .. but must be"),
        ({"views": 0}, "views is 0 but must be 1 or more"),
        ({"shard_mb": 0.0}, "shard_mb is 0.0 but must be above 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureWriter(**settings)


def test_unlabelled_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="features are extracted from the labelled splits"):
        FeatureWriter().claim(digits(images=str(tmp_path)))


@pytest.mark.parametrize(("world_size", "left", "served"), [(2, [3], 2), (2, [], 0), (3, [0, 1, 2, 3], 4)])
def test_every_process_gets_the_same_number_of_samples_or_none(world_size: int, left: list[int], served: int) -> None:
    """Samples are added to the missing ones as padding; they are on disk already, and the writer skips them."""
    data = digits()
    missing = torch.isin(torch.arange(10), torch.tensor(left))
    extraction = data.extract(None, 1, lambda split, index: missing)
    places = extraction.places("train", torch.arange(10), world_size)
    assert len(places) == served
    assert set(left) <= set(places.tolist())
    assert places.tolist() == sorted(places.tolist())


def test_the_printed_command_fits_a_small_training_set(tmp_path: Path) -> None:
    recipe = yaml.safe_load(Path("configs/cascade_cached.yaml").read_text(encoding="utf-8"))
    assert recipe["data"]["init_args"]["batch_size"] == HEAD_BATCH
    for count, flag in (
        (128, ""),
        (127, " --data.batch_size 32"),
        (3, " --data.batch_size 1"),
        (1, " --data.batch_size 1"),
    ):
        header: Any = SimpleNamespace(splits={"train": SimpleNamespace(count=count)})
        command = "python main.py fit --config configs/cascade_cached.yaml --data.cache 'my cache'"
        assert training_command(Path("my cache"), header) == command + flag
