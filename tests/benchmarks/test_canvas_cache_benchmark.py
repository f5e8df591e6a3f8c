"""Benchmark canvas_cache: its pictures, what it reads of a process, and that a run with a cache has the weights of one without."""

import json
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import canvas_cache
from tests.datamodules.cifar_layout import pixel, write_cifar
from tests.datamodules.pictures import write_classes

TINY = Path(__file__).parent.parent / "conf" / "image_folder_tiny.yaml"


def test_a_larger_set_holds_the_smaller_one(tmp_path: Path) -> None:
    canvas_cache.write_pictures(tmp_path / "all", 6, side=8)
    canvas_cache.link_pictures(tmp_path / "all", tmp_path / "some", 3)
    names = [path.relative_to(tmp_path / "some").as_posix() for path in sorted((tmp_path / "some").rglob("*.jpg"))]
    assert names == ["class_0/000000.jpg", "class_0/000002.jpg", "class_1/000001.jpg"]
    different = {path.read_bytes() for path in (tmp_path / "all").rglob("*.jpg")}
    assert len(different) == 6  # copies would be kept in one split


def test_cifar10_is_written_as_files(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py")
    canvas_cache.write_cifar10(tmp_path, tmp_path / "files", 12)
    files = sorted((tmp_path / "files").rglob("*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in files[:3]] == ["airplane", "automobile", "bird"]
    assert len(files) == 12
    found = np.asarray(Image.open(files[11]))
    assert found.shape == (4, 4, 3)
    assert found[2, 3, 1] == pixel(11, 1, 2, 3)
    with pytest.raises(FileNotFoundError, match=r"--cifar10 .*nothing: no cifar-10-batches-py there"):
        canvas_cache.write_cifar10(tmp_path / "nothing", tmp_path / "files", 1)


def test_anonymous_memory_grows_with_what_is_taken() -> None:
    before = canvas_cache.anonymous_kb(os.getpid())
    if not before:
        pytest.skip("not known on this system")
    with mmap.mmap(
        -1, 40_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    ) as taken:  # pages that no earlier test has left to the process
        taken.write(b"\1" * 40_000_000)
        assert canvas_cache.anonymous_kb(os.getpid()) - before > 30_000
    assert canvas_cache.anonymous_kb(2**22 + 1) == 0  # no such process


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "60"], "--images: enough for a batch of 64 with a tenth held out, got 60"),
        (["--runs"], "--runs needs either --root DIR or --cifar10 DIR"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        canvas_cache.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_whole_runs_have_equal_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "in", {"cat": 11, "dog": 11, "owl": 11}, suffix=".jpg")
    flags = ["--", "--config", str(TINY), "--trainer.max_epochs", "1"]
    canvas_cache.main(["--runs", "--root", str(root), "--json", str(tmp_path / "found.json"), *flags])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["weight_difference"] == 0
    assert {*found["seconds"]} == {"without", "writes", "complete"}
    assert "largest difference of a weight: 0" in capsys.readouterr().out
