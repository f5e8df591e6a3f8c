"""Images with masks and prompts as batches: workers decode, the main process draws the prompts.

    training     the whole picture, squeezed to a square canvas, its mask with it; `aspect` is the picture's width / height
    evaluation   pictures at their stored size; a batch holds pictures of one size, so that nothing is padded
    both         uint8 image (B, 3, H, W) and mask (B, 1, H, W), 1 where the object is

Which prompts are asked is a function of (seed, epoch, index): synonyms and absent objects in training; in evaluation the first
prompt of the object, and one of an object that is absent. Order and place are those of `datamodules.in_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.images.decoding import FORMATS, squeezed, upright
from datamodules.images.loader import ImageFileLoader
from datamodules.segmentation.polygons import shapes_mask
from datamodules.segmentation.prompt_sets import Pair
from transforms import SampleRandom

WHITE = 127  # grey values over it are the object
NOTHING = (
    "its largest value is not 255"  # a mask of 0 and 1, most likely: by the rule nothing in it would be the object
)


class SegmentationFiles(Dataset[Any]):
    """Images and their masks, read in batches.

    Args:
        pairs: The N images; a mask that is no file (an empty path) is not read.
        canvas: Side in pixels of the square that a picture is squeezed to; None reads it at its stored size.
    """

    def __init__(self, pairs: Sequence[Pair], canvas: int | None) -> None:
        self.pairs, self.canvas = pairs, canvas

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        """Read a batch.

        Returns:
            `image` (B, 3, H, W) uint8, `mask` (B, 1, H, W) uint8 where there are masks, `label` (B,) int64 number of the prompt,
            `index` (B,) int64, `aspect` (B,) float32 where pictures are squeezed; `unreadable`, indices that were left out; and
            `odd`, index -> what is wrong with a mask's values.
        """
        images, masks, read, odd = [], [], [], {}
        for index in indices:
            pair = self.pairs[index]
            try:
                image = self._image(pair.image)
                mask, said = mask_of(pair)
            except MemoryError:
                raise
            except Exception:  # a damaged file can make a decoder raise anything
                continue
            images.append(image)
            read.append(index)
            if mask is not None:
                masks.append(self._squeeze(mask))
            if said is not None:
                odd[index] = said
        batch: dict[str, Any] = {
            "index": torch.tensor(read, dtype=torch.int64),
            "label": torch.tensor([self.pairs[index].prompt for index in read], dtype=torch.int64),
            "unreadable": sorted({*indices} - {*read}),
            "odd": odd,
        }
        if images:
            batch["image"] = torch.stack(images)
        if masks:
            batch["mask"] = torch.stack(masks)
        if self.canvas is not None:
            shapes = [self.pairs[index].size for index in read]
            batch["aspect"] = torch.tensor([width / height for height, width in shapes], dtype=torch.float32)
        return batch

    def _image(self, path: Path) -> Tensor:
        if self.canvas is not None:
            return squeezed(path, self.canvas, 3)[0]
        with Image.open(path, formats=FORMATS) as file:
            return torch.from_numpy(np.array(upright(file, 3))).permute(2, 0, 1).contiguous()

    def _squeeze(self, mask: Tensor) -> Tensor:
        if self.canvas is None or mask.shape[-2:] == (self.canvas, self.canvas):
            return mask
        # exact: the pixel under the new pixel's middle, as the picture's resampling has it
        squeezed_mask: Tensor = F.resize(mask, [self.canvas] * 2, interpolation=InterpolationMode.NEAREST_EXACT)
        return squeezed_mask


def mask_of(pair: Pair) -> tuple[Tensor | None, str | None]:
    """The mask of an image, drawn or read, and what is odd about it; None where it has none."""
    if pair.shapes is not None:
        return torch.from_numpy(shapes_mask(pair.shapes, *pair.size))[None], None
    return read_mask(pair.mask) if pair.mask.name else (None, None)


def read_mask(path: Path) -> tuple[Tensor, str | None]:
    """A mask, 1 where its grey value is over 127, and what is odd about its values.

    Args:
        path: An image file; colours and palettes are made grey, what is transparent is black.

    Returns:
        (1, H, W) uint8 of 0 and 1; and None, or a few words on values that are neither 0 nor 255.
    """
    with Image.open(path, formats=FORMATS) as file:
        image: Image.Image = file
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        grey = np.array(upright(image, 1))
    stray = (grey != 0) & (grey != 255)
    said = None
    if stray.any():
        values = np.unique(grey[stray])
        said = f"{stray.mean():.2%} of its pixels are neither 0 nor 255 but {values[0]} to {values[-1]}"
        if grey.max() <= WHITE:
            said = f"{NOTHING} but {grey.max()}"
    return torch.from_numpy((grey > WHITE).astype(np.uint8))[None], said


@dataclass(frozen=True)
class Questions:
    """Which prompts a batch is asked.

    Args:
        synonyms: Texts of each object; the first one is its name.
        negatives: Probability that a training image is also asked for an absent object; above 0, each image is in evaluation.
        training: Whether synonyms and negatives are drawn.
        always: Prompts that each image is asked, in place of all this; None outside of predict.
    """

    synonyms: Sequence[Sequence[str]]
    negatives: float
    training: bool
    always: Sequence[str] | None = None

    def ask(self, label: Tensor, random: SampleRandom) -> dict[str, Any]:
        """Prompts of a batch.

        Args:
            label: Number of each image's object (B,), on the CPU.
            random: The draws of each image.

        Returns:
            `prompt` (N texts), `image_index` (N,) int64, `prompt_number` (N,) int64 number of the object that is asked for, or -1
            where unknown, and `positive` (N,) bool: it is the object that the mask shows. The first B are each image's own.
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
        """Numbers of absent objects, and the images that are asked for them."""
        objects = len(self.synonyms)
        if self.negatives == 0 or objects < 2:
            return label[:0], label[:0]
        if self.training:
            where = random.bernoulli("prompt/negative", self.negatives).nonzero().flatten()
            step = 1 + random.integers("prompt/absent", objects - 1)
        else:
            where, step = torch.arange(len(label)), 1 + random.index % (objects - 1)
        return ((label + step) % objects)[where], where


