"""What the data is, how it is split and how it is loaded.

The contract of a batch, a dict of tensors on the module's device with one row for each of B samples:

    image   (B, C, H, W)  float32, normalised; augmented in training only
    label   (B,)          int64, 0 to num_classes - 1; also in training the true one, whatever was mixed
    target  (B, K)        float32 soft labels that sum to 1; only in training batches, and only with mixup or cutmix
    index   (B,)          int64, the sample's place in its data set, the same whatever the splits are

in batches of windows of signals, where `image` is there only in the modes of images (docs/har_data.md):

    signal  (B, S, T)     float32, normalised by the training persons; augmented in training only
    subject (B,)          int64, number of the person
    image   (B, S, C, H, W) in the mode flatten: the images of a window's S signals, which belong together

and in batches of cached features, in place of image and target:

    features (B, D)       float32, what a frozen backbone made of the image

and in batches of prompted segmentation, in which N prompts are asked of B images, the first B prompts being the images' own:

    mask          (N, 1, H, W) uint8, 1 where the object is, moved with its image; all 0 where the object is absent
    prompt        N texts
    image_index   (N,)      int64, the image that a prompt is asked of
    prompt_number (N,)      int64, number of the object that it names
    positive      (N,) bool, whether that is the object of the image's data set

The contract of a datamodule:

- `num_classes`, `class_names`, `mean`, `std`, `image_size` and `in_channels` are known after construction and read only headers.
- After `setup("fit")`: `num_train_batches(batch_size)` and `class_counts`, both of the training split alone.
- `seed` is set before fit; order and augmentation are functions of (seed, epoch, index) and of nothing that was drawn before.
- What is held out depends on `split_seed` alone, so that runs of several seeds are judged by the same images.
- No sample is evaluated twice or left out, on any number of devices.
- `fixed_on_resume` names the settings that a resumed run must keep.
- Missing data is a FileNotFoundError that names the folder, the layout and the flags that help; nothing is ever replaced silently.

- `train_size`, `batch_size` and `strength` may be set between epochs; loaders made afterwards and `augment` go by them.

`CachedFeaturesDataModule` serves features (docs/feature_cache.md); its mean, std and image_size are those of the images.

Data of your own: image files in one folder per class (`ImageFolderDataModule`), or arrays in CIFAR-10's layout; for anything else
subclass `DataModule` and write `read_part` and the properties of the header.
"""

from datamodules.base import DataModule
from datamodules.cached_features import CachedFeaturesDataModule
from datamodules.cifar10 import CIFAR10DataModule
from datamodules.digits import DigitsDataModule
from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.in_memory import InMemoryLoader
from datamodules.segmentation.datamodule import PromptedSegmentationDataModule
from datamodules.segmentation.prompt_sets import PromptSet
from datamodules.signals.files import SignalFileDataModule
from datamodules.signals.har import HARDataModule

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
    "SignalFileDataModule",
]
