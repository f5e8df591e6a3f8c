"""Each stage trains at its size, batch and learning rate and ends at its schedule's end value; wrong stages are refused."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks import (
    EMA,
    LearningRateFinder,
    Progress,
    ProgressiveResizing,
    ResizingStage,
    StageOutOfMemoryError,
    dry_run,
)
from callbacks.progress import progress
from callbacks.progress.eta import Pace
from callbacks.resizing_stages import PlannedStage
from datamodules import CIFAR10DataModule
from foundation.durations import clock_time
from tests.callbacks.stages import sized
from tests.datamodules.cifar_layout import write_cifar
from tests.runs.killing import digest
from tests.runs.pooled import PooledClassifier

# 130 training images: 5, 6 and 9 batches, the last of which is short
STAGES = [sized(8, 32, 2), sized(12, 24, 2, 0.5), sized(16, 16, 2, 0.25, 0.5)]
BATCHES = [5, 6, 9]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 16x16 images in CIFAR-10's layout."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar(folder / "cifar-10-batches-py", size=16)
    return folder


class Watch(Callback):
    """Notes what every batch and every optimiser step of the run is trained with."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int, int]] = []  # epoch, pixels, samples
        self.rates: list[float] = []
        self.momenta: list[float] = []
        self.validated: list[tuple[int, int]] = []  # epoch, pixels
        self.strengths: list[float] = []
        self.states: list[int] = []  # entries of the optimiser's state when a batch begins
        self.loaders = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.append((trainer.current_epoch, batch["image"].shape[-1], len(batch["image"])))
        self.strengths.append(trainer.datamodule.strength)
        self.states.append(len(trainer.optimizers[0].state))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.momenta.append(optimizer.param_groups[0]["momentum"])

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.validated.append((trainer.current_epoch, batch["image"].shape[-1]))


def run(
    root: Path,
    callbacks: list[Callback],
    module: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    **settings: Any,
) -> tuple[Trainer, PooledClassifier, Watch]:
    """Fit the small classifier; the watch is the last of the callbacks."""
    torch.manual_seed(0)
    net = PooledClassifier(
        num_classes=10, in_channels=3, image_size=16, **{"lr": 0.1, "schedule": "one_cycle", **(module or {})}
    )
    images = CIFAR10DataModule(root=str(root), **{"batch_size": 50, "drop_last": False, **(data or {})})
    watch = Watch()
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "max_epochs": 6}
    options |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(**{**options, **settings}, callbacks=[*callbacks, watch])
    trainer.fit(net, datamodule=images, ckpt_path=ckpt_path)
    return trainer, net, watch


def one_cycles(lr: float, rows: list[tuple[int, float]]) -> list[tuple[float, float]]:
    """(lr, momentum) of each step by torch's own schedule, made anew for every stage."""
    values = []
    for steps, factor in rows:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=lr * factor, total_steps=steps, base_momentum=0.85, max_momentum=0.9
        )
        for step in range(steps):
            values.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            if step < steps - 1:
                schedule.step()
    return values


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_stage_has_its_own_one_cycle_to_the_end(root: Path, accumulate: int) -> None:
    trainer, _, watch = run(root, [ProgressiveResizing(STAGES), EMA(0.9)], accumulate_grad_batches=accumulate)
    steps = [2 * math.ceil(count / accumulate) for count in BATCHES]
    assert trainer.global_step == sum(steps) == len(watch.rates)
    expected = one_cycles(0.1, list(zip(steps, (1.0, 0.5, 0.25), strict=True)))
    for i, (lr, momentum) in enumerate(expected):
        assert watch.rates[i] == pytest.approx(lr, rel=1e-12), i
        assert watch.momenta[i] == pytest.approx(momentum, rel=1e-12), i
    for end, factor in zip(np.cumsum(steps) - 1, (1.0, 0.5, 0.25), strict=True):
        assert abs(watch.rates[end] - 0.1 * factor / 25e4) < 1e-12

    assert [sum(e == epoch for e, *_ in watch.sizes) for epoch in range(6)] == [5, 5, 6, 6, 9, 9]
    for epoch, size, samples in watch.sizes:
        stage = STAGES[epoch // 2]
        assert size == stage.size
        assert samples in (stage.batch_size, 130 % stage.batch_size)
    assert sorted(set(watch.validated)) == [(epoch, 16) for epoch in range(6)], "in every epoch, at full size"
    assert watch.strengths == [1.0] * 22 + [0.5] * 18
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert (data.train_size, data.batch_size, data.strength) == (16, 50, 1.0), "its own settings again"
    assert trainer.reload_dataloaders_every_n_epochs == 0  # type: ignore[attr-defined]


def test_cosine_warms_up_in_the_first_stage_only(root: Path) -> None:
    module = {"schedule": "cosine", "warmup_epochs": 1, "lr_end": 0.01}
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], module)
    expected = [0.1 * (i + 1) / 5 for i in range(5)]
    expected += [0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * i / 4)) / 2) for i in range(5)]
    for steps, factor in ((12, 0.5), (18, 0.25)):
        expected += [0.1 * factor * (0.01 + 0.99 * (1 + math.cos(math.pi * i / (steps - 1))) / 2) for i in range(steps)]
    assert watch.rates == pytest.approx(expected, rel=1e-12)
    assert watch.rates[9] == 0.1 * 0.01


