"""Tests of PromptedSegmenter: metrics against numpy, thresholds per prompt, prediction, invalid settings; tiling; mask overlays."""

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage

from callbacks.pictures.image_pixels import overlay
from callbacks.pictures.predicted_masks import mask_names
from callbacks.pictures.segmentation import SegmentationPictures
from cli import main
from datamodules.segmentation.generator import write_generated
from lightning_modules import ImageClassifier, PromptedSegmenter, load_run
from lightning_modules.pretrained.encoder import fill_encoder
from networks.segmenters.light import LightSegmenter
from networks.tiling import Tiling, starts

TINY = str(Path(__file__).resolve().parents[1] / "conf" / "segmentation_tiny.yaml")
NAMES = ["segment taping area", "segment crack"]
LINKS: dict[str, Any] = {
    "class_names": NAMES,
    "num_classes": 2,
    "in_channels": 3,
    "image_size": 32,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


def module_of(**settings: Any) -> PromptedSegmenter:
    return PromptedSegmenter(**{"encoder": "test_resnet", "width": 8, **LINKS, **settings})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of two epochs after `main.py test`."""
    folder = tmp_path_factory.mktemp("segmentation")
    short = ["--trainer.max_epochs", "2", "--data.root", str(folder / "data"), "--test_after_fit"]
    assert main(["fit", "--config", TINY, *short, "--run_dir", str(folder / "run")]) == 0
    return folder / "run"


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    edge: NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask, border_value=1)
    return edge


@pytest.mark.slow
def test_test_metrics_equal_metrics_of_the_predicted_masks(trained: Path) -> None:
    """Compare the masks written by predict with the masks on disk, using only numpy."""
    assert main(["predict", "--run", str(trained)]) == 0
    metrics = json.loads((trained / "test_metrics.json").read_text())["metrics"]
    data = trained.parent / "data" / "segmentation_generated_14"
    rows = [line.split(",") for line in (trained / "predictions.csv").read_text().splitlines()[1:]]
    assert rows
    pooled: dict[str, list[NDArray[np.bool_]]] = {}
    absent: list[float] = []
    for _, file, prompt, _, area, path in rows:
        predicted = np.array(Image.open(trained / path)) > 127
        truth = np.array(Image.open(data / file.replace("/images/", "/masks/"))) > 127
        assert np.array(Image.open(data / file)).shape[:2] == predicted.shape
        assert float(area) == pytest.approx(predicted.mean(), abs=1e-6)
        own = prompt == NAMES["cracks" in file]
        if own:
            pooled.setdefault(prompt, []).append(np.stack([predicted, truth]))
        else:
            absent.append(predicted.mean())
    check_nothing(metrics, [[mask[1] for mask in masks] for masks in pooled.values()])
    means = {name: [] for name in ("iou", "dice", "pixel_acc", "iou_image", "boundary_f1")}  # type: ignore[var-annotated]
    for prompt, masks in pooled.items():
        p, t = np.concatenate(masks, axis=2)
        each = [(m[0] & m[1]).sum() / (m[0] | m[1]).sum() if (m[0] | m[1]).any() else 1.0 for m in masks]
        means["iou"].append((p & t).sum() / (p | t).sum())
        means["dice"].append(2 * (p & t).sum() / (p.sum() + t.sum()))
        means["pixel_acc"].append((p == t).mean())
        means["iou_image"].append(np.mean(each))
        near = np.zeros(4)
        for mask in masks:
            edges = [boundary(mask[0]), boundary(mask[1])]
            for i in range(2):
                far = (
                    ndimage.distance_transform_edt(~edges[1 - i]) if edges[1 - i].any() else np.full(mask[0].shape, 9.0)
                )
                near[2 * i : 2 * i + 2] += [(edges[i] & (far <= 2)).sum(), edges[i].sum()]
        precision, recall = near[0] / max(near[1], 1), near[2] / max(near[3], 1)
        means["boundary_f1"].append(2 * precision * recall / max(precision + recall, 1e-9))
        assert metrics[f"test/iou/{prompt.replace(' ', '_')}"] == pytest.approx(means["iou"][-1], abs=1e-6)
    for name, values in means.items():
        assert metrics[f"test/{name}"] == pytest.approx(np.mean(values), abs=1e-6), name
    assert metrics["test/negative_area"] == pytest.approx(np.mean(absent), abs=1e-6)


def check_nothing(metrics: dict[str, float], truth: list[list[NDArray[np.bool_]]]) -> None:
    """Check the metrics of empty predictions, computed from the true masks of each prompt."""
    empty = [[float(not mask.any()) for mask in masks] for masks in truth]
    pooled = np.mean([float(not any(mask.any() for mask in masks)) for masks in truth])
    each = np.mean([np.mean(flags) for flags in empty])
    right = np.mean([1 - np.mean(np.concatenate([mask.ravel() for mask in masks])) for masks in truth])
    expected = {"iou": pooled, "dice": pooled, "pixel_acc": right, "iou_image": each, "dice_image": each}
    found = {name: metrics[f"test/nothing_{name}"] for name in expected}
    assert found == pytest.approx(expected, abs=1e-6)
    assert sum(name.startswith("test/nothing") for name in metrics) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"), [("cracks", "taping"), pytest.param("taping", "cracks", marks=pytest.mark.slow)]
)
def test_single_task(tmp_path: Path, name: str, other: str) -> None:
    """U-Net for one task: the overlay configuration leaves one data set, one prompt and no prompts for absent objects."""
    write_generated(tmp_path / "data", 12)
    overlay = f"configs/experiments/segmentation_{name}_only.yaml"
    flags = ["--data.root", str(tmp_path / "data"), "--data.generate", "null", "--trainer.max_epochs", "1"]
    run = ["--run_dir", str(tmp_path / "run"), "--test_after_fit"]
    assert main(["fit", "--config", TINY, "--config", overlay, *flags, *run]) == 0
    metrics = json.loads((tmp_path / "run" / "test_metrics.json").read_text())["metrics"]
    text = {"cracks": "segment_crack", "taping": "segment_taping_area"}
    assert f"test/iou/{text[name]}" in metrics
    assert f"test/iou/{text[other]}" not in metrics
    assert "test/negative_area" not in metrics
    assert load_run(tmp_path / "run").class_names == [text[name].replace("_", " ")]


@pytest.mark.slow
def test_thresholds_are_loaded_from_the_best_checkpoint(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    module = load_run(trained)
    assert isinstance(module, PromptedSegmenter)
    assert module.thresholds == best["segmentation"]["thresholds"]
    assert set(module.thresholds) == set(NAMES)
    value = json.loads((trained / "checkpoints" / "best.json").read_text())["value"]
    capsys.readouterr()
    assert main(["validate", "--run", str(trained)]) == 0
    evaluated = json.loads((trained / "validate_metrics.json").read_text())["metrics"]
    assert evaluated["val/iou"] == pytest.approx(value, abs=1e-7), "same weights and same thresholds"
    assert "val/boundary_f1" in evaluated
    for name in ("segmentation_val.png", "segmentation_validate.png", "segmentation_test.png"):
        assert (trained / "plots" / name).is_file()


def test_pixels_marked_for_absent_objects_count_when_choosing_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crack pixel has probability 0.7, a background pixel 0.3; in an image without cracks two pixels have 0.6."""
    logged: dict[str, Any] = {}
    module: Any = module_of()
    module.configure_metrics()
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False)
    monkeypatch.setattr(module, "log_dict", logged.update)
    logits = torch.tensor([[0.7, 0.3], [0.6, 0.6], [0.7, 0.3]]).logit().view(3, 1, 1, 2)
    batch = {
        "positive": torch.tensor([True, False, True]),
        "prompt_number": torch.tensor([1, 1, 0]),
        "mask": torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]).view(3, 1, 1, 2),
    }
    module.count(torch.tensor(1.0), logits, batch, "val")
    module.log_epoch("val")
    assert module.thresholds == {NAMES[0]: 0.5, NAMES[1]: 0.61}
    assert (logged["val/iou"], logged["val/negative_area"]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("probabilities", "found"),
    [
        ([0.001, 0.001, 0.002, 0.003], {NAMES[1]: "none"}),
        ([0.9, 0.001, 0.001, 0.001], {}),
        ([0.001, 0.9, 0.9, 0.9], {NAMES[1]: "hardly any"}),  # only wrong ones
        ([0.2, 0.2, 0.2, 0.2], {NAMES[1]: "all"}),
    ],
)
def test_collapsed_prompts(monkeypatch: pytest.MonkeyPatch, probabilities: list[float], found: dict[str, str]) -> None:
    """One crack pixel and three background pixels; the raw weights, which are evaluated too, mark nothing."""
    module: Any = module_of()
    module.configure_metrics()
    module._trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"), sanity_checking=False)
    monkeypatch.setattr(module, "log_dict", lambda metrics: None)
    logits = torch.tensor(probabilities).logit().view(1, 1, 1, 4)
    mask = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, 4)
    batch = {"positive": torch.tensor([True]), "prompt_number": torch.tensor([1]), "mask": mask}
    for stage, values in (("val", logits), ("val_raw", torch.full_like(logits, -9))):
        module.count(torch.tensor(1.0), values, batch, stage)
        module.log_epoch(stage)
    assert module.collapsed == found


