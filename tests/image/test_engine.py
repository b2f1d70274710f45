"""Engine against a real Docker engine."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import secrets
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.errors import BuildError, EngineError, RegistryError
from mfimage.image.builder import BuildEvent
from mfimage.image.context_file import ContextFile
from mfimage.image.docker.engine import Engine
from tests.support import docker as support

pytestmark = pytest.mark.docker
ARCHIVES = (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)


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


@pytest.fixture(scope="module")
def plain(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Registry]:
    with support.registry("plain", directory=tmp_path_factory.mktemp("plain")) as registry:
        yield registry


@pytest.fixture(scope="module")
def private(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Registry]:
    with support.registry("auth", directory=tmp_path_factory.mktemp("auth")) as registry:
        yield registry


def files(dockerfile: str, **others: bytes) -> list[ContextFile]:
    context = {"Dockerfile": dockerfile.encode(), **others}
    return [ContextFile(path=path, content=content) for path, content in context.items()]


def entries(engine: Engine, image: str) -> dict[str, tarfile.TarInfo]:
    """List what is in an image's layers as the engine exports them."""
    found: dict[str, tarfile.TarInfo] = {}
    exported = io.BytesIO(b"".join(engine._api.get_image(image)))
    with tarfile.open(fileobj=exported) as archive:
        manifest = archive.extractfile("manifest.json")
        assert manifest is not None
        for name in json.load(manifest)[0]["Layers"]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                found.update({entry.name: entry for entry in layer})
    return found


def test_a_secret_reaches_its_step_and_leaves_no_trace(
    engine: Engine, base: str, repository: str
) -> None:
    secret = secrets.token_hex(100_000).encode()
    events: list[BuildEvent] = []
    image = engine.build(
        context=files(
            f"FROM {base}\n"
            "RUN --mount=type=secret,id=big,required=true sha256sum /run/secrets/big\n"
            "RUN --mount=type=secret,id=big head -c 64 /run/secrets/big; cat /run/secrets/big\n"
            "RUN test ! -s /run/secrets/big\n"
        ),
        tags=[f"{repository}:1"],
        secrets={"big": secret},
        no_cache=True,
        on_event=events.append,
    )
    log = [event.text for event in events if event.kind == "log"]
    assert log[0].split()[0] == hashlib.sha256(secret).hexdigest()
    needle = secret[1000:1064]
    assert needle.decode() not in "".join(log)
    assert needle not in b"".join(engine._api.get_image(image))
    info = engine.inspect(image)
    assert info is not None
    assert needle.decode() not in repr(info)


def test_a_secret_can_stand_in_for_a_file_that_is_there(
    engine: Engine, base: str, repository: str
) -> None:
    path = "/etc/ssl/certs/ca-certificates.crt"
    events: list[BuildEvent] = []
    image = engine.build(
        context=files(f"FROM {base}\nRUN --mount=type=secret,id=ca,target={path} wc -c {path}\n"),
        tags=[f"{repository}:1"],
        secrets={"ca": b"x" * 1234},
        no_cache=True,
        on_event=events.append,
    )
    assert f"1234 {path}" in [event.text for event in events]
    assert int(engine.run_capture(image, ["wc", "-c", path]).split()[0]) > 10_000


def test_a_secret_that_is_not_given(engine: Engine, base: str) -> None:
    dockerfile = f"FROM {base}\nRUN --mount=type=secret,id=absent,required=true true\n"
    with pytest.raises(BuildError, match=r"secret absent.* not found"):
        engine.build(context=files(dockerfile), no_cache=True)


def test_a_failing_step_is_named_with_its_log(engine: Engine, base: str) -> None:
    dockerfile = f"FROM {base}\nRUN seq 100 >&2 && echo no such thing >&2 && exit 7\n"
    with pytest.raises(BuildError) as raised:
        engine.build(context=files(dockerfile), no_cache=True)
    first, *log = raised.value.message.splitlines()
    assert "RUN seq 100" in first
    assert "exit code: 7" in first
    assert log == [*(f"  | {number}" for number in range(82, 101)), "  | no such thing"]


