"""tools.probe: kNN and linear probe against independent computations, the choice of the best, refusals, and a whole probe."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

import tools.probe.extraction
from features import read_header
from tests.datamodules.pictures import write_classes
from tests.lightning_modules.random_photos import weights_file
from tools.probe.__main__ import main
from tools.probe.backbones import Backbone, Data, backbones_of
from tools.probe.measures import accuracies, knn_votes, linear_probe
from tools.probe.results import Row, choose, ordered
from tools.sweep_heads.logistic_path import logistic_path

OVERLAY = "configs/with/mobilenetv2_features.yaml"


def votes_by_hand(train: Any, label: Any, query: Any, classes: int, k: int, temperature: float) -> NDArray[np.float64]:
    """Sort by similarity, the earlier of equal ones first, and add exp((s - largest) / T) of the first k."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train.double().numpy(), query.double().numpy())]
    found = np.zeros((len(query), classes))
    for row, one in enumerate(unit[1]):
        similarity = unit[0] @ one
        for place in sorted(range(len(train)), key=lambda i: (-round(similarity[i], 6), i))[:k]:
            found[row, label[place]] += np.exp((similarity[place] - similarity.max()) / temperature)
    return found


@pytest.mark.parametrize("k", [1, 4, 7, 60])
def test_votes_equal_a_loop_with_ties(k: int) -> None:
    draw = torch.Generator().manual_seed(1)
    train = torch.randint(0, 2, (60, 4), generator=draw) * 2.0 - 1.0  # cosines are multiples of 1/4, exactly
    label = torch.randint(0, 3, (60,), generator=draw)
    query = train[torch.randint(0, 60, (25,), generator=draw)] * 3.0
    found = knn_votes(train, label, query, 3, k, 0.5)
    assert np.allclose(found.numpy(), votes_by_hand(train, label, query, 3, k, 0.5), rtol=1e-5)
    assert found.dtype == torch.float64


def test_votes_of_a_low_temperature_are_finite() -> None:
    train, label = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0])
    votes = knn_votes(train, label, torch.tensor([[2.0, 1.0]]), 2, 2, 1e-4)
    assert votes.isfinite().all()
    assert votes.argmax(dim=1).tolist() == [1]


def test_votes_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(2)
    train, query = torch.randn(50, 8, generator=draw), torch.randn(13, 8, generator=draw)
    label = torch.arange(50) % 4
    whole = knn_votes(train, label, query, 4, 5)
    monkeypatch.setattr("tools.probe.measures.AT_ONCE", 60)
    assert torch.allclose(knn_votes(train, label, query, 4, 5), whole)
    with pytest.raises(ValueError, match="--k 51: there are 50 training samples; give 1 to 50"):
        knn_votes(train, label, query, 4, 51)


def test_accuracies_by_hand() -> None:
    votes = torch.tensor([[2.0, 1.0], [1.0, 1.0], [0.0, 3.0], [5.0, 4.0]], dtype=torch.float64)
    acc, balanced = accuracies(votes, torch.tensor([0, 0, 0, 1]))  # of equal votes the first class counts
    assert acc == 0.5
    assert balanced == pytest.approx((2 / 3 + 0) / 2)


def test_linear_probe_is_a_minimum_and_chosen_on_validation() -> None:
    draw = torch.Generator().manual_seed(3)
    label, truth = torch.arange(90) % 3, torch.arange(60) % 3
    centres = torch.randn(3, 6, generator=draw)
    train, held = (centres[y] + 1.5 * torch.randn(len(y), 6, generator=draw) for y in (label, truth))
    cs = (1e-3, 1e-2, 1.0)
    best = linear_probe(train, label, held, truth, 3, cs=cs)
    x = train.double()
    p = (x @ best.weight.T + best.bias).softmax(dim=1)
    error = p - torch.nn.functional.one_hot(label, 3)
    assert (best.c * error.T @ x + best.weight).abs().max() < 1e-2 * best.weight.abs().max()
    assert (best.c * error.sum(dim=0)).abs().max() < 1e-2
    each = [held.double() @ one.weight.T + one.bias for one in logistic_path(train, label, 3, cs)]
    assert best.acc == max(float((logits.argmax(dim=1) == truth).double().mean()) for logits in each)
    predicted = (held.double() @ best.weight.T + best.bias).argmax(dim=1)
    assert best.acc == pytest.approx(float((predicted == truth).double().mean()))
    assert best.converged