def test_a_threshold_at_the_end_of_the_search_is_said(caplog: pytest.LogCaptureFixture) -> None:
    module = PromptedSegmenter.__new__(PromptedSegmenter)
    torch.nn.Module.__init__(module)
    module.thresholds = {"crack": 0.99, "tape": 0.01, "seam": 0.5}
    for hook in (module.on_train_end, module.on_test_end):
        caplog.clear()
        hook()
        high, low = (record.getMessage() for record in caplog.records)
        assert high.startswith("threshold 0.99 of 'crack' is at the end of the search (0.01 to 0.99), no optimum")
        assert "of 'tape'" in low
        assert "too low" in low


def test_masks_without_chosen_thresholds_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module = module_of()
    module.configure_model()
    image = torch.rand(1, 3, 32, 32)
    probability = module.probabilities(image)
    assert not caplog.records
    assert torch.equal(module.masks(image), probability >= 0.5)
    module.masks(image)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "no validation has chosen the thresholds of these weights, so masks are the pixels of"
    )
    other = module_of()
    other.configure_model()
    other.thresholds = dict.fromkeys(NAMES, 0.3)
    other.masks(image)
    assert len(caplog.records) == 1


def test_unknown_prompts_are_named_once_with_the_trained_ones(caplog: pytest.LogCaptureFixture) -> None:
    module = PromptedSegmenter.__new__(PromptedSegmenter)
    torch.nn.Module.__init__(module)
    module.class_names, module._unknown = ["segment balls", "Segment Wires!"], set()
    module.object_of = {"segment_balls": "segment balls", "mark_the_wires": "Segment Wires!"}
    assert module._asked(["Segment balls!", "segment ball", "zebra"]) == ["Segment balls!", "segment ball", "zebra"]
    module._asked(["zebra", "mark the wires"])
    (record,) = caplog.records
    text = record.getMessage()
    assert text.startswith(
        "prompts not used in training: 'segment ball', did you mean 'segment balls'?; 'zebra'; they use"
    )
    assert text.endswith("; trained: 'segment balls', 'segment wires', 'mark the wires'"), "in one spelling"


