"""All rows of the fuzz table, by format."""

from __future__ import annotations

from tests.fuzz.others import OTHERS
from tests.fuzz.own import OWN
from tests.fuzz.rows import Row

ROWS: dict[str, Row] = {**OWN, **OTHERS}