def test_the_best_is_the_fastest_of_equal_ones() -> None:
    rows = [
        Row("slow", "pretrained", ms_per_image=3.0, linear_acc=0.9, knn_acc=0.5),
        Row("fast", "pretrained", ms_per_image=1.0, linear_acc=0.9, knn_acc=0.6),
        Row("gone", "pretrained", failed="out of memory"),
        Row("worse", "random", ms_per_image=0.1, linear_acc=0.2, knn_acc=0.7),
    ]
    best = choose(rows, "linear_acc")
    assert best is rows[1]
    assert choose(rows, "knn_acc") is rows[3]
    assert choose(rows[2:3], "linear_acc") is None
    assert [row.backbone for row in ordered(rows, "linear_acc")] == ["slow", "fast", "worse", "gone"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("resnet18 resnet18", "--backbones: resnet18 is given twice; give each backbone once"),
        ("resnet18 resnet18.a1_in1k", "--backbones: resnet18 and resnet18.a1_in1k are the same"),
        ("resnet19", "--backbones: timm has no network resnet19, did you mean 'resnet18'?"),
        ("resnet18.in22", "--backbones: timm has no weights resnet18.in22; there are "),
        ("mobilenetv5_base", "timm has no weights of mobilenetv5_base; give --weights mobilenetv5_base=FILE"),
        ("resnet18 --weights resnet18=gone.pt", "--weights resnet18=gone.pt: no such file"),
        ("resnet18 --weights resnet50=a.pt", "--weights resnet50=a.pt: resnet50 is not among --backbones"),
        ("resnet18 --weights resnet18", "--weights resnet18: must be NAME=FILE, with a name of --backbones"),
        (f"mobilenetv2_100 --overlay mobilenetv2_100={OVERLAY}", "give --weights mobilenetv2_100=FILE too"),
        (f"resnet18 --overlay resnet18={OVERLAY}", "its model.backbone is mobilenetv2_100"),
        (
            "mobilenetv2_100 --weights mobilenetv2_100=random --overlay mobilenetv2_100=full/OWN.yaml",
            "OWN.yaml names the weights own.pth; give one of them",
        ),
        ("resnet18 --overlay resnet18=gone.yaml", "--overlay gone.yaml: no such file"),
        ("resnet18 --config gone.yaml", "--config gone.yaml: no such file"),
        ("resnet18 --k 0", "--k: 1 or more neighbours, got 0"),
        ("resnet18 --temperature 0", "--temperature: above 0, got 0"),
        (
            "resnet18 --model.backbone resnet50",
            "--model.backbone: is set for each backbone; the flag for it is --backbones",
        ),
        ("resnet18 --select accuracy", "invalid choice: 'accuracy'"),
        ("resnet18 --output full", "--output full: holds other files"),
    ],
)
def test_refusals_are_one_line(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    (tmp_path / "full" / "OWN.yaml").write_text("model: {init_args: {weights: own.pth}}")
    assert main(["--data.root", "photos", "--backbones", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_each_backbone_has_its_own_size_and_normalisation(tmp_path: Path) -> None:
    base = {"data": {"class_path": "ImageFolderDataModule", "init_args": {"image_size": 100, "mean": [0.1] * 3}}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**base, "trainer": {"precision": "bf16-mixed", "max_epochs": 3}}))
    (tmp_path / "b.yaml").write_text("seed_everything: 7\ndata: {init_args: {eval_share: 1.0}}\n")
    data = Data.of([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")], ["--data.root", "x"])
    made = data.extraction(Backbone("test_vit", "pretrained"), ("train", "val"))
    own = made["data"]["init_args"]
    assert (own["image_size"], own["mean"], own["std"]) == (160, [0.5] * 3, [0.5] * 3)
    assert own["eval_share"] == 1.0
    assert made["seed_everything"] == 7
    assert made["trainer"].keys() == {"precision", "callbacks"}
    assert data.value("root") == "x"
    stacks = Data.of([str(tmp_path / "a.yaml")], ["--data.channels=5"])
    kept = stacks.extraction(Backbone("test_vit", "random"), ("train",))["data"]["init_args"]
    assert (kept["image_size"], kept["mean"]) == (160, [0.1] * 3), "timm's mean has 3 channels"
    assert backbones_of(["test_vit"], ["test_vit=random"], []) == [Backbone("test_vit", "random")]


@pytest.mark.slow
@pytest.mark.draws
def test_a_whole_probe_goes_on_where_it_was_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One backbone with weights, one random, one that cannot take images of this size; a second start extracts nothing."""
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "photos", {"cat": 40, "dog": 30})
    weights = str(weights_file(tmp_path))
    two = ["--weights", f"test_vit={weights}", "test_resnet=random"]
    names = ["--backbones", "test_vit", "test_resnet", "swin_tiny_patch4_window7_224"]
    flags = ["--data.image_size", "32", "--data.batch_size", "8", "--data.workers", "0", "--trainer.accelerator", "cpu"]
    words = ["--data.root", "photos", *names, *two, "swin_tiny_patch4_window7_224=random", "--k", "5", "--test", *flags]
    monkeypatch.setattr(tools.probe.extraction, "SECONDS", 0.0)
    extract = tools.probe.extraction.extract

    def broken(backbone: Backbone, *args: Any) -> Any:
        if backbone.name.startswith("swin"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return extract(backbone, *args)

    with monkeypatch.context() as patch:
        patch.setattr(tools.probe.extraction, "extract", broken)
        assert main(words) == 1
    first = capsys.readouterr().out
    assert "failed     swin_tiny_patch4_window7_224: out of memory (CUDA out of memory)" in first
    output = Path("probes/photos")
    rows = list(csv.DictReader((output / "probe.csv").read_text().splitlines()))
    assert [row["failed"] for row in rows][:2] == ["", ""]
    assert rows[2]["failed"].startswith("out of memory")
    best = rows[0]
    assert (best["best"], rows[1]["best"]) == ("yes", "")
    assert best["test_acc"]
    assert not rows[1]["test_acc"]
    assert {row["image_size"] for row in rows[:2]} == {"32"}
    header = read_header(output / "caches" / "test_vit")
    assert set(header.splits) == {"train", "val"}
    assert {row["backbone"]: row["weights"] for row in rows[:2]} == {
        "test_vit": weights,
        "test_resnet": "random",
    }
    assert (output / "probe.png").stat().st_size > 5_000
    cost = (output / "costs" / "test_vit.json").read_text()
    assert json.loads(cost)["shape"] == [16, 3, 32, 32]
    shards = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = ["--data.root", "photos", *names[:3], *two, "--k", "5", "--test", *flags]
    assert main(again) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == shards
    assert (output / "costs" / "test_vit.json").read_text() == cost
    assert list(csv.DictReader((output / "probe.csv").read_text().splitlines())) == rows[:2]
    capsys.readouterr()
    assert main(["--data.root", "gone", *names[:3], *two, *flags]) == 2
    error = capsys.readouterr().err
    assert "gone" in error
    assert error.count("\n") == 1
    assert main([*again, "--k", "1000"]) == 2
    assert "--k 1000: there are" in capsys.readouterr().err
