"""Downloads of weights from the Hugging Face hub: without a connection they fail at once, and cached files still load."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

PATIENCE_S = 5.0
"""Longest wait for a connection, in seconds."""


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Within it, the hub's files come from its cache only if the hub cannot be reached; its client would retry for a minute.

    Raises:
        ConnectionError: The hub cannot be reached and the files are not in the cache.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    address = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or _reachable(address):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        host = urlsplit(address).hostname
        raise ConnectionError(f"{host} cannot be reached, and the files are not in {constants.HF_HUB_CACHE}") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _reachable(address: str) -> bool:
    """Whether a connection to this address, or to the proxy for it, can be opened."""
    parts = urlsplit(address)
    proxy = None if urllib.request.proxy_bypass(parts.hostname or "") else urllib.request.getproxies().get(parts.scheme)
    if proxy:
        parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=PATIENCE_S):
            return True
    except OSError:
        return False
