"""An engine asked over its socket: what it answers, and what is said when it does not."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from mfimage.errors import EngineError
from mfimage.image.docker import local
from mfimage.image.docker.engine import Engine
from mfimage.image.docker.local import LocalEngine, connect

IMAGE = {
    "Id": "sha256:1", "Os": "linux", "Architecture": "amd64", "RootFS": {"Layers": ["sha256:2"]},
    "RepoDigests": ["team/python@sha256:3"], "Config": {"Env": ["PATH=/bin"], "Labels": None},
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loaded: list[bytes]

    def address_string(self) -> str:
        return "client"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        images = [{"Id": f"sha256:{n}", "Created": n} for n in range(5)]
        answers = {
            "/_ping": b"OK",
            "/images/team/python:3/json": json.dumps(IMAGE).encode(),
            "/images/json?filters=%7B%22label%22%3A+%5B%22a%3Db%22%5D%7D": (
                json.dumps(images).encode()
            ),
            "/images/sha256:1/get": b"x" * 3_000_000,
        }
        found = answers.get(self.path)
        missing = b'{"message": "no such image"}'
        self.answer(found or missing, 200 if found else 404)

    def do_POST(self) -> None:
        assert self.path == "/images/load?quiet=1"
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.loaded.append(body)
        stream = b'{"stream":"Loaded"}\r\n{"error":"no space left on device"}\r\n'
        self.answer(stream if body == b"large" else b'{"stream":"Loaded"}\r\n')


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@pytest.fixture
def address(monkeypatch) -> Iterator[str]:
    # A socket's path is short: below pytest's own folders it may not fit.
    with TemporaryDirectory() as folder:
        path = f"{folder}/engine.sock"
        Handler.loaded = []
        with Server(path, Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
            yield path
            server.shutdown()
            thread.join()


def test_what_a_builder_asks(address):
    engine = connect()
    assert isinstance(engine, LocalEngine)
    info = engine.inspect("team/python:3")
    assert info is not None
    assert (info.id, info.platform, info.layers) == ("sha256:1", "linux/amd64", ("sha256:2",))
    assert info.repo_digests == ("team/python@sha256:3",)
    assert engine.inspect("team/absent:1") is None
    assert list(engine.labelled("a=b")) == ["sha256:4", "sha256:3", "sha256:2"]
    assert b"".join(engine.save("sha256:1")) == b"x" * 3_000_000
    engine.load([b"an ", b"archive"])
    assert Handler.loaded == [b"an archive"]


def test_what_fails_is_the_engines_own_reason(address):
    engine = connect()
    with pytest.raises(EngineError, match="saving absent: no such image"):
        list(engine.save("absent"))
    with pytest.raises(EngineError, match="loading the image: no space left on device"):
        engine.load([b"large"])
    with pytest.raises(EngineError, match="inspecting iris: the Docker engine went away"):
        LocalEngine("/nowhere.sock").inspect("iris")


def test_without_a_socket_the_sdk_is_not_imported(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: pytest.fail("imported")))
    with pytest.raises(EngineError, match=r"there is no socket at unix:///nowhere\.sock"):
        connect()


@pytest.mark.parametrize("host", ["tcp://engine:2375", "ssh://me@engine", None])
def test_other_engines_are_asked_through_the_sdk(monkeypatch, tmp_path: Path, host):
    if host:
        monkeypatch.setenv("DOCKER_HOST", host)
    else:
        monkeypatch.delenv("DOCKER_HOST", raising=False)
        monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text('{"currentContext": "remote"}')
    monkeypatch.setattr(Engine, "connect", classmethod(lambda cls: "by the SDK"))
    assert connect() == "by the SDK"


def test_the_default_socket_is_dockers(monkeypatch, tmp_path: Path):
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert local._socket_path() == "/var/run/docker.sock"
