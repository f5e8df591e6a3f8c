"""Builds the datamodule of a configuration without model and trainer, for tools that only look at the data."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from datamodules import DataModule
from foundation.project import MAIN


class DataOnlyCLI(VisionCLI):
    """Parses the command line of a fit with all its checks, and makes the datamodule alone."""

    def run(self) -> None:
        """Parse and make it; signals are left to the tool."""
        self._run()

    def instantiate_classes(self) -> None:
        """Data without model, trainer and callbacks."""
        settings = self.config[self.subcommand]
        package, _, name = settings.data.class_path.rpartition(".")
        given: dict[str, Any] = dict(settings.data.get("init_args") or {})
        try:
            self.datamodule = getattr(import_module(package), name)(**given)
        except ValueError as error:
            raise UsageError(f"data.{error}") from error
        self.datamodule.seed = settings.seed_everything

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is trained."""


def load_datamodule(arguments: list[str]) -> DataModule:
    """Make the datamodule that ``python main.py fit`` would make of these arguments.

    Args:
        arguments: ``--config FILE`` once or more, and flags such as ``--data.root``; those of other parts are checked and not used.

    Raises:
        UsageError: There is no configuration, or something in it is wrong.
    """
    flags = split_flags(["fit", *arguments])
    if not flags.configs:
        raise UsageError(f"--config: which data? give --config FILE, as for {MAIN} fit")
    cli = DataOnlyCLI(flags, ["main.py", "fit", *arguments])
    cli.run()
    data: DataModule = cli.datamodule
    return data
