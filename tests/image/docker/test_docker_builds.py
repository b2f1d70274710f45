"""Real builds by ``docker build``: by buildx, and by Docker's client alone."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mfimage.errors import BuildError, EngineError
from mfimage.image.builder import BuildEvent
from mfimage.image.docker.builder import DockerBuilder
from mfimage.image.docker.command import DockerCommand
from mfimage.image.docker.engine import Engine
from mfimage.image.docker.render import quote
from mfimage.image.registry.reference import parse_tag
from mfimage.image.secrets.build import Secret, parse_secret, read_secrets
from tests.image.builds import Builds, builder, small_lock
from tests.image.sample import Sample, make_sample
from tests.support import docker as support

pytestmark = [pytest.mark.docker]


@pytest.fixture(scope="module", params=["buildx", "alone"])
def command(request: pytest.FixtureRequest) -> Iterator[DockerCommand]:
    """Each kind of client that this machine has."""
    support.ensure_base_image("3.11")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "buildx":
            patch.setenv("DOCKER_CONFIG", str(support.buildx_config()))
        elif (old := support.old_client()) is None:
            pytest.skip("no docker client older than 23 is here")
        else:
            patch.setenv("PATH", f"{old}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("DOCKER_CONFIG", "/nowhere")
        found = DockerCommand.find()
        assert (found.buildx is None) == (request.param == "alone")
        yield found


@pytest.fixture
def build(command: DockerCommand) -> Iterator[Builds]:
    with builder() as builds:
        builds.secrets = ()
        yield builds


def log(events: list[BuildEvent]) -> list[str]:
    return [event.text for event in events if event.kind == "log"]


def file_secret(folder: Path, name: str, content: bytes) -> Secret:
    path = folder / f"secret of {name}, quoted"
    path.write_bytes(content)
    return Secret(id=name, source=path)


def test_secrets_reach_their_step_and_leave_no_trace(
    build: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = secrets.token_hex(100_000).encode()
    monkeypatch.setenv("MY_TOKEN", "my-own-token-" + content[:50].decode())
    build.secrets = (
        file_secret(tmp_path, "netrc", content),
        parse_secret("id=UV_TOKEN,env=MY_TOKEN"),
    )
    events: list[BuildEvent] = []
    image = build.lines(
        tmp_path / "context",
        "FROM python:3.11-slim",
        "RUN --mount=type=secret,id=netrc,required=true sha256sum /run/secrets/netrc",
        "RUN --mount=type=secret,id=netrc head -c 64 /run/secrets/netrc; cat /run/secrets/netrc",
        "RUN --mount=type=secret,id=UV_TOKEN,required=true cat /run/secrets/UV_TOKEN",
        "RUN test ! -s /run/secrets/netrc",
        no_cache=True,
        on_event=events.append,
    )
    assert log(events)[0].split()[0] == hashlib.sha256(content).hexdigest()
    needles = (content[1000:1064].decode(), "my-own-token-")
    saved = b"".join(build.engine.save(image.id))
    for needle in needles:
        assert needle not in "".join(log(events))
        assert needle.encode() not in saved
        assert needle not in repr(image)


def test_a_secret_can_stand_in_for_a_file_that_is_there(build: Builds, tmp_path: Path) -> None:
    path = "/etc/ssl/certs/ca-certificates.crt"
    build.secrets = (file_secret(tmp_path, "ca", b"x" * 1234),)
    events: list[BuildEvent] = []
    image = build.lines(
        tmp_path / "context",
        "FROM python:3.11-slim",
        f"RUN --mount=type=secret,id=ca,target={path} wc -c {path}",
        no_cache=True,
        on_event=events.append,
    )
    assert f"1234 {path}" in log(events)
    assert int(build.engine.run_capture(image.id, ["wc", "-c", path]).split()[0]) > 10_000


def test_a_secret_that_is_not_given(build: Builds, tmp_path: Path) -> None:
    mount = "RUN --mount=type=secret,id=absent,required=true true"
    with pytest.raises(BuildError, match=r"absent.*not found"):
        build.lines(tmp_path / "context", "FROM python:3.11-slim", mount, no_cache=True)


def test_a_failing_step_is_named_with_its_log(build: Builds, tmp_path: Path) -> None:
    step = "RUN seq 100 >&2 && echo no such thing >&2 && exit 7"
    with pytest.raises(BuildError) as raised:
        build.lines(tmp_path / "context", "FROM python:3.11-slim", step, no_cache=True)
    first, *lines = raised.value.message.splitlines()
    assert "RUN seq 100" in first
    assert "exit code: 7" in first
    assert lines == [*(f"  | {number}" for number in range(82, 101)), "  | no such thing"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["FRM x"], "unknown instruction: FRM"),
        (["FROM 127.0.0.1:1/none/none:none"], "127.0.0.1:1"),
        (["FROM scratch", "COPY absent /"], "absent"),
        ([], "empty"),
    ],
)
def test_a_build_that_cannot_be(
    build: Builds, tmp_path: Path, lines: list[str], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        build.lines(tmp_path / "context", *lines)


def test_a_name_that_is_none_is_refused(build: Builds, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"invalid reference|invalid argument|invalid tag"):
        build.lines(tmp_path / "context", "FROM scratch", "LABEL a=b", tags=["UPPER CASE"])


def test_nothing_runs_twice(build: Builds, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "data").write_text("x")
    kinds: list[list[str]] = []
    images = set()
    for _ in range(2):
        events: list[BuildEvent] = []
        image = build.lines(
            tmp_path / "context",
            "FROM python:3.11-slim", f"RUN echo {build.tag}", "COPY data /data",
            on_event=events.append,
        )  # fmt: skip
        images.add(image.layers)
        kinds.append([event.kind for event in events if "RUN echo" in event.step])
    assert [kind[-1] for kind in kinds] == ["done", "cached"]
    assert len(images) == 1


def by_docker(build: Builds, sample: Sample, **options) -> DockerBuilder:
    return DockerBuilder(
        build.engine, build.command, tags=options.pop("tags", ()),
        secrets=read_secrets(build.secrets), no_cache=False,
        on_event=options.pop("on_event", lambda _: None), **options,
    )  # fmt: skip


def test_a_change_of_equal_size_is_noticed_and_the_rest_stays(
    build: Builds, tmp_path: Path
) -> None:
    """The engine remembers the context of the last build of that name."""
    sample = make_sample(tmp_path / "blobs")
    sample.lock = small_lock()
    bundle = support.host_ca_bundle()
    build.secrets = (Secret(id="ca", source=bundle),) if bundle else ()
    found = []
    for code in (b"one", b"two", b"one"):
        sample.code = {"word.txt": code}
        image = build(sample)
        text = build.engine.run_capture(image.id, ["cat", "/opt/function/code/word.txt"])
        found.append((text, image.layers))
    assert [text for text, _ in found] == ["one", "two", "one"]
    assert found[0][1] == found[2][1]
    assert found[0][1][:-1] == found[1][1][:-1]


def test_only_what_has_changed_is_sent_again(build: Builds, tmp_path: Path) -> None:
    context = tmp_path / f"context-{secrets.token_hex(4)}"
    context.mkdir()
    (context / "large").write_bytes(secrets.token_bytes(3_000_000))
    sent: list[list[BuildEvent]] = []
    for n in range(2):
        (context / "small").write_text(str(n))
        events: list[BuildEvent] = []
        build.lines(context, "FROM scratch", "COPY large /", "COPY small /", on_event=events.append)
        sent.append([event for event in events if event.step == "[internal] load build context"])
        moved = tmp_path / f"other-{n}" / context.name
        moved.parent.mkdir()
        context = Path(shutil.move(context, moved))
    if build.command.buildx and build.command.buildx >= (0, 14):
        first, second = (max(event.current for event in events) for events in sent)
        assert first > 3_000_000
        assert second < 100_000
    else:
        first, second = ("".join(event.text for event in events) for events in sent)
        assert "3.00MB" in first
        assert "MB" not in second


def test_builds_of_one_name_may_run_at_once(build: Builds, tmp_path: Path) -> None:
    built: dict[str, str] = {}
    # Of different lengths: BuildKit tells files apart by size and time, and the kernel's clock for
    # files stands still for some milliseconds. `write_context` sets times by content.
    words = ("one", "three", "eleven")

    def one(word: str) -> None:
        context = tmp_path / word / "context"
        context.mkdir(parents=True)
        (context / "word").write_text(word)
        lines = ("FROM python:3.11-slim", "COPY word /word", "RUN sleep 0.5")
        with Engine.connect() as own:
            image = build.lines(context, *lines, tags=[f"{build.tag}-{word}"]).id
            built[word] = own.run_capture(image, ["cat", "/word"])

    threads = [threading.Thread(target=one, args=(word,)) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == {word: word for word in words}


PROGRAM = """
import pathlib, sys
from mfimage.image.docker.command import DockerCommand
def show(event):
    print(event.kind, event.step, flush=True)
