"""Engine and session against a fake engine: no Docker needed."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import docker
import pytest

from mfimage.errors import BuildError, EngineError
from mfimage.image import engine_build, engine_connect
from mfimage.image.engine import Engine
from mfimage.image.engine_events import BuildEvent
from mfimage.image.engine_session import Session
from mfimage.image.engine_wire import encode_bytes, encode_int, last_bytes
from mfimage.image.plan.files import ContextFile
from tests.image.test_engine_events import log, vertex
from tests.support.fake_engine import FakeBuild, fake_engine

GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"
CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
HEALTH = "/grpc.health.v1.Health/Check"
DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
DOCKERFILE = [ContextFile(path="Dockerfile", content=b"FROM scratch\n")]

Connect = Callable[[Callable[[FakeBuild], None]], Engine]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    """Connect to a fake engine that does what it is told on ``POST /build``."""
    open_contexts: list[AbstractContextManager[object]] = []

    def connected(build: Callable[[FakeBuild], None]) -> Engine:
        fake = fake_engine(tmp_path, build)
        monkeypatch.setenv("DOCKER_HOST", fake.__enter__())
        open_contexts.append(fake)
        engine = Engine.connect()
        open_contexts.append(engine)
        return engine

    yield connected
    for context in reversed(open_contexts):
        context.__exit__(None, None, None)


def read_secret(build: FakeBuild, name: bytes) -> bytes:
    headers, (answer,) = build.call(GET_SECRET, encode_bytes(1, name))
    assert headers["grpc-status"] == "0"
    return last_bytes(answer, 1)


def test_secrets_reach_the_engine(connect: Connect) -> None:
    secrets = {"ca": b"\x00\xff" * 250_000, "netrc": b"", "token": b"hunter2"}
    seen: dict[str, bytes] = {}

    def build(fake: FakeBuild) -> None:
        seen.update({name: read_secret(fake, name.encode()) for name in secrets})
        fake.start()
        fake.image("sha256:1")

    assert connect(build).build(context=DOCKERFILE, secrets=secrets) == "sha256:1"
    assert seen == secrets


def test_an_unknown_secret_is_not_found_and_other_calls_are_unimplemented(connect: Connect) -> None:
    status: list[str] = []

    def build(fake: FakeBuild) -> None:
        for path in (GET_SECRET, "/moby.sshforward.v1.SSH/CheckAgent", HEALTH):
            status.append(fake.call(path, encode_bytes(1, b"other"))[0]["grpc-status"])
        fake.start()
        fake.image("sha256:1")

    connect(build).build(context=DOCKERFILE, secrets={"token": b"hunter2"})
    assert status == ["5", "12", "0"]


def test_the_session_is_announced(connect: Connect) -> None:
    announced: dict[str, list[str]] = {}

    def build(fake: FakeBuild) -> None:
        assert fake.session is not None
        for name in ("Upgrade", "X-Docker-Expose-Session-Grpc-Method"):
            announced[name] = fake.session.headers.get_all(name)
        fake.start()
        fake.image("sha256:1")

    connect(build).build(context=DOCKERFILE)
    assert announced["Upgrade"] == ["h2c"]
    methods = announced["X-Docker-Expose-Session-Grpc-Method"]
    assert set(methods) == {GET_SECRET, CREDENTIALS, HEALTH, DIFF_COPY}


def test_builds_of_one_repository_share_a_key_and_others_do_not(connect: Connect) -> None:
    keys: list[str] = []

    def build(fake: FakeBuild) -> None:
        assert fake.session is not None
        keys.append(fake.session.headers["X-Docker-Expose-Session-Sharedkey"])
        fake.start()
        fake.image("sha256:1")

    engine = connect(build)
    for tag in ("iris:1", "iris:2", "wine:1"):
        engine.build(context=DOCKERFILE, tags=[tag])
    assert keys[0] == keys[1] != keys[2]


def test_what_is_asked_for_stands_in_the_query(connect: Connect) -> None:
    query: dict[str, list[str]] = {}

    def build(fake: FakeBuild) -> None:
        query.update(fake.query)
        fake.start()
        fake.image("sha256:1")

    connect(build).build(
        context=DOCKERFILE,
        tags=["a:1", "b:2"],
        platform="linux/arm64",
        no_cache=True,
        cache_from=["r/c"],
        build_args={"A": "1"},
        labels={"l": "é"},
        dockerfile="other",
        target="final",
    )
    del query["session"]
    assert query == {
        "version": ["2"],
        "remote": ["client-session"],
        "t": ["a:1", "b:2"],
        "platform": ["linux/arm64"],
        "nocache": ["1"],
        "cachefrom": [json.dumps(["r/c"])],
        "buildargs": [json.dumps({"A": "1"})],
        "labels": [json.dumps({"l": "é"})],
        "dockerfile": ["other"],
        "target": ["final"],
        "rm": ["1"],
    }


def test_files_are_fetched_over_the_session(connect: Connect) -> None:
    packets: list[bytes] = []

    def build(fake: FakeBuild) -> None:
        assert fake.body == b""
        want = encode_int(1, 1) + encode_int(3, 0)
        packets.extend(fake.call(DIFF_COPY, want, encode_int(1, 3), dir_name="context")[1])
        fake.start()
        fake.image("sha256:1")

    connect(build).build(context=DOCKERFILE)
    assert [last_bytes(packet, 4) for packet in packets] == [b"", b"", b"FROM scratch\n", b"", b""]


def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("registry-1.docker.io", (b"hub", b"pw:1")),
        ("r.example:5000", (b"me", b"pw2")),
        ("token.example", (b"", b"tok")),
        ("other.example", (b"", b"")),
    ],
)
def test_credentials_come_from_the_docker_configuration(
    connect: Connect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    expected: tuple[bytes, bytes],
) -> None:
    def auth(text: bytes) -> dict[str, str]:
        return {"auth": base64.b64encode(text).decode()}

    auths = {
        "https://index.docker.io/v1/": auth(b"hub:pw:1"),
        "r.example:5000": auth(b"me:pw2"),
        "token.example": {"identitytoken": "tok"},
    }
    config(tmp_path, monkeypatch, {"auths": auths})
    answers: list[bytes] = []

    def build(fake: FakeBuild) -> None:
        answers.extend(fake.call(CREDENTIALS, encode_bytes(1, host.encode()))[1])
        fake.start()
        fake.image("sha256:1")

    connect(build).build(context=DOCKERFILE)
    (answer,) = answers
    assert (last_bytes(answer, 1), last_bytes(answer, 2)) == expected


def test_a_broken_credential_helper_is_named_and_nothing_more(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-broken"
    helper.write_text("#!/bin/sh\necho hunter2; exit 1\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    config(tmp_path, monkeypatch, {"credHelpers": {"r.example": "broken"}})
    told: list[dict[str, str]] = []

    def build(fake: FakeBuild) -> None:
        told.append(fake.call(CREDENTIALS, encode_bytes(1, b"r.example"))[0])
        fake.start()
        fake.image("sha256:1")

    connect(build).build(context=DOCKERFILE)
    assert told[0]["grpc-message"] == "the docker credential helper for r.example failed"


def test_events_arrive_while_the_build_runs(connect: Connect) -> None:
    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.trace(vertex("a", "RUN a", started=1))
        fake.trace(log("a", b"hello\n") + vertex("a", "RUN a", started=1, completed=2))
        fake.image("sha256:1")

    events: list[BuildEvent] = []
    connect(build).build(context=DOCKERFILE, on_event=events.append)
    assert [event.kind for event in events] == ["started", "log", "done"]


def test_a_failing_step_is_named_with_its_log_and_without_secrets(connect: Connect) -> None:
    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.trace(vertex("a", "[2/3] RUN install", started=1))
        fake.trace(log("a", b"no package named hunter2\nuse another\n"))
        fake.trace(vertex("a", "[2/3] RUN install", started=1, completed=2, error="exit code: 1"))
        fake.send(error="failed to solve: hunter2", errorDetail={"message": "failed to solve"})
        fake.end()

    with pytest.raises(BuildError) as raised:
        connect(build).build(context=DOCKERFILE, secrets={"token": b"hunter2"})
    assert raised.value.message.splitlines() == [
        "[2/3] RUN install: exit code: 1",
        "  | no package named ***",
        "  | use another",
    ]
    assert "hunter2" not in repr(raised.value)


def test_a_failure_before_any_step_is_the_engines_own_words(connect: Connect) -> None:
    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.send(error="dockerfile parse error line 1: unknown instruction: FRM")
        fake.end()

    with pytest.raises(BuildError, match="unknown instruction: FRM"):
        connect(build).build(context=DOCKERFILE)


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        ("write /x: no space left on device", "docker system prune"),
        ("exit code: 137", "memory"),
        ("pull access denied, repository does not exist", "docker login"),
    ],
)
def test_a_known_failure_has_a_hint(connect: Connect, error: str, hint: str) -> None:
    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.send(error=error)
        fake.end()

    with pytest.raises(BuildError) as raised:
        connect(build).build(context=DOCKERFILE)
    assert hint in (raised.value.hint or "")


def die(fake: FakeBuild) -> None:
    fake.start()
    fake.trace(vertex("a", "RUN a", started=1))


def die_within_a_line(fake: FakeBuild) -> None:
    fake.start()
    fake._handler.wfile.write(b"100\r\n{'id': 'moby")


def die_before_answering(fake: FakeBuild) -> None:
    fake._handler.connection.shutdown(socket.SHUT_RDWR)


def end_without_an_image(fake: FakeBuild) -> None:
    fake.start()
    fake.end()


@pytest.mark.parametrize(
    "death", [die, die_within_a_line, die_before_answering, end_without_an_image]
)
def test_an_engine_that_goes_away_is_an_engine_error(
    connect: Connect, death: Callable[[FakeBuild], None]
) -> None:
    with pytest.raises(EngineError, match="building the image: the Docker engine went away"):
        connect(death).build(context=DOCKERFILE)


def test_an_engine_that_hangs_is_noticed(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "_WATCH_INTERVAL", 0.1)
    monkeypatch.setattr(engine_connect, "_PING_TIMEOUT", 0.2)

    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.freeze()

    started = time.monotonic()
    with pytest.raises(EngineError, match="no longer answers"):
        connect(build).build(context=DOCKERFILE)
    assert time.monotonic() - started < 5


def test_a_long_silence_is_no_failure(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_build, "_WATCH_INTERVAL", 0.05)
    monkeypatch.setattr(engine_build, "_UPLOAD_TIMEOUT", 0.3)

    def build(fake: FakeBuild) -> None:
        fake.start()
        time.sleep(0.6)
        fake.image("sha256:1")

    assert connect(build).build(context=DOCKERFILE) == "sha256:1"


def test_what_the_callback_raises_comes_through_and_ends_the_build(connect: Connect) -> None:
    over = threading.Event()

    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.trace(vertex("a", "RUN a", started=1))
        assert fake.session is not None
        assert fake.session.connection.recv(1) is not None  # the session closes
        over.set()

    def interrupt(event: BuildEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(build).build(context=DOCKERFILE, on_event=interrupt)
    assert over.wait(5)


def test_a_broken_pipe_in_the_callback_is_not_blamed_on_the_engine(connect: Connect) -> None:
    def build(fake: FakeBuild) -> None:
        fake.start()
        fake.trace(vertex("a", "RUN a", started=1))

    def fail(event: BuildEvent) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        connect(build).build(context=DOCKERFILE, on_event=fail)


def test_a_session_does_not_show_its_secrets() -> None:
    api = docker.APIClient(version="1.41")
    session = Session(api, secrets={"token": b"hunter2"})
    assert "hunter2" not in repr(session)
    request = engine_build.BuildRequest(secrets={"token": b"hunter2"})
    assert "hunter2" not in repr(request)
    api.close()


def test_an_engine_without_sessions_is_told_from_one_that_is_gone(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(fake: FakeBuild) -> None:
        fake._handler.send_error(404)

    engine = connect(build)
    monkeypatch.setattr(engine._api, "_url", lambda path: f"{engine._api.base_url}/other")
    with pytest.raises(EngineError, match="HTTP 404") as raised:
        engine.build(context=DOCKERFILE)
    assert "BuildKit" in (raised.value.hint or "")
