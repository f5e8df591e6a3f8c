"""Checks that a command is accepted, without running it: `main.py` creates its objects, a tool parses its flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

import pytest
import timm
import torch

import cli.app
from cli import main
from cli.trainer.loggers import NEEDS
from cli.vision_cli import VisionCLI
from tests.docs.commands import Command
from tools.sweep_heads.__main__ import arguments_of


class Checked(VisionCLI):
    """Parses a command and creates its model, data, callbacks and trainer, and does not run it."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing."""


class Parsed(BaseException):
    """Raised when a tool has parsed its arguments: ``options`` are its own flags, ``rest`` is passed on to ``main.py fit``."""

    def __init__(self, options: argparse.Namespace, rest: list[str]) -> None:
        super().__init__()
        self.options, self.rest = options, rest


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Parsed | None:
    """Parse the arguments of a tool or a benchmark with its own parser; None if they are refused."""
    parse_known = argparse.ArgumentParser.parse_known_args

    def known(parser: Any, args: Any = None, namespace: Any = None) -> NoReturn:
        raise Parsed(*parse_known(parser, args, namespace))

    def every(parser: Any, args: Any = None, namespace: Any = None) -> NoReturn:
        options, rest = parse_known(parser, args, namespace)
        if rest:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        raise Parsed(options, [])

    found = find_spec(module)
    name = f"{module}.__main__" if found is not None and found.submodule_search_locations is not None else module
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", known)
        patch.setattr(argparse.ArgumentParser, "parse_args", every)
        try:
            import_module(name).main(arguments)
        except Parsed as parsed:
            return parsed
        except SystemExit:
            pass
    return None


def fit_arguments(module: str, parsed: Parsed) -> list[str] | None:
    """Arguments that a tool passes on to ``main.py fit``; None if it passes none on."""
    if getattr(parsed.options, "list", False):
        return None
    if module == "tools.sweep_heads":
        return arguments_of(parsed.options, parsed.rest)
    configs = getattr(parsed.options, "config", None) or []
    given = [
        word for config in ([configs] if isinstance(configs, str) else configs) for word in ("--config", str(config))
    ]
    arguments = [*given, *parsed.rest]
    return arguments if "--config" in arguments else None


def code_of(action: Callable[[], int]) -> int:
    """Return the exit code of a command that runs in this process."""
    try:
        return action()
    except SystemExit as end:  # raised by --print_config
        return int(end.code or 0)


def without_values(create: Callable[..., Any]) -> Callable[..., Any]:
    """Create the large networks without values, which take a second to draw; the modules do not use them before they run."""

    def on_meta(name: str, *args: Any, **settings: Any) -> Any:
        with torch.device("meta" if name.startswith(("resnet50", "vit_base_patch8")) else "cpu"):
            return create(name, *args, **settings)

    return on_meta


def check(command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail unless the command is accepted; one whose shown output is an error must be refused."""
    for package in NEEDS.values():
        if f"configs/with/{package}.yaml" in arguments and find_spec(package) is None:
            pytest.skip(f"needs the extra `{package}`")
    refused = 2 * any(line.startswith("error:") for line in command.output)
    module = command.module
    if module != "main":
        parsed = parse(module, arguments, monkeypatch)
        assert parsed is not None, "the tool refuses its arguments"
        passed_on = fit_arguments(module, parsed)
        if passed_on is None:
            return
        arguments = ["fit", *passed_on]
    if "configs/prompt_segmentation.yaml" in arguments:  # its weights are downloaded when the network is created
        arguments = [*arguments, "--model.weights", "random_tiny"]
    with monkeypatch.context() as patch:
        patch.setattr(cli.app, "VisionCLI", Checked)
        patch.setattr(timm, "create_model", without_values(timm.create_model))
        assert code_of(lambda: main(arguments)) == refused
