"""Tests of tools/report: class metrics against scikit-learn, finished and incomplete runs, Markdown and self-contained HTML."""

import base64
import csv
import doctest
import html
import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import classification_report

from foundation.durations import in_words
from tools.report import page as report_page
from tools.report import run as report_run
from tools.report import sections as report_sections
from tools.report.__main__ import main, write_report
from tools.report.page import Code, Picture, Section, Table, Text, to_html, to_markdown
from tools.report.run import class_report, epoch_seconds, read_confusion, read_run
from tools.report.sections import number, speed

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hand-written run folder of a fit of two epochs and an evaluation; each plot is replaced by four pixels."""
    monkeypatch.setattr(report_sections, "render", lambda figure: np.zeros((2, 2, 3), np.uint8))
    folder = tmp_path / "runs" / "one"
    (folder / "plots").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(
        "seed_everything: 3\ntrainer: {max_epochs: 2}\n"
        "model: {class_path: lightning_modules.ImageClassifier, init_args: {lr: 0.1}}\n"
        "data: {class_path: datamodules.DigitsDataModule}\n"
    )
    (folder / "metrics.csv").write_text(
        "epoch,step,train/loss,val/acc,val/iou,speed/images_per_s,memory/gb\n"
        "1,10,2.0,0.5,0.25,100,1.5\n2,20,1.0,0.75,0.125,300,2.5\n"
    )
    (folder / "train.log").write_text(
        "2026-11-21 10:00:10 epoch 1/2 train/loss 2 \n2026-11-21 10:00:13 note\n2026-11-21 10:00:25 epoch 2/2 train/loss 1 \n"
    )
    content: dict[str, object] = {"total_epochs": 2, "time": {"seconds": 90.0, "finished": "2026-11-21 10:00:30"}}
    content["best_metrics"] = {"val/acc": {"value": 0.75, "epoch": 2}, "val/iou": {"value": 0.25, "epoch": 1}}
    (folder / "training_summary.json").write_text(json.dumps(content))
    (folder / "environment.json").write_text(
        json.dumps(
            {
                "command": ["main.py", "fit", "--config", "a b.yaml"],
                "git_revision": "abc123",
                "git_dirty": True,
                "device": "cuda: H",
                "versions": {"torch": "2.15"},
            }
        )
    )
    (folder / "checkpoints" / "best.json").write_text(
        json.dumps({"metric": "val/acc", "value": 0.75, "epoch": 2, "weights": "ema"})
    )
    (folder / "test_metrics.json").write_text(
        json.dumps({"checkpoint": "best.ckpt", "epoch": 2, "weights": "ema", "metrics": {"test/acc": 0.875}})
    )
    write_csv(
        folder / "confusion_test.csv",
        [("true", "predicted", "count"), ("a|b", "a|b", 3), ("a|b", "<dog>", 1), ("<dog>", "<dog>", 4)],
    )
    write_csv(folder / "per_class_test.csv", [("class", "n"), ("a|b", 4), ("<dog>", 4), ("none", 0)])
    write_csv(folder / "exit_test.csv", [("class", "samples", "coverage"), ("all", 8, 0.5)])
    for name in ("reliability_test", "ternary_shares", "curves"):
        (folder / "plots" / f"{name}.png").write_bytes(PNG)
    return folder


def write_csv(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


class Links(html.parser.HTMLParser):
    """Collects ids, links, tags and the resources that a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found["href"] or ""] if "href" in found else []
        self.loaded += [found["src"] or ""] if "src" in found else []

    def handle_data(self, data: str) -> None:
        self.text += data


# ---- metrics and files ----