def test_one_schedule_over_the_whole_run(root: Path) -> None:
    stages = [sized(stage.size, stage.batch_size, 2) for stage in STAGES]
    _, _, watch = run(root, [ProgressiveResizing(stages, schedule="whole")])
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, [(40, 1.0)])], rel=1e-12)


@pytest.mark.parametrize("schedule", ["none", "plateau"])
def test_factors_without_a_curve(root: Path, schedule: str) -> None:
    module = {"schedule": schedule, "plateau_patience": 100}
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], module)
    assert watch.rates == pytest.approx([0.1] * 10 + [0.05] * 12 + [0.025] * 18)


def test_limits_and_drop_last_are_counted(root: Path) -> None:
    """130 images in full batches are 4, 5 and 8, of which 0.5 are 2, 2 and 4."""
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], data={"drop_last": True}, limit_train_batches=0.5)
    assert [sum(e == epoch for e, *_ in watch.sizes) for epoch in range(6)] == [2, 2, 2, 2, 4, 4]
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, [(4, 1.0), (4, 0.5), (8, 0.25)])], rel=1e-12)


def test_stretched_stages_share_the_epochs_of_the_trainer(root: Path) -> None:
    _, _, watch = run(root, [ProgressiveResizing(STAGES, stretch=True)], max_epochs=4)
    assert [size for _, size, _ in watch.sizes] == [8] * 5 + [12] * 12 + [16] * 9  # ends at 1.3 and 2.7 epochs
    rows = [(5, 1.0), (12, 0.5), (9, 0.25)]
    assert watch.rates == pytest.approx([lr for lr, _ in one_cycles(0.1, rows)], rel=1e-12)


def test_a_stage_without_a_batch_size_has_the_datas_and_keeps_it_in_a_resumed_run(root: Path, tmp_path: Path) -> None:
    stages = [ResizingStage(size=8, epochs=1), ResizingStage(size=16, epochs=1, batch_size=48)]
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_weights_only=False)
    callbacks = [ProgressiveResizing(stages, stretch=True), saver]
    _, _, watch = run(root, callbacks, data={"batch_size": 40}, max_epochs=2, enable_checkpointing=True)
    assert [samples for *_, samples in watch.sizes] == [40, 40, 40, 10, 48, 48, 34]
    again: dict[str, Any] = {"max_epochs": 3, "ckpt_path": tmp_path / "epoch=1.ckpt"}
    _, _, rest = run(root, [ProgressiveResizing(stages, stretch=True)], data={"batch_size": 40}, **again)
    assert [samples for *_, samples in rest.sizes] == [48, 48, 34]
    message = (
        r"stage 1 of .*: cannot change .* \(was 8 px, batch 40, 1 epoch, lr x 1; now 8 px, batch 32, 2 epochs, lr x 1\)"
    )
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(stages, stretch=True)], data={"batch_size": 32}, **again)


def test_stretching_needs_a_length(root: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"stretch needs trainer.max_epochs, 1 or more, got -1"):
        run(root, [ProgressiveResizing(STAGES, stretch=True)], max_epochs=-1)


@pytest.mark.parametrize("reset", [False, True])
def test_momentum_is_kept_unless_it_is_to_be_forgotten(root: Path, reset: bool) -> None:
    _, _, watch = run(root, [ProgressiveResizing(STAGES, reset_momentum=reset)])
    empty = [i for i, entries in enumerate(watch.states) if not entries]
    assert empty == ([0, 10, 22] if reset else [0])


def test_a_run_of_one_stage_is_the_run_without(root: Path) -> None:
    _, plain, _ = run(root, [], data={"batch_size": 24})
    _, staged, _ = run(root, [ProgressiveResizing([sized(16, 24, 6)])])
    assert digest(plain.state_dict()) == digest(staged.state_dict())


