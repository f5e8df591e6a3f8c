"""A fit says how many training samples an epoch leaves out, if they are many."""

import logging

import pytest

from tests.lightning_modules.random_photos import photos


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "said"),
    [
        (50, True, "22 of 72 training samples are left out of each epoch"),
        (50, False, None),
        (24, True, None),
        (7, True, None),
    ],
)
def test_left_out_samples(batch_size: int, drop_last: bool, said: str | None, caplog: pytest.LogCaptureFixture) -> None:
    data = photos(batch_size=batch_size, drop_last=drop_last)
    with caplog.at_level(logging.INFO):
        data.setup("fit")
    found = [record.getMessage() for record in caplog.records if "left out of each epoch" in record.getMessage()]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
