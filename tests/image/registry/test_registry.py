"""A real registry: reading, pushing, mounting; and what goes wrong on the way to one."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import pytest

from mfimage.errors import RegistryError
from mfimage.image.registry import http
from mfimage.image.registry.auth import Credentials, stored_credentials
from mfimage.image.registry.client import RegistryClient
from mfimage.image.registry.descriptors import MANIFEST
from tests.support.docker import Registry, free_port, registry
from tests.support.faulty import Fault, Faulty, faulty

# Its packages are installed with the engine's.
pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Iterator[Registry]:
    with registry("plain", directory=tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Iterator[Registry]:
    with registry("tls", directory=tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def client(plain) -> Iterator[RegistryClient]:
    made = RegistryClient(plain.address)
    yield made
    made.close()


@pytest.fixture
def proxy(plain) -> Iterator[Faulty]:
    with faulty(plain.url) as running:
        yield running


@pytest.fixture
def shaky(proxy, monkeypatch) -> Iterator[RegistryClient]:
    """The registry behind a proxy that spoils what it is told to."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.01)
    made = RegistryClient(proxy.url.partition("://")[2])
    proxy.requests.clear()
    yield made
    made.close()


def content(size: int = 1000) -> tuple[bytes, str, Callable[[], BinaryIO]]:
    data = random.randbytes(size)
    return data, f"sha256:{hashlib.sha256(data).hexdigest()}", lambda: io.BytesIO(data)


def push(client: RegistryClient, repository: str, size: int = 1000, **options) -> str:
    data, digest, open_it = content(size)
    client.push_blob(repository, digest, len(data), open_it, **options)
    assert b"".join(client.blob(repository, digest)) == data
    return digest


def manifest_of(digest: str, size: int, **more) -> bytes:
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest}
    plain = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {**described, "size": size}}
    return json.dumps({**plain, "layers": [], **more}).encode()


def test_a_blob_and_a_manifest(client):
    digest = push(client, "team/one")
    data = manifest_of(digest, 1000)
    written = client.push_manifest("team/one", "v1", MANIFEST, data)
    for reference in ("v1", written):
        descriptor, found = client.manifest("team/one", reference)
        assert (descriptor.digest, descriptor.media_type, found) == (written, MANIFEST, data)
    assert client.manifest("team/one", "v2") is None
    assert client.manifest("team/none", "v1") is None


def test_what_is_there_is_not_sent_again(client):
    data, digest, open_it = content()
    seen: list[int] = []
    assert client.push_blob("team/again", digest, len(data), open_it)
    opened = lambda: pytest.fail("it is there")  # noqa: E731
    assert not client.push_blob("team/again", digest, len(data), opened, on_progress=seen.append)
    assert seen == [len(data)]


def test_a_blob_of_another_repository_is_mounted(client):
    digest = push(client, "team/source")
    opened = lambda: pytest.fail("it can be mounted")  # noqa: E731
    assert not client.push_blob("team/target", digest, 1000, opened, sources=("team/source",))
    assert client.has_blob("team/target", digest, 1000)


def test_where_it_cannot_be_mounted_it_is_sent(client):
    data, digest, open_it = content()
    sources = ("team/nowhere", "team/nothing")
    assert client.push_blob("team/unmounted", digest, len(data), open_it, sources=sources)


def test_progress_is_reported(client):
    seen: list[int] = []
    push(client, "team/progress", (5 << 20) + 3, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == (5 << 20) + 3


def test_many_at_once(client):
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda n: push(client, f"team/r{n % 3}", 200_000), range(24)))
    assert len(set(digests)) == 24


def test_an_empty_blob(client):
    push(client, "team/empty", 0)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(kind="503", method="PATCH", times=2),
        Fault(kind="drop", method="PATCH", times=2),
        Fault(kind="cut", method="PATCH", times=2),
        Fault(kind="503", method="PUT", path="uploads", times=2),
        Fault(kind="drop", method="PUT", path="uploads", times=1),
        Fault(kind="503", method="POST", times=2),
        Fault(kind="drop", method="HEAD", times=2),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.method}",
)
def test_an_upload_survives(shaky, proxy, fault):
    data, digest, open_it = content(6 << 20)
    proxy.faults.append(fault)
    shaky.push_blob("team/shaky", digest, len(data), open_it)
    proxy.faults.clear()
    assert b"".join(shaky.blob("team/shaky", digest)) == data
    assert proxy.count("PATCH") <= 3


@pytest.mark.parametrize("kind", ["503", "drop", "cut"])
def test_a_download_survives(shaky, proxy, kind):
    data, digest, open_it = content(3 << 20)
    shaky.push_blob("team/down", digest, len(data), open_it)
    proxy.faults.append(Fault(kind=kind, method="GET", path="/blobs/", times=2))
    assert b"".join(shaky.blob("team/down", digest)) == data