@pytest.mark.parametrize("module", [report_page, report_run, report_sections])
def test_doctests(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted
    assert not result.failed


def test_class_report_equals_scikit_learn() -> None:
    random = np.random.default_rng(0)
    true, taken = random.integers(0, 5, 300), random.integers(0, 6, 300)
    counts = torch.zeros(7, 7, dtype=torch.int64)  # class 5 has no samples, class 6 is never predicted either
    for one, other in zip(true, taken, strict=True):
        counts[one, other] += 1
    names = [f"c{k}" for k in range(7)]
    expected = classification_report(
        true, taken, labels=range(7), target_names=names, output_dict=True, zero_division=0
    )
    labels = {"mean of the classes": "macro avg", "weighted by support": "weighted avg"}
    found = class_report(counts, names)
    assert len(found) == 9
    for row in found:
        metrics = expected[labels.get(row.name, row.name)]
        wanted = [metrics[name] for name in ("precision", "recall", "f1-score", "support")]
        assert list(row[1:]) == pytest.approx(wanted, abs=1e-12)


def test_confusion_has_order_and_empty_classes_of_the_class_table(run: Path) -> None:
    found = read_confusion(run, "test")
    assert found is not None
    counts, names = found
    assert names == ["a|b", "<dog>", "none"]
    assert counts.tolist() == [[3, 1, 0], [0, 4, 0], [0, 0, 0]]
    (run / "per_class_test.csv").unlink()
    found = read_confusion(run, "test")
    assert found is not None
    assert found[1] == ["<dog>", "a|b"]
    assert read_confusion(run, "validate") is None


def test_epoch_times_leave_out_the_gap_before_a_resume(run: Path) -> None:
    with (run / "train.log").open("a") as file:
        file.write(
            "2026-11-21 12:00:00 resuming last.ckpt\n2026-11-21 12:00:20 epoch 3/5 x\n2026-11-21 12:00:31 epoch 4/? x\n"
        )
    assert epoch_seconds(read_run(run)) == [15.0, 11.0]


def test_speed_is_the_median_with_lowest_and_highest(run: Path) -> None:
    table = speed(read_run(run)).blocks[0]
    assert isinstance(table, Table)
    assert ["images per second", "200", "100", "300"] in [list(row) for row in table.rows]
    assert ["peak memory (GB)", "2", "1.5", "2.5"] in [list(row) for row in table.rows]


def test_format_of_numbers_and_durations() -> None:
    assert [number(True), number(float("nan")), number(123456)] == ["True", "nan", "123,456"]
    assert in_words(59.96) == "60.0 s"


# ---- the page ----


def test_markdown_syntax_in_names_is_escaped() -> None:
    sections = [
        Section(
            "One: 1", [Text("a *b*\n<c>"), Table(["n", "k"], [["1,5 %", "x|y"]], fold="more"), Code("```\n", "yaml")]
        )
    ]
    text = to_markdown("T", [*sections, Section("Two", [Picture("p.png", "c")])])
    assert text == (
        "# T\n\n- [One: 1](#one-1)\n- [Two](#two)\n\n## One: 1\n\na \\*b\\* \\<c\\>\n\n"
        "<details>\n<summary>more</summary>\n\n| n | k |\n| ---: | --- |\n| 1,5 % | x\\|y |\n\n</details>\n\n"
        "````yaml\n```\n````\n\n## Two\n\n![c](p.png)\n"
    )


def test_html_is_self_contained_and_its_contents_link_to_headings(run: Path) -> None:
    page = write_report(run)
    assert page == run / "report" / "report.html"
    text = page.read_text()
    found = Links(text)
    tops = [link.removeprefix("#") for link in found.links]
    assert {*tops} <= {*found.ids}
    assert len(tops) >= 7
    assert len(found.loaded) == 4  # curves, confusion, reliability, ternary_shares
    assert all(source.startswith("data:image/png;base64,") for source in found.loaded)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert "<dog>" in found.text
    assert "dog" not in found.tags
    assert base64.b64encode(PNG).decode() in text


def test_content_of_the_report(run: Path) -> None:
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    assert "| state | finished |" in text
    assert "| val/iou | 0.25 | 1 | 0.125 |" in text  # an unknown metric: best value, its epoch, last value
    assert "| test of best.ckpt | test/acc 0.875 |" in text
    assert "| a\\|b | 1.0000 | 0.7500 | 0.8571 | 4 |" in text
    assert "| \\<dog\\> | 0.8000 | 1.0000 | 0.8889 | 4 |" in text
    assert "| all | 8 | 0.5 |" in text  # exit_test.csv
    assert "python main.py fit --config 'a b.yaml'" in text
    assert "abc123 with uncommitted changes" in text
    assert "seed_everything: 3" in text
    assert "--resume" not in text
    assert "Each memory value is the peak so far, of the device's tensors." in text
    for name in re.findall(r"!\[[^]]*\]\((.*?)\)", text):
        assert (run / "report" / name).read_bytes()[:4] == b"\x89PNG"


def test_results_of_an_earlier_best_checkpoint_are_said(run: Path) -> None:
    path = run / "test_metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "epoch": 1, "step": 1}))
    best = run / "checkpoints" / "best.json"
    best.write_text(json.dumps({**json.loads(best.read_text()), "epoch": 2, "step": 20}))
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    assert "| test of an earlier best.ckpt (epoch 1, now 2) | test/acc 0.875 |" in text
    assert "These results are of an earlier best.ckpt (epoch 1, now 2): evaluate it again." in text


def test_resumed_run_is_not_finished(run: Path) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("3,30,0.5,0.875,0.1,300,2.5\n")
    (run / "config.resume-1.yaml").write_text("trainer: {max_epochs: 5}\n")
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    assert "not finished" in text
    assert "| epochs | 3 of 5 |" in text
    assert "| val/acc | 0.875 | 3 | 0.875 |" in text  # from metrics.csv, because the summary is older
    assert f"--resume {run}" in text
    assert "config.resume-1.yaml" in text
    first, then = (line for line in text.splitlines() if "NEW" in line)
    assert first.startswith(
        f"python main.py fit --config {run}/config.yaml --run_dir NEW        # from scratch: 2 epochs"
    )
    assert then.startswith(
        "python main.py fit --resume NEW --trainer.max_epochs 5        # then lengthened; one fit of 5 has"
    )


def test_commands_are_those_of_an_installation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_sections, "MAIN", "vision-recipes")
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    assert "vision-recipes fit --config 'a b.yaml'" in text
    assert "main.py" not in text