try:
    DockerCommand.find().build(pathlib.Path(sys.argv[1]), on_event=show)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_ends_the_build_in_the_engine(build: Builds, tmp_path: Path) -> None:
    mark = secrets.token_hex(8)
    lines = ("FROM python:3.11-slim", f"RUN sleep 61 # {mark}", "")
    (tmp_path / "Dockerfile").write_text("\n".join(lines))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            if line.startswith("started") and mark in line:
                break
        time.sleep(0.5)
        assert mark in processes()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    deadline = time.monotonic() + 10
    while mark in (shown := processes()):
        assert time.monotonic() < deadline, shown
        time.sleep(0.1)


def processes() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Registry]:
    with support.registry("auth", directory=tmp_path_factory.mktemp("auth")) as registry:
        yield registry


def test_a_private_base_is_pulled_with_the_users_own_credentials(
    build: Builds,
    private: support.Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    password = base64.b64encode(f"{private.username}:{private.password}".encode()).decode()
    config = {"auths": {private.address: {"auth": password}}}
    plugins = Path(os.environ["DOCKER_CONFIG"], "cli-plugins")
    for name, content in (("known", config), ("anonymous", {})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(content))
        if plugins.exists():
            (folder / "cli-plugins").symlink_to(plugins)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "known"))
    tag = f"{private.address}/team/{secrets.token_hex(6)}:base"
    with Engine.connect() as known:
        build.lines(tmp_path / "base", "FROM scratch", f"LABEL a={tag}", tags=[tag])
        known.push(tag)
        known.remove(tag)
        build.lines(tmp_path / "above", f"FROM {tag}", "LABEL a=b", no_cache=True)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "anonymous"))
    with pytest.raises(BuildError, match="401") as raised:
        build.lines(tmp_path / "stranger", f"FROM {tag}", "LABEL c=d", no_cache=True)
    assert "docker login" in str(raised.value.hint)


