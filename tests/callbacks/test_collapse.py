"""Tests of callbacks/failures/collapse.py: which validations are said, when, in which words, and after a resume."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from callbacks import EMA, WarnOnCollapse
from callbacks.failures.collapse import is_due
from cli import main
from cli.trainer.run_callbacks import recipe_of
from lightning_modules import PromptedSegmenter, TernaryClassifier
from networks.signal_encoder import WindowNetwork

CONF = Path(__file__).resolve().parents[1] / "conf"
LABELS = torch.tensor([0, 1, 2, 0])


class Fit:
    """The hooks of a fit, without one."""

    def __init__(self, callback: WarnOnCollapse, **module: Any) -> None:
        data = SimpleNamespace(
            positive_share=module.pop("positive_share", None),
            class_counts=module.pop("counts", None),
            sampling=module.pop("sampling", None),
        )
        data.batch_size = module.pop("batch_size", 16)
        metrics = {"val/loss": torch.tensor(module.pop("loss", 0.5))}
        state = SimpleNamespace(fn=module.pop("fn", "fit"))
        checking = module.pop("sanity_checking", False)
        self.trainer: Any = SimpleNamespace(
            state=state,
            sanity_checking=checking,
            datamodule=data,
            max_epochs=7,
            world_size=1,
            gradient_clip_val=module.pop("gradient_clip_val", 1.0),
            callback_metrics=metrics,
        )
        self.module: Any = SimpleNamespace(**{"lr": 0.1, "class_names": ["cat", "dog", "emu"], **module})
        self.callback = callback

    def validate(self, *batches: list[int], label: torch.Tensor = LABELS, times: int = 1) -> None:
        """Validations in which the given classes are predicted, batch by batch."""
        for _ in range(times):
            self.callback.on_validation_epoch_start(self.trainer, self.module)
            for predicted in batches:
                outputs = {"logits": torch.eye(3)[predicted], "label": label[: len(predicted)]}
                self.callback.on_validation_batch_end(self.trainer, self.module, outputs, {}, 0)
            self.callback.on_validation_end(self.trainer, self.module)

    def end(self) -> None:
        self.callback.on_train_end(self.trainer, self.module)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("callbacks"), "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("loss", "recipe", "counts", "text"),
    [
        (3.0, None, [5, 5, 5], "the network has collapsed; change --model.lr (now 0.1), --trainer.max_epochs (now 7)"),
        (3.0, None, [9, 5, 5], "the network has collapsed; change --model.class_weights (now none, try balanced), --model.lr (now"),
        (12.0, None, [5, 5, 5], "the loss has exploded (val/loss 12); change --model.lr (now 0.1, try 0.01)"),
        (99.0, (0.1, 128), [5, 5, 5], "the loss has exploded (val/loss 99); change --model.lr (now 0.1, try 0.0125)"),
        (12.0, (0.1, 16), [9, 5, 5], "exploded (val/loss 12); change --model.lr (now 0.1, try 0.01), --model.class_weights"),
    ],
)  # fmt: skip
def test_the_first_remedy_fits(
    said: pytest.LogCaptureFixture, loss: float, recipe: Any, counts: list[int], text: str
) -> None:
    fit = Fit(WarnOnCollapse(recipe), loss=loss, counts=torch.tensor(counts), class_weights="none")
    fit.validate([1, 1], times=3)
    assert len(said.messages) == 1
    assert text in said.messages[0]


def test_an_exploded_loss_of_several_predicted_classes(said: pytest.LogCaptureFixture) -> None:
    Fit(WarnOnCollapse(), loss=10.9).validate([1, 2], times=3)  # ten times ln 3 is 10.99
    assert not said.messages
    Fit(WarnOnCollapse(), loss=11.1).validate([1, 2], times=3)
    Fit(WarnOnCollapse(), loss=11.1, gradient_clip_val=None).validate([1, 2], times=3)
    line = "val/loss was 11.1 in 3 validations: the loss has exploded; change --model.lr (now 0.1, try 0.01)"
    assert said.messages == [line, f"{line}, --trainer.gradient_clip_val (now null, try 1)"]


def test_an_absurd_loss_is_said_at_the_first_validation_and_its_range_later(said: pytest.LogCaptureFixture) -> None:
    fit = Fit(WarnOnCollapse((0.1, 128)), loss=1099.0)  # a thousand times ln 3 is 1,098.6
    change = ": the loss has exploded; change --model.lr (now 0.1, try 0.0125)"
    fit.validate([1, 1])
    assert said.messages == [f"val/loss was 1.1e+03{change}"]
    fit.trainer.callback_metrics["val/loss"] = torch.tensor(63.75)
    fit.validate([1, 2])
    fit.trainer.callback_metrics["val/loss"] = torch.tensor(float("nan"))
    second = WarnOnCollapse((0.1, 128))
    second.load_state_dict(fit.callback.state_dict())  # a resumed run
    fit.callback = second
    fit.validate([1, 2])
    fit.end()
    assert said.messages[1:] == [f"val/loss was 63.8 to nan in 3 validations{change}"]
    assert str(second.state_dict()["exploded"]) == "nan"
    fit.trainer.callback_metrics["val/loss"] = torch.tensor(1.0)
    fit.validate([1, 2])
    assert (second.losses, second.exploded) == ([], None)


def test_masks_with_an_absurd_loss(said: pytest.LogCaptureFixture) -> None:
    Fit(WarnOnCollapse(), loss=3000.0, collapsed={}, pos_weight=1.0).validate()
    (line,) = said.messages
    assert line.startswith("val/loss was 3e+03: the loss has exploded; change --model.lr (now 0.1, try 0.01)")


class Normed(torch.nn.Module):
    """A module with a batch norm."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        for name, value in {"lr": 0.1, "class_names": ["cat", "dog", "emu"], **settings}.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    ("train_loss", "average", "settings", "changes"),
    [
        (3.2, None, {}, "not --model.lr, but more --trainer.max_epochs (now 7), a larger --data.batch_size (now 16)"),
        (3.2, None, {"freeze_part": "none", "weights": "a.ckpt"}, "--data.batch_size (now 16), --model.freeze norm_statistics"),
        (3.2, EMA(0.99), {}, "those of the averaged weights (val_raw/loss 1.1); not --model.lr, but a lower "
                             "--trainer.callbacks.EMA.decay (now 0.99), more --trainer.max_epochs"),
        (3.4, None, {}, "the loss has exploded; change --model.lr (now 0.1, try 0.01)"),
    ],
)  # fmt: skip
def test_a_loss_that_explodes_in_validation_only(
    said: pytest.LogCaptureFixture, train_loss: float, average: EMA | None, settings: dict[str, Any], changes: str
) -> None:
    fit = Fit(WarnOnCollapse(), loss=190.6)  # three times ln 3 is 3.3
    fit.module = Normed(**settings)
    fit.trainer.callbacks, fit.trainer.global_step = [fit.callback, *([average] if average else [])], 24
    fit.trainer.callback_metrics["val_raw/loss"] = torch.tensor(1.1 if average else 99.0)
    fit.callback.on_train_epoch_start(fit.trainer, fit.module)
    for part in (0.5, 1.5):
        fit.callback.on_train_batch_end(fit.trainer, fit.module, {"loss": torch.tensor(part * train_loss)}, {}, 0)
    fit.validate([1, 2], times=2)
    fit.end()
    (line,) = said.messages
    assert changes in line
    cause = (
        f"the loss has exploded in validation only (train/loss {train_loss:g}): after 24 steps of 16 samples the batch"
    )
    assert (cause in line) == (train_loss < 3.3)


