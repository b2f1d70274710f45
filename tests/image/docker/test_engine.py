"""Engine against a real Docker engine."""

from __future__ import annotations

import secrets
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.errors import EngineError, RegistryError
from mfimage.image.builder import BuildEvent
from mfimage.image.docker.engine import Engine
from tests.image.builds import Builds
from tests.support import docker as support

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    support.ensure_engine()
    with Engine.connect() as engine:
        yield engine


@pytest.fixture(scope="module")
def base(engine: Engine) -> str:
    return support.ensure_base_image("3.11")


@pytest.fixture
def repository(engine: Engine) -> Iterator[str]:
    """A name of this test's own; what is tagged `name:1` goes when the test is over."""
    name = f"mfimage-test/{secrets.token_hex(6)}"
    yield name
    engine.remove(f"{name}:1", force=True)


@pytest.fixture
def build(engine: Engine, repository: str, tmp_path: Path) -> Iterator[Builds]:
    builds = Builds(engine)
    builds.tag = f"{repository}:1"
    yield builds
    for image in builds.images:
        engine.remove(image, force=True)


@pytest.fixture
def small(build: Builds, tmp_path: Path) -> str:
    """The name of a small image with content of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "data").write_bytes(secrets.token_bytes(50_000))
    build.lines(folder, "FROM scratch", "COPY data /data")
    return build.tag


@pytest.fixture(scope="module")
def plain(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Registry]:
    with support.registry("plain", directory=tmp_path_factory.mktemp("plain")) as registry:
        yield registry


@pytest.fixture(scope="module")
def private(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Registry]:
    with support.registry("auth", directory=tmp_path_factory.mktemp("auth")) as registry:
        yield registry


def test_an_image_is_inspected(
    engine: Engine, build: Builds, base: str, repository: str, tmp_path: Path
) -> None:
    image = build.lines(
        tmp_path / "context",
        f"FROM {base}", "ENV WORD=a=b", "LABEL org.example=é", "USER 1000:0", "WORKDIR /srv",
        'ENTRYPOINT ["python", "-V"]',
        tags=[f"{repository}:1", f"{repository}:2"],
    )  # fmt: skip
    info = engine.inspect(f"{repository}:2")
    assert info == image
    assert info is not None
    assert set(info.repo_tags) == {f"{repository}:1", f"{repository}:2"}
    assert info.env["WORD"] == "a=b"
    assert info.labels == {"org.example": "é"}
    assert (info.user, info.working_dir) == ("1000:0", "/srv")
    assert info.entrypoint == ("python", "-V")
    assert info.platform.startswith("linux/")
    assert info.layers
    assert info.history[-1].created_by.startswith("ENTRYPOINT")
    assert info.size > 0
    engine.remove(f"{repository}:2")
    assert engine.inspect(f"{repository}:2") is None


def test_a_command_runs_in_place_of_the_entrypoint(
    engine: Engine, build: Builds, base: str, tmp_path: Path
) -> None:
    image = build.lines(tmp_path / "context", f"FROM {base}", 'ENTRYPOINT ["false"]').id
    assert engine.run_capture(image, ["echo", "a b"]) == "a b\n"
    assert engine.run_capture(image, ["id", "-u"], user="12345") == "12345\n"
    assert engine.python_version(image).startswith("3.11.")


def test_a_command_that_fails(engine: Engine, base: str) -> None:
    with pytest.raises(EngineError, match="exit code 3: oh no"):
        engine.run_capture(base, ["sh", "-c", "echo first >&2; echo oh no >&2; exit 3"])
    with pytest.raises(EngineError, match="absent"):
        engine.run_capture(base, ["absent"])
    with pytest.raises(EngineError, match="No such image"):
        engine.run_capture("mfimage-test/none:none", ["true"])


def test_an_image_without_python_may_still_state_its_version(
    engine: Engine, build: Builds, tmp_path: Path
) -> None:
    lines = ("FROM scratch", "ENV PYTHON_VERSION=3.12.1", "COPY Dockerfile /")
    assert engine.python_version(build.lines(tmp_path / "context", *lines).id) == "3.12.1"


def test_a_pushed_image_has_the_registrys_digest_and_can_be_pulled(
    engine: Engine, repository: str, small: str, plain: support.Registry
) -> None:
    tag = f"{plain.address}/{repository}:1"
    engine.tag(small, tag)
    events: list[BuildEvent] = []
    digest = engine.push(tag, on_event=events.append)
    request = urllib.request.Request(
        f"{plain.url}/v2/{repository}/manifests/1",
        headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"},
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Docker-Content-Digest"] == digest
    assert any(event.kind == "progress" and event.total for event in events)
    pinned = f"{plain.address}/{repository}@{digest}"
    info = engine.inspect(tag)
    assert info is not None
    assert info.repo_digests == (pinned,)
    engine.remove(tag)
    engine.remove(f"{repository}:1", force=True)
    for ref in (tag, pinned):
        pulled = engine.pull(ref)
        assert pulled.id == info.id
    engine.remove(pulled.id, force=True)


def test_a_push_that_is_refused_raises(
    engine: Engine,
    repository: str,
    small: str,
    private: support.Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    tag = f"{private.address}/{repository}:1"
    with Engine.connect() as anonymous:
        anonymous.tag(small, tag)
        with pytest.raises(RegistryError, match=r"pushing .*no basic auth") as raised:
            anonymous.push(tag)
        assert "docker login" in str(raised.value.hint)
        anonymous.remove(tag)


@pytest.mark.parametrize("ref", ["mfimage-test/none:none", "127.0.0.1:1/none:none"])
def test_a_push_of_nothing_raises(engine: Engine, ref: str) -> None:
    with pytest.raises(RegistryError, match="pushing"):
        engine.push(ref)


def test_a_push_to_nowhere_raises(engine: Engine, repository: str, small: str) -> None:
    tag = f"127.0.0.1:{support.free_port()}/{repository}:1"
    engine.tag(small, tag)
    with pytest.raises(RegistryError, match="connection refused") as raised:
        engine.push(tag)
    assert "the engine reaches it" in str(raised.value.hint)
    engine.remove(tag)


def test_a_pull_of_nothing_raises(engine: Engine, plain: support.Registry) -> None:
    with pytest.raises(RegistryError, match="pulling") as raised:
        engine.pull(f"{plain.address}/none:none")
    assert "check the image's name and tag" in str(raised.value.hint)