@pytest.mark.parametrize(
    ("dockerfile", "message"),
    [
        ("FRM x\n", "unknown instruction: FRM"),
        ("FROM 127.0.0.1:1/none/none:none\n", "127.0.0.1:1"),
        ("FROM scratch\nCOPY absent /\n", "absent"),
        ("", "empty"),
    ],
)
def test_a_build_that_cannot_be(engine: Engine, dockerfile: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        engine.build(context=files(dockerfile))


def test_a_reference_that_is_none_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"refused: .*invalid reference"):
        engine.build(context=files("FROM scratch\nLABEL a=b\n"), tags=["UPPER CASE"])


def test_the_image_is_as_asked(engine: Engine, base: str, repository: str) -> None:
    image = engine.build(
        context=files(
            f"FROM {base} AS first\nARG WORD\nENV WORD=$WORD\nUSER 1000:0\n"
            'WORKDIR /srv\nENTRYPOINT ["python", "-V"]\nFROM first\nRUN exit 1\n'
        ),
        tags=[f"{repository}:1", f"{repository}:2"],
        build_args={"WORD": "a=b"},
        labels={"org.example": "é"},
        target="first",
    )
    info = engine.inspect(f"{repository}:2")
    assert info is not None
    assert info.id == image
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


def test_nothing_runs_twice(engine: Engine, base: str, repository: str) -> None:
    context = files(f"FROM {base}\nRUN echo {repository}\nCOPY data /data\n", data=b"x")
    kinds: list[list[str]] = []
    images = set()
    for _ in range(2):
        events: list[BuildEvent] = []
        images.add(engine.build(context=context, tags=[f"{repository}:1"], on_event=events.append))
        kinds.append([event.kind for event in events if "RUN echo" in event.step])
    assert [kind[-1] for kind in kinds] == ["done", "cached"]
    assert len(images) == 1


def test_a_change_that_keeps_the_size_is_noticed_and_the_rest_stays(
    engine: Engine, base: str, repository: str
) -> None:
    dockerfile = f"FROM {base}\nCOPY big /big\nCOPY code /code\n"
    tag = f"{repository}:1"
    found = []
    for code in (b"one", b"two", b"one"):
        image = engine.build(
            context=files(dockerfile, big=b"x" * 100_000, **{"code/a.py": code}), tags=[tag]
        )
        info = engine.inspect(image)
        assert info is not None
        found.append((engine.run_capture(image, ["cat", "/code/a.py"]), info.layers))
    assert [text for text, _ in found] == ["one", "two", "one"]
    assert found[0][1] == found[2][1]
    assert found[0][1][:-1] == found[1][1][:-1]


