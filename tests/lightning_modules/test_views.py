"""Test-time augmentation: views by hand, averaged probabilities of classes and masks, refusals."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules import Classifier
from lightning_modules.views import VIEWS, averaged_classes, averaged_masks, check_views, views_of
from tests.runs.linear import LinearClassifier


def images(count: int = 3, channels: int = 2, size: int = 32) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_views_by_hand() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert [len(views_of(name)) for name in VIEWS] == [2, 4, 10]
    flipped = [view.apply(image)[0, 0, 0].tolist() for view in views_of("flips")]
    assert flipped == [[0, 1, 2, 3], [3, 2, 1, 0], [12, 13, 14, 15], [15, 14, 13, 12]]
    moved = [view.apply(image)[0, 0].tolist() for view in views_of("shifts")[2::2]]
    assert moved[0] == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], "the edge is repeated"
    assert moved[3][0] == [1, 2, 3, 3]
    for view in (*views_of("flip"), *views_of("flips")):
        assert torch.equal(view.back(view.apply(image)), image)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_probabilities_are_the_mean(name: str, temperature: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 32 * 32, 5))
    with torch.no_grad():
        logits = [network(view.apply(images())) for view in views_of(name)]
        found = averaged_classes(name, images(), network, temperature)
        several = averaged_classes(name, images(), network, several_labels=True)
    expected = torch.stack([(one / temperature).softmax(dim=1) for one in logits]).mean(dim=0)
    assert torch.allclose((found / temperature).softmax(dim=1), expected, atol=1e-6)
    assert torch.allclose(several.sigmoid(), torch.stack([one.sigmoid() for one in logits]).mean(dim=0), atol=1e-6)


def test_masks_are_turned_back() -> None:
    found = averaged_masks("flips", images(), lambda image: 4 * image[:, :1])
    assert torch.allclose(found, 4 * images()[:, :1], atol=1e-5), "a network that does the same in every place"
    brighter = torch.linspace(-3, 3, 32)  # a network that sees more on the right
    found = averaged_masks("flip", images(), lambda image: image[:, :1] + brighter)
    expected = ((images()[:, :1] + brighter).sigmoid() + (images()[:, :1] + brighter.flip(0)).sigmoid()) / 2
    assert torch.allclose(found.sigmoid(), expected, atol=1e-6)


def module() -> Classifier:
    torch.manual_seed(0)
    return LinearClassifier(
        num_classes=3, in_channels=2, image_size=32, mean=[0.5, 0.5], std=[0.2, 0.2], class_names=list("abc")
    )


def test_classify_averages_and_then_forgets_the_views() -> None:
    made = module()
    plain = made.classify(images())
    both = (plain + made.classify(images().flip(-1))) / 2
    assert torch.allclose(made.classify(images(), tta="flip"), both, atol=1e-6)
    assert torch.equal(made.classify(images()), plain)
    with pytest.raises(ValueError, match="tta: must be one of flip, flips, shifts, got 'flipp'"):
        made.classify(images(), tta="flipp")


def test_refusals() -> None:
    made = module()
    made.takes_signals = True  # type: ignore[misc]
    with pytest.raises(ValueError, match="tta: a LinearClassifier takes windows of signals"):
        check_views("flip", made)
    made.takes_signals, made.takes_masks = False, True  # type: ignore[misc]
    with pytest.raises(ValueError, match="tta: shifts move the masks of a segmenter; give flip or flips"):
        check_views("shifts", made)
    with pytest.raises(ValueError, match="tta: needs images, and these are cached features"):
        averaged_classes("flip", torch.zeros(2, 8), nn.Identity())
