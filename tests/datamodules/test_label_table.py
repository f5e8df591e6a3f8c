"""Labels in a table: the forms that people have, how rows find their files, and the messages."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from datamodules import ImageFolderDataModule, TrainedOn
from datamodules.splitting.stratified import strata
from tests.datamodules.pictures import picture

LABELS = ["cat", "dog", "owl"]


def write_images(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of three labels in one folder: number n has label n % 3."""
    return write_images(tmp_path_factory.mktemp("flat"), [f"{n:02}.png" for n in range(30)])


def table(path: Path, header: str, rows: list[str]) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def labelled(root: Path, labels: str, **settings: Any) -> ImageFolderDataModule:
    data = ImageFolderDataModule(root=str(root), labels=labels, image_size=12, batch_size=4, workers=0, **settings)
    data.setup("fit")
    return data


def label_of(data: ImageFolderDataModule, split: Any) -> dict[str, Any]:
    labels = data.splits[split]["label"].tolist()
    return dict(zip([data.files(split)[i] for i in data.splits[split]["index"].tolist()], labels, strict=True))


FORMS = {
    "plain": ("file,label", "{n:02}.png,{label}"),
    "without endings, as Kaggle": ("id,breed", "{n:02},{label}"),
    "folders that are not below the root, as AutoGluon": (",image,label", "{n},some/where/{n:02}.png,{label}"),
    "semicolons": ("Bild;species", "{n:02}.png;{label}"),
    "one column a class, as Roboflow": ("filename, cat, dog, owl", "{n:02}.png, {cat}, {dog}, {owl}"),
    "more columns": ("age,path,label,split_of_someone", "3,./{n:02}.png,{label},a"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_tables(form: str, flat: Path, tmp_path: Path) -> None:
    header, row = FORMS[form]
    cells = [{"n": n, "label": LABELS[n % 3], **{k: int(LABELS[n % 3] == k) for k in LABELS}} for n in range(30)]
    data = labelled(flat, table(tmp_path / "t.csv", header, [row.format(**one) for one in cells]))
    assert data.class_names == LABELS
    data.setup("test")
    found = {name: k for split in ("train", "val", "test") for name, k in label_of(data, split).items()}
    assert found == {f"{n:02}.png": n % 3 for n in range(30)}
    assert len(data.splits["val"]["label"]) == len(data.splits["test"]["label"]) == 3
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].tolist() == [found[data.files("train")[i]] for i in batch["index"].tolist()]


def test_columns_by_setting(flat: Path, tmp_path: Path, caplog: Any) -> None:
    parts = ["train", "train", "train", "Valid", "test"]
    rows = [f"{n},{n:02}.png,{LABELS[n % 3]},{parts[n % 5]}" for n in range(30)]
    path = table(tmp_path / "t.csv", "label,where,what,part", rows)
    data = labelled(flat, path, file_column="where", label_column="what", split_column="part")
    assert "looks like a split" not in caplog.text
    labelled(flat, path, file_column="where", label_column="what")
    assert f"{path}: the column 'part' looks like a split, but is not used; give --data.split_column part" in (
        caplog.text
    )
    assert label_of(data, "val") == {f"{n:02}.png": n % 3 for n in range(3, 30, 5)}


def test_a_column_of_splits(flat: Path, tmp_path: Path) -> None:
    split = ["train"] * 18 + ["valid"] * 6 + ["TEST"] * 6
    path = table(tmp_path / "t.csv", "file,label,split", [f"{n:02},{LABELS[n % 3]},{split[n]}" for n in range(30)])
    data = labelled(flat, path)
    data.setup("test")
    assert sorted(label_of(data, "train")) == [f"{n:02}.png" for n in range(18)]
    assert sorted(label_of(data, "val")) == [f"{n:02}.png" for n in range(18, 24)]
    assert sorted(label_of(data, "test")) == [f"{n:02}.png" for n in range(24, 30)]


def test_a_table_in_each_folder(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("valid", 3), ("test", 3)):
        write_images(tmp_path / part, [f"{n}.png" for n in range(count)])
        rows = [f"{n}.png,{int(n % 3 == 1)},{int(n % 3 != 1)}" for n in range(count)]
        table(tmp_path / part / "_classes.csv", "filename, zebra, ant", rows)
    data = labelled(tmp_path, "_classes.csv")
    data.setup("test")
    assert (data.class_names, data.labelled_splits) == (["ant", "zebra"], ("train", "val", "test"))
    assert label_of(data, "test") == {"0.png": 0, "1.png": 1, "2.png": 0}


def test_folders_of_splits_with_one_table(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    write_images(tmp_path, [f"{part}/{n}.png" for part in ("train", "test") for n in range(12)])
    path = table(tmp_path / "train.csv", "id,label", [f"train/{n},{LABELS[n % 2]}" for n in range(12)])
    data = labelled(tmp_path, "train.csv")
    assert data.labelled_splits == ("train", "val")
    assert f"{path} names no file of test, so there is no such split" in caplog.text
    assert f"12 of the 24 images in {tmp_path} have no row in {path}; left out" in caplog.text
    with pytest.raises(FileNotFoundError, match="no test/, so there is nothing to test on") as refused:
        data.setup("test")
    advice = f"or train on a part of train/: --data.root {tmp_path}/train --data.labels ../train.csv"
    assert str(refused.value).endswith(advice)
    drawn = labelled(tmp_path / "train", "../train.csv")  # as the message says
    drawn.setup("test")
    assert drawn.labelled_splits == ("train", "val", "test")


def test_a_column_without_test_says_what_to_write(flat: Path, tmp_path: Path) -> None:
    rows = [f"{n:02}.png,{LABELS[n % 2]},{'val' if n > 25 else 'train'}" for n in range(30)]
    data = labelled(flat, table(tmp_path / "t.csv", "file,label,split", rows))
    assert data.labelled_splits == ("train", "val")
    with pytest.raises(FileNotFoundError, match=r"no row of the table is for test.*write test in its column of splits"):
        data.setup("test")


def test_the_table_itself_is_no_file_left_out(tmp_path: Path, caplog: Any) -> None:
    write_images(tmp_path, [f"{n}.png" for n in range(20)])
    path = table(tmp_path / "labels.csv", "file,label", [f"{n}.png,{LABELS[n % 2]}" for n in range(20)])
    with caplog.at_level(logging.INFO):
        labelled(tmp_path, path)
        assert "left out" not in caplog.text
        (tmp_path / "notes.txt").touch()
        labelled(tmp_path, path)
    assert f"left out   1 not an image, in {tmp_path}" in caplog.text


def test_numbers_are_sorted_by_value(flat: Path, tmp_path: Path) -> None:
    data = labelled(flat, table(tmp_path / "t.csv", "file,label", [f"{n:02}.png,{9 + n % 3}" for n in range(30)]))
    assert data.class_names == ["9", "10", "11"]


def test_several_labels(flat: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    own = ["cat;dog", "dog", "owl; cat"]
    data = labelled(flat, table(tmp_path / "t.csv", "file,tags", [f"{n:02}.png,{own[n % 3]}" for n in range(30)]))
    rows = {0: [1, 1, 0], 1: [0, 1, 0], 2: [1, 0, 1]}
    assert all(label == rows[int(name[:2]) % 3] for name, label in label_of(data, "train").items())
    assert "';' divides several labels of an image" in caplog.text
    train = data.splits["train"]["label"]
    assert (train.dtype, data.class_counts.tolist()) == (torch.uint8, train.sum(dim=0).tolist())
    batch = next(iter(data.train_dataloader()))
    assert batch["label"].shape == (4, 3)
    # in evaluation the columns follow the checkpoint's order of classes
    record = TrainedOn(**data.training_record())._replace(class_names=["owl", "dog", "cat", "yak"], keys={})
    other = ImageFolderDataModule(root=str(flat), labels=str(tmp_path / "t.csv"), image_size=12, workers=0)
    other.match(record)
    other.setup("validate")
    moved = {0: [0, 1, 1, 0], 1: [0, 1, 0, 0], 2: [1, 0, 1, 0]}
    assert all(label == moved[int(name[:2]) % 3] for name, label in label_of(other, "val").items())


def test_labels_by_separator_and_none(flat: Path, tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "file,tags", [f"{n:02}.png,{('big red', 'red', '')[n % 3]}" for n in range(30)])
    data = labelled(flat, path, label_separator=" ")
    assert data.class_names == ["big", "red"]
    assert label_of(data, "val") == {
        name: [[1, 1], [0, 1], [0, 0]][int(name[:2]) % 3] for name in label_of(data, "val")
    }
    whole = table(tmp_path / "w.csv", "file,tags", [f"{n:02}.png,{('big;red', 'red')[n % 2]}" for n in range(30)])
    assert labelled(flat, whole, label_separator="none").class_names == ["big;red", "red"]


def test_an_empty_cell_names_the_way_to_images_without_a_label(flat: Path, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    path = table(tmp_path / "t.csv", "file,tags", [f"{n:02}.png,{('cat|dog', 'cat', '')[n % 3]}" for n in range(30)])
    with pytest.raises(MisconfigurationException, match=r"may have no label at all, give --data.label_separator '\|'$"):
        labelled(flat, path)
    assert "divides several labels" not in caplog.text  # it was said once for each part of the program that asked
    assert labelled(flat, path, label_separator="|").class_names == ["cat", "dog"]


def test_a_table_beside_the_folder_is_named(tmp_path: Path) -> None:
    root = write_images(tmp_path / "train", ["1.png", "2.png"])
    path = table(tmp_path / "labels.csv", "file,label", ["1.png,cat", "2.png,dog"])
    with pytest.raises(MisconfigurationException) as error:
        labelled(root, "labels.csv")
    assert str(error.value).endswith(f"but there is {path}; give --data.labels {path}")


def test_rare_labels_are_divided_first() -> None:
    labels = torch.zeros(40, 2, dtype=torch.uint8)
    labels[:, 0], labels[:8, 1] = 1, 1
    assert strata(labels).tolist() == [1] * 8 + [0] * 32
    assert strata(torch.tensor([2, 0])).tolist() == [2, 0]


PLAIN = [f"{n:02}.png,{LABELS[n % 3]}" for n in range(30)]
WRONG: dict[str, tuple[str, list[str], dict[str, Any], str]] = {
    "files": (
        "file,label", [*PLAIN, "05_.png,cat", "x.png,dog"], {},
        "2 of its 32 rows name no image in {root}, the first in line 32: '05_.png' (nearest name: '05.png'); correct or remove",
    ),
    "no file": ("file,label", ["a.jpg,cat", "b.jpg,dog"], {}, "is --data.root the folder of the images?"),
    "two labels": ("file,label", [*PLAIN, "03,dog"], {}, "line 32: '03' is 'dog' here and 'cat' in line 5; keep one row"),
    "empty": ("file,label", [*PLAIN[:5], "05.png, "], {}, "line 7: the column 'label' is empty; give a label or remove the row"),
    "no name": ("file,label", [*PLAIN[:5], ",cat"], {}, "line 7: the column 'file' is empty; it names the image"),
    "label column": (
        "file,labels", PLAIN, {"label_column": "lables"},
        "--data.label_column: there is no column 'lables' (did you mean 'labels'?); its columns are file, labels",
    ),
    "file column": ("file,label", PLAIN, {"file_column": "flie"},
             "--data.file_column: there is no column 'flie' (did you mean 'file'?)"),
    "which": (
        "file,age,sex,red,wet", [f"{n:02}.png,{n},m,0,1" for n in range(9)], {},
        "which column holds the label? its columns are age, sex, red, wet; give --data.label_column NAME, or the columns of the "
        "classes, as in '[red, wet]'",
    ),
    "flag": ("file,a,b", ["00.png,0,1", "01.png,2,0"], {"label_column": ["a", "b"]},
             "line 3: column 'a' holds '2', a column of a class holds 0 or 1"),
    "split": ("file,label,split", ["00.png,a,train", "01.png,b,dev"], {},
              "line 3: column 'split' holds 'dev', expected train, val or test"),
    "columns": ("file,label", [*PLAIN, "03.png,cat,dog"], {}, "line 32: 3 values, but there are 2 columns: file, label"),
    "header": ("00.png,cat", PLAIN[1:], {}, "its first line is '00.png', ..; it must name the columns, as in file,label"),
    "row": ("file,label", [], {}, "has no row; expected a line with the names of the columns"),
    "too few": ("file,a,b", [f"{n:02}.png,1,0" for n in range(30)], {}, "1 class has no training sample: 'b' (1)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_messages(case: str, flat: Path, tmp_path: Path) -> None:
    header, rows, settings, text = WRONG[case]
    with pytest.raises(MisconfigurationException) as error:
        labelled(flat, table(tmp_path / "t.csv", header, rows), **settings)
    assert text.format(root=flat) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_error_says_once_what_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("datamodules"), "propagate", True)
    caplog.set_level(logging.INFO)
    root = write_images(tmp_path, ["1.png", "2.png"])
    (root / "notes.txt").touch()
    data = ImageFolderDataModule(root=str(root), labels=table(root / "t.csv", "file,label", ["1,cat", "3,dog"]))
    for _ in range(3):  # the command line asks for classes and size, one after the other
        with pytest.raises(MisconfigurationException, match="1 of its 2 rows name no image"):
            data.class_names  # noqa: B018
    assert caplog.messages == [f"left out   1 not an image, in {root}"]


def test_a_name_in_two_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["a/1.png", "b/1.png", "b/2.png"])
    path = table(tmp_path / "t.csv", "file,label", ["1,cat", "2,dog"])
    with pytest.raises(
        MisconfigurationException, match=r"line 2: '1' is the name of 2 images: a/1.png, b/1.png; give the path"
    ):
        labelled(root, path)
    path = table(tmp_path / "t.csv", "file,label", ["x/1.png,cat", "y/1.png,dog"])
    with pytest.raises(MisconfigurationException, match=r"lines 2 and 3: 'x/1.png' and 'y/1.png' fit the same image"):
        labelled(write_images(tmp_path / "one", ["1.png"]), path)


def test_no_such_table(flat: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"--data.labels lables.csv: no such file, also not in "):
        labelled(flat, "lables.csv")
    with pytest.raises(ValueError, match="label_column is a column of the table of labels, which is not given"):
        ImageFolderDataModule(label_column="x")


def test_a_class_that_training_does_not_have(tmp_path: Path) -> None:
    root = write_images(tmp_path, [f"{n}.png" for n in range(9)])
    rows = [f"{n}.png,{LABELS[n % 2]},{'train' if n < 8 else 'val'}" for n in range(8)] + ["8.png,dgo,val"]
    with pytest.raises(
        MisconfigurationException, match=r"there is no class 'dgo' in training \(did you mean 'dog'\?\)"
    ):
        labelled(root, table(tmp_path / "t.csv", "file,label,split", rows))


def test_images_without_classes_point_to_the_table(flat: Path, tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", ["1.png", "2.png"])
    table(root / "labels.csv", "file,label", ["1.png,cat"])
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no class folder in it.*; to read labels from a table: --data.labels labels.csv",
    ):
        ImageFolderDataModule(root=str(root)).setup("fit")


def test_one_folder_of_images_next_to_its_table_points_to_the_table(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png"])  # the folder above has classes, but is not meant
    root = write_images(tmp_path / "data", ["pics/1.png", "pics/2.png"])
    for name in ("contra.csv", "labels.csv"):
        table(root / name, "file,label", ["1.png,cat"])
    wanted = r"only folder 'pics' has 2 images.*CLASS/IMAGE.*; to read labels from a table: --data.labels labels.csv \(or con"
    with pytest.raises(FileNotFoundError, match=wanted) as caught:
        ImageFolderDataModule(root=str(root)).setup("fit")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line"), [("Datei,Größe\n00.png,1\n", ""), ("file,label\n00.png,cat\n01.png,Vögel\n", ", line 3")]
)
def test_a_table_in_another_encoding(flat: Path, tmp_path: Path, text: str, line: str) -> None:
    """The name of a class with a byte that is no letter would stay in the run for ever."""
    (tmp_path / "t.csv").write_bytes(text.encode("cp1252"))
    with pytest.raises(MisconfigurationException) as caught:
        labelled(flat, str(tmp_path / "t.csv"))
    assert f"{tmp_path / 't.csv'}{line}: is not in UTF-8; save it as UTF-8 (Excel: CSV UTF-8; " in str(caught.value)
