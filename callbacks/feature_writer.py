"""The FeatureWriter callback: writes the features of a frozen backbone to a cache on disk during predict.

    python main.py predict --config configs/cascade_extract.yaml --data.root FOLDER --cache caches/NAME

The same command continues an interrupted extraction, with any number of processes. Heads then train on the cache in seconds.
docs/feature_cache.md describes the format.
"""

from __future__ import annotations

import logging
import shlex
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from features import CacheError, CacheWriter, Header, Identity, read_header
from foundation.project import MAIN

log = logging.getLogger(__name__)

Dtype = Literal["float32", "float16", "bfloat16"]
Split = Literal["train", "val", "test"]


HEAD_BATCH = 128
"""Batch size in configs/cascade_cached.yaml."""


def training_command(cache: Path, header: Header) -> str:
    """The command that trains a head on a cache, with a smaller batch size if the training split gives no full batch.

    Args:
        cache: Folder of the cache.
        header: Its header.
    """
    command = f"{MAIN} fit --config configs/cascade_cached.yaml --data.cache {shlex.quote(str(cache))}"
    count = header.splits["train"].count if "train" in header.splits else HEAD_BATCH
    if count >= HEAD_BATCH:
        return command
    return f"{command} --data.batch_size {2 ** (max(count // 2, 1).bit_length() - 1)}"  # two batches or more an epoch


