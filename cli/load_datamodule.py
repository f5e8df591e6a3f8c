"""Builds the datamodule of a configuration without model and trainer, for tools that only look at the data."""

from __future__ import annotations

from jsonargparse import Namespace

from cli.parser import Parser
from cli.run_flags import UsageError, split_flags
from cli.vision_cli import VisionCLI
from datamodules import DataModule
from foundation.project import MAIN


class DataOnlyCLI(VisionCLI):
    """Parses and checks the command line of a fit, and creates only the datamodule."""

    def run(self) -> None:
        """Parse the command line and create the datamodule, without installing signal handlers: the tool handles signals."""
        self._run()

    def instantiate_classes(self) -> None:
        """Create the datamodule, without model, trainer and callbacks."""
        settings = self.config[self.subcommand]
        parser = Parser()
        parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
        try:  # the parser also creates the objects in the settings, such as the sets of prompts
            chosen = Namespace(data=settings.data)  # type: ignore[no-untyped-call]
            self.datamodule = parser.instantiate_classes(chosen).data
        except ValueError as error:
            text = str(self._readable_error(error))
            raise UsageError(text if text.startswith(("data", "--data")) else f"data.{text}") from error
        self.datamodule.seed = settings.seed_everything

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing: no command is run."""


def load_datamodule(arguments: list[str]) -> DataModule:
    """Create the datamodule that ``python main.py fit`` would create from the same arguments.

    Args:
        arguments: One or more ``--config FILE``, and flags such as ``--data.root``. Flags of model and trainer are checked but not
            used.

    Raises:
        UsageError: No configuration is given, or a setting is invalid.
    """
    flags = split_flags(["fit", *arguments])
    if not flags.configs:
        raise UsageError(f"--config: which data? give --config FILE, as for {MAIN} fit")
    cli = DataOnlyCLI(flags, ["main.py", "fit", *arguments])
    cli.run()
    data: DataModule = cli.datamodule
    return data