def test_files_keep_their_mode_and_have_a_fixed_time(
    engine: Engine, base: str, repository: str
) -> None:
    context = [
        *files("FROM scratch\nCOPY folder /folder\n"),
        ContextFile(path="folder/run", content=b"#!/bin/sh\n", mode=0o755),
        ContextFile(path="folder/sub/data", content=secrets.token_bytes(700_000)),
    ]
    image = engine.build(context=context, tags=[f"{repository}:1"])
    found = entries(engine, image)
    assert found["folder/run"].mode & 0o7777 == 0o755
    assert found["folder/sub/data"].mode & 0o7777 == 0o644
    assert found["folder/sub/data"].size == 700_000
    assert {found[name].mtime for name in ("folder/run", "folder/sub/data")} == {315_532_800}
    assert {(entry.uid, entry.gid) for entry in found.values()} == {(0, 0)}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_context_can_be_a_tar(engine: Engine, kind: int, repository: str) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=kind) as tar:
        for name, content in {"Dockerfile": b"FROM scratch\nCOPY a /a\n", "a": b"text"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    archive.seek(0)
    image = engine.build(context=archive, tags=[f"{repository}:1"])
    assert set(entries(engine, image)) == {"a"}


def test_a_context_file_that_is_gone_is_named(engine: Engine, tmp_path: Path) -> None:
    gone = ContextFile(path="data", content=tmp_path / "gone")
    with pytest.raises(BuildError, match="gone: No such file"):
        engine.build(context=[*files("FROM scratch\nCOPY data /\n"), gone])


def test_builds_of_one_repository_may_run_at_once(
    engine: Engine, base: str, repository: str
) -> None:
    built: dict[str, str] = {}

    def build(word: str) -> None:
        with Engine.connect() as own:
            context = files(f"FROM {base}\nCOPY word /word\nRUN sleep 0.5\n", word=word.encode())
            image = own.build(context=context, tags=[f"{repository}:1"])
            built[word] = own.run_capture(image, ["cat", "/word"])

    threads = [threading.Thread(target=build, args=(word,)) for word in ("one", "two", "six")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == {"one": "one", "two": "two", "six": "six"}


def test_a_command_runs_in_place_of_the_entrypoint(
    engine: Engine, base: str, repository: str
) -> None:
    dockerfile = f'FROM {base}\nENTRYPOINT ["false"]\nCMD ["x"]\n'
    image = engine.build(context=files(dockerfile), tags=[f"{repository}:1"])
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


def test_an_image_without_python_may_still_say_its_version(engine: Engine, repository: str) -> None:
    context = files("FROM scratch\nENV PYTHON_VERSION=3.12.1\nCOPY Dockerfile /\n")
    assert (
        engine.python_version(engine.build(context=context, tags=[f"{repository}:1"])) == "3.12.1"
    )


def small(engine: Engine, repository: str) -> str:
    context = files("FROM scratch\nCOPY data /data\n", data=secrets.token_bytes(50_000))
    engine.build(context=context, tags=[f"{repository}:1"])
    return f"{repository}:1"


def test_a_pushed_image_has_the_registrys_digest_and_can_be_pulled(
    engine: Engine, repository: str, plain: support.Registry
) -> None:
    tag = f"{plain.address}/{repository}:1"
    engine.tag(small(engine, repository), tag)
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
    private: support.Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    tag = f"{private.address}/{repository}:1"
    with Engine.connect() as anonymous:
        anonymous.tag(small(engine, repository), tag)
        with pytest.raises(RegistryError, match=r"pushing .*no basic auth") as raised:
            anonymous.push(tag)
        assert "docker login" in str(raised.value.hint)
        anonymous.remove(tag)


@pytest.mark.parametrize("ref", ["mfimage-test/none:none", "127.0.0.1:1/none:none"])
def test_a_push_of_nothing_raises(engine: Engine, ref: str) -> None:
    with pytest.raises(RegistryError, match="pushing"):
        engine.push(ref)


def test_a_push_to_nowhere_raises(engine: Engine, repository: str) -> None:
    tag = f"127.0.0.1:{support.free_port()}/{repository}:1"
    engine.tag(small(engine, repository), tag)
    with pytest.raises(RegistryError, match="connection refused") as raised:
        engine.push(tag)
    assert "the engine reaches it" in str(raised.value.hint)
    engine.remove(tag)


def test_a_pull_of_nothing_raises(engine: Engine, plain: support.Registry) -> None:
    with pytest.raises(RegistryError, match="pulling") as raised:
        engine.pull(f"{plain.address}/none:none")
    assert "check the image's name and tag" in str(raised.value.hint)


def test_a_private_base_is_pulled_with_the_users_own_credentials(
    engine: Engine,
    repository: str,
    private: support.Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = base64.b64encode(f"{private.username}:{private.password}".encode()).decode()
    config = {"auths": {private.address: {"auth": password}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tag = f"{private.address}/{repository}:base"
    dockerfile = files(f"FROM {tag}\nLABEL a=b\n")
    with Engine.connect() as anonymous:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        with Engine.connect() as known:
            known.tag(small(engine, repository), tag)
            known.push(tag)
            known.remove(tag)
            known.remove(f"{repository}:1")
            known.build(context=dockerfile, tags=[f"{repository}:1"], no_cache=True)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
        with pytest.raises(BuildError, match="401") as raised:
            anonymous.build(context=files(f"FROM {tag}\nLABEL c=d\n"), no_cache=True)
    assert "docker login" in str(raised.value.hint)