def test_an_image_of_another_digest_is_found_by_its_tag(
    build: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another build has taken the tag."""
    sample = make_sample(tmp_path / "blobs")
    lines = [f"LABEL {name}={quote(value)}" for name, value in sample.plan().labels.items()]
    image = build.lines(tmp_path / "context", "FROM python:3.11-slim", *lines)
    monkeypatch.setattr(DockerCommand, "build", lambda *_, **__: ("sha256:" + "0" * 64,))
    docker = by_docker(build, sample, tags=[parse_tag(build.tag)])
    assert docker.build(sample.plan(), sample.blobs.path).id == image.id
    sample.code = {"predict.py": b"another = 1\n"}
    with pytest.raises(EngineError, match="does not have sha256:000"):
        docker.build(sample.plan(), sample.blobs.path)


def test_an_image_that_is_loaded_elsewhere_is_missed_by_name(
    build: Builds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = make_sample(tmp_path / "blobs")
    monkeypatch.setattr(DockerCommand, "build", lambda *_, **__: ("sha256:" + "0" * 64,))
    with pytest.raises(EngineError, match="does not have sha256:000") as raised:
        by_docker(build, sample).build(sample.plan(), sample.blobs.path)
    assert "BUILDX_BUILDER" in str(raised.value.hint)
