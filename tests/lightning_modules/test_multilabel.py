"""The task multilabel: loss of mixed labels, thresholds in the checkpoint, probabilities, refused callbacks."""

from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import Calibration, Checkpoints, ConfusionMatrix, LabelCurves
from callbacks.early_stopping import check_monitored
from cli.predictions import write_predictions
from cli.trainer.run_callbacks import run_callbacks
from lightning_modules import ImageClassifier
from lightning_modules.classification import refuse_several_labels
from lightning_modules.losses.multilabel import multilabel_loss
from transforms import SampleRandom, mix
from transforms.run_transform import RunTransform

SETTINGS: dict[str, Any] = {"num_classes": 3, "in_channels": 3, "image_size": 32, "architecture": "test_resnet"}


@pytest.fixture(scope="module")
def module() -> ImageClassifier:
    return ImageClassifier(**SETTINGS, task="multilabel", class_names=["a", "b", "c"], mean=[0.5] * 3, std=[0.2] * 3)


def test_mixed_labels_are_mixed_linearly(module: ImageClassifier) -> None:
    label = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.uint8)
    random = SampleRandom(0, 0, torch.arange(3))
    images = torch.eye(3).view(3, 3, 1, 1).expand(3, 3, 4, 4).contiguous()  # channel k shows the share of image k
    mixed, target = mix(images, label, 3, random, mixup_alpha=1.0, mixup_prob=1.0, cutmix_alpha=1.0, cutmix_prob=0.0)
    shares = mixed[:, :, 0, 0]
    torch.testing.assert_close(target, shares @ label.float())
    assert ((shares > 0.01) & (shares < 0.99)).any()
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    loss = module.training_loss(logits, {"label": label, "target": target})
    # binary cross-entropy is linear in its target: the mixture of the losses of both label sets
    each = torch.stack([multilabel_loss(logits[i], label.float()[j]) for i in range(3) for j in range(3)]).view(3, 3)
    torch.testing.assert_close(loss, (shares * each).sum(dim=1).mean())


def test_labels_of_wrong_shape_are_not_mixed() -> None:
    with pytest.raises(ValueError, match=r"labels must be \(2, 3\), got shape \(2, 2\)"):
        mix(
            *(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, dtype=torch.uint8), 3, SampleRandom(0, 0, torch.arange(2))),
            mixup_alpha=1.0,
            mixup_prob=1.0,
            cutmix_alpha=1.0,
            cutmix_prob=0.0,
        )


def test_one_label_an_image_is_learned_as_well(module: ImageClassifier) -> None:
    logits = torch.randn(4, 3)
    label = torch.tensor([0, 2, 1, 1])
    expected = multilabel_loss(logits, torch.nn.functional.one_hot(label, 3))
    torch.testing.assert_close(module.training_loss(logits, {"label": label}), expected)


def test_thresholds_are_in_the_checkpoint(module: ImageClassifier, tmp_path: Any) -> None:
    logits = torch.tensor([[0.3, -2.0, 31.0], [-0.1, 1.0, 30.0]])
    assert module.chosen(logits).tolist() == [[True, False, True], [False, True, True]]
    module.label_thresholds = torch.tensor([-0.5, 1.0, 30.5], dtype=torch.float64)
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint["label_thresholds"] == {"val": [-0.5, 1.0, 30.5], "val_raw": None}
    other = ImageClassifier(**SETTINGS, task="multilabel")
    other.on_load_checkpoint(checkpoint)
    assert other.chosen(logits).tolist() == [[True, False, True], [True, True, False]]
    write_predictions(tmp_path / "p.csv", [{"logits": logits, "index": torch.tensor([1, 0])}], other, ["a", "b", "c"])
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "index,labels,probability_a,probability_b,probability_c",
        "1,a;c,0.574443,0.119203,1.000000",
        "0,a;b,0.475021,0.731059,1.000000",
    ]


def test_probabilities_do_not_sum_to_one(module: ImageClassifier) -> None:
    image = torch.zeros(2, 3, 32, 32)
    torch.testing.assert_close(module.classify(image), module.logits(image).sigmoid())
    with pytest.raises(ValueError, match="one label a sample has no thresholds"):
        ImageClassifier(**SETTINGS).chosen(torch.zeros(1, 3))


class Given(RunTransform):
    """Takes a tensor of inputs as the samples."""

    def batches(self, samples: Any) -> Iterator[tuple[list[str | None], torch.Tensor]]:
        for number, one in enumerate(samples):
            yield [f"{number}.png"], one[None]


