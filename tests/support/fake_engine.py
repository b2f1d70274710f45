"""An engine made of nothing: it speaks the engine's HTTP and BuildKit's gRPC, and builds no image.

A test says what ``POST /build`` does, as a function of a `FakeBuild`.
"""

from __future__ import annotations

import base64
import json
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.settings

_SWITCH = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


class GrpcClient:
    """The engine's end of a session, without I/O.

    Parameters
    ----------
    window : int
        How much of an answer it takes before the sender must wait for it.
    """

    def __init__(self, window: int = 65535) -> None:
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.http.initiate_connection()
        self.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})

    def greeting(self) -> bytes:
        return self.http.data_to_send()

    def call(
        self, exchange: Callable[[bytes], bytes], path: str, *messages: bytes, **metadata: str
    ) -> tuple[dict[str, str], list[bytes]]:
        """Make one call; return its trailers and its answers.

        `exchange` sends bytes to the peer and returns what it sent back, or ``b""`` if it closed.
        """
        stream = self.http.get_next_available_stream_id()
        extra = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        self.http.send_headers(stream, [*request_headers(path), *extra])
        for message in messages:
            self.http.send_data(stream, struct.pack(">BI", 0, len(message)) + message)
        self.http.end_stream(stream)
        return self.collect(exchange, stream)

    def collect(
        self, exchange: Callable[[bytes], bytes], stream: int
    ) -> tuple[dict[str, str], list[bytes]]:
        data, ended = bytearray(), False
        headers: dict[str, str] = {}
        while not ended:
            received = exchange(self.http.data_to_send())
            if not received:
                raise ConnectionError("the session is closed")
            for event in self.http.receive_data(received):
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                    headers.update((str(name), str(value)) for name, value in event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    data += event.data
                    self.http.acknowledge_received_data(event.flow_controlled_length, stream)
                elif isinstance(event, h2.events.StreamEnded):
                    ended = True
        return headers, list(_messages(bytes(data)))


def request_headers(path: str) -> list[tuple[str, str]]:
    """Return what every call's head has to have."""
    return [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", path)]


def _messages(data: bytes) -> Iterator[bytes]:
    while data:
        size = struct.unpack_from(">BI", data)[1]
        yield data[5 : 5 + size]
        data = data[5 + size :]


class FakeBuild:
    """One ``POST /build``: what came with it, and ways to answer."""

    def __init__(self, handler: _Handler) -> None:
        self._handler = handler
        self.query = parse_qs(urlsplit(handler.path).query)
        self.body = handler.read_body()
        self.session = handler.server.sessions.get(self.query.get("session", [""])[0])

    def call(
        self, path: str, *messages: bytes, **metadata: str
    ) -> tuple[dict[str, str], list[bytes]]:
        """Ask the client something over its session."""
        assert self.session is not None, "no such session"
        return self.session.client.call(self.session.exchange, path, *messages, **metadata)

    def start(self) -> None:
        """Send the answer's head."""
        self._handler.send_response(200)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()

    def send(self, **message: Any) -> None:
        """Send one line of the answer."""
        line = json.dumps(message).encode() + b"\r\n"
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def trace(self, message: bytes) -> None:
        """Send a progress message."""
        self.send(id="moby.buildkit.trace", aux=base64.b64encode(message).decode())

    def image(self, digest: str) -> None:
        """Send the image's ID and the answer's end."""
        self.send(id="moby.image.id", aux={"ID": digest})
        self.end()

    def end(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def freeze(self) -> None:
        """Answer nothing any more, to anyone, until the test is over."""
        self._handler.server.frozen.set()
        self._handler.server.over.wait()


class _Session:
    def __init__(self, connection: socket.socket, headers: Any) -> None:
        self.connection = connection
        self.headers = headers
        self.client = GrpcClient()

    def exchange(self, data: bytes) -> bytes:
        self.connection.sendall(data)
        return self.connection.recv(1 << 16)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if self.server.frozen.is_set():
            self.server.over.wait()
        body = json.dumps({"ApiVersion": "1.41"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.close_connection = True
        if urlsplit(self.path).path.endswith("/session"):
            self._session()
        else:
            self.server.build(FakeBuild(self))

    def _session(self) -> None:
        session = _Session(self.connection, self.headers)
        # Both at once: the client must not lose what follows the head.
        self.connection.sendall(_SWITCH + session.client.greeting())
        self.server.sessions[self.headers["X-Docker-Expose-Session-Uuid"]] = session
        self.server.over.wait()

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False
    block_on_close = True

    def __init__(self, path: Path, build: Callable[[FakeBuild], None]) -> None:
        super().__init__(str(path), _Handler)
        self.build = build
        self.sessions: dict[str, _Session] = {}
        self.frozen = threading.Event()
        self.over = threading.Event()

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, "client"  # the handler wants a name, a Unix socket has none

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away on purpose here."""


@contextmanager
def fake_engine(
    directory: Path, build: Callable[[FakeBuild], None] = lambda build: None
) -> Iterator[str]:
    """Run a fake engine; yield its address, for DOCKER_HOST."""
    path = directory / "engine.sock"
    with _Server(path, build) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
