"""A bucket on the loopback, for tests of remote shards: moto's S3 server, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Bucket:
    """An S3 server with one bucket; stopped and started again, it keeps its objects.

    Attributes:
        url: URL of the bucket, `s3://bucket`.
    """

    url = "s3://bucket"

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._make = ThreadedMotoServer
        self._server: Any = self._make(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, self.port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{self.port}"

    def stop(self) -> None:
        self._server.stop()
        self._server._server.server_close()  # else the kernel still takes connections

    def start(self) -> None:
        self._server = self._make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

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
        made.stop()
