from __future__ import annotations

import hashlib
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import docker
import pytest

from mfimage.errors import EngineError
from mfimage.image.docker.engine import Engine
from tests.support.docker import free_port


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ApiVersion": "1.46"}')

    def log_message(self, *args: object) -> None:
        pass


class _Server(socketserver.UnixStreamServer):
    def get_request(self) -> tuple[socket.socket, str]:
        return super().get_request()[0], "client"  # the handler wants a name


@contextmanager
def fake_engine(directory: Path) -> Iterator[str]:
    """Respond as an engine does when it is asked for its version; yield the address."""
    path = directory / "engine.sock"
    with _Server(str(path), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def fails() -> EngineError:
    with within(3), pytest.raises(EngineError) as raised:
        Engine.connect()
    assert raised.value.hint
    return raised.value


def test_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert f"there is no socket at unix://{tmp_path}/none.sock" in fails().message


def test_a_socket_that_nobody_listens_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    assert "is not running" in fails().message


def test_a_port_that_nobody_listens_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    assert "is not running" in fails().message


@pytest.mark.slow
@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_an_engine_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    kind = socket.AF_UNIX if family == "unix" else socket.AF_INET
    address = str(tmp_path / "hung.sock") if family == "unix" else ("127.0.0.1", free_port())
    with socket.socket(kind) as hung:
        hung.bind(address)
        hung.listen()
        name = address if isinstance(address, str) else f"127.0.0.1:{address[1]}"
        monkeypatch.setenv("DOCKER_HOST", f"{family}://{name}")
        assert "does not respond" in fails().message


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    # As root, which may do everything, the refusal has to be invented.
    monkeypatch.setenv("DOCKER_HOST", "unix:///var/run/docker.sock")

    def refused(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("docker.transport.unixconn.UnixHTTPConnection.connect", refused)
    error = fails()
    assert "no permission" in error.message
    assert "docker` group" in str(error.hint)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_no_permission_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(tmp_path) as host:
        (tmp_path / "engine.sock").chmod(0)
        monkeypatch.setenv("DOCKER_HOST", host)
        assert "no permission" in fails().message


def test_something_else_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "gopher://nowhere")
    assert "cannot reach" in fails().message


def test_a_password_in_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://me:hunter2@127.0.0.1:{free_port()}")
    error = fails()
    assert "hunter2" not in f"{error} {error.hint}"


def use_context(directory: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(directory))
    (directory / "config.json").write_text(json.dumps({"currentContext": "mine"}))
    meta = directory / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest()
    meta.mkdir(parents=True)
    endpoints = {"docker": {"Host": host, "SkipTLSVerify": False}}
    content = {"Name": "mine", "Metadata": {}, "Endpoints": endpoints}
    (meta / "meta.json").write_text(json.dumps(content))


def test_the_current_context_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(tmp_path) as host:
        use_context(tmp_path, monkeypatch, host)
        Engine.connect().close()


def test_a_context_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_context(tmp_path, monkeypatch, f"unix://{tmp_path}/none.sock")
    assert f"there is no socket at unix://{tmp_path}/none.sock" in fails().message


def test_a_broken_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_context(tmp_path, monkeypatch, "unix:///x")
    for meta in tmp_path.rglob("meta.json"):
        meta.write_text("{")
    assert "cannot reach" in fails().message


def test_a_context_named_by_a_variable_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the ``docker`` command does, which builds what this connection then inspects."""
    with fake_engine(tmp_path) as host:
        use_context(tmp_path, monkeypatch, host)
        (tmp_path / "config.json").write_text("{}")
        monkeypatch.setenv("DOCKER_CONTEXT", "mine")
        with Engine.connect() as engine:
            assert engine._api.api_version == "1.46", "it is not another engine"
            assert engine.alive()


def test_docker_host_wins_over_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_engine(tmp_path) as host:
        use_context(tmp_path, monkeypatch, f"unix://{tmp_path}/none.sock")
        monkeypatch.setenv("DOCKER_HOST", host)
        Engine.connect().close()


def test_calls_after_connecting_have_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_engine(tmp_path) as host:
        monkeypatch.setenv("DOCKER_HOST", host)
        with Engine.connect() as engine:
            assert isinstance(engine._api, docker.APIClient)
            assert engine._api.timeout == 60