@pytest.mark.parametrize("kind", ["short", "garble"])
def test_a_wrong_download_is_noticed(shaky, proxy, kind):
    data, digest, open_it = content(100_000)
    shaky.push_blob("team/wrong", digest, len(data), open_it)
    proxy.faults.append(Fault(kind=kind, method="GET", path="/blobs/"))
    with pytest.raises(RegistryError, match="does not match its digest"):
        list(shaky.blob("team/wrong", digest))


def test_a_registry_that_stays_unwell(shaky, proxy):
    proxy.faults.append(Fault(kind="503"))
    _, digest, open_it = content()
    with pytest.raises(RegistryError, match=r"HTTP 503 \(6 attempts\)"):
        shaky.push_blob("team/unwell", digest, 1000, open_it)


def test_a_file_that_is_shorter_than_it_was(client):
    _, digest, _ = content()
    with pytest.raises(RegistryError, match="shorter than 5000 bytes"):
        client.push_blob("team/short", digest, 5000, lambda: io.BytesIO(b"short"))


def test_content_that_is_not_what_its_digest_says(client):
    _, digest, _ = content()
    with pytest.raises(RegistryError, match="cannot keep") as caught:
        client.push_blob("team/lie", digest, 5, lambda: io.BytesIO(b"other"))
    assert "digest" in caught.value.message
    assert not client.has_blob("team/lie", digest, 5)


def test_what_refers_to_an_image(client):
    digest = push(client, "team/subject")
    subject = client.push_manifest("team/subject", "v1", MANIFEST, manifest_of(digest, 1000))
    named = {"mediaType": MANIFEST, "digest": subject, "size": len(manifest_of(digest, 1000))}
    for kind in ("example/one", "example/two", "example/one"):
        data = manifest_of(digest, 1000, subject=named, artifactType=kind)
        attached = f"sha256:{hashlib.sha256(data).hexdigest()}"
        client.push_manifest("team/subject", attached, MANIFEST, data)
    assert len(client.referrers("team/subject", subject)) == 2
    (one,) = client.referrers("team/subject", subject, "example/one")
    assert one.artifact_type == "example/one"
    assert client.referrers("team/subject", digest) == []


def test_tls_of_a_private_ca(tls):
    who = Credentials(username=tls.username, password=tls.password)
    client = RegistryClient(tls.address, credentials=who, ca=tls.ca)
    push(client, "team/tls")
    client.close()


def test_tls_that_is_not_trusted(tls, monkeypatch, tmp_path):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.01)
    # Docker itself was told to trust it.
    monkeypatch.setattr(http, "_DOCKER", tmp_path)
    with pytest.raises(RegistryError, match="cannot be trusted") as caught:
        RegistryClient(tls.address).has_blob("team/tls", "sha256:" + "0" * 64, 1)
    assert "SSL_CERT_FILE" in caught.value.hint


@pytest.mark.parametrize("who", [None, Credentials(username="mfimage", password="s3cr3t-pa55")])
def test_who_may_not(tls, who):
    client = RegistryClient(tls.address, credentials=who, ca=tls.ca)
    _, digest, open_it = content()
    with pytest.raises(RegistryError, match="HTTP 401") as caught:
        client.push_blob("team/tls", digest, 1000, open_it)
    assert caught.value.hint == f"docker login {tls.address}"
    assert "s3cr3t" not in f"{caught.value}{who!r}"


def test_nobody_there(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.01)
    client = RegistryClient(f"127.0.0.1:{free_port()}")
    with pytest.raises(RegistryError, match="refused") as caught:
        client.has_blob("team/one", "sha256:" + "0" * 64, 1)
    assert "is up" in caught.value.hint


@pytest.fixture
def docker_config(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(config: dict) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))

    return write


def test_what_docker_login_keeps(docker_config):
    pair = base64.b64encode(b"me:pass").decode()
    docker_config({"auths": {"registry.example.com:5000": {"auth": pair}}})
    assert stored_credentials("registry.example.com:5000") == Credentials(
        username="me", password="pass"
    )
    assert stored_credentials("other.example.com") is None


def test_a_credential_helper(docker_config, tmp_path, monkeypatch):
    helper = tmp_path / "docker-credential-mine"
    helper.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\":\\"$host\\",\\"Secret\\":\\"s\\"}"\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    docker_config({"credHelpers": {"registry.example.com": "mine"}})
    found = stored_credentials("registry.example.com")
    assert found == Credentials(username="registry.example.com", password="s")
    helper.write_text("#!/bin/sh\necho broken >&2\nexit 1\n")
    with pytest.raises(RegistryError, match=r"credHelpers.* failed: broken"):
        stored_credentials("registry.example.com")