class FeatureWriter(Callback):
    """Writes the predict-step outputs `features`, `label` and `index` to a feature cache.

    Args:
        cache: Folder of the cache; null is caches/NAME/FINGERPRINT, one folder per combination of backbone, data and settings.
        dtype: Type in which features are stored; values beyond float16's 65,504 raise an error and are not clipped.
        splits: Labelled splits to extract; null means all splits of the data.
        views: Feature vectors per training sample, each from another augmentation of its image; 1 uses the image without
            augmentation, as in evaluation.
        shard_mb: Largest size of a file in megabytes (1e6 bytes), above 0; a killed process loses at most this much per split.

    Raises:
        ValueError: A setting is out of its range.
    """

    name = "features"
    """Name of the folder within caches/; main.py sets it to the name of the configuration."""

    def __init__(
        self,
        cache: str | None = None,
        dtype: Dtype = "float16",
        splits: list[Split] | None = None,
        views: int = 1,
        shard_mb: float = 64.0,
    ) -> None:
        for name, value, good, wanted in (
            ("dtype", dtype, dtype in get_args(Dtype), "float32, float16 or bfloat16"),
            (
                "splits",
                splits,
                splits is None or (splits and set(splits) <= set(get_args(Split))),
                "train, val or test",
            ),
            ("views", views, views >= 1, "1 or more"),
            ("shard_mb", shard_mb, shard_mb > 0, "above 0"),
        ):
            if not good:
                raise ValueError(f"{name} is {value!r} but must be {wanted}")
        self.cache = Path(cache) if cache is not None else None
        self.dtype, self.splits, self.views, self.shard_mb = dtype, splits, views, shard_mb
        self.header: Header | None = None
        """Header of the complete cache; set on the first process only, None before."""
        self._writer: CacheWriter | None = None
        self._trainer: Trainer | None = None
        self._new = 0

    # ---- which samples to extract ----

    def claim(self, datamodule: Any) -> None:
        """Make predict load the labelled splits; must run before the datamodule's setup, which would look for the test split."""
        if datamodule.extraction is None:
            datamodule.extract(self.splits, self.views, self._left)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that this is a predict with a FeatureExtractor, and prepare the datamodule."""
        if not hasattr(pl_module, "backbone_identity"):
            raise MisconfigurationException(
                f"FeatureWriter: is for {MAIN} predict with model FeatureExtractor, not for {type(pl_module).__name__}; remove it "
                "from trainer.callbacks"
            )
        if stage != "predict":
            raise MisconfigurationException(
                f"FeatureWriter: this configuration extracts features, which {MAIN} predict does; to train a head on them "
                f"afterwards: {MAIN} fit --config configs/cascade_cached.yaml --data.cache CACHE"
            )
        self._trainer, self._new, self.header = trainer, 0, None
        # if all samples are done and only the header is missing, predict has no loader
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        if datamodule.extraction is None:  # in a notebook; main.py calls claim earlier
            self.claim(datamodule)
            datamodule.setup("predict")

    def _left(self, split: Split, index: Tensor) -> Tensor:
        """Mask of the samples that are not on disk; the first call opens the cache, when backbone and data are set up."""
        assert self._trainer is not None
        if self._trainer.fast_dev_run:  # type: ignore[attr-defined]
            return torch.ones_like(index, dtype=torch.bool)
        if self._writer is None:
            self._writer = self._opened(self._trainer)
            # no process writes before all have read the cache, or they would divide the missing samples differently
            self._trainer.strategy.barrier()
        return self._writer.missing(split, index)

    def _opened(self, trainer: Trainer) -> CacheWriter:
        datamodule, module = trainer.datamodule, trainer.lightning_module  # type: ignore[attr-defined]
        about, backbone = datamodule.identity_of_data(), module.backbone_identity()  # type: ignore[operator]
        try:
            identity = Identity(
                **{**backbone, "layers": tuple(backbone["layers"])},
                image_size=datamodule.image_size,
                mean=tuple(datamodule.mean),
                std=tuple(datamodule.std),
                transform=about.transform,
                data=about.data,
                split=about.split,
                class_names=tuple(datamodule.class_names),
                dtype=self.dtype,
                views=self.views,
            )
        except CacheError as error:
            raise MisconfigurationException(str(error)) from error
        folder = self.cache or Path("caches") / self.name / identity.fingerprint[:12]
        writer, refusal = None, ""
        for turn in (
            trainer.global_rank == 0,
            trainer.global_rank > 0,
        ):  # the first process locks the folder before others open it
            if turn:
                try:
                    size = round(self.shard_mb * 1_000_000)
                    writer = CacheWriter(
                        folder,
                        identity,
                        rank=trainer.global_rank,
                        shard_bytes=size,
                        files=about.files,
                        weights_from=getattr(module, "weights_from", None),
                    )
                except CacheError as error:
                    refusal = str(error)
            refusal = trainer.strategy.broadcast(refusal) or refusal
            if refusal:
                raise MisconfigurationException(refusal)
        assert writer is not None
        return writer

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many samples are to be extracted."""
        if self._writer is None:
            return
        extraction = trainer.datamodule.extraction  # type: ignore[attr-defined]
        counts = {split: len(trainer.datamodule.splits[split]["index"]) for split in extraction.splits}  # type: ignore[attr-defined]
        missing = {
            split: int(self._writer.missing(split, trainer.datamodule.splits[split]["index"]).sum())  # type: ignore[attr-defined]
            for split in counts
        }
        listed = ", ".join(f"{missing[split]:,} of {count:,} {split}" for split, count in counts.items())
        views = f", {self.views} views of each training sample" if self.views > 1 else ""
        log.info(f"extraction {listed} samples to do{views}, into {self._writer.folder}")

    # ---- writing ----

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append a batch; full shards are written to disk."""
        if self._writer is None:
            return
        split = trainer.datamodule.extraction.served[dataloader_idx]  # type: ignore[attr-defined]
        try:
            self._new += self._writer.append(split, outputs["features"], outputs["label"], outputs["index"])
        except CacheError as error:
            raise MisconfigurationException(str(error)) from error

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the unfinished shards to disk."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except CacheError:  # a full disk: the first error is already reported
            return
        finally:
            self._writer.close()
        log.info(f"kept       the features so far are in {self._writer.folder}; the same command continues")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Complete the cache, even if only the header was missing."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.flush()
            unreadable = self._unreadable(trainer)
            trainer.strategy.barrier()
            if trainer.is_global_zero:
                self._finish(trainer, writer, unreadable)
            trainer.strategy.barrier()
        except CacheError as error:
            raise MisconfigurationException(str(error)) from error
        finally:
            writer.close()

    def _unreadable(self, trainer: Trainer) -> dict[Split, int]:
        """Number of unreadable samples per split, summed over the processes."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        counts = {split: datamodule.unreadable_of(split) for split in datamodule.extraction.splits}
        device = trainer.strategy.root_device
        return {
            split: int(trainer.strategy.reduce(torch.tensor(count, device=device), reduce_op="sum"))
            for split, count in counts.items()
        }

    @staticmethod
    def _names(datamodule: Any) -> dict[str, dict[int, str]] | None:
        """Names of the samples by index, by split; None if they are no files."""
        if not hasattr(datamodule, "files"):
            return None
        indices = {split: datamodule.splits[split]["index"].tolist() for split in datamodule.extraction.splits}
        files = {split: datamodule.files(split) for split in indices}
        return {split: {place: files[split][place] for place in places} for split, places in indices.items()}

    def _finish(self, trainer: Trainer, writer: CacheWriter, unreadable: dict[Split, int]) -> None:
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        limit = trainer.limit_predict_batches
        if isinstance(limit, int) or limit < 1:
            log.warning(
                f"{writer.folder}: not finished, because limit_predict_batches left samples out; the same command continues"
            )
            return
        whole = writer.finished
        wanted: dict[str, int] = {
            split: len(datamodule.splits[split]["index"]) - count for split, count in unreadable.items()
        }
        self.header = read_header(writer.folder) if whole else writer.finish(wanted, self._names(datamodule))
        counts = ", ".join(f"{entry.count:,} {split}" for split, entry in self.header.splits.items())
        size = sum(shard.bytes for entry in self.header.splits.values() for shard in entry.shards)
        done = "was already complete" if whole else f"{self._new:,} new samples in this process"
        log.info(
            f"cache      {writer.folder}: {counts}, {self.header.identity.feature_width} {self.dtype} values each, "
            f"{size / 1e6:,.1f} MB; {done}"
        )
        log.info(f"train on it  {training_command(writer.folder, self.header)}")
