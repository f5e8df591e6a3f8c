"""`SegmentationLoader`: batches of images, masks and prompts. Workers decode the files; the main process chooses the prompts.

    training     whole image and mask, squeezed to a square canvas; `aspect` is the original width / height of the image
    evaluation   images at their stored size; all images of a batch have the same size, so that nothing is padded
    both         uint8 image (B, 3, H, W) and mask (B, 1, H, W), 1 on the object

The prompts are a function of (seed, epoch, index). In training they are random synonyms of the object and random absent objects
(negative prompts). In evaluation they are the first prompt of the object and the first prompt of one absent object. Order and
position follow `datamodules.in_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.images.decoding import Levels, pixels_of
from datamodules.images.decoding import squeezed as squeezed_image
from datamodules.images.formats import readable_formats
from datamodules.images.loader import ImageFileLoader
from datamodules.segmentation.masks import MaskError, mask_of
from datamodules.segmentation.prompt_sets import Pair
from transforms import SampleRandom


class SegmentationFiles(Dataset[Any]):
    """Images and their masks, read in batches.

    An index i + k N means image i, drawn for the time k in its epoch (from 0), so that each time gets other random numbers.

    Args:
        pairs: The N images with their masks; an empty mask path means that there is no mask.
        canvas: Side in pixels of the square that an image is squeezed to; None reads it at its stored size.
        levels: Grey values of files of more than 8 bits that become 0 and 1; None reads all files as 8 bits.
    """

    def __init__(self, pairs: Sequence[Pair], canvas: int | None, levels: Levels | None = None) -> None:
        self.pairs, self.canvas, self.levels = pairs, canvas, levels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch.

        Returns:
            `image` (B, 3, H, W) uint8, or float32 with levels, `mask` (B, 1, H, W) uint8 if there are masks, `label` (B,) int64
            number of the object's prompt, `index` (B,) int64 below N; if images are squeezed, `drawn` (B,) int64, the given
            indices, and `aspect` (B,) float32; `unreadable`, the indices that were left out; and `odd`, index -> description of
            unexpected values in the mask, or a `MaskError` if it is refused.
        """
        images, masks, drawn = [], [], []
        decoded: dict[Path, Tensor] = {}  # an image may be in several sets, with the masks of other objects
        odd: dict[int, str | MaskError] = {}
        mask: Tensor | None
        reason: str | MaskError | None
        for given in indices:
            index = given % len(self.pairs)
            pair = self.pairs[index]
            try:
                image = decoded[pair.image] if pair.image in decoded else self._image(pair.image)
                decoded[pair.image] = image
                mask, reason = mask_of(pair)
            except MaskError as error:
                mask, reason = torch.zeros(1, *pair.size, dtype=torch.uint8), error
            except MemoryError:
                raise
            except Exception:  # a damaged file can make a decoder raise anything
                continue
            images.append(image)
            drawn.append(given)
            if mask is not None:
                masks.append(self._squeeze(mask))
            if reason is not None:
                odd[index] = reason
        read = [given % len(self.pairs) for given in drawn]
        batch: dict[str, Any] = {
            "index": torch.tensor(read, dtype=torch.int64),
            "label": torch.tensor([self.pairs[index].prompt for index in read], dtype=torch.int64),
            "unreadable": sorted({given % len(self.pairs) for given in indices} - {*read}),
            "odd": odd,
        }
        if images and self.canvas is None:
            batch["image"] = torch.stack(images)
        elif images:  # a canvas lies in memory as (H, W, C): crops are cut fastest from it
            batch["image"] = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
        if masks:
            batch["mask"] = torch.stack(masks)
        if self.canvas is not None:
            batch |= drawn_and_aspect(drawn, [self.pairs[index] for index in read])
        return batch

    def _image(self, path: Path) -> Tensor:
        if self.canvas is not None:
            return squeezed_image(path, self.canvas, 3, self.levels)[0]
        with Image.open(path, formats=readable_formats()) as file:
            return pixels_of(file, 3, self.levels).contiguous()

    def _squeeze(self, mask: Tensor) -> Tensor:
        return mask if self.canvas is None else squeezed_mask(mask, self.canvas)


