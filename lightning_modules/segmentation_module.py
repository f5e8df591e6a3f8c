"""Metrics of prompted segmentation: IoU, Dice and boundary F1 overall and per prompt, with thresholds chosen in validation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, cast, overload

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from foundation.in_parts import in_parts
from foundation.slug import slug
from foundation.suggestions import first_names, nearest
from lightning_modules.base import BaseModule, Batch, StageName
from lightning_modules.classification import Samples
from lightning_modules.views import averaged_masks
from metrics import MaskPrediction, SegmentationCounts, SegmentationSums, TolerantSums, choose_thresholds
from metrics.segmentation import THRESHOLDS, grid_place
from transforms import normalize
from transforms.checks import check_pixels

log = logging.getLogger(__name__)

STAGES: tuple[StageName, ...] = ("train", "val", "val_raw", "test")
HARDLY_ANY = 0.001  # share of the pixels; an IoU that is printed as 0.000 or 0.001
METRIC_NAMES = ("iou", "dice", "pixel_acc", "iou_image", "dice_image")
NAMED = 6  # trained prompts that a warning names


class SegmentationModule(BaseModule):
    """Base of segmentation modules: accumulates mask statistics, chooses thresholds and logs the metrics.

    The metrics are computed for the object of each image: pooled, as a mean over prompts, and per prompt. Prompts whose object is
    absent contribute only to ``negative_area``. In a fit, each validation chooses for each prompt the threshold with the best IoU,
    counting pixels marked in images without the object as errors. The validation metrics use these thresholds. They are saved in
    the checkpoint and used by test, validate and predict.

    Args:
        tolerance: Distance in pixels, 0 or more, within which outlines match in ``boundary_f1`` of validate and test.
        num_classes: Number of prompts with separate metrics; linked to the data by the command line.
        class_names: The prompts; linked to the data.

    Attributes:
        thresholds: Lowest probability at which a pixel is marked, per prompt; saved in the checkpoint.
        raw_thresholds: The same for the raw weights (``val_raw``), if validation also evaluates averaged weights.
        collapsed: Prompts for which the latest validation marked no pixel (``none``), hardly any of the object's pixels (``hardly
            any``) or nearly all pixels (``all``) of the images of the object; read by callbacks/failures/collapse.py.
        object_of: Object (one of ``class_names``) of each synonym of the training data, by its slug; read from the checkpoint.
    """

    own_sizes: ClassVar[bool] = True
    views: str = "none"
    """Views of an image whose probabilities are averaged in evaluations, see `lightning_modules.views`."""
    takes_signals: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = True
    mean: list[float] | None
    std: list[float] | None

    def __init__(
        self,
        *,
        tolerance: int = 2,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if class_names is None or num_classes != len(class_names):
            raise ValueError("class_names and num_classes: the prompts and their number are needed, from the data")
        if len({slug(name) for name in class_names}) < len(class_names):
            raise ValueError(
                f"class_names: prompts that differ in more than case and punctuation are needed, got {class_names}"
            )
        if tolerance < 0:
            raise ValueError(f"tolerance: pixels, 0 or more, got {tolerance}")
        self.tolerance, self.num_classes, self.class_names = tolerance, num_classes, list(class_names)
        self.thresholds: dict[str, float] = {}
        self.raw_thresholds: dict[str, float] = {}
        self.collapsed: dict[str, str] = {}
        self.object_of: dict[str, str] = {}
        self._unknown: set[str] = set()  # prompts that a warning has named
        self._without_thresholds = False  # whether a warning has said that there are none
        super().__init__(**kwargs)

    def __getattr__(self, name: str) -> Any:
        """Say which method a segmenter has instead of ``classify``."""
        if name == "classify":
            raise AttributeError(f"classify: {type(self).__name__} gives masks, use .masks(images, prompts)")
        return super().__getattr__(name)

    def configure_metrics(self) -> None:
        """Create the sums of each stage: first for the images' own objects, then for absent objects."""
        prompts = len(self.class_names)
        self.sums = nn.ModuleDict({f"{stage}_sums": SegmentationSums(2 * prompts) for stage in STAGES})
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanMetric() for stage in STAGES})
        self.boundaries = nn.ModuleDict(
            {f"{stage}_boundary": TolerantSums(prompts, self.tolerance, "boundary") for stage in ("val", "test")}
        )

    @property
    def metric_names(self) -> list[str]:
        """Names of all metrics of all stages."""
        of_prompts = [f"{name}/{slug(prompt)}" for name in ("iou", "dice") for prompt in self.class_names]
        return [f"{stage}/{name}" for stage in STAGES for name in ("loss", *METRIC_NAMES, "negative_area", *of_prompts)]

    # ---- counting ----

    def count(self, loss: Tensor, logits: Tensor, batch: Batch, stage: StageName) -> None:
        """Update the metrics of a stage with a batch: logits (N, 1, H, W) and the mean loss of the batch."""
        cast(MeanMetric, self.losses[f"{stage}_loss"]).update(loss.detach(), len(logits))
        # rows of absent objects come after the rows of the images' own objects
        place = torch.where(batch["positive"], batch["prompt_number"], batch["prompt_number"] + len(self.class_names))
        cast(SegmentationSums, self.sums[f"{stage}_sums"]).update(logits, batch["mask"], place)
        if stage in ("val", "test") and self.trainer.state.fn != "fit":
            self._add_boundaries(logits.detach(), batch, stage)

    def _add_boundaries(self, logits: Tensor, batch: Batch, stage: StageName) -> None:
        own = len(batch["label"])
        number = batch["prompt_number"][:own]
        predicted = self.marked(logits[:own], batch["prompt"][:own], number)
        cast(TolerantSums, self.boundaries[f"{stage}_boundary"]).update(predicted, batch["mask"][:own], number)

    def marked(self, logits: Tensor, prompts: Sequence[str], number: Tensor | None = None) -> Tensor:
        """Mask (N, 1, H, W), bool, of the pixels whose probability reaches the threshold of the prompt.

        Args:
            logits: (N, 1, H, W).
            prompts: N texts.
            number: Object number of each prompt (N,), so that a synonym uses the threshold of its object; None: look up the text.
        """
        names = prompts if number is None else [self.class_names[n] for n in number.tolist()]
        thresholds = [self.threshold_of(name) for name in names]
        return torch.sigmoid(logits.float()) >= logits.new_tensor(thresholds, dtype=torch.float32).view(-1, 1, 1, 1)

    def threshold_of(self, prompt: str) -> float:
        """The threshold of a prompt or of one of its synonyms, 0.5 if none was chosen; case and punctuation do not matter."""
        name = self.object_of.get(slug(prompt), prompt)
        return {slug(known): value for known, value in self.thresholds.items()}.get(slug(name), 0.5)

    # ---- use in Python ----

    @torch.no_grad()
    def probabilities(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Probability of each pixel to belong to the object of each prompt, as `main.py predict` computes it, in eval mode.

        Args:
            images: (B, C, H, W), or (C, H, W) for one image, of any height and width; uint8 in 0 to 255 or floating point in 0 to
                1. Any device.
            prompts: P texts; None: the prompts of training, ``class_names``.

        Returns:
            (B, P, H, W) float32 in 0 to 1, on the module's device.

        Raises:
            ValueError: Wrong shape, type or range, or a prompt without a word.
        """
        asked = self._asked(prompts)
        check_pixels(images, 3)
        if self.mean is None or self.std is None:
            raise ValueError("mean and std: unknown to this module; pass them as arguments")
        images = images if images.ndim == 4 else images.unsqueeze(0)
        normalized = normalize(images.to(self.device), self.mean, self.std)
        return in_parts(lambda part: self._probabilities_of(part, asked), normalized)

    def _probabilities_of(self, normalized: Tensor, asked: list[str]) -> Tensor:
        index = torch.arange(len(normalized), device=self.device).repeat_interleave(len(asked))
        with self.evaluating():
            logits = self.viewed(normalized.to(self.dtype), asked * len(normalized), index)
        return logits.float().sigmoid().view(len(normalized), len(asked), *normalized.shape[-2:])

    def viewed(self, image: Tensor, prompts: Sequence[str], image_index: Tensor) -> Tensor:
        """Logits (N, 1, H, W) of N prompts on normalised images, in evaluations averaged over ``views``."""
        if self.views == "none" or self.training:
            return cast(Tensor, self(image, prompts, image_index))
        return averaged_masks(self.views, image, lambda view: cast(Tensor, self(view, prompts, image_index)))

    @overload
    def masks(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor: ...

    @overload
    def masks(self, images: Samples, prompts: Sequence[str] | None = None) -> list[MaskPrediction]: ...

    @torch.no_grad()
    def masks(self, images: Tensor | Samples, prompts: Sequence[str] | None = None) -> Tensor | list[MaskPrediction]:
        """Masks of files, pictures or a tensor: the pixels whose probability reaches the threshold of their prompt.

        Args:
            images: A file, a folder, a pattern, a PIL image, an array (H, W, C) of uint8, or a list of them, of any size. Or a
                tensor as for :meth:`probabilities`.
            prompts: P texts; None: the prompts of training.

        Returns:
            A list of `MaskPrediction`, one of each picture that can be read. Of a tensor only the masks (B, P, H, W) bool.

        Raises:
            ValueError: Wrong shape, type or range, a prompt without a word, or nothing can be read.
        """
        asked = self._asked(prompts)
        self.warn_without_thresholds()
        thresholds = tuple(self.threshold_of(prompt) for prompt in asked)
        limits = torch.tensor(thresholds, device=self.device).view(-1, 1, 1)
        if isinstance(images, Tensor):
            return self.probabilities(images, prompts) >= limits
        found: list[MaskPrediction] = []
        for files, inputs in self.transform.batches(images):
            masks = self._probabilities_of(inputs.to(self.device), asked) >= limits
            areas = masks.float().mean(dim=(2, 3)).tolist()
            rows = zip(files, masks.cpu(), areas, strict=True)
            found += [MaskPrediction(tuple(asked), mask, thresholds, tuple(area), file) for file, mask, area in rows]
        return found

    def _asked(self, prompts: Sequence[str] | None) -> list[str]:
        if isinstance(prompts, str) or (prompts is not None and not prompts):
            raise ValueError(f"prompts: a list of one text or more, or None, got {prompts!r}")
        if prompts is None:
            return self.class_names
        self.warn_of_unknown(prompts)
        return list(prompts)

    def warn_without_thresholds(self) -> None:
        """Warn once that no validation has chosen thresholds, so that masks are cut at 0.5."""
        if self.thresholds or self._without_thresholds:
            return
        self._without_thresholds = True
        log.warning(
            "no validation has chosen the thresholds of these weights, so masks are the pixels of probability 0.5 or more; a fit "
            "with validation chooses the best one of each prompt"
        )

    def warn_of_unknown(self, prompts: Sequence[str]) -> None:
        """Warn of prompts that were not used in training, once of each, and name the trained ones.

        Args:
            prompts: Texts; case and punctuation do not matter.
        """
        own = [slug(name) for name in self.class_names]
        # all as plain words: of synonyms no other spelling is known
        known = {name: name.replace("_", " ") for name in (*own, *self.object_of)}
        unknown = {prompt: slug(prompt) for prompt in prompts if slug(prompt) not in {*known, *self._unknown}}
        if not unknown:
            return
        self._unknown |= {*unknown.values()}
        named = [f"{prompt!r}{nearest(words.replace('_', ' '), known.values())}" for prompt, words in unknown.items()]
        log.warning(
            f"prompts not used in training: {'; '.join(named)}; they use the threshold 0.5, and their masks are reliable only if "
            f"the text network knows the words; trained: {first_names([*map(repr, known.values())], NAMED)}"
        )

    # ---- metrics of an epoch ----

    def on_train_epoch_start(self) -> None:
        """Reset the training metrics. Lightning skips this hook when a run resumes mid-epoch, so the restored sums are kept."""
        for metric in (self.sums["train_sums"], self.losses["train_loss"]):
            cast(SegmentationSums | MeanMetric, metric).reset()

    def on_train_end(self) -> None:
        """Warn about thresholds at an end of the search."""
        super().on_train_end()
        self._say_edges()

    def on_test_end(self) -> None:
        """Warn about thresholds at an end of the search."""
        super().on_test_end()
        self._say_edges()

    def _say_edges(self) -> None:
        low, high = THRESHOLDS[0], THRESHOLDS[-1]
        for prompt, threshold in self.thresholds.items():
            if threshold in (low, high):
                log.warning(
                    f"threshold {threshold:g} of {prompt!r} is at the end of the search ({low:g} to {high:g}), no optimum: its "
                    f"probabilities are too {'low' if threshold == low else 'high'}; train longer, or check the masks"
                )

    def log_epoch(self, stage: StageName) -> None:
        """Log the metrics of a stage and reset them; in a fit, choose the thresholds first."""
        sums, loss = cast(SegmentationSums, self.sums[f"{stage}_sums"]), cast(MeanMetric, self.losses[f"{stage}_loss"])
        if not sums.update_called:
            return
        own, absent = _halves(sums.compute())
        # pixels marked in images without the object count as errors like any other wrong pixel
        together = SegmentationCounts(*(a + b for a, b in zip(own, absent, strict=True)))
        thresholds = self._thresholds(together, stage)
        if stage == "val":
            self.collapsed = self._collapsed(own, thresholds)
        metrics: dict[str, Any] = {"loss": loss.compute(), **self._own_metrics(own, thresholds, stage)}
        if (area := absent.overall(thresholds)).negatives:
            metrics["negative_area"] = area.negative_area
        metrics |= self._boundary_metrics(stage)
        # a fit has read the masks before its first step, also those of a test after it
        data: Any = getattr(self.trainer, "datamodule", None)
        said = self.trainer.state.fn == "fit" or f"masks {stage}" in getattr(data, "said", ())
        if stage in ("val", "test") and not said:
            self._say_masks(own, stage)
        if stage == "test":
            metrics |= {f"nothing_{name}": value for name, value in own.of_nothing().items()}
        self.log_dict({f"{stage}/{name}": value for name, value in metrics.items()})
        sums.reset()
        loss.reset()

    def _say_masks(self, own: SegmentationCounts, stage: StageName) -> None:
        """Log what the masks held, and warn of objects whose metrics are perfect by construction."""
        rows = zip(self.class_names, own.pixels.sum(axis=2).tolist(), own.images.tolist(), strict=True)
        known = [(repr(name), pixels, images) for name, pixels, images in rows if images[0]]
        shares = [
            f"{name} {inside / (inside + outside):.2%} of the {stage} pixels in {count - empty:,} of {count:,} images"
            for name, (outside, inside), (count, empty) in known
        ]
        log.info(f"masks      {'; '.join(shares)}")
        for name, (outside, inside), (count, _) in known:
            if inside and outside:
                continue
            what, guess = ("only positive pixels", "everything") if inside else ("no positive pixel", "nothing")
            log.warning(
                f"{what} in the {count:,} {stage} masks of {name}; a metric over them is perfect if {guess} is predicted; check "
                "masks and categories, or leave the set out"
            )

    def _thresholds(self, counts: SegmentationCounts, stage: StageName) -> list[float]:
        if stage == "train":
            return [0.5] * len(self.class_names)
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            if not self.trainer.sanity_checking:
                self.warn_without_thresholds()
            chosen = self.raw_thresholds if stage == "val_raw" else self.thresholds
            return [chosen.get(prompt, 0.5) for prompt in self.class_names]
        thresholds = choose_thresholds(counts)
        by_prompt = dict(zip(self.class_names, thresholds, strict=True))
        if stage == "val_raw":
            self.raw_thresholds = by_prompt
        else:
            self.thresholds = by_prompt
        return thresholds

    def _collapsed(self, own: SegmentationCounts, thresholds: list[float]) -> dict[str, str]:
        """See ``collapsed``."""
        found = {}
        for prompt, pixels, threshold in zip(self.class_names, own.pixels, thresholds, strict=True):
            wrong, right = pixels[:, grid_place(threshold) + 1 :].sum(axis=1).tolist()
            true, total = int(pixels[1].sum()), int(pixels.sum())
            if true and right <= HARDLY_ANY * true:
                found[prompt] = "hardly any" if wrong + right else "none"
            elif true < (1 - HARDLY_ANY) * total <= wrong + right:
                found[prompt] = "all"
        return found

    def _own_metrics(self, own: SegmentationCounts, thresholds: list[float], stage: StageName) -> dict[str, float]:
        mean = own.mean_over_prompts(thresholds)
        metrics = {name: getattr(mean, name) for name in METRIC_NAMES}
        for number, prompt in enumerate(self.class_names):
            if own.images[number, 0]:
                of_prompt = own.of_prompt(number, thresholds[number])
                metrics |= {f"{name}/{slug(prompt)}": getattr(of_prompt, name) for name in ("iou", "dice")}
                if stage == "val":
                    metrics[f"threshold/{slug(prompt)}"] = thresholds[number]
        return metrics

    def _boundary_metrics(self, stage: StageName) -> dict[str, float]:
        name = f"{stage}_boundary"
        metric = cast(TolerantSums, self.boundaries[name]) if name in self.boundaries else None
        if metric is None or not metric.update_called:
            return {}
        rows, _ = metric.compute()
        metric.reset()
        known = {slug(prompt): row.f1 for prompt, row in zip(self.class_names, rows, strict=True) if row.images}
        of_prompts = {f"boundary_f1/{name}": value for name, value in known.items()}
        return {"boundary_f1": sum(known.values()) / len(known), **of_prompts}


def _halves(counts: SegmentationCounts) -> tuple[SegmentationCounts, SegmentationCounts]:
    """Split counts into those of the images' own objects and those of absent objects."""
    half = len(counts.images) // 2
    return SegmentationCounts(*(part[:half] for part in counts)), SegmentationCounts(*(part[half:] for part in counts))