def test_the_training_loss_is_that_of_a_batch_not_of_its_share_in_an_accumulated_step(
    said: pytest.LogCaptureFixture,
) -> None:
    fit = Fit(WarnOnCollapse(), loss=190.6)
    fit.module = Normed()
    fit.trainer.callbacks, fit.trainer.global_step, fit.trainer.accumulate_grad_batches = [fit.callback], 24, 4
    fit.callback.on_train_epoch_start(fit.trainer, fit.module)
    fit.callback.on_train_batch_end(fit.trainer, fit.module, {"loss": torch.tensor(8.0 / 4)}, {}, 0)
    fit.validate([1, 2], times=2)
    fit.end()
    assert "the loss has exploded; change --model.lr" in said.messages[0]  # 8 is over three times ln 3


@pytest.mark.parametrize(
    ("logits", "loss", "text"),
    [
        ([[1.0, 2.0], [3.0, 0.1]], 0.9, "every label had a probability above 0.5 in every image in 3 validations: the network"),
        ([[-1.0, -2.0], [-3.0, -0.1]], 0.9, "no label had a probability of 0.5 in any image in 3 validations: the network"),
        ([[-900.0, -2.0], [800.0, -0.1]], 549.0, "val/loss was 549 in 3 validations: the loss has exploded; change --model.lr"),
        ([[-1.0, 2.0], [3.0, -0.1]], 6.9, None),
    ],
)  # fmt: skip
def test_several_labels(said: pytest.LogCaptureFixture, logits: Any, loss: float, text: str | None) -> None:
    fit = Fit(WarnOnCollapse(), loss=loss)
    for _ in range(3):
        fit.callback.on_validation_epoch_start(fit.trainer, fit.module)
        outputs = {"logits": torch.tensor(logits), "label": torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)}
        fit.callback.on_validation_batch_end(fit.trainer, fit.module, outputs, {}, 0)
        fit.callback.on_validation_end(fit.trainer, fit.module)
    assert [message[: len(text or "")] for message in said.messages] == ([text] if text else [])