def drawn_and_aspect(drawn: Sequence[int], pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """Entries of a batch that only squeezed images have: the given indices, and width / height of each image."""
    aspects = [pair.size[1] / pair.size[0] for pair in pairs]
    return {
        "drawn": torch.tensor(drawn, dtype=torch.int64),
        "aspect": torch.tensor(aspects, dtype=torch.float32),
    }


def squeezed_mask(mask: Tensor, canvas: int) -> Tensor:
    """Squeeze a mask (1, H, W) to a square; exact: takes the pixel under the centre of the new one, as the image is resampled."""
    if mask.shape[-2:] == (canvas, canvas):
        return mask
    squeezed: Tensor = F.resize(mask, [canvas] * 2, interpolation=InterpolationMode.NEAREST_EXACT)
    return squeezed


@dataclass(frozen=True)
class Questions:
    """Chooses the prompts of a batch.

    Args:
        synonyms: Prompts of each object; the first one is its name.
        negatives: Probability that a training image also gets a prompt for an absent object; if above 0, each evaluation image gets
            one.
        training: Whether synonyms and negative prompts are drawn at random.
        always: Fixed prompts used for every image instead; None outside of predict.
        labelled: (N, objects) bool, whether each of the N images is labelled for an object, in its own set or in another: then that
            object may be there and is no negative prompt. None: only the object of its own set.
    """

    synonyms: Sequence[Sequence[str]]
    negatives: float
    training: bool
    always: Sequence[str] | None = None
    labelled: Tensor | None = None

    def ask(self, label: Tensor, random: SampleRandom) -> dict[str, Any]:
        """Choose the prompts of a batch.

        Args:
            label: Number of each image's object (B,), on the CPU.
            random: The random numbers of each image.

        Returns:
            `prompt` (N texts), `image_index` (N,) int64, `prompt_number` (N,) int64 number of the object that the prompt names, or
            -1 if unknown, and `positive` (N,) bool, whether that is the object in the mask. Unless `always` is set, the first B
            prompts are those of the B images' own objects.
        """
        images = torch.arange(len(label))
        if self.always is not None:
            names = [texts[0] for texts in self.synonyms]
            numbers = torch.tensor([names.index(text) if text in names else -1 for text in self.always])
            count = len(self.always)
            number = numbers.repeat(len(label))
            return {
                "prompt": [text for _ in range(len(label)) for text in self.always],
                "image_index": images.repeat_interleave(count),
                "prompt_number": number,
                "positive": number == label.repeat_interleave(count),
            }
        absent, where = self._absent(label, random)
        number = torch.cat([label, absent])
        index = torch.cat([images, where])
        own, other = (random.integers(f"prompt/{name}", 1 << 16) for name in ("synonym", "absent_synonym"))
        place = torch.cat([own, other[where]])
        texts = [self.synonyms[n] for n in number.tolist()]
        chosen = [text[p % len(text) if self.training else 0] for text, p in zip(texts, place.tolist(), strict=True)]
        positive = torch.arange(len(number)) < len(label)
        return {"prompt": chosen, "image_index": index, "prompt_number": number, "positive": positive}

    def _absent(self, label: Tensor, random: SampleRandom) -> tuple[Tensor, Tensor]:
        """Choose the absent objects; returns their numbers and the images that get a prompt for them."""
        objects = len(self.synonyms)
        if self.negatives == 0 or objects < 2:
            return label[:0], label[:0]
        others = (label[:, None] + torch.arange(1, objects)) % objects
        allowed = torch.ones_like(others, dtype=torch.bool)
        if self.labelled is not None:
            allowed = ~self.labelled[random.index % len(self.labelled)].gather(1, others)
        count = allowed.sum(dim=1)
        if self.training:
            drawn, place = (
                random.bernoulli("prompt/negative", self.negatives),
                random.integers("prompt/absent", objects - 1),
            )
        else:
            drawn, place = torch.ones_like(count, dtype=torch.bool), random.index % (objects - 1)
        where = (drawn & (count > 0)).nonzero().flatten()
        # the allowed object with this number, counted from 0
        chosen = (allowed & (allowed.cumsum(dim=1) == (place % count.clamp(min=1) + 1)[:, None])).int().argmax(dim=1)
        return others.gather(1, chosen[:, None])[where, 0], where


class SegmentationLoader(ImageFileLoader):
    """Serves batches of images, masks and prompts.

    Args:
        files: The data set of images and masks; without a canvas the images are sorted by size and each batch has one size.
        places: (n,) int64, positions of the files that make up an epoch.
        batch_size: Images in a batch of one rank.
        questions: Chooses the prompts.
        draw: Given the epoch, the indices that its places serve, (n,) int64 for `SegmentationFiles`; None: `places` in every epoch.
        odd: Called with index -> description for masks with unexpected values, or a `MaskError`; raises or logs a warning.
        **settings: As for `ImageFileLoader`.
    """

    def __init__(
        self,
        files: SegmentationFiles,
        places: Tensor,
        batch_size: int,
        *,
        questions: Questions,
        odd: Callable[[dict[int, str | MaskError]], None],
        draw: Callable[[int], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        self.sizes = None
        if files.canvas is None:
            first: dict[Path, int] = {}  # the masks of one image come together, so that it is decoded once
            for index in sorted(places.tolist()):
                first.setdefault(files.pairs[index].image, index)
            key = [(*files.pairs[index].size, first[files.pairs[index].image], index) for index in places.tolist()]
            places = places[torch.tensor(sorted(range(len(key)), key=key.__getitem__), dtype=torch.int64)]
            self.sizes = [files.pairs[index].size for index in places.tolist()]
        super().__init__(files, places, batch_size, **settings)  # type: ignore[arg-type]
        self.questions, self.odd, self.draw = questions, odd, draw

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return super().__len__() if self.sizes is None else len(self._of_one_size(self.rank))

    def seen(self, batches: int) -> int:
        """Number of samples in the first batches of all processes; evaluation only."""
        return sum(len(run) for rank in range(self.world_size) for run in self._of_one_size(rank)[:batches])

    def _of_one_size(self, rank: int) -> list[Tensor]:
        assert self.sizes is not None
        runs: list[list[int]] = []
        for place in range(rank, self.num_samples, self.world_size):
            last = runs[-1] if runs else None
            if last is None or len(last) == self.batch_size or self.sizes[last[0]] != self.sizes[place]:
                runs.append([])
            runs[-1].append(place)
        return [torch.tensor(run) for run in runs]

    def chosen(self) -> tuple[Tensor, ...]:
        """Return the remaining batches of the epoch, each a tensor of positions in the data."""
        return super().chosen() if self.sizes is None else tuple(self._of_one_size(self.rank))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = None
        if self.draw is not None:
            self.places = self.draw(self.position()[0])
        for batch in super().__iter__():
            if odd := batch.pop("odd"):
                self.odd(odd)  # type: ignore[arg-type]
            if epoch is None:  # read after the first batch, when the counters are correct; valid for the whole pass
                epoch = self.position()[0]
            random = SampleRandom(self.seed, epoch, batch.get("drawn", batch["index"]))
            yield {**batch, **self.questions.ask(batch["label"], random)}
