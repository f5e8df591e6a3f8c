"""A bucket on the loopback, for tests of remote shards: moto's S3 server, in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def started(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Start a server and wait until it takes connections."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return process
        time.sleep(0.1)
    raise OSError(f"{command} did not start")


class Bucket:
    """An S3 server with one bucket, behind a forwarder that is killed and started again: the objects outlive it.

    Attributes:
        url: URL of the bucket, `s3://bucket`.
    """

    url = "s3://bucket"

    def __init__(self) -> None:
        self._port, self._hidden = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        server = ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._hidden)]
        self._server = started(server, self._hidden)
        self.start()

    def stop(self) -> None:
        """Close the port and every connection."""
        self._forwarder.kill()
        self._forwarder.wait()

    def start(self) -> None:
        forwarder = Path(__file__).with_name("forwarder.py")
        self._forwarder = started([str(forwarder), str(self._port), str(self._hidden)], self._port)

    def end(self) -> None:
        for process in (self._forwarder, self._server):
            process.kill()
            process.wait()

    def put(self, folder: Path, prefix: str) -> str:
        """Put the shards of a folder into the bucket; returns their URL."""
        for path in sorted(folder.glob("*.tar")):
            self._client().put_object(Bucket="bucket", Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"{self.url}/{prefix}"

    def make(self) -> None:
        self._client().create_bucket(Bucket="bucket")

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint)


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """A bucket, with the environment that finds it."""
    for name in ("moto", "flask", "boto3", "s3fs"):
        pytest.importorskip(name, reason=f"{name} is not installed: uv sync --extra s3 --group bucket")
    with pytest.MonkeyPatch.context() as patch:
        made = Bucket()
        patch.setenv("AWS_ENDPOINT_URL", made.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        made.make()
        yield made
        made.end()
