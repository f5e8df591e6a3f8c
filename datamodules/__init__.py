"""Lightning datamodules: reading, splitting, augmenting and loading the data.

Contract of a batch: a dict of tensors on the module's device, with one row for each of B samples:

    image   (B, C, H, W)  float32, normalised; augmented in training only
    label   (B,)          int64, 0 to num_classes - 1; the sample's true class, even where mixup or cutmix mixed its image
    target  (B, K)        float32 soft labels that sum to 1; only in training batches, and only with mixup or cutmix
    index   (B,)          int64, the sample's position in its data set, independent of the splits

With a table of several labels an image, `label` and `target` are (B, K): uint8 of 0 and 1, and their mixture.

Batches of signal windows; `image` is present only in the image modes (docs/har_data.md):

    signal  (B, S, T)     float32, normalised with the statistics of the training subjects; augmented in training only
    subject (B,)          int64, number of the person
    image   (B, S, C, H, W) in mode flatten: one image for each of the window's S signals, kept together

Batches of cached features have, in place of image and target:

    features (B, D)       float32, the frozen backbone's output for the image

Batches of prompted segmentation have N prompts for B images; prompt i < B is the image's own prompt:

    mask          (N, 1, H, W) uint8, 1 on the object, transformed together with its image; all 0 if the object is absent
    prompt        N texts
    image_index   (N,)      int64, the image that the prompt refers to
    prompt_number (N,)      int64, number of the object that the prompt names
    positive      (N,) bool, whether that object is the one of the image's data set

Contract of a datamodule:

- `num_classes`, `class_names`, `mean`, `std`, `image_size` and `in_channels` are known after construction and read only headers.
- After `setup("fit")`: `num_train_batches(batch_size)` and `class_counts`, both of the training split only.
- `seed` is set before fit. Order and augmentation are functions of (seed, epoch, index) and do not depend on earlier random draws.
- The held-out samples depend only on `split_seed`, so that runs with different seeds are evaluated on the same images.
- No sample is evaluated twice or left out, on any number of devices.
- `fixed_on_resume` names the settings that a resumed run must keep.
- Missing data raises a FileNotFoundError that names the folder, the expected layout and the flags that help. Missing data is never
  replaced silently.
- `train_size`, `batch_size` and `strength` may be changed between epochs; `augment` and loaders made afterwards use the new values.

`CachedFeaturesDataModule` serves features (docs/feature_cache.md); its mean, std and image_size describe the original images.

To use your own data: put image files in one folder per class (`ImageFolderDataModule`), WebDataset tars anywhere
(`ShardedImagesDataModule`), or arrays in CIFAR-10's layout. For other data subclass `DataModule` and implement `read_part` and the
abstract properties.
"""

from datamodules.base import DataModule
from datamodules.cached_features import CachedFeaturesDataModule
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.digits import DigitsDataModule
from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.in_memory import InMemoryLoader
from datamodules.run_transforms import transform_of
from datamodules.segmentation.datamodule import PromptedSegmentationDataModule
from datamodules.segmentation.prompt_sets import PromptSet
from datamodules.sharded.datamodule import ShardedImagesDataModule
from datamodules.signals.files import SignalFileDataModule
from datamodules.signals.har import HARDataModule
from datamodules.trained_on import TrainedOn

__all__ = [
    "CIFAR10DataModule",
    "CachedFeaturesDataModule",
    "DataModule",
    "DigitsDataModule",
    "HARDataModule",
    "ImageFolderDataModule",
    "InMemoryLoader",
    "PromptSet",
    "PromptedSegmentationDataModule",
    "ShardedImagesDataModule",
    "SignalFileDataModule",
    "TrainedOn",
    "transform_of",
]
