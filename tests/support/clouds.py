"""Google's and Azure's object stores on loopback, as emulators, found by Metaflow's own classes."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker import free_port

BUCKET = "mfimage-test"
# Kept from run to run; npm takes half a minute.
_AZURITE = Path("/var/tmp/mfimage-azurite")


@contextmanager
def google_running(patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an emulator with a bucket; yield the bucket's URL."""
    with warnings.catch_warnings():
        # It misses grpcio-status where grpcio is, for other reasons.
        warnings.simplefilter("ignore")
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage
    from metaflow.plugins.gcp import gs_storage_client_factory as factory

    class Anonymous:
        """Takes the place of what asks Google for credentials."""

        @staticmethod
        def get_gs_storage_client() -> Any:
            return storage.Client(credentials=AnonymousCredentials(), project="test")

    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", *options]
    with _running([*command, "--default-bucket", BUCKET], port):
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setattr(factory, "cached_provider_class", Anonymous)
        yield f"gs://{BUCKET}"


@contextmanager
def azure_running(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run an emulator with a container; yield the container's URL."""
    from azure.storage.blob import BlobServiceClient
    from metaflow.plugins.azure import azure_credential, blob_service_client_factory

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
        name = "AZURE_STORAGE_BLOB_SERVICE_ENDPOINT"
        patch.setattr(blob_service_client_factory, name, endpoint)
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
