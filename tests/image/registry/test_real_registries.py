"""The same pushes, pulls and deletions of tags on every registry: real ones, and quirks by name."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mfimage.errors import RegistryError
from mfimage.image.oci.base import read_image
from mfimage.image.oci.config import Composed, recompose
from mfimage.image.oci.pushing import Push
from mfimage.image.registry import http
from mfimage.image.registry.auth import Credentials
from mfimage.image.registry.client import RegistryClient
from mfimage.image.sbom.document import MEDIA_TYPE
from tests.image.oci.bases import FILES, layout
from tests.support.docker import RegistryKind, registry
from tests.support.quirks import HARMLESS, PASSWORD, USER, Quirky, https_proxy, quirky

REAL: tuple[RegistryKind, ...] = ("plain", "auth", "tls", "mtls")
SBOM = b'{"bomFormat": "CycloneDX"}'
# The SBOM is in the image anyway, and the next build is not quicker: each costs a line.
COSTS_A_LINE = {"subject-refused": "not attached to it", "tags-refused": "cannot find this image"}


@dataclass(kw_only=True)
class Target:
    """A registry, and what it takes to be let in."""

    address: str
    credentials: Credentials | None = None
    ca: Path | None = None
    quirky: Quirky | None = None
    repository: str = ""
    said: list[str] = field(default_factory=list)

    def client(self) -> RegistryClient:
        return RegistryClient(self.address, credentials=self.credentials, ca=self.ca)

    def push(self, image: Composed, tag: str = "1", name: str = "fn", **options) -> str:
        with closing(self.client()) as client:
            push = Push(client, f"{self.repository}/{name}", lambda _: None, self.said.append)
            return push.run([image], [tag], content_tag="fn-1", sboms=[SBOM], **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.001)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Composed]:
    folder = tmp_path_factory.mktemp("image") / "layout"
    large = [{f"file{n}": random.randbytes(100_000 * n)} for n in range(1, 8)]
    with read_image(layout(folder, FILES, *large), "linux/amd64") as stored:
        yield recompose(stored)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[Callable[[RegistryKind], Target]]:
    with ExitStack() as stack:
        started: dict[RegistryKind, Target] = {}

        def start(kind: RegistryKind) -> Target:
            if kind not in started:
                folder = tmp_path_factory.mktemp(kind)
                running = stack.enter_context(registry(kind, directory=folder))
                who = running.username and Credentials(
                    username=running.username, password=running.password or ""
                )
                started[kind] = Target(
                    address=running.address, credentials=who or None, ca=running.ca
                )
            return started[kind]

        yield start


def _real() -> list[Any]:
    return [pytest.param(kind, marks=pytest.mark.docker) for kind in REAL]


@pytest.fixture(params=[*_real(), *HARMLESS])
def target(request, real, tmp_path, monkeypatch) -> Iterator[Target]:
    team = f"team{random.randrange(10**9)}"
    if request.param in REAL:
        found = real(request.param)
        if request.param == "mtls":
            monkeypatch.setenv("HOME", str(tmp_path))
            folder = tmp_path / ".docker" / "certs.d" / found.address
            folder.mkdir(parents=True)
            shutil.copy(found.ca, folder / "ca.crt")
            shutil.copy(found.ca, folder / "client.cert")  # it signed itself
            shutil.copy(found.ca.with_name("key.pem"), folder / "client.key")
        yield Target(
            address=found.address, credentials=found.credentials, ca=found.ca, repository=team
        )
        return
    with quirky(request.param) as running:
        who = Credentials(username=USER, password=PASSWORD)
        if request.param == "token-get-only":
            who = Credentials(identity_token="again")
        yield Target(address=running.address, credentials=who, quirky=running, repository=team)


def contents(target: Target, image: Composed, name: str = "fn", tag: str = "1") -> None:
    """Pull an image, and compare it with what was pushed."""
    repository = f"{target.repository}/{name}"
    with closing(target.client()) as client:
        descriptor, manifest = client.manifest(repository, tag)
        assert (descriptor.digest, manifest) == (image.digest, image.manifest)
        assert descriptor.media_type == image.descriptor.media_type
        for layer in image.layers:
            with layer.open() as file:
                assert b"".join(client.blob(repository, layer.digest)) == file.read()


def test_a_push_a_pull_and_a_push_after_the_tag_was_deleted(target, image, request):
    quirk = request.node.callspec.params["target"]
    assert target.push(image) == image.digest
    contents(target, image)
    assert [COSTS_A_LINE.get(quirk, "") in line for line in target.said] == [True] * len(
        target.said
    )
    assert len(target.said) == (quirk in COSTS_A_LINE)
    repository = f"{target.repository}/fn"
    with closing(target.client()) as client:
        attached = client.referrers(repository, image.digest, MEDIA_TYPE)
        assert len(attached) == (quirk != "subject-refused")
        for each in attached:
            subject = json.loads(client.manifest(repository, each.digest)[1])["subject"]
            assert subject == image.descriptor.to_dict()
        # Again, with immutable tags too.
        assert target.push(image) == image.digest
        gone = "1" if target.quirky else image.digest
        scope = (f"repository:{repository}:pull,push",)
        client._http.request("DELETE", f"{repository}/manifests/{gone}", scope)
        assert client.manifest(repository, "1") is None
    assert target.push(image) == image.digest
    contents(target, image)


@pytest.mark.parametrize(
    "target", [*_real(), "none", *(each for each in HARMLESS if each[:5] in ("mount", "token"))],
    indirect=True,
)  # fmt: skip
def test_another_repository_of_the_same_registry(target, image):
    target.push(image)
    repository = f"{target.repository}/fn"
    assert target.push(image, name="other", also_in=(repository,)) == image.digest
    contents(target, image, name="other")


@pytest.mark.parametrize(
    "target", [*_real(), "basic", "anonymous-ping", "token", "token-expires"], indirect=True
)
def test_one_client_for_many_threads(target, image):
    """Layers met their first 401 together, and only one of them was let ask again."""
    with closing(target.client()) as client, ThreadPoolExecutor(8) as pool:

        def push(number: int) -> str:
            name = f"{target.repository}/n{number % 3}"
            return Push(client, name, lambda _: None).run([image], [str(number)])

        assert set(pool.map(push, range(8))) == {image.digest}


@pytest.mark.parametrize("kind", ["tls", pytest.param("mtls")])
@pytest.mark.docker
def test_through_a_proxy(kind, real, image, tmp_path, monkeypatch):
    seen: list[str] = []
    found = real(kind)
    address = f"registry.test:{found.address.rpartition(':')[2]}"
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".docker" / "certs.d" / address
    folder.mkdir(parents=True)
    shutil.copy(found.ca, folder / "client.cert")
    shutil.copy(found.ca.with_name("key.pem"), folder / "client.key")
    target = Target(address=address, credentials=found.credentials, ca=found.ca, repository="team")
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with https_proxy(seen) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cr3t@{proxy}")
        assert target.push(image) == image.digest
        contents(target, image)
        assert set(seen) == {address}
        monkeypatch.setenv("NO_PROXY", ".test")
        with pytest.raises(RegistryError, match=r"registry\.test.*not found"):
            target.push(image)


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.parametrize("kind", ["auth", "token-expires"])
def test_fifty_pushes_at_once(kind, real, image):
    began = time.monotonic()
    with ExitStack() as stack:
        if kind in REAL:
            found = real(kind)
            target = Target(address=found.address, credentials=found.credentials, repository="soak")
        else:
            running = stack.enter_context(quirky(kind))
            who = Credentials(username=USER, password=PASSWORD)
            target = Target(address=running.address, credentials=who, repository="soak")
        with ThreadPoolExecutor(50) as pool:
            pushed = list(pool.map(lambda n: target.push(image, name=f"r{n}"), range(50)))
    assert set(pushed) == {image.digest}
    assert target.said == []
    assert time.monotonic() - began < 60, "20 s on a machine with nothing else to do"