def test_the_recipe_is_read_from_the_files_and_not_from_flags(tmp_path: Path) -> None:
    overlay = tmp_path / "small.yaml"
    overlay.write_text("data: {batch_size: 64}")
    assert recipe_of(["configs/image_standard.yaml"]) == (0.5, 256)
    assert recipe_of(["configs/image_standard.yaml", str(overlay)]) == (0.5, 64)
    assert recipe_of([str(overlay)]) is None


@pytest.mark.parametrize(
    ("settings", "samples", "given"),
    [({}, 16, "0.00625"), ({"batch_size": 64}, 64, "0.025"), ({"batch_size": 65}, 65, None), ({"lr": 0.06}, 16, None),
     ({"optimizer_name": "adamw"}, 16, None)],
)  # fmt: skip
def test_a_rate_of_a_larger_batch_is_said_before_the_first_step(
    said: pytest.LogCaptureFixture, settings: dict[str, Any], samples: int, given: str | None
) -> None:
    fit = Fit(WarnOnCollapse((0.05, 128)), **{"lr": 0.05, "optimizer_name": "sgd", **settings})
    fit.trainer.callbacks, fit.trainer.global_step = [fit.callback], 0
    fit.callback.on_train_start(fit.trainer, fit.module)
    text = (
        f"--model.lr 0.05 is for the 128 samples of a step in the configuration, here a step has {samples}: the loss may explode; "
        f"give --model.lr {given}, in proportion"
    )
    assert said.messages == ([text] if given else [])
    fit.trainer.global_step = 1
    fit.callback.on_train_start(fit.trainer, fit.module)
    assert len(said.messages) == bool(given), "a run that goes on has been told"


def test_lines_come_rarely() -> None:
    assert [count for count in range(1, 2000) if is_due(count)] == [3, 10, 30, 100, 300, 1000]


def test_one_class_only(said: pytest.LogCaptureFixture) -> None:
    fit = Fit(WarnOnCollapse(), class_weights="none")
    fit.validate([1, 1], [1, 1, 1, 1], times=2)
    assert not said.messages
    fit.validate([1, 1], [1, 1, 1, 1], times=8)
    text = "only class 'dog' was predicted in {} validations: the network has collapsed; change "
    text += "--model.class_weights (now none, try balanced), --model.lr (now 0.1), --trainer.max_epochs (now 7)"
    assert said.messages == [text.format(3), text.format(10)]
    fit.end()
    assert len(said.messages) == 2


def test_balanced_samples_are_not_weighted_as_well(said: pytest.LogCaptureFixture) -> None:
    fit = Fit(WarnOnCollapse(), class_weights="none", sampling="balanced")
    fit.validate([1, 1], [1, 1, 1, 1], times=3)
    assert len(said.messages) == 1
    assert "class_weights" not in said.messages[0]


