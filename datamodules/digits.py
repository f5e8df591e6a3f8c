"""`DigitsDataModule`: the handwritten digits (Alpaydin and Kaynak, 1998) included in scikit-learn.

1,797 real grey images of 8 px in ten classes, for machines without network access and for tests: same interface as CIFAR-10, loaded
in milliseconds. scikit-learn contains only the test set of the original data, so a seeded, stratified fifth of it serves as the
test split.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import DataModule
from datamodules.splitting.stratified import stratified_split

TEST_FRACTION = 0.2


class DigitsDataModule(DataModule):
    """scikit-learn's digits: 1,438 training images (a part is held out for validation) and 359 test images.

    Args:
        crop_padding: Pixels of padding added on each side before a random crop of the image's original size; 0 disables the crop.
        flip: Mirror each training image left to right with probability one half; most mirrored digits are not valid digits.
        **kwargs: Settings of every datamodule, see `DataModule`.
    """

    said_by_check: ClassVar[bool] = True

    def __init__(self, crop_padding: int = 1, flip: bool = False, **kwargs: Any) -> None:
        super().__init__(crop_padding=crop_padding, flip=flip, **kwargs)

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean over the pixels of the training images at split seed 0."""
        return (0.3049,)

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation over the pixels of the training images at split seed 0."""
        return (0.3756,)

    @property
    def in_channels(self) -> int:
        """One: the images are grey."""
        return 1

    @property
    def class_names(self) -> list[str]:
        """The digits 0 to 9."""
        return [str(digit) for digit in range(10)]

    @property
    def image_size(self) -> int:
        """8 pixels."""
        return 8

    def read_part(self, part: Literal["train", "test"]) -> dict[str, Tensor]:
        """Return the test split (a fifth of the data) or the remaining samples; see `DataModule.read_part`."""
        from sklearn.datasets import load_digits  # here: the import takes as long as everything else together

        digits = load_digits()
        image = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)  # from 0..16
        label = torch.from_numpy(digits.target.astype(np.int64))
        train, test = stratified_split(label, TEST_FRACTION, seed=self.split_seed, name="test")
        index = train if part == "train" else test
        return {"image": image[index], "label": label[index], "index": index}