def test_run_without_validation(run: Path) -> None:
    (run / "metrics.csv").write_text("epoch,step,train/loss\n1,10,2.0\n")
    (run / "checkpoints" / "best.json").unlink()
    (run / "training_summary.json").unlink()
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    assert "The run has no validation" in text
    assert "--ckpt last" in text


@pytest.mark.parametrize(
    "name",
    [
        "metrics.csv",
        "train.log",
        "training_summary.json",
        "environment.json",
        "plots",
        "checkpoints",
        "per_class_test.csv",
        "test_metrics.json",
        "confusion_test.csv",
    ],
)
@pytest.mark.slow
def test_missing_files_are_left_out(run: Path, name: str) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_report(run)
    text = (run / "report" / "report.md").read_text()
    if name in ("metrics.csv", "training_summary.json", "environment.json"):
        assert f"because the run has no {name.replace('_', chr(92) + '_')}" in text


def test_configuration_file_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("model: {class_path: M}\n")
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "report.md"]
    assert "the run never began to train" in (tmp_path / "out" / "report.md").read_text()


def test_run_is_not_changed_and_no_temporary_file_is_left(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    write_report(run)
    write_report(run)  # a second one replaces the first
    assert {path: path.read_bytes() for path in before} == before
    assert not [path for path in (run / "report").iterdir() if path.suffix not in (".png", ".md", ".html")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder.rmdir(), "no such folder; give"),
        (lambda folder: folder.rename(folder.with_name("runs")), "no such folder, did you mean "),
        (lambda folder: None, "is not a run folder, because it has no config.yaml"),
        (lambda folder: (folder / "config.yaml").write_text("a: ["), "is not valid YAML"),
        (
            lambda folder: ((folder / "config.yaml").write_text("a: 1"), (folder / "environment.json").write_text("{")),
            "environment.json: is not valid JSON",
        ),
    ],
)
def test_wrong_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: object, message: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    assert main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "report").exists()


def test_real_run_of_the_ternary_classifier(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished, tmp_path / "report")
    found = Links(page.read_text())
    assert "TernaryClassifier" in found.text
    assert "DigitsDataModule" in found.text
    assert "val/acc" in found.text
    assert to_html("x", [], tmp_path).startswith("<!doctype html>")


def test_text_is_shown_as_it_is_in_markdown_and_html(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(b"png")
    words = ["1. first", "- dash", "+ plus", "A&amp;B <b> ~~~", "`code` *star* [link](x) #tag"]
    table = report_page.Table(["class", "n"], [[word, "-0.5"] for word in words])
    blocks: list[report_page.Block] = [
        *map(report_page.Text, words),
        table,
        report_page.Picture("a b.png", "1. caption"),
    ]
    sections = [report_page.Section("A & B", blocks)]
    page = report_page.to_html("t", sections, tmp_path)
    for word in words:
        assert f"<p>{html.escape(word)}</p>" in page
        assert f"<td>{html.escape(word)}</td>" in page
    assert "<li>" not in page.partition("</nav>")[2]
    assert '<h2 id="a--b">A &amp; B</h2>' in page
    assert "data:image/png;base64,cG5n" in page
    assert "| -0.5 |" in report_page.to_markdown("t", sections)


@pytest.mark.parametrize("in_config", [True, False], ids=["new", "older version"])
def test_the_learning_rate_that_was_used_is_shown(run: Path, in_config: bool) -> None:
    content = {"lr": 0.025, "lr_configured": 0.1, "rule": "bottom", "reason": "", "suggestions": {"bottom": 0.025}}
    (run / "lr_find.json").write_text(json.dumps({**content, "in_config": in_config}))
    if in_config:
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.025"))
    text = write_report(run).with_suffix(".md").read_text()
    assert "| learning rate | 0.025, found by LearningRateFinder (bottom) in place of the configured 0.1 |" in text
    assert "| lr | 0.025 |" in text


def test_a_run_resumed_with_another_learning_rate_shows_that_one(run: Path) -> None:
    content = {"lr": 0.025, "lr_configured": 0.1, "rule": "bottom", "reason": "", "suggestions": {"bottom": 0.025}}
    (run / "lr_find.json").write_text(json.dumps({**content, "in_config": True}))
    text = write_report(run).with_suffix(".md").read_text()  # config.yaml has 0.1
    assert "learning rate |" not in text
    assert "| lr | 0.1 |" in text
