"""Datamodule settings on the command line: every setting is listed with a help text, and short class names work."""

import inspect
import re

import pytest
from jsonargparse import ArgumentParser

from datamodules import CIFAR10DataModule, DataModule, DigitsDataModule, ImageFolderDataModule

SHARED = [name for name in inspect.signature(DataModule.__init__).parameters if name != "self"]


def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser


OF_FILES = set(inspect.signature(ImageFolderDataModule.__init__).parameters) - {"self", "kwargs"}


@pytest.mark.parametrize(
    ("name", "own", "hidden"),
    [
        ("CIFAR10DataModule", {"root", "download", "mean", "std"}, set()),
        ("DigitsDataModule", set(), set()),
        ("ImageFolderDataModule", OF_FILES, {"crop_padding", "shrink", "on_device"}),
    ],
)
def test_every_setting_has_a_help_text(
    name: str, own: set[str], hidden: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([f"--data.help={name}"])
    listed = " ".join(capsys.readouterr().out.split()).split("Help for")[1]
    texts = dict(re.findall(r"--data\.(\w+)(?:, \S+)? \S+ (.*?) ?\(type:", listed))
    assert set(texts) == {*SHARED, *own} - hidden
    assert [setting for setting, text in texts.items() if len(text.split()) < 5] == []


def test_short_names_and_settings_reach_the_class() -> None:
    config = parser().parse_args(
        ["--data=DigitsDataModule", "--data.batch_size=32", "--data.policy=randaugment", "--data.flip=true"]
    )
    data = parser().instantiate(config).data
    assert isinstance(data, DigitsDataModule)
    assert (data.batch_size, data.eval_batch_size, data.augmentation.policy) == (32, 64, "randaugment")
    assert (data.augmentation.flip, data.augmentation.crop_padding) == (True, 1)


def test_defaults_come_from_the_subclass() -> None:
    data = parser().instantiate(parser().parse_args(["--data=CIFAR10DataModule", "--data.root=x"])).data
    assert isinstance(data, CIFAR10DataModule)
    assert (data.augmentation.flip, data.augmentation.crop_padding, str(data.root)) == (True, 4, "x")


@pytest.mark.parametrize("wrong", ["--data.policy=best", "--data.batch_size=many", "--data.batchsize=3"])
def test_invalid_settings_are_parser_errors(wrong: str) -> None:
    with pytest.raises(Exception, match=wrong.split("=")[0].removeprefix("--data.")):
        parser().parse_args(["--data=CIFAR10DataModule", wrong])


def test_settings_fixed_on_resume_exist() -> None:
    assert set(DataModule.fixed_on_resume) <= set(SHARED)