def test_the_found_rate_is_the_peak_that_factors_multiply(root: Path) -> None:
    finder = LearningRateFinder(steps=40, lowest=1e-3, highest=5.0)
    _, module, watch = run(root, [finder, ProgressiveResizing(STAGES)])
    lr = finder.state_dict()["lr"]
    assert module.lr == lr
    expected = [value for value, _ in one_cycles(lr, [(10, 1.0), (12, 0.5), (18, 0.25)])]
    assert watch.rates == pytest.approx(expected, rel=1e-12)


# ---- the trial ----


def state(trainer: Any, module: Any) -> Any:
    generators = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]  # type: ignore[index]
    metrics = [getattr(metric, name) for metric in module.sums.values() for name in metric._defaults]
    gradients = [None if p.grad is None else p.grad.clone() for p in module.parameters()]
    data = trainer.datamodule
    order = [batch["index"] for batch in data.train_dataloader()]
    settings = [data.train_size, data.batch_size, data.strength, trainer.global_step, module.training]
    return digest(
        [module.state_dict(), trainer.optimizers[0].state_dict(), generators, metrics, gradients, order, settings]
    )


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}])
def test_the_trial_is_of_the_largest_stage_and_changes_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    seen: list[Any] = []
    tried: list[Any] = []
    on_fit_start, training_step = ProgressiveResizing.on_fit_start, PooledClassifier.training_step

    def watched(self: Any, trainer: Any, module: Any) -> None:
        seen.append(state(trainer, module))
        on_fit_start(self, trainer, module)
        seen.append(state(trainer, module))
        monkeypatch.setattr(PooledClassifier, "training_step", training_step)

    def noted(self: Any, batch: Any, batch_idx: int) -> Any:
        tried.append(tuple(batch["image"].shape))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(ProgressiveResizing, "on_fit_start", watched)
    monkeypatch.setattr(PooledClassifier, "training_step", noted)
    # 8 * 8 * 100 and 16 * 16 * 20 pixels are less than 12 * 12 * 50
    stages = [sized(8, 100, 1), sized(12, 50, 1), sized(16, 20, 1)]
    run(root, [ProgressiveResizing(stages)], max_epochs=3, limit_val_batches=0, **settings)
    assert seen[0] == seen[1]
    assert tried == [(50, 3, 12, 12)] * settings.get("accumulate_grad_batches", 1)


@pytest.mark.parametrize(
    ("stages", "settings"),
    [
        ([sized(16, 100, 1), sized(16, 20, 1)], {}),  # the first step tries it
        (STAGES[::2], {"try_largest": False}),
    ],
)
def test_no_trial_where_none_is_needed(
    root: Path, monkeypatch: pytest.MonkeyPatch, stages: list[PlannedStage], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(dry_run.DryRun, "step", lambda self: pytest.fail("a trial"))
    run(root, [ProgressiveResizing(stages, **settings)], max_epochs=sum(stage.epochs for stage in stages))


def test_no_trial_of_one_batch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run.DryRun, "step", lambda self: pytest.fail("a trial"))
    _, _, watch = run(root, [ProgressiveResizing(STAGES)], fast_dev_run=True)
    assert watch.sizes == [(0, 8, 32)]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_stage_that_does_not_fit_is_reported_before_the_first_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def exhausted(self: Any, batch: Any, batch_idx: int) -> Any:
        raise error

    monkeypatch.setattr(PooledClassifier, "training_step", exhausted)
    resizing = ProgressiveResizing(STAGES)
    with pytest.raises(
        StageOutOfMemoryError, match=r"stage 3/3 \(16 px, batch 16, 2 epochs, lr x 0.25, strength x 0.5\), tried"
    ) as raised:
        run(root, [resizing])
    assert len(str(raised.value).splitlines()) == 1
    assert resizing.memory_hint().startswith(
        "give stage 3 of ProgressiveResizing (16 px, batch 16) a batch_size of 8 or less, or a smaller size"
    )


def test_another_error_of_the_trial_is_not_taken_for_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, batch: Any, batch_idx: int) -> Any:
        raise RuntimeError("kernel size can't be greater than input size")

    monkeypatch.setattr(PooledClassifier, "training_step", broken)
    with pytest.raises(RuntimeError, match="kernel size"):
        run(root, [ProgressiveResizing(STAGES)])


# ---- what it has to do with others ----