@pytest.mark.parametrize(
    ("batches", "label", "module"),
    [
        ([[1, 1], [1, 2]], LABELS, {}),  # another class in another batch
        ([[1, 1], [1, 1]], torch.ones(4, dtype=torch.int64), {}),  # the data has one class only
        ([[1, 1], [1, 1]], LABELS, {"sanity_checking": True}),
        ([[1, 1], [1, 1]], LABELS, {"fn": "validate"}),
    ],
)
def test_what_is_right_is_not_said(
    said: pytest.LogCaptureFixture, batches: Any, label: torch.Tensor, module: Any
) -> None:
    fit = Fit(WarnOnCollapse(), **module)
    fit.validate(*batches, label=label, times=4)
    fit.end()
    assert not said.messages


def test_a_recovered_network_starts_anew_and_the_end_of_a_short_fit_says_it(said: pytest.LogCaptureFixture) -> None:
    fit = Fit(WarnOnCollapse(), class_names=None)
    fit.validate([1, 1], times=2)
    fit.validate([1, 2])
    fit.validate([2, 2], [0, 0])
    fit.validate([2, 2], times=2)
    assert not said.messages
    fit.end()
    assert [text.partition("; change")[0] for text in said.messages] == [
        "only class 2 was predicted in the last 2 validations"
    ]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("none", "no positive pixel predicted for 'segment pothole' in 3 validations: the network has collapsed; change "
         "--data.positive_share (now 0.0, try 0.5), --model.over (now sample, try prompt), --model.pos_weight (now 1.0, try 5.0), "
         "--model.lr (now 0.1), --trainer.max_epochs (now 7)"),
        ("all", "every pixel predicted positive for 'segment pothole' in 3 validations: the network has collapsed; change "
         "--model.lr (now 0.1), --trainer.max_epochs (now 7)"),
    ],
)  # fmt: skip
def test_masks(said: pytest.LogCaptureFixture, how: str, text: str) -> None:
    fit = Fit(WarnOnCollapse(), collapsed={"segment pothole": how}, positive_share=0.0, over="sample", pos_weight=1.0)
    fit.validate(times=5)
    assert said.messages == [text]


def test_the_count_goes_on_after_a_resume(said: pytest.LogCaptureFixture) -> None:
    first, second = WarnOnCollapse(), WarnOnCollapse()
    Fit(first, collapsed={"segment crack": "none"}).validate(times=2)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    Fit(second, collapsed={"segment crack": "none"}).validate()
    assert len(said.messages) == 1
    third = WarnOnCollapse()
    third.load_state_dict(second.state_dict())
    Fit(third).end()  # a line has said it
    assert len(said.messages) == 1


GENERATED = ["--data.generate", "true"]


@pytest.mark.parametrize(
    ("module", "config", "flags", "text"),
    [
        (
            PromptedSegmenter,
            "segmentation_tiny",
            [],
            "no positive pixel predicted for 'segment crack' in 3 validations",
        ),
        pytest.param(
            TernaryClassifier, "digits_ternary_tiny", [], "only class '0' was predicted in 3", marks=pytest.mark.slow
        ),
        pytest.param(
            WindowNetwork, "har_tiny", GENERATED, "only class 'WALKING' was predicted in 3", marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_a_collapsed_run_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    config: str,
    flags: list[str],
    text: str,
) -> None:
    """Logits that depend on nothing: -20 for each pixel, and 0 for each class, of which the first one is then the largest."""
    original, constant = module.forward, -20 if module is PromptedSegmenter else 0
    monkeypatch.setattr(module, "forward", lambda self, *inputs: original(self, *inputs) * 0 + constant)
    data = [] if module is TernaryClassifier else ["--data.root", str(tmp_path / "data")]
    short = ["--trainer.max_epochs", "3", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", str(CONF / f"{config}.yaml"), *short, *data, *flags]) == 0
    printed = capsys.readouterr().out
    assert printed.count(f"warning: {text}") == 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(count == 3 for count, _ in checkpoint["callbacks"]["WarnOnCollapse"]["found"].values())
