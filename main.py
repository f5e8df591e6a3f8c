"""Train, validate, test and predict: ``python main.py fit --config configs/digits_ternary.yaml``; see ``--help``."""

import sys

from cli import main

if __name__ == "__main__":
    sys.exit(main())
