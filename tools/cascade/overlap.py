"""Finds the measured images that a stage was trained on: two runs may have divided the same images differently.

Files are the same if their path or their bytes are, and images in memory if their pixels are. A run on cached features is compared
by the fingerprint of its images and their positions. Of a plain file of weights nothing is known.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from datamodules import DataModule, ImageFolderDataModule, ShardedImagesDataModule
from features import CachedSplit, CacheError, read_header
from tools.cascade.stages import Source
from tools.run_data import configured_data


class Seen(NamedTuple):
    """Samples of a split that a stage was trained on.

    Attributes:
        mask: (N,) bool, in the order of the split.
        unknown: Why this cannot be found out; None if it is known.
    """

    mask: Tensor
    unknown: str | None = None


def seen_by(source: Source, data: DataModule, split: str, root: str | None) -> Seen:
    """Find the samples that a stage was trained on.

    Args:
        source: The stage.
        data: The measured data, set up for the split.
        split: The measured split, ``val`` or ``test``.
        root: Folder of the data, where the configured one does not exist.
    """
    nothing = torch.zeros(len(data.splits[split]["index"]), dtype=torch.bool)
    if source.weights is not None:
        return Seen(nothing, "a file of weights does not say what it was trained on")
    config = source.config()
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))["data"].get("init_args") or {}
    if "cache" in settings:
        folded = configured_data(config) if settings.get("fold") else None
        return _seen_in_cache(Path(settings["cache"]), data, split, nothing, folded)
    there = root if "root" in settings and not Path(settings["root"]).is_dir() else None
    try:
        trained = configured_data(config, None if there is None else {"root": there})
        if _place(trained) == _place(data):  # the same split of the same data
            return Seen(nothing)
        trained.setup("fit")
    except (ValueError, OSError, MisconfigurationException) as error:
        return Seen(nothing, f"its data cannot be read ({' '.join(str(error).split())[:120]})")
    if ShardedImagesDataModule in (type(data), type(trained)):
        return _same_keys(data, trained, split, nothing)
    if isinstance(data, ImageFolderDataModule) != isinstance(trained, ImageFolderDataModule):
        return Seen(nothing, f"it was trained on {type(trained).__name__}, which cannot be compared with these images")
    if isinstance(data, ImageFolderDataModule):
        return Seen(_same_files(_files(data, split), _files(cast(ImageFolderDataModule, trained), "train")))
    known = {*_hashes(trained, "train")}
    return Seen(torch.tensor([one in known for one in _hashes(data, split)], dtype=torch.bool))


def _place(data: DataModule) -> tuple[Any, ...]:
    root = data.place if isinstance(data, ShardedImagesDataModule) else getattr(data, "root", None)
    return type(data), None if root is None else Path(root).resolve(), data.split_settings


def _seen_in_cache(cache: Path, data: DataModule, split: str, nothing: Tensor, folded: DataModule | None) -> Seen:
    try:
        header = read_header(cache)
        if folded is not None:
            folded.setup("fit")
    except (CacheError, OSError):
        return Seen(nothing, f"its features in {cache} cannot be read")
    found = data.identity_of_data()
    if header.identity.data != found.data:
        return Seen(nothing, f"the images behind its features in {cache} are others than these, or have changed")
    if folded is not None:  # of samples of one folder, numbered alike whatever their split is
        return Seen(torch.isin(data.splits[split]["index"], folded.splits["train"]["index"].cpu()))
    wanted, own = found.split, header.identity.split
    if wanted == own:
        return Seen(nothing)
    if isinstance(data, ImageFolderDataModule):
        if data.folder("train") != data.folder(cast(Any, split)):
            return Seen(nothing)
        index = CachedSplit(cache, header, "train", verify=False).index
        return Seen(torch.isin(data.splits[split]["index"], index))
    names = [name for name in sorted({*wanted, *own}) if wanted.get(name) != own.get(name)]
    differs = ", ".join(f"{name} {own.get(name)} and not {wanted.get(name)}" for name in names)
    return Seen(nothing, f"its features in {cache} have another split ({differs})")


def _same_keys(data: DataModule, trained: DataModule, split: str, nothing: Tensor) -> Seen:
    """Images in shards are compared by the hashes of their bytes, also with image files."""
    if any(not isinstance(one, ShardedImagesDataModule | ImageFolderDataModule) for one in (data, trained)):
        return Seen(nothing, f"it was trained on {type(trained).__name__}, which cannot be compared with these images")
    return Seen(torch.isin(data.sample_keys(split), trained.sample_keys("train")))


def _files(data: ImageFolderDataModule, split: str) -> list[Path]:
    names, folder = data.files(cast(Any, split)), data.folder(cast(Any, split)).resolve()
    return [folder / names[place] for place in data.splits[split]["index"].tolist()]


def _same_files(measured: Sequence[Path], trained: Sequence[Path]) -> Tensor:
    """Mask of the measured files that are among the trained ones; only files of equal size are read."""
    known, by_size = {*trained}, defaultdict(list)
    sizes = [path.stat().st_size for path in measured]
    for path in trained:
        by_size[path.stat().st_size].append(path)
    digests: dict[int, set[bytes]] = {}
    mask = []
    for path, size in zip(measured, sizes, strict=True):
        if path not in known and size in by_size and size not in digests:
            digests[size] = {_digest(one) for one in by_size[size]}
        mask.append(path in known or (size in digests and _digest(path) in digests[size]))
    return torch.tensor(mask, dtype=torch.bool)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _hashes(data: DataModule, split: str) -> list[bytes]:
    images = data.splits[split]["image"].cpu().numpy()
    return [hashlib.sha256(image.tobytes()).digest() for image in images]