def test_pictures_are_named_by_all_labels_that_reach_their_thresholds() -> None:
    torch.manual_seed(0)
    module = ImageClassifier(**SETTINGS, task="multilabel", class_names=["a", "b", "c"])
    module.make_transform = lambda _: Given()
    inputs: Any = torch.randn(3, 3, 32, 32)
    logits = torch.cat([module._logits_of(one[None]) for one in inputs])
    # a is reached by the highest sample only, b by all three, c by none
    module.label_thresholds = torch.stack([logits[:, 0].max(), logits[:, 1].min(), logits[:, 2].max() + 1]).double()
    found = module.classify(list(inputs))
    expected = [("a", "b") if number == logits[:, 0].argmax() else ("b",) for number in range(3)]
    assert [(one.file, one.labels) for one in found] == [(f"{n}.png", own) for n, own in enumerate(expected)]
    torch.testing.assert_close(found.probabilities, logits.sigmoid())
    assert module.label_probabilities == module.label_thresholds.sigmoid().tolist()


def test_callbacks_of_the_other_task_are_refused(module: ImageClassifier) -> None:
    trainer: Any = SimpleNamespace(datamodule=None, callbacks=[], logger=None)
    for callback, text in (
        (
            Calibration(),
            "Calibration: is for one label an image: its temperature and its early exit are of the most probable",
        ),
        (ConfusionMatrix(), "ConfusionMatrix: is for one label an image: it compares the predicted class"),
    ):
        with pytest.raises(MisconfigurationException, match=text):
            callback.setup(trainer, module, "fit")
    LabelCurves().setup(trainer, module, "fit")
    with pytest.raises(
        MisconfigurationException, match=r"LabelCurves: is for --model.task multilabel, this run has one label"
    ):
        LabelCurves().setup(trainer, ImageClassifier(**SETTINGS), "fit")


def test_pictures_of_labels_are_announced_where_they_are_drawn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for command, said in (("predict", 0), ("test", 1)):
        settings = SimpleNamespace(
            model=SimpleNamespace(several_labels=True), seed_everything=0, non_finite=None, curves=None, checkpoint=None
        )
        options = {"enable_progress_bar": False, "enable_checkpointing": False}
        own: Any = run_callbacks([ConfusionMatrix()], settings, options, Any, Any, None, command)  # type: ignore[arg-type]
        assert [type(one) for one in own].count(LabelCurves) == 1
        assert caplog.text.count("LabelCurves in place of ConfusionMatrix") == said


@pytest.mark.parametrize(
    ("task", "labels", "monitor", "reason"),
    [
        ("multilabel", [[0, 0, 0], [0, 0, 0]], "val/ap", "none of the 2 validation images has a label"),
        ("multilabel", [[1, 0, 0], [1, 0, 0]], "val/auroc", "every label that occurs is of all 2 validation images"),
        ("multilabel", [[1, 0, 0], [1, 0, 0]], "val/ap", None),
        ("multilabel", [1, 1], "val/ap", None),
        ("multilabel", [[0, 0, 0], [0, 0, 0]], "val/loss", None),
        ("multiclass", [1, 1], "val/auroc", "all 2 validation samples are of one class"),
        ("multiclass", [1, 2], "val/auroc", None),
        ("multiclass", [1, 1], "val/f1", None),
    ],
)
def test_a_metric_without_a_value_is_refused_before_the_first_step(
    task: Any, labels: list[Any], monitor: str, reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """An early stop or a plateau would end the run after its first epoch, and no resume could go on."""
    metrics = None if task == "multilabel" else ["auroc", "f1"]
    module = ImageClassifier(**SETTINGS, task=task, metrics=metrics, schedule="plateau", plateau_monitor=monitor)
    data = SimpleNamespace(splits={"val": {"label": torch.tensor(labels)}})
    trainer: Any = SimpleNamespace(datamodule=data, callbacks=[], enable_validation=True)
    module._trainer = trainer
    refused = [lambda: check_monitored(trainer, module, "EarlyStopping", monitor, "auto"), module._check_plateau]
    for check in refused:
        with nullcontext() if reason is None else pytest.raises(MisconfigurationException, match=reason):
            check()
    check_monitored(trainer, module, "checkpoint", monitor, "auto")
    assert ("so there will be no best.ckpt" in caplog.text) == (reason is not None)


def test_map_selects_where_there_is_no_accuracy(module: ImageClassifier) -> None:
    trainer: Any = SimpleNamespace(callbacks=[], loggers=[], default_root_dir="")
    for given, model, monitor in (
        ("val/acc", module, "val/ap"),
        ("val/f1", module, "val/f1"),
        ("val/acc", ImageClassifier(**SETTINGS), "val/acc"),
    ):
        checkpoints = Checkpoints(monitor=given)
        checkpoints.setup(trainer, model, "fit")
        assert checkpoints.monitor == monitor
        assert monitor in model.metric_names


def test_several_labels_are_refused_by_other_tasks() -> None:
    data = SimpleNamespace(splits={"train": {"label": torch.tensor([[1, 1], [0, 0], [1, 0]])}})
    text = r"X needs one, but 1 of the 3 train samples have several labels and 1 have none; .* --model.task multilabel"
    with pytest.raises(MisconfigurationException, match=text):
        refuse_several_labels(data, "X needs one")