class SegmentationLoader(ImageFileLoader):
    """Serves batches of images, masks and prompts.

    Args:
        files: What is read; without a canvas a batch holds pictures of one size, and an epoch goes through the sizes.
        places: (n,) int64, which of the files an epoch consists of.
        batch_size: Images in a batch of one rank.
        questions: Draws the prompts.
        odd: Is given index -> words of masks with odd values, and says or raises so.
        **settings: As for `ImageFileLoader`.
    """

    def __init__(
        self,
        files: SegmentationFiles,
        places: Tensor,
        batch_size: int,
        *,
        questions: Questions,
        odd: Callable[[dict[int, str]], None],
        **settings: Any,
    ) -> None:
        self.sizes = None
        if files.canvas is None:
            key = [(*files.pairs[index].size, index) for index in places.tolist()]
            places = places[torch.tensor(sorted(range(len(key)), key=key.__getitem__), dtype=torch.int64)]
            self.sizes = [files.pairs[index].size for index in places.tolist()]
        super().__init__(files, places, batch_size, **settings)  # type: ignore[arg-type]
        self.questions, self.odd = questions, odd

    def __len__(self) -> int:
        """Return the batches of a whole epoch."""
        return super().__len__() if self.sizes is None else len(self._of_one_size())

    def _of_one_size(self) -> list[Tensor]:
        assert self.sizes is not None
        runs: list[list[int]] = []
        for place in range(self.rank, self.num_samples, self.world_size):
            last = runs[-1] if runs else None
            if last is None or len(last) == self.batch_size or self.sizes[last[0]] != self.sizes[place]:
                runs.append([])
            runs[-1].append(place)
        return [torch.tensor(run) for run in runs]

    def chosen(self) -> tuple[Tensor, ...]:
        """Return the batches that are left of the epoch."""
        return super().chosen() if self.sizes is None else tuple(self._of_one_size())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = None
        for batch in super().__iter__():
            if odd := batch.pop("odd"):
                self.odd(odd)  # type: ignore[arg-type]
            if (
                epoch is None
            ):  # asked for after the first batch, when the counters behind it are right; it holds for all
                epoch = self.position()[0]
            random = SampleRandom(self.seed, epoch, batch["index"])
            yield {**batch, **self.questions.ask(batch["label"], random)}