def test_the_time_left_counts_the_pixels_of_later_stages(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Second(Pace):
        def measure(self, now: float) -> None:
            self.step_s, self._pauses = 1.0, [0.0]

    monkeypatch.setattr(progress, "Pace", Second)
    run(root, [ProgressiveResizing(STAGES), Progress(every_s=1e-9)], limit_val_batches=0, enable_progress_bar=True)
    times = re.findall(r"epoch (\d)/6 step (\d)/(\d) .*\(run (\S+)\)", capsys.readouterr().out)
    # 4 batches here, 5 of the next epoch, 12 that cost 24 * 144 / (32 * 64) times as much and 18 that cost twice as much
    assert times[0] == ("1", "1", "5", clock_time(4 + 5 + 12 * 1.6875 + 18 * 2))
    assert times[12] == ("3", "3", "6", clock_time(3 + 6 + 18 * 2 / 1.6875))
    assert times[-1] == ("6", "9", "9", "0:00")


@pytest.mark.slow
def test_a_compiled_network_is_compiled_anew_in_each_stage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run has no memory of the shapes before, so the unbroken one forgets them."""
    original, reset, resets = torch.nn.Module.compile, torch._dynamo.reset, []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: original(self, backend="eager"))

    def counted() -> None:
        resets.append(1)
        reset()

    monkeypatch.setattr(torch._dynamo, "reset", counted)
    _, compiled, watch = run(root, [ProgressiveResizing(STAGES)], {"compile": True})
    _, plain, other = run(root, [ProgressiveResizing(STAGES)])
    assert len(resets) == 2
    assert watch.sizes == other.sizes
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], tensor)


# ---- Lightning's own checkpoints ----


def test_a_checkpoint_of_the_last_batch_of_a_stage_goes_on_with_the_next(root: Path, tmp_path: Path) -> None:
    """A ModelCheckpoint of steps saves where ours never do; Lightning would begin stage 2 at its sixth batch."""
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=10, save_weights_only=False)
    _, _, watch = run(root, [ProgressiveResizing(STAGES), saver], enable_checkpointing=True)
    _, _, rest = run(root, [ProgressiveResizing(STAGES)], ckpt_path=tmp_path / "step=10.ckpt")
    assert rest.sizes == watch.sizes[10:]
    assert rest.rates == watch.rates[10:]


# ---- wrong stages ----


@pytest.mark.parametrize(
    ("stages", "settings", "message"),
    [
        (
            STAGES,
            {"max_epochs": 7},
            "the stages have 6 epochs together, but trainer.max_epochs is 7; set --trainer.max_epochs 6, other epochs for the "
            "stages, or stretch: true",
        ),
        (STAGES, {"max_steps": 5}, "trainer.max_steps: the stages .* give the length of the run, leave it out; got 5"),
        (
            STAGES[:2],
            {"max_epochs": 4},
            "size of stage 2: validation and test are at the data's 16 px, so must the last stage be, got 12",
        ),
        (
            STAGES,
            {"val_check_interval": 6},
            "trainer.val_check_interval: at most the 5 batches of an epoch of stage 1, got 6",
        ),
        (STAGES, {"limit_train_batches": 0.1}, "trainer.limit_train_batches: 0.1 of the 5 batches of stage 1 is none"),
        (
            [STAGES[0], sized(16, 200, 4)],
            {"data": {"drop_last": True}},
            "stage 2 of ProgressiveResizing: batch_size 200 is larger than the training set of 130",
        ),
        (
            STAGES,
            {"module": {"schedule": "cosine", "warmup_epochs": 2}},
            "model.warmup_epochs: .*first stage of 2 epochs, got 2",
        ),
    ],
)
def test_refused_before_the_first_step(
    root: Path, stages: list[PlannedStage], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(stages)], **settings)


def test_a_datamodule_that_cannot_resize_is_refused() -> None:
    with pytest.raises(
        MisconfigurationException, match="needs a datamodule with train_size, batch_size, strength, got NoneType"
    ):
        ProgressiveResizing(STAGES).setup(Trainer(accelerator="cpu", logger=False), None, "fit")  # type: ignore[arg-type]


def test_a_loader_that_is_not_as_long_as_the_data_says_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10DataModule, "num_train_batches", lambda self, batch_size=None: 7)
    message = (
        "stage 1 of ProgressiveResizing: the loader has 5 batches, but num_train_batches of CIFAR10DataModule says 7"
    )
    with pytest.raises(MisconfigurationException, match=message):
        run(root, [ProgressiveResizing(STAGES)])
