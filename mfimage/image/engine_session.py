"""The session beside a BuildKit build: how secrets and registry credentials reach the engine.

The client posts to ``/session``, the engine switches that connection to HTTP/2, and from then on
the engine asks and the client answers. See moby/buildkit, ``session/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import secrets as random
import socket
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import docker
import docker.auth
import requests
from urllib3 import HTTPHeaderDict

from mfimage.errors import EngineError
from mfimage.image.engine_connect import CONNECTION_ERRORS, engine_gone
from mfimage.image.engine_files import FileSync
from mfimage.image.engine_grpc import INTERNAL, NOT_FOUND, CallError, GrpcServer, Handler, unary
from mfimage.image.engine_wire import encode_bytes, encode_int, last_bytes
from mfimage.image.plan.files import ContextFile

_GET_SECRET = "/moby.buildkit.secrets.v1.Secrets/GetSecret"  # noqa: S105  (a path)
_CREDENTIALS = "/moby.filesync.v1.Auth/Credentials"
_DIFF_COPY = "/moby.filesync.v1.FileSync/DiffCopy"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = 1
# The hub's registry has other names in the docker configuration than on the wire.
_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_READ_SIZE = 1 << 16
_OPEN_TIMEOUT = 10.0
_CLOSE_TIMEOUT = 5.0


class Session:
    """Serves secrets and credentials to the engine for as long as the ``with`` block lasts.

    Parameters
    ----------
    api : docker.APIClient
        The connection to the engine.
    secrets : mapping of str to bytes
        By id, as in ``RUN --mount=type=secret,id=...``. Never logged, never in an error.
    files : iterable of ContextFile
        The build's context.
    shared_key : str
        The engine compares `files` with those of the last build under the same key.

    Attributes
    ----------
    id : str
        What ``/build`` is given as its ``session``.
    """

    def __init__(
        self,
        api: docker.APIClient,
        *,
        secrets: Mapping[str, bytes],
        files: Iterable[ContextFile] = (),
        shared_key: str = "",
    ) -> None:
        self.id = random.token_hex(16)
        self._api = api
        self._shared_key = hashlib.sha256(shared_key.encode()).hexdigest()
        self._handlers: dict[str, Handler] = {
            _HEALTH: unary(_check_health),
            _GET_SECRET: unary(partial(_get_secret, dict(secrets))),
            _CREDENTIALS: unary(_get_credentials),
            _DIFF_COPY: FileSync(files),
        }
        self._response: requests.Response | None = None
        self._reader: io.BufferedReader | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"Session(id={self.id!r})"

    def __enter__(self) -> Session:
        headers = HTTPHeaderDict(
            {
                "Connection": "Upgrade",
                "Upgrade": "h2c",
                "Content-Length": "0",
                "X-Docker-Expose-Session-Uuid": self.id,
                "X-Docker-Expose-Session-Name": "mfimage",
                "X-Docker-Expose-Session-Sharedkey": self._shared_key,
            }
        )
        for method in self._handlers:
            headers.add("X-Docker-Expose-Session-Grpc-Method", method)
        self._response = _post_session(self._api, headers)
        self._reader, self._socket = hijack(self._response)
        # The engine may be silent for as long as a step takes.
        self._socket.settimeout(None)
        self._thread = threading.Thread(
            target=_serve,
            args=(GrpcServer(self._handlers), self._reader, self._socket),
            name="mfimage-engine-session",
            daemon=True,
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._socket is not None:
            # Not SSLSocket.shutdown, which would take TLS away under the reading thread.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join(_CLOSE_TIMEOUT)
        for part in (self._response, self._reader, self._socket):
            if part is not None:
                part.close()


def _post_session(api: docker.APIClient, headers: HTTPHeaderDict) -> requests.Response:
    untyped: Any = api
    request = untyped.prepare_request(requests.Request("POST", untyped._url("/session")))
    # Several headers of one name: more than requests can say, not more than it passes on.
    request.headers = headers
    settings = untyped.merge_environment_settings(request.url, {}, True, None, None)
    try:
        response: requests.Response = untyped.send(request, timeout=_OPEN_TIMEOUT, **settings)
    except CONNECTION_ERRORS as error:
        raise engine_gone("opening a build session", error) from None
    if response.status_code != requests.codes.switching_protocols:
        with response:
            raise EngineError(
                f"the Docker engine refused a build session: HTTP {response.status_code}",
                hint="building needs an engine with BuildKit: Docker 20.10 or later",
            )
    return response


def hijack(response: requests.Response) -> tuple[io.BufferedReader, socket.socket]:
    """Reach below the HTTP client, for an answer's connection: how to read from it, and its socket.

    The engine starts to talk right behind its response head, so bytes may already wait in the
    client's buffered reader: reading goes on from there, not from the socket.
    """
    raw: Any = response.raw
    reader = raw._fp.fp
    file = getattr(reader, "raw", None)
    connection = getattr(file, "_sock", None) or getattr(file, "sock", None)
    if not isinstance(reader, io.BufferedReader) or connection is None:
        response.close()
        raise EngineError(
            "builds are not possible over this kind of connection to the Docker engine",
            hint="forward the engine's socket (ssh -L /tmp/docker.sock:/var/run/docker.sock HOST) "
            "and set DOCKER_HOST=unix:///tmp/docker.sock",
        )
    return reader, connection


def _serve(server: GrpcServer, reader: io.BufferedReader, connection: socket.socket) -> None:
    # One thread both reads and writes: a TLS connection does not bear two.
    # Whatever ends the session shows in the build's own stream, which says it better.
    with contextlib.suppress(OSError, ValueError):
        connection.sendall(server.pending())
        while data := reader.read1(_READ_SIZE):
            connection.sendall(server.receive(data))


def _check_health(request: bytes) -> bytes:
    return encode_int(1, _SERVING)


def _get_secret(secrets: Mapping[str, bytes], request: bytes) -> bytes:
    name = last_bytes(request, 1).decode(errors="replace")
    if name not in secrets:
        raise CallError(NOT_FOUND, f"secret {name}: not found")
    return encode_bytes(1, secrets[name])


def _get_credentials(request: bytes) -> bytes:
    host = last_bytes(request, 1).decode(errors="replace")
    try:
        found: Any = docker.auth.load_config().resolve_authconfig(None if host in _HUB else host)
    except docker.errors.DockerException:
        # The helper's own output may quote what it holds.
        raise CallError(INTERNAL, f"the docker credential helper for {host} failed") from None
    config = {str(key).lower(): value for key, value in (found or {}).items()}
    if token := config.get("identitytoken"):
        return encode_bytes(2, str(token).encode())
    username, password = config.get("username") or "", config.get("password") or ""
    return encode_bytes(1, username.encode()) + encode_bytes(2, password.encode())
