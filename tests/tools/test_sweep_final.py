"""Tests of the final run of tools.sweep_heads: its overlay, its command, and the refusal of other data than that of the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cli import main as run
from datamodules import ImageFolderDataModule
from features import Header
from tests.datamodules.pictures import picture
from tests.features.caches import identity
from tools.sweep_heads.final import SHARED, final_command, final_overlay

LABELS = ("1e5", "Schaden", "null")  # two of them are other values for YAML if they are not quoted


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with 60 images in two subfolders, which are other classes than those of its table, and tables beside them."""
    root = tmp_path_factory.mktemp("pictures")
    names = [f"{'ab'[n % 2]}/{n:02}.png" for n in range(60)]
    for n, name in enumerate(names):
        (root / name).parent.mkdir(exist_ok=True)
        picture(n).save(root / name)
    rows = [f"{name},{LABELS[n % 3]},{LABELS[n % 2]},{n // 3}" for n, name in enumerate(names)]
    (root / "labels.csv").write_text("\n".join(["file,Schaden,other,road", *rows]) + "\n")
    (root / "changed.csv").write_text(
        "\n".join(["file,Schaden,other,road", *rows[:-1], f"{names[-1]},{LABELS[0]},{LABELS[0]},99"]) + "\n"
    )
    return root


def tables(root: Path, labels: str = "labels.csv", groups: str = "labels.csv") -> dict[str, str]:
    return {"labels": str(root / labels), "label_column": "Schaden", "groups": str(root / groups)}


def header_of(data: ImageFolderDataModule, **changes: Any) -> Header:
    about = identity(class_names=tuple(data.class_names), split=dict(data.split_settings), **changes)
    return Header(about, {}, {"pretrained": "vit_tiny"})


def overlay(header: Header) -> dict[str, Any]:
    text = final_overlay({"lr": 1e-3}, dict.fromkeys(SHARED), 8, 1, header)
    assert text is not None
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def fitted(settings: dict[str, Any], **changes: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(**{**settings, "workers": 0, **changes})
    data.setup("fit")
    return data


def test_command_names_the_tables_of_the_cache(pictures: Path) -> None:
    data = ImageFolderDataModule(str(pictures), **tables(pictures), group_column="road")  # type: ignore[arg-type]
    command, _, meanings = final_command(Path("final.yaml"), header_of(data)).partition("   (")
    assert command.endswith("final.yaml --data.root FOLDER --data.labels TABLE.csv --data.groups GROUPS.csv")
    assert "TABLE.csv: the table of labels it was made with" in meanings
    assert "GROUPS.csv: the table of groups it was made with" in meanings
    assert "--data.label_column" in meanings
    plain = final_command(Path("final.yaml"), header_of(ImageFolderDataModule(str(pictures))))
    assert plain.endswith("--data.root FOLDER   (FOLDER: the images that the cache was made from)")


def test_other_data_than_that_of_the_cache_is_refused(pictures: Path) -> None:
    root, own = str(pictures), tables(pictures)
    data = ImageFolderDataModule(root, **own, group_column="road", split_seed=3)  # type: ignore[arg-type]
    settings = {**overlay(header_of(data))["data"]["init_args"], "root": root}
    assert (settings["group_column"], settings["split_seed"]) == ("road", 3)
    assert fitted(settings, **own).split_settings == data.split_settings
    with pytest.raises(ValueError, match="groups and group_column must be set together"):
        fitted(settings, **{**own, "groups": None})
    for changes, message in (
        (
            {"labels": None, "label_column": None},
            "--data.labels is not given, but the cache was made with a table of labels",
        ),
        ({"labels": str(pictures / "changed.csv")}, r"the table of labels \(--data.labels\) has another content"),
        ({"groups": str(pictures / "changed.csv")}, r"the table of groups \(--data.groups\) has another content"),
        ({"label_column": "other"}, "the classes are .*1e5.*, but the cache has .*null"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            fitted(settings, **{**own, **changes})
        fitted(settings, **{**own, **changes, "expected": None})
    folders = {**overlay(header_of(ImageFolderDataModule(root)))["data"]["init_args"], "root": root}
    fitted(folders)
    with pytest.raises(MisconfigurationException, match=r"--data\.labels is given, but the cache was made without"):
        fitted(folders, labels=own["labels"], label_column="Schaden")


def test_cache_of_shards_expects_only_classes(pictures: Path) -> None:
    about = identity(class_names=("a", "b"), split={"val_fraction": 0.1, "test_fraction": 0.1})
    settings = overlay(Header(about, {}, None))["data"]["init_args"]
    assert [*settings["expected"]] == ["class_names"]
    fitted(settings, root=str(pictures))


def test_unknown_expectation_is_refused() -> None:
    with pytest.raises(ValueError, match="expected holds 'views' but can hold only class_names, labels and groups"):
        ImageFolderDataModule(expected={"views": "2"})


@pytest.mark.slow
def test_the_command_is_refused_in_one_line(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ImageFolderDataModule(str(pictures), labels=str(pictures / "labels.csv"), label_column="Schaden")
    content = overlay(header_of(data))["data"]
    (tmp_path / "final.yaml").write_text(yaml.safe_dump({"data": content}, sort_keys=False))
    words = ["fit", "--config", "configs/cascade_train.yaml", "--config", str(tmp_path / "final.yaml")]
    words += ["--data.root", str(pictures), "--model.backbone", "test_vit", "--model.pretrained", "false"]
    words += ["--data.workers", "0", "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]
    assert run(words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--data.labels is not given, but the cache was made with a table of labels" in error