def test_the_method_of_the_other_kind_of_module_is_named() -> None:
    for kind, name, instead in (
        (PromptedSegmenter, "classify", "masks, use .masks"),
        (ImageClassifier, "masks", "classes, use .classify"),
    ):
        module = kind.__new__(kind)
        torch.nn.Module.__init__(module)
        assert not hasattr(module, name)
        with pytest.raises(AttributeError, match=f"{name}: {kind.__name__} gives {instead}"):
            getattr(module, name)


@pytest.mark.slow
def test_predict_of_a_folder_with_other_prompts(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a.jpg", (50, 30)), ("b.png", (31, 70)), ("one.png", (1, 1))):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.new("RGB", size, "grey").save(tmp_path / "new" / name)
    flags = ["--data.images", str(tmp_path / "new"), "--data.prompts", "[water stain, segment wall crack]"]
    capsys.readouterr()
    assert main(["predict", "--run", str(trained), *flags, "--name", "new"]) == 0
    found = trained / "evaluations" / "new"
    assert "prompts not used in training: 'water stain'; they use the threshold 0.5" in capsys.readouterr().out
    for name, size in (("a", (50, 30)), ("b", (31, 70)), ("one", (1, 1))):
        for prompt in ("segment_wall_crack", "water_stain"):
            for kind in ("masks", "overlays"):
                with Image.open(found / "predictions" / kind / f"{name}__{prompt}.png") as file:
                    assert file.size == size
    rows = [line.split(",") for line in (found / "predictions.csv").read_text().splitlines()]
    assert rows[0] == ["index", "file", "prompt", "threshold", "area", "mask"]
    assert [row[2] for row in rows[1:]] == ["water stain", "segment wall crack"] * 3, "in the order that was given"
    thresholds = {row[2]: float(row[3]) for row in rows[1:]}
    known = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["segmentation"]["thresholds"]
    assert thresholds == {"segment wall crack": known["segment crack"], "water stain": 0.5}, (
        "a synonym has the threshold of its object"
    )


def test_encoder_starts_from_a_file(tmp_path: Path) -> None:
    source = LightSegmenter("test_resnet", width=8)
    save_file(source.encoder.state_dict(), tmp_path / "weights.safetensors")
    network = LightSegmenter("test_resnet", width=8)
    fill_encoder(network, "test_resnet", None, str(tmp_path / "weights.safetensors"), pretrained=False)
    for name, tensor in source.encoder.state_dict().items():
        assert torch.equal(network.encoder.state_dict()[name], tensor)
    with pytest.raises(ValueError, match=r"weights: .*none.safetensors: no such file of weights, did you mean"):
        fill_encoder(network, "test_resnet", None, str(tmp_path / "none.safetensors"), pretrained=False)


def test_encoder_has_its_own_learning_rate() -> None:
    groups = {group["name"]: group for group in module_of(lr=0.1, encoder_lr=0.25).parameter_groups()}
    assert list(groups) == ["weights", "vectors", "encoder_weights", "encoder_vectors"]
    assert groups["encoder_weights"]["lr"] == 0.025
    assert groups["weights"]["lr"] == 0.1
    assert sum(len(group["params"]) for group in groups.values()) == len(list(module_of().network.parameters()))


def test_clipseg_trains_only_its_decoder_and_checks_its_towers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    module = PromptedSegmenter(network="clipseg", weights="random_tiny", side=48, **LINKS)
    assert module.eval()(torch.zeros(1, 3, 20, 30), ["crack", "tape"], torch.tensor([0, 0])).shape == (2, 1, 20, 30)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    checkpoint["segmentation"]["clip_hash"] = "0"
    with pytest.raises(
        MisconfigurationException, match=r"model.weights: random_tiny has other CLIP towers than the run"
    ):
        module.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_names": None}, "class_names and num_classes: the prompts and their number are needed"),
        ({"class_names": ["crack", "Crack!"]}, "prompts that differ in more than case and punctuation are needed"),
        ({"feature_width": 8}, "PromptedSegmenter needs images of 3 channels"),
        ({"pretrained": True, "weights": "x"}, "pretrained and weights: only one of them"),
        ({"encoder_lr": 0.0}, "encoder_lr: a factor over 0, got 0.0"),
        ({"tolerance": -1}, "tolerance: pixels, 0 or more, got -1"),
        ({"side": 0}, "side: pixels, 1 or more, or null, got 0"),
        ({"tile": 8}, "tile: pixels, 32 or more, or null, got 8"),
        ({"decoder": "high_resolution"}, "decoder: is not used by network light"),
        (
            {"network": "clipseg", "encoder": "resnet18"},
            "encoder: is not used by network clipseg with decoder null, got 'resnet18'",
        ),
        ({"pixel": "hinge"}, "pixel: one of bce, focal, none, got hinge"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    given = {"encoder": "mobilenetv2_100", "width": None} if settings.get("network") == "clipseg" else {}
    with pytest.raises(ValueError, match=re.escape(message)):
        module_of(**{**given, **settings})


@pytest.mark.parametrize("size", [(64, 64), (100, 64), (150, 201), (33, 250)])
def test_tiled_output_of_a_pointwise_network_equals_the_whole_image(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)

    def network(image: torch.Tensor, prompts: Any, index: torch.Tensor | None) -> torch.Tensor:
        assert max(image.shape[-2:]) <= 64
        assert index is not None
        return image[index].sum(dim=1, keepdim=True)

    logits = Tiling(64)(network, image, ["a", "b", "c"], torch.tensor([0, 1, 1]))
    torch.testing.assert_close(logits, image[[0, 1, 1]].sum(dim=1, keepdim=True))


def test_tiles_overlap_by_an_eighth() -> None:
    for length in range(65, 400, 7):
        first = starts(length, 64)
        assert first[0] == 0
        assert first[-1] + 64 == length
        assert max(b - a for a, b in itertools.pairwise(first)) <= 56


def test_overlay_tints_inside_and_outlines() -> None:
    pixels, mask = np.full((5, 5, 3), 100, dtype=np.uint8), np.zeros((5, 5), dtype=bool)
    mask[1:4, 1:4] = True
    drawn = overlay(pixels, mask, "#FF0000")
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[1, 1].tolist() == [255, 0, 0]
    assert drawn[2, 2].tolist() == [round(100 * 0.65 + 255 * 0.35), 65, 65]


def test_mask_files_are_named_after_their_images() -> None:
    assert mask_names(["a/1.jpg", "b.jpg", "b.png", "c.d.png"]) == ["a/1", "b.jpg", "b.png", "c.d"]


def test_pictures_require_masks(tmp_path: Path) -> None:
    pictures = SegmentationPictures()
    with pytest.raises(
        MisconfigurationException, match="SegmentationPictures: needs batches of images, masks and prompts"
    ):
        pictures._add(None, None, {"logits": torch.zeros(2, 2)}, {"image": 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count: 1 mask or more, got 0"):
        SegmentationPictures(count=0)


@pytest.mark.slow
def test_prompts_are_matched_without_case(trained: Path) -> None:
    predict = ["predict", "--run", str(trained), "--data.prompts"]
    tables = []
    for prompts in ('["segment crack", "something else"]', '["Segment CRACK!"]'):
        before = set(trained.rglob("predictions.csv"))
        assert main([*predict, prompts]) == 0
        (table,) = set(trained.rglob("predictions.csv")) - before  # other prompts leave earlier predictions
        tables.append(table)
    rows = [[line.split(",") for line in table.read_text().splitlines()[1:]] for table in tables]
    chosen = load_run(trained).thresholds["segment crack"]  # type: ignore[index]
    assert {row[2]: float(row[3]) for row in rows[0]} == {"segment crack": chosen, "something else": 0.5}
    assert {float(row[3]) for row in rows[1]} == {chosen}
    assert len(rows[1]) == len(rows[0]) / 2
    for kind in ("masks", "overlays"):
        files = {path.name for path in (tables[1].parent / "predictions" / kind).rglob("*.png")}
        assert {Path(row[-1]).name for row in rows[1]} == files
    assert main([*predict, '["segment crack", "Segment-crack"]']) == 2
