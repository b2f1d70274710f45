"""Google's and Azure's object stores on loopback, as emulators, found by Metaflow's own classes."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pytest

from tests.support.docker import free_port
from tests.support.faulty import Handler, faulty
from tests.support.s3 import S3Server, bucket_on

BUCKET = "mfimage-test"
# Kept from run to run; npm takes half a minute.
_AZURITE = Path("/var/tmp/mfimage-azurite")


class _Unquoted(Handler):
    """Passes requests on with the names that moto knows: obstore quotes ``-`` and ``/`` as well."""

    def do(self) -> None:
        path, _, query = self.path.partition("?")
        self.path = quote(unquote(path)) + (f"?{query}" if query else "")
        super().do()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do


@contextmanager
def google_running(server: S3Server, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve a bucket of an S3 server as Google does; yield its URL.

    obstore speaks Google's XML API, which is S3's but for the signatures.
    """
    with bucket_on(server) as bucket, faulty(server.url, _Unquoted) as proxy:
        patch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield f"gs://{bucket.name}"


@contextmanager
def azure_running(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an emulator with a container; yield the container's URL."""
    from azure.storage.blob import BlobServiceClient
    from metaflow.plugins.azure import azure_credential

    class Signed:
        """Takes the place of what asks Azure for credentials."""

        @staticmethod
        def create_cacheable_azure_credential() -> Any:
            return _Token()

    folder.mkdir()
    certificate, key = _certificate(folder)
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    options += ["--oauth", "basic", "--cert", str(certificate), "--key", str(key), "--silent"]
    options += ["--skipApiVersionCheck", "--disableTelemetry"]
    with _running([str(_azurite()), *options], port):
        endpoint = f"https://127.0.0.1:{port}/devstoreaccount1"
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        patch.setattr(azure_credential, "cached_provider_class", Signed)
        patch.setenv("METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT", endpoint)
        with BlobServiceClient(endpoint, credential=_Token()) as service:
            service.create_container(BUCKET)
        yield f"azure://{BUCKET}"


class _Token:
    """A credential that the emulator takes: it does not look at the signature."""

    def get_token(self, *_: Any, **__: Any) -> Any:
        from azure.core.credentials import AccessToken

        now = int(time.time())
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/",
            **{"iat": now - 100, "nbf": now - 100, "exp": now + 3600},
        }
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
            for part in ({"alg": "none", "typ": "JWT"}, claims)
        ]
        return AccessToken(".".join([*parts, "signature"]), now + 3600)


def _certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    # Without it openssl makes a CA's certificate, which rustls does not take for a server's.
    command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    command += ["-out", str(certificate), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def _azurite() -> Path:
    command = _AZURITE / "node_modules" / ".bin" / "azurite-blob"
    if not command.exists():
        _AZURITE.mkdir(parents=True, exist_ok=True)
        npm = ["npm", "install", "--silent", "azurite@3"]
        try:
            subprocess.run(npm, cwd=_AZURITE, check=True, capture_output=True, timeout=200)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"azurite cannot be installed: {error}")
    return command


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ}) as server:
        try:
            limit = time.monotonic() + 60
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, f"{command[0]} ended"
                assert time.monotonic() < limit, f"{command[0]} does not listen"
                time.sleep(0.05)
            yield
        finally:
            server.kill()
