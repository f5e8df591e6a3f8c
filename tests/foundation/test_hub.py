"""Without a connection to the hub, its files come from the cache or the error comes at once."""

import socket
import time
from typing import Any

import pytest
from huggingface_hub import constants, hf_hub_download

from foundation.hub import hub_or_cache


def test_without_a_connection_the_error_comes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    begun = time.monotonic()
    with (
        pytest.raises(ConnectionError, match=r"huggingface.co cannot be reached, and the files are not in"),
        hub_or_cache(),
    ):
        hf_hub_download("nobody/nothing", "config.json", cache_dir=tmp_path)
    assert time.monotonic() - begun < 5
    assert constants.HF_HUB_OFFLINE is False  # as before


def test_other_errors_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: socket.socket())
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(RuntimeError, match="no such network"), hub_or_cache():
        raise RuntimeError("no such network")
