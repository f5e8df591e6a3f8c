"""lightning_modules/explanations.py: `explain` of a loaded run, `heat_maps` of every image classifier, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datamodules.images.unlabelled import Reading
from lightning_modules import CascadeHead, Classifier, HARClassifier, ImageClassifier, load_run
from networks.grad_cam import grad_cam, scaled_heat
from tests.lightning_modules.random_photos import live_head, weights_file
from tests.lightning_modules.test_adapted_classifier import adapted, source, trained  # noqa: F401  (source is a fixture)


@pytest.fixture(scope="module")
def model(finished: Path) -> Classifier:
    loaded = load_run(finished)
    assert isinstance(loaded, Classifier)
    return loaded


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)).save(path)
    return path


@pytest.mark.slow
def test_explain_a_picture_of_any_size(model: Classifier, photo: Path) -> None:
    found = model.explain(photo)
    (answer,) = model.classify(photo)
    assert (found.class_name, found.number) == (answer.class_name, answer.number)
    assert found.probability == pytest.approx(answer.probability)
    assert found.heat.shape == (20, 31)
    assert found.heat.dtype == np.float32
    assert 0 <= found.heat.min() <= found.heat.max() <= 1
    assert found.heat.any()
    same = [model.explain(one) for one in (str(photo), Image.open(photo), np.asarray(Image.open(photo)))]
    assert all(np.allclose(one.heat, found.heat, atol=1e-5) for one in same)
    inputs = model.transform(photo)
    raw = model.explain((inputs * 0.3756 + 0.3049).clamp(0, 1), found.class_name)
    assert raw.heat.shape == inputs.shape[1:]  # a tensor of the network's own size is not resized


def test_explain_another_class_by_name_or_number(model: Classifier, photo: Path) -> None:
    assert model.class_names is not None
    by_number, by_name = model.explain(photo, 3), model.explain(photo, model.class_names[3])
    assert by_number.number == by_name.number == 3
    assert (by_number.heat == by_name.heat).all()
    direct = model.heat_maps(model.transform(photo)[None], torch.tensor([[3]]))
    assert np.allclose(Reading(None, 1).on_picture(direct[0, 0], (20, 31)).numpy(), by_number.heat, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("siix", r"class_name: no class 'siix', did you mean 'six'\? \(there: zero, one"),
        (10, "class_name: a name, or a number of 0 to 9, got 10"),
        (True, "class_name: a name, or a number of 0 to 9, got True"),
    ],
)
def test_wrong_class(model: Classifier, photo: Path, name: Any, message: str) -> None:
    model_names, model.class_names = model.class_names, ["zero", "one", *"abcd", "six", *"efg"]
    try:
        with pytest.raises(ValueError, match=message):
            model.explain(photo, name)
    finally:
        model.class_names = model_names


def image_of(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


CLASSES = torch.tensor([[0, 1], [1, 0]])


def modes(module: nn.Module) -> list[bool]:
    return [one.training for one in module.modules()]


def test_adapters_give_the_heat_of_the_merged_network(source: Path) -> None:  # noqa: F811
    module = trained(adapted(source)).train()
    before, state = modes(module), torch.get_rng_state()
    found = module.heat_maps(image_of(), CLASSES)
    assert (modes(module), torch.equal(torch.get_rng_state(), state)) == (before, True)
    assert all(parameter.grad is None for parameter in module.parameters())
    expected = scaled_heat(grad_cam(module.deployed_network.eval(), image_of(), CLASSES), (32, 32))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found.amax(dim=(2, 3)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("pooling", ["cls", "avg"])
def test_cascade_reads_its_frozen_backbone(tmp_path: Path, pooling: Any) -> None:
    head = live_head(weights_file(tmp_path), pooling=pooling).eval()
    assert isinstance(head, CascadeHead)
    found = head.heat_maps(image_of(), CLASSES)
    assert found.shape == (2, 2, 32, 32)
    assert found.any()
    # the parts together compute what the module computes
    torch.testing.assert_close(head.explained_network(image_of()), head(image_of()))


@pytest.mark.parametrize("settings", [{"in_channels": 5}, {"task": "multilabel"}, {"freeze": "backbone"}])
def test_other_channels_labels_and_a_frozen_backbone(settings: dict[str, Any]) -> None:
    given = {"num_classes": 3, "in_channels": 3, "image_size": 64, "architecture": "test_resnet", **settings}
    torch.manual_seed(0)
    module = ImageClassifier(**given)
    nn.init.uniform_(module.network.fc.weight, 0.1, 1.0)  # type: ignore[union-attr, arg-type]
    found = module.heat_maps(image_of(given["in_channels"], 64), CLASSES)
    assert found.shape == (2, 2, 64, 64)
    assert found.any()


def test_signals_and_the_packed_runtime_are_refused(model: Classifier, photo: Path) -> None:
    signals = HARClassifier(num_classes=2, in_channels=3, image_size=32, architecture="signal_resnet", hidden=[])
    with pytest.raises(ValueError, match="heat maps: a HARClassifier takes windows of signals"):
        signals.heat_maps(torch.zeros(1, 3, 32), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"takes windows of signals, .*; classify\(windows\) gives their classes"):
        signals.explain("windows.npz")
    model._runtime = "packed"
    try:
        with pytest.raises(ValueError, match="heat maps: the runtime packed has no gradients; load the run with"):
            model.explain(photo)
    finally:
        model._runtime = "torch"


@pytest.mark.parametrize(
    ("framing", "seen"),
    [({}, (0, 0, 60, 40)), ({"share": 0.8}, (14, 4, 32, 32)), ({"fill": 0.5}, (0, 0, 60, 40))],
    ids=["squeeze", "crop", "letterbox"],
)
def test_values_return_to_their_place_in_the_picture(
    tmp_path: Path, framing: dict[str, Any], seen: tuple[int, int, int, int]
) -> None:
    pixels = np.zeros((60, 40), np.uint8)
    pixels[22:30, 24:32] = 255
    Image.fromarray(pixels).save(path := tmp_path / "spot.png")
    reading = Reading(48, 1, **framing)
    placed = reading.on_picture(reading.pixels(path)[0].float() / 255, (60, 40))
    rows, columns = (weight / placed.sum() for weight in (placed.sum(dim=1), placed.sum(dim=0)))
    assert float((rows * torch.arange(60)).sum()) == pytest.approx(25.5, abs=0.3)
    assert float((columns * torch.arange(40)).sum()) == pytest.approx(27.5, abs=0.3)
    top, left, height, width = seen
    outside = reading.on_picture(torch.ones(48, 48), (60, 40)) == 0
    outside[top : top + height, left : left + width] ^= True
    assert outside.all()
