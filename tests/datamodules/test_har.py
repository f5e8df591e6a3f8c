"""`HARDataModule` on valid data: reading, splits by subject, normalisation, order, checkpoint state, and the real recordings."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import HARDataModule
from datamodules.in_memory import seeded_generator
from datamodules.signals.har_generator import ACTIVITIES
from datamodules.signals.har_reader import FOLDER, SIGNALS
from tests.datamodules.har_recordings import SUBJECTS, TEST_SUBJECTS, signal_file, write_recordings

REAL = Path(__file__).resolve().parents[2] / "data" / "har" / FOLDER


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated data set; tests must not change it."""
    return write_recordings(tmp_path_factory.mktemp("har"))


@pytest.fixture
def folder(generated: Path, tmp_path: Path) -> Path:
    """A copy of the generated data set that a test may change."""
    return Path(shutil.copytree(generated, tmp_path / FOLDER))


def independent(folder: Path, part: str, name: str) -> list[list[float]]:
    """Read the rows of a signal file without numpy."""
    return [[float(word) for word in line.split()] for line in signal_file(folder, part, name).read_text().splitlines()]


def test_windows_labels_and_subjects_match_the_files(generated: Path) -> None:
    data = HARDataModule(root=str(generated))
    assert (data.class_names, data.num_classes) == (list(ACTIVITIES), 6)
    assert (data.signal_names[0], data.signal_names[3:5]) == ("body_acc_x", ["body_gyro_x", "body_gyro_y"])
    for part, rows in (("train", 6 * 18), ("test", 2 * 18)):
        windows = data.read_part(part)  # type: ignore[arg-type]
        assert (windows["signal"].shape, windows["signal"].dtype) == ((rows, 9, 128), torch.float32)
        for place in (0, 4, 8):
            assert (
                windows["signal"][:, place].tolist()
                == np.array(independent(generated, part, SIGNALS[place]), dtype=np.float32).tolist()
            )
        for name, numbers in (("subject", windows["subject"]), ("y", windows["label"] + 1)):
            assert numbers.tolist() == [
                int(line) for line in (generated / part / f"{name}_{part}.txt").read_text().split()
            ]
        assert windows["index"].tolist() == list(range(rows))


@pytest.mark.parametrize(
    "settings",
    [{}, {"val_subjects": 2}, {"val_subjects": 0.5, "split_seed": 3}, {"val_subject_id": 5}],
    ids=["default", "count", "share", "one out"],
)
def test_no_subject_and_no_window_is_in_two_splits(generated: Path, settings: dict[str, Any]) -> None:
    data = HARDataModule(root=str(generated), batch_size=8, **settings)
    data.setup("fit")
    assert set(data.splits) == {"train", "val"}
    data.setup("test")
    subjects = data.subjects
    assert sorted(number for numbers in subjects.values() for number in numbers) == list(SUBJECTS)  # each once
    assert subjects["test"] == list(TEST_SUBJECTS)
    assert sorted(torch.cat([data.splits[name]["index"] for name in ("train", "val")]).tolist()) == list(range(108))
    rows = [set(data.splits[name]["signal"].flatten(1).numpy().view("V4608").ravel().tolist()) for name in subjects]
    assert [len(rows[i] & rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))] == [0, 0, 0]
    assert sum(map(len, rows)) == 144


def test_held_out_subjects() -> None:
    from datamodules.signals.windows import held_out_subjects

    known = [5, 1, 3, 30, 7, 3]
    order = torch.randperm(5, generator=seeded_generator("subjects", "val", 4)).tolist()
    for wanted, count in ((1, 1), (3, 3), (0.4, 2), (0.5, 2), (0.01, 1), (0.7, 4)):
        expected = sorted([1, 3, 5, 7, 30][place] for place in order[:count])
        assert held_out_subjects(known, wanted, seed=4, name="val") == expected
    assert len({tuple(held_out_subjects(range(21), 4, seed=seed, name="val")) for seed in range(20)}) > 15
    assert held_out_subjects(range(21), 4, seed=0, name="val") != held_out_subjects(range(21), 4, seed=0, name="test")


