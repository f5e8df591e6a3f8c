"""The argument parser of all tools: numbers of a list may be separated by commas."""

from __future__ import annotations

import logging
import signal

import pytest

from tools.command_line import Parser, own_flag_first, start


def parser() -> Parser:
    made = Parser("some", "A tool.")
    made.add_argument("--lr", type=float, nargs="*")
    made.add_argument("--sizes", type=int, nargs=2)
    made.add_argument("--name", nargs="+")
    made.add_argument("--price", type=float)
    return made


@pytest.mark.parametrize(
    "words",
    ["--lr 1e-3 3e-3", "--lr 1e-3,3e-3", "--lr [1e-3, 3e-3]", "--lr=1e-3,3e-3", "--lr 1e-3, 3e-3", "--lr=[1e-3,3e-3]"],
)
def test_numbers_of_a_list(words: str) -> None:
    assert parser().parse_args(words.split()).lr == [1e-3, 3e-3]


@pytest.mark.parametrize("words", ["--lr 0,001", "--lr=0,001", "--lr 1e-3 0,5", "--lr 1,05"])
def test_a_decimal_comma_is_named(words: str) -> None:
    text = words.split()[-1].removeprefix("--lr=")
    with pytest.raises(
        ValueError, match=f"^--lr {text}: a comma divides values; write {text.replace(',', '.')}, or a sp"
    ):
        parser().parse_args(words.split())


def test_other_values_stay_as_they_are() -> None:
    given, rest = parser().parse_known_args(["--name", "a,b", "c", "--sizes", "-1,2", "--lr", "--model.lr", "1,2"])
    assert (given.name, given.sizes, given.lr, rest) == (["a,b", "c"], [-1, 2], [], ["--model.lr", "1,2"])
    with pytest.raises(ValueError, match="argument --price: invalid float value: '1,2'"):
        parser().parse_args(["--price", "1,2"])
    with pytest.raises(ValueError, match="argument --lr: invalid float value: 'x'"):
        parser().parse_args(["--lr", "1,x"])


def test_the_flag_of_the_output_is_named_even_by_tools_that_take_flags_of_main() -> None:
    parser = Parser("tool", "Does it.")
    parser.add_argument("--output")
    for given in (["--out", "x"], ["--out=x"]):
        with pytest.raises(ValueError, match="--out: the flag of this tool is --output; see "):
            parser.parse_known_args(given)
    assert Parser("tool", "Does it.").parse_known_args(["--out"])[1] == ["--out"]


def test_the_closest_choice_is_named() -> None:
    parser = Parser("export", "Export.")
    parser.add_argument("--coding", choices=("trits", "bits2", "entropy"))
    with pytest.raises(ValueError, match=r"--coding: invalid choice: 'trit', did you mean 'trits'\? \(choose from "):
        parser.parse_args(["--coding", "trit"])
    with pytest.raises(ValueError, match=r"--coding: invalid choice: 'zip' \(choose from "):
        parser.parse_args(["--coding", "zip"])


def test_a_flag_of_the_tool_is_named_before_a_setting_of_main() -> None:
    message = "--learning_rate: no such flag, did you mean 'model.lr'?"
    assert own_flag_first(message, parser()).startswith("--learning_rate: no such flag, did you mean '--lr'?; see ")
    assert own_flag_first("--decay_x: no such flag, did you mean 'model.decay'?", parser()).endswith("'model.decay'?")


def test_warnings_of_tools_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tool sets up no logging, Python's own handler writes them."""
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit):
        start(lambda: 0)
    record = logging.LogRecord("any", logging.WARNING, "", 0, "2 of the %d files", (8,), None)
    assert logging.lastResort is not None
    assert logging.lastResort.format(record) == "warning: 2 of the 8 files"


def test_settings_of_the_data_among_the_flags() -> None:
    made = parser()
    made.add_argument("stage")
    made.add_argument("--data.root", dest="root")
    words = ["--data.labels", "A.csv", "run", "--price", "2", "--data.root", "there", "--data.label_column=b", "c"]
    options = made.parse_with_data([*words[:-2], "--data.label_column=b c"])
    assert (options.stage, options.price, options.root) == ("run", 2.0, "there")
    assert options.data_settings == {"root": "there", "labels": "A.csv", "label_column": "b c"}
    for wrong in (["run", "--data.labels"], ["run", "--model.lr", "1"]):
        with pytest.raises(ValueError, match=r"expected one argument|unrecognized arguments: --model.lr"):
            made.parse_with_data(wrong)
