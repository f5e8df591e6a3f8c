"""What the command lines of the tools share: a wrong flag ends in one line."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Raises where argparse would print its usage and leave the process."""

    def error(self, message: str) -> NoReturn:
        """One line in place of the usage and a line.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{message}; see {self.prog} --help")