def test_fit_opens_no_file_of_the_test_part(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    data = HARDataModule(root=str(folder), batch_size=8)
    data.setup("fit")
    data.setup("validate")
    assert data.class_counts.tolist() == [15] * 6  # five subjects, three windows each
    with pytest.raises(
        FileNotFoundError, match=r"^test/y_test\.txt, .*test/Inertial Signals/total_acc_z_test\.txt missing in "
    ):
        data.setup("test")


def test_testing_needs_no_training_files(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    data = HARDataModule(root=str(folder))
    data.setup("test")
    assert data.subjects == {"test": list(TEST_SUBJECTS)}
    with pytest.raises(
        MisconfigurationException, match="no training data to compute the normalisation from; evaluate a checkpoint"
    ):
        _ = data.signal_scale
    data.load_state_dict({"mean": [0.5] * 9, "std": [2.0] * 9, "train": [1], "val": [3]})
    batch = next(iter(data.test_dataloader()))
    assert torch.equal(data._normalize(batch)["signal"], (batch["signal"] - 0.5) / 2)


def test_normalisation_uses_only_the_training_subjects(generated: Path) -> None:
    data = HARDataModule(root=str(generated), batch_size=8, val_subjects=2)
    data.setup("fit")
    subject = np.loadtxt(generated / "train" / "subject_train.txt")
    of_training = np.isin(subject, data.subjects["train"])
    for place, name in enumerate(SIGNALS):
        values = np.array(independent(generated, "train", name))[of_training]
        assert data.signal_scale[0][place].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-7)
        assert data.signal_scale[1][place].item() == pytest.approx(values.std(), rel=1e-5)
    train = data._normalize(dict(data.splits["train"]))["signal"]
    torch.testing.assert_close(train.mean((0, 2)), torch.zeros(9), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2), correction=0), torch.ones(9), atol=1e-5, rtol=0)


def test_order_depends_on_seed_and_epoch(generated: Path) -> None:
    data = HARDataModule(root=str(generated), batch_size=16, drop_last=False)
    data.setup("fit")

    def order(seed: int, epoch: int) -> list[int]:
        data.seed = seed
        loader = data.train_dataloader()
        loader.position = lambda: (epoch, 0)
        return torch.cat([batch["index"] for batch in loader]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    batch = next(iter(data.train_dataloader()))
    whole = data.read_part("train")
    for name in ("signal", "label", "subject"):
        assert torch.equal(batch[name], whole[name][batch["index"]])


# ---- checkpoints ----


def test_a_checkpoint_keeps_normalisation_and_subjects(generated: Path) -> None:
    first, same, other = (HARDataModule(root=str(generated), batch_size=8, split_seed=seed) for seed in (0, 0, 1))
    for data in (first, same, other):
        data.setup("fit")
    state = first.state_dict()
    assert torch.load(_saved(state), weights_only=True) == state
    assert {name: state[name] for name in ("train", "val")} == first.subjects
    same.load_state_dict(state)
    assert torch.equal(torch.stack(same.signal_scale), torch.stack(first.signal_scale))
    assert other.subjects != first.subjects
    with pytest.raises(
        MisconfigurationException,
        match=r"trained on the subjects 1, .*, but these settings train on 1, .*split_seed as they were",
    ):
        other.load_state_dict(state)
    with pytest.raises(MisconfigurationException, match="training signals differ in mean or standard deviation"):
        same.load_state_dict({**state, "mean": [mean + 0.01 for mean in state["mean"]]})


def _saved(state: dict[str, object]) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


# ---- the real recordings ----


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} does not exist")
def test_real_recordings() -> None:
    data = HARDataModule(root=str(REAL))
    data.setup("fit")
    data.setup("test")
    assert [len(data.splits[name]["label"]) for name in ("train", "val", "test")] == [6082, 1333, 2996]
    assert data.subjects["test"] == [2, 4, 9, 10, 12, 13, 18, 20, 24]
    assert sorted(data.subjects["train"] + data.subjects["val"]) == sorted(
        set(range(1, 31)) - set(data.subjects["test"])
    )
    assert torch.cat([data.splits[name]["label"] for name in ("train", "val")]).bincount().tolist() == [
        1226,
        1073,
        987,
        1293,
        1423,
        1413,
    ]
    subject = np.array((REAL / "train" / "subject_train.txt").read_text().split(), dtype=int)
    for place in (0, 6):
        text = signal_file(REAL, "train", SIGNALS[place]).read_bytes().split()
        values = np.array(text).astype(np.float64).reshape(-1, 128)[np.isin(subject, data.subjects["train"])]
        assert data.signal_scale[0][place].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-8)
        assert data.signal_scale[1][place].item() == pytest.approx(values.std(), rel=1e-5)
