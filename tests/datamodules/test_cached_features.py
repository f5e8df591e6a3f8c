"""`CachedFeaturesDataModule`: same batches as the in-memory loader, views, resume, verification, and the cache of a checkpoint."""

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import CachedFeaturesDataModule, DataModule, InMemoryLoader
from datamodules.feature_loader import view_of
from features import CacheError, CacheWriter, read_header
from foundation.memory import free_memory
from tests.features.caches import WIDTH, by_index, identity, samples, sizes_for, write

TRAIN, VAL, TEST = samples(50, 1), samples(14, 2, first=1), samples(9, 3, first=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with train, val and test in shards of four samples; tests must not write to it."""
    folder = tmp_path_factory.mktemp("cached") / "cache"
    write(folder, identity(), {"train": TRAIN, "val": VAL, "test": TEST})
    return folder


def data_of(cache: Path, **settings: Any) -> CachedFeaturesDataModule:
    return CachedFeaturesDataModule(**{"cache": str(cache), "batch_size": 8, **settings})


class Linear(LightningModule):
    """Trains one layer and records the batches that it gets, by stage and epoch."""

    def __init__(self, stop_at: tuple[int, int] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.stop_at = torch.nn.Linear(WIDTH, 3), stop_at
        self.seen: dict[str, list[dict[str, Tensor]]] = {}

    def _step(self, batch: dict[str, Tensor], stage: str) -> Tensor:
        self.seen.setdefault(stage, []).append(batch)
        return torch.nn.functional.cross_entropy(self.layer(batch["features"]), batch["label"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, f"train {self.current_epoch}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (self.current_epoch, batch_idx) == self.stop_at:
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "mid.ckpt")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._step(batch, "sanity" if self.trainer.sanity_checking else f"val {self.current_epoch}")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch, "predict")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    parts = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    quiet: dict[str, Any] = dict.fromkeys(parts, False)
    return Trainer(**{**quiet, "accelerator": "cpu", "default_root_dir": tmp_path, "max_epochs": 3, **settings})


def check_same(batches: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    assert len(batches) == len(expected)
    for batch, right in zip(batches, expected, strict=True):
        assert set(batch) == set(right) == {"features", "label", "index"}
        for name, values in right.items():
            assert batch[name].dtype == values.dtype
            assert torch.equal(batch[name], values)


@pytest.mark.parametrize("on_device", [True, False, None])
@pytest.mark.parametrize("seed", [0, 5])
def test_batches_equal_those_from_the_in_memory_loader(cache: Path, tmp_path: Path, on_device: Any, seed: int) -> None:
    data, module = data_of(cache, on_device=on_device), Linear()
    data.seed = seed
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    run.predict(module, datamodule=data)
    for epoch in range(3):
        # divmod(epoch, 1) is (epoch, 0), the start of the epoch
        order = InMemoryLoader(
            by_index(TRAIN), 8, keep="full", shuffle=True, seed=seed, position=partial(divmod, epoch, 1)
        )
        check_same(module.seen[f"train {epoch}"], list(order))
        check_same(module.seen[f"val {epoch}"], list(InMemoryLoader(by_index(VAL), 16, keep="all")))
    for stage in ("test", "predict"):
        check_same(module.seen[stage], list(InMemoryLoader(by_index(TEST), 16, keep="all")))


def test_resume_in_mid_epoch_serves_exactly_the_rest(cache: Path, tmp_path: Path) -> None:
    whole, resumed = Linear(stop_at=(1, 2)), Linear()
    trainer(tmp_path).fit(whole, datamodule=data_of(cache))
    trainer(tmp_path).fit(resumed, datamodule=data_of(cache), ckpt_path=tmp_path / "mid.ckpt", weights_only=True)
    check_same(resumed.seen["train 1"], whole.seen["train 1"][3:])
    check_same(resumed.seen["train 2"], whole.seen["train 2"])
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_stored_dtypes_are_served_as_float32(tmp_path: Path, dtype: Any, on_device: bool) -> None:
    write(tmp_path / "c", identity(dtype=dtype), {"train": TRAIN, "val": VAL})
    data = data_of(tmp_path / "c", on_device=on_device, eval_batch_size=99)
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert set(data.splits) == {"val"}
    assert batch["features"].dtype == torch.float32
    assert torch.equal(batch["features"], by_index(VAL)["features"].to(getattr(torch, dtype)).float())


def test_features_have_the_dtype_of_the_trainer(cache: Path, tmp_path: Path) -> None:
    module = Linear()
    trainer(tmp_path, precision="64-true", fast_dev_run=True).fit(module, datamodule=data_of(cache))
    assert module.seen["train 0"][0]["features"].dtype == torch.float64


def test_properties_read_only_the_header(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "header.json").write_bytes((cache / "header.json").read_bytes())  # and no shard
    data = data_of(tmp_path)
    assert (data.class_names, data.num_classes, data.feature_width) == (["cat", "dog", "fish"], 3, WIDTH)
    assert data.class_counts.tolist() == TRAIN["label"].bincount().tolist() == [17, 17, 16]
    assert (data.image_size, data.train_size, data.in_channels, data.views) == (32, 32, 3, 1)
    assert (data.mean, data.std, data.identity) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), identity())
    with pytest.raises(MisconfigurationException, match=r"train-r000-00000\.safetensors: the shard is missing"):
        data.setup("fit")


def test_read_part_gives_labels_and_indices(cache: Path) -> None:
    part = data_of(cache).read_part("train")
    assert part["index"].tolist() == [*by_index(TRAIN)["index"].tolist(), *by_index(VAL)["index"].tolist()]
    assert torch.equal(data_of(cache).read_part("test")["label"], by_index(TEST)["label"])


@pytest.mark.parametrize("on_device", [True, False])
def test_every_view_of_a_sample_is_used_once_in_as_many_epochs(tmp_path: Path, on_device: bool) -> None:
    train = samples(40, views=4)
    write(tmp_path / "c", identity(views=4), {"train": train, "val": VAL})
    module, data = Linear(), data_of(tmp_path / "c", on_device=on_device)
    trainer(tmp_path, max_epochs=4).fit(module, datamodule=data)
    place = {int(index): i for i, index in enumerate(train["index"])}
    taken: dict[int, list[int]] = {}
    for epoch in range(4):
        for batch in module.seen[f"train {epoch}"]:
            views = view_of(0, epoch, batch["index"], 4).tolist()
            for vector, index, view in zip(batch["features"], batch["index"].tolist(), views, strict=True):
                assert torch.equal(vector, train["features"][place[index], view])
                taken.setdefault(index, []).append(view)
    assert len(taken) == 40
    assert all(sorted(views) == [0, 1, 2, 3] for views in taken.values())
    check_same(module.seen["val 0"], list(InMemoryLoader(by_index(VAL), 16, keep="all")))


def test_views_depend_on_seed_epoch_and_index_and_are_equally_frequent() -> None:
    index = torch.arange(30_000)
    views = view_of(3, 7, index, 3)
    assert torch.equal(view_of(3, 7, index[[5, 9, 2]], 3), views[[5, 9, 2]])
    assert torch.equal(view_of(3, 8, index, 3), (views + 1) % 3)
    assert (view_of(4, 7, index, 3) != views).float().mean() == pytest.approx(2 / 3, abs=0.01)
    assert (views.bincount() / 30_000).tolist() == pytest.approx([1 / 3] * 3, abs=0.01)


def test_features_that_do_not_fit_are_memory_mapped(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 50 * WIDTH * 4
    assert free_memory() > 1_000_000
    for free, copies in ((2 * size, True), (2 * size - 1, False)):
        monkeypatch.setattr("datamodules.cached_features.free_memory", lambda free=free: free)
        data = data_of(cache)
        data.setup("fit")
        assert len(list(data.train_dataloader())) == 6
        assert ("train" in data._copies) == copies


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0 but must be 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0 but must be 1 or more"),
    ],
)
def test_invalid_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CachedFeaturesDataModule(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 51}, r"--data\.batch_size 51 is larger than the training set of 50 samples"),
        ({"backbone": "vit_small"}, r"--data\.backbone is 'vit_small', but .* has features from 'vit_tiny'; use"),
        ({"weights_hash": "c" * 64}, r"--data\.weights_hash is 'c{64}', but .* has features from '(a1){32}'"),
    ],
)
def test_a_cache_that_does_not_match_is_an_error(cache: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        data_of(cache, **settings).setup("fit")


def test_missing_and_unfinished_caches_and_missing_splits_are_errors(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"--data\.cache .*/none does not exist; .* is empty; expected a folder"
    ):
        _ = data_of(tmp_path / "none").class_names
    with pytest.raises(MisconfigurationException, match=r"there is no feature cache, as header\.json is not there"):
        _ = data_of(tmp_path).class_names
    CacheWriter(tmp_path / "c", identity())
    with pytest.raises(MisconfigurationException, match="its extraction is not finished; run the same command again"):
        _ = data_of(tmp_path / "c").class_names
    write(tmp_path / "c", identity(), {"train": TRAIN})
    with pytest.raises(MisconfigurationException, match="has no val split, only train"):
        data_of(tmp_path / "c").setup("fit")
    only = {name: values[TRAIN["label"] < 2] for name, values in TRAIN.items()}
    write(tmp_path / "d", identity(), {"train": only, "val": VAL})
    with pytest.raises(MisconfigurationException, match=r"1 class has no training sample: 'fish' \(2\)"):
        data_of(tmp_path / "d").setup("fit")


def test_damage_is_found_in_setup_if_verify_is_set(cache: Path, tmp_path: Path) -> None:
    write(tmp_path / "c", identity(), {"train": TRAIN, "val": VAL})
    shard = tmp_path / "c" / "train-r000-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MisconfigurationException, match=r"00003\.safetensors: its checksum is wrong") as caught:
        data_of(tmp_path / "c").setup("fit")
    assert isinstance(caught.value.__cause__, CacheError)
    data_of(tmp_path / "c", verify=False).setup("fit")


def test_training_continues_only_with_the_cache_of_the_checkpoint(cache: Path, tmp_path: Path) -> None:
    trainer(tmp_path, max_epochs=1).fit(module := Linear(stop_at=(0, 2)), datamodule=data_of(cache))
    checkpoint = tmp_path / "mid.ckpt"
    parts = {"train": TRAIN, "val": VAL, "test": TEST}
    cases: list[tuple[dict[str, Any], bool, bool]] = [
        ({}, True, True),
        ({"data": "files:" + "0" * 64}, False, True),
        ({"dtype": "float16"}, False, True),
        ({"weights_hash": "c" * 64}, False, False),
        ({"transform": {"eval_share": 1.0}}, False, False),
    ]
    for number, (changes, fits_fit, fits_test) in enumerate(cases):
        folder = tmp_path / str(number)
        write(folder, identity(**changes), parts)
        for fits, call in (
            (fits_fit, lambda d: trainer(tmp_path, max_epochs=1).fit(module, datamodule=d, ckpt_path=checkpoint)),
            (fits_test, lambda d: trainer(tmp_path).test(module, datamodule=d, ckpt_path=checkpoint, verbose=False)),
        ):
            if fits:
                call(data_of(folder))
            else:
                name = next(iter(changes))
                with pytest.raises(
                    MisconfigurationException, match=f"^{folder}: {name}.* in the cache, but .* is wanted"
                ):
                    call(data_of(folder))


def test_two_ranks_share_an_epoch(cache: Path) -> None:
    data = data_of(cache, on_device=False)
    data.setup("fit")
    one_process = list(data.train_dataloader())
    ranks = []
    for rank in range(2):
        loader = data.train_dataloader()
        loader.rank, loader.world_size, loader.batch_size = rank, 2, 4
        ranks.append(list(loader))
    for batch, first, second in zip(one_process, *ranks, strict=True):
        together = torch.cat([first["index"], second["index"]])
        assert set(together.tolist()) == set(batch["index"].tolist())


def test_only_settings_with_an_effect_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    with pytest.raises(SystemExit):
        parser.parse_args(["--data.help=CachedFeaturesDataModule"])
    listed = " ".join(capsys.readouterr().out.split()).split("Help for")[1]
    texts = dict(re.findall(r"--data\.(\w+)(?:, \S+)? \S+ (.*?) ?\(type:", listed))
    own = set(inspect.signature(CachedFeaturesDataModule.__init__).parameters) - {"self"}
    assert set(texts) == own
    assert [setting for setting, text in texts.items() if len(text.split()) < 5] == []
    assert set(CachedFeaturesDataModule.fixed_on_resume) <= own


def test_features_written_by_two_processes_are_sorted_by_sample(tmp_path: Path) -> None:
    for rank in (1, 0):
        writer = CacheWriter(tmp_path, identity(), rank=rank, shard_bytes=sizes_for(3, identity()))
        for split, part in (("train", TRAIN), ("val", VAL)):
            writer.append(split, **{name: values[rank::2] for name, values in by_index(part).items()})  # type: ignore[arg-type]
        writer.flush()
    writer.finish({"train": 50, "val": 14})
    assert len(read_header(tmp_path).splits["train"].shards) == 2 * -(-25 // 3)
    data = data_of(tmp_path, eval_batch_size=99)
    data.setup("validate")
    check_same(list(data.val_dataloader()), [by_index(VAL)])


def test_the_samples_of_a_fit_are_counted_once(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = data_of(cache)
    with caplog.at_level("INFO"):
        data.setup("fit")
        data.check_input(("train", "val"))
    counts = [record.getMessage() for record in caplog.records if record.getMessage().startswith("data ")]
    assert counts == [
        f"data       {n} {split} features of width {WIDTH} in {cache}" for n, split in ((50, "train"), (14, "val"))
    ]
