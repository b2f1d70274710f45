"""An S3 server on loopback, and a bucket of its own for whoever asks."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).with_name("s3")
KEY, SECRET = "mfimage-test", "mfimage-test-secret"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server, or what stands in front of it.

    Attributes
    ----------
    url : str
        Its endpoint.
    """

    url: str

    @property
    def env(self) -> dict[str, str]:
        """What Metaflow and boto3 need to find it, and nothing of the user's own."""
        return {
            "METAFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str = "s3", **options: Any) -> Any:
        """Return boto3's own client, to look behind the scenes."""
        import boto3

        options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, **options}
        return boto3.client(service, endpoint_url=self.url, region_name="us-east-1", **options)


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket that nobody else writes to."""

    name: str
    server: S3Server

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def env(self) -> Mapping[str, str]:
        """Variables for processes that work with it; retries that end while a test waits."""
        return {**self.server.env, "METAFLOW_S3_RETRY_COUNT": "1"}

    def objects(self, prefix: str = "") -> dict[str, int]:
        """Return the size of each object, by key."""
        pages = self.server.client().get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.name, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in found for item in page.get("Contents", ())}

    def read(self, key: str) -> bytes:
        data: bytes = self.server.client().get_object(Bucket=self.name, Key=key)["Body"].read()
        return data

    def write(self, key: str, data: bytes) -> None:
        self.server.client().put_object(Bucket=self.name, Key=key, Body=data)

    def delete(self, prefix: str = "") -> None:
        client = self.server.client()
        for key in self.objects(prefix):
            client.delete_object(Bucket=self.name, Key=key)


@contextmanager
def s3_running(directory: Path) -> Iterator[S3Server]:
    """Run a server on a free port for as long as the block lasts."""
    from tests.support.docker import free_port

    arguments = ["moto", str(free_port())]
    env = {**os.environ, "PYTHON": sys.executable, "MFIMAGE_S3_DIR": str(directory / "s3")}
    done = _script("start", *arguments, env=env)
    try:
        yield S3Server(url=done)
    finally:
        _script("stop", *arguments, env=env)


@contextmanager
def bucket_on(server: S3Server) -> Iterator[Bucket]:
    """Make a bucket, and remove it with all that is in it."""
    made = Bucket(name=f"mfimage-test-{uuid.uuid4().hex[:12]}", server=server)
    client = server.client()
    client.create_bucket(Bucket=made.name)
    yield made
    made.delete()
    client.delete_bucket(Bucket=made.name)


def _script(*arguments: str, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [str(_SCRIPT), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests."""
    with s3_running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A fresh bucket; this process and all that it starts find its server."""
    with bucket_on(s3_server) as made:
        for name, value in made.env.items():
            monkeypatch.setenv(name, value)
        yield made
