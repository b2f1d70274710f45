"""An engine asked over its socket: what it answers, and what is said when it does not."""

from __future__ import annotations

import base64
import io
import json
import socketserver
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import pytest

from mfimage.errors import EngineError
from mfimage.image.docker import local
from mfimage.image.docker.engine import Engine
from mfimage.image.docker.local import LocalEngine, connect
from mfimage.image.oci.base import BasePython, find_python
from mfimage.image.oci.images import StoredImage

IMAGE = {
    "Id": "sha256:1", "Os": "linux", "Architecture": "amd64", "RootFS": {"Layers": ["sha256:2"]},
    "RepoDigests": ["team/python@sha256:3"], "Config": {"Env": ["PATH=/bin"], "Labels": None},
}  # fmt: skip


HISTORY = [{"Created": 1, "CreatedBy": "ADD", "Size": 3}]
LINK, FOLDER = 1 << 27, 1 << 31
# Of the container that is created: mode, link target, content.
FILES = {
    "/usr/bin/python3": (LINK | 0o777, "/usr/bin/python3.11", b""),
    "/usr/bin/python3.11": (0o755, "", b"program"),
    "/usr/bin/python": (LINK | 0o777, "/gone", b""),
    "/bin/python3": (FOLDER | 0o755, "", b""),
    "/usr/include/python3.11/patchlevel.h": (0o644, "", b'#define PY_VERSION "3.11.2"\n'),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loaded: list[bytes]
    containers: list[str]

    def address_string(self) -> str:
        return "client"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        found = FILES.get(parse_qs(urlsplit(self.path).query)["path"][0])
        self.send_response(200 if found else 404)
        if found:
            stat = json.dumps({"mode": found[0], "linkTarget": found[1]}).encode()
            self.send_header("X-Docker-Container-Path-Stat", base64.b64encode(stat).decode())
        self.end_headers()

    def do_DELETE(self) -> None:
        assert self.path == "/containers/c1?force=1&v=1"
        self.containers.remove("c1")
        self.answer(b"")

    def do_GET(self) -> None:
        if self.path.startswith("/containers/c1/archive?"):
            self.archive(parse_qs(urlsplit(self.path).query)["path"][0])
            return
        images = [{"Id": f"sha256:{n}", "Created": n} for n in range(5)]
        answers = {
            "/_ping": b"OK",
            "/images/team/python:3/json": json.dumps(IMAGE).encode(),
            "/images/json?filters=%7B%22label%22%3A+%5B%22a%3Db%22%5D%7D": (
                json.dumps(images).encode()
            ),
            "/images/sha256:1/json": json.dumps(IMAGE).encode(),
            "/images/sha256:1/history": json.dumps(HISTORY).encode(),
            "/images/sha256:1/get": b"x" * 3_000_000,
        }
        found = answers.get(self.path)
        missing = b'{"message": "no such image"}'
        self.answer(found or missing, 200 if found else 404)

    def archive(self, path: str) -> None:
        if path not in FILES:
            self.answer(b'{"message": "no such file"}', 404)
            return
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            member = tarfile.TarInfo(path.rpartition("/")[2])
            member.size = len(FILES[path][2])
            tar.addfile(member, io.BytesIO(FILES[path][2]))
        self.answer(out.getvalue())

    def do_POST(self) -> None:
        if self.path == "/containers/create":
            content = self.rfile.read(int(self.headers["content-length"]))
            assert json.loads(content)["Image"] == "sha256:1"
            self.containers.append("c1")
            self.answer(b'{"Id": "c1"}', 201)
            return
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
        Handler.loaded, Handler.containers = [], []
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


def test_the_description_is_the_engines(address):
    assert connect().describe("sha256:1") == (IMAGE, HISTORY)


def test_files_are_read_from_a_container_that_is_not_started(address):
    engine = LocalEngine(address)
    with engine.files("sha256:1") as files:
        assert Handler.containers == ["c1"]
        assert files.resolve("/usr/bin/python3") == "/usr/bin/python3.11"
        for path in ("/usr/bin/python", "/bin/python3", "/absent"):
            assert files.resolve(path) is None
        assert files.read("/usr/bin/python3.11") == b"program"
        assert files.read("/absent") is None
    assert Handler.containers == []


def test_python_is_found_without_the_layers(address):
    config = {"config": {"Env": ["PATH=/bin:/usr/bin"]}}
    image = StoredImage(digest=None, config=config, raw_config=b"", raw_manifest=b"", layers=())
    engine = LocalEngine(address)
    found = find_python(image, "base", lambda: engine.files("sha256:1"))
    assert found == BasePython(path="/usr/bin/python3", version="3.11.2")


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
