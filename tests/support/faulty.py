"""A proxy that counts HTTP requests and spoils some of them, to stand in front of a server."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

_CHUNK = 1 << 16
Kind = Literal["503", "drop", "delay", "cut", "short", "garble"]


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with which requests.

    Attributes
    ----------
    kind : str
        ``503``: the server is busy. ``drop``: the connection ends without an answer. ``delay``:
        the answer is ``seconds`` late. ``cut``: the connection ends amid the body, the request's
        for PUT and the answer's for GET. ``short``: half of the answer's body, as if it were all.
        ``garble``: a byte of the answer's body is another.
    method, path : str
        Which requests: the method, and what the path contains.
    after, times : int
        How many of them pass before, and how many are spoilt then.
    """

    kind: Kind
    method: str = ""
    path: str = ""
    after: int = 0
    times: int = 1 << 30
    seconds: float = 0
    seen: int = 0

    def spoils(self, method: str, path: str) -> bool:
        """Tell, for a request that arrives now."""
        if self.method not in ("", method) or self.path not in path:
            return False
        self.seen += 1
        return self.after < self.seen <= self.after + self.times


@dataclass
class Faulty:
    """A running proxy.

    Attributes
    ----------
    url : str
        Where it listens.
    faults : list of Fault
        The first that fits a request spoils it.
    requests : list of (method, path)
        All that arrived, in order.
    """

    url: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, path: str = "") -> int:
        """Return how many requests arrived so far."""
        return len(self.paths(method, path))

    def paths(self, method: str, path: str = "") -> list[str]:
        """Return the paths of the requests that arrived so far."""
        return [where for kind, where in self.requests if kind == method and path in where]

    def arrived(self, method: str, path: str) -> Fault | None:
        """Note a request, and return what is to go wrong with it."""
        with self._lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.spoils(method, path)), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and content are sent one after the other: 40 ms each, if the first is awaited.
    disable_nagle_algorithm = True
    proxy: Faulty

    def do(self) -> None:
        fault = self.proxy.arrived(self.command, self.path)
        kind = fault.kind if fault else ""
        size = int(self.headers.get("Content-Length") or 0)
        assert "chunked" not in self.headers.get("Transfer-Encoding", "")
        if kind == "drop" or (kind == "cut" and self.command in ("PUT", "PATCH")):
            self.rfile.read(size // 2 if kind == "cut" else 0)
            self._hang_up()
            return
        if fault and kind == "delay" and self.proxy.stopped.wait(fault.seconds):
            self._hang_up()
            return
        body = self.rfile.read(size)
        if kind == "503":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._pass_on(body, kind)

    do_GET = do_HEAD = do_PUT = do_PATCH = do_POST = do_DELETE = do

    def _pass_on(self, body: bytes, kind: str) -> None:
        upstream = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        try:
            upstream.request(self.command, self.path, body, dict(self.headers.items()))
            answer = upstream.getresponse()
            size = int(answer.getheader("Content-Length") or 0)
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            sent = size // 2 if kind in ("cut", "short") else size
            self.send_header("Content-Length", str(sent if kind == "short" else size))
            self.end_headers()
            if self.command != "HEAD":
                self._copy(answer, sent, garble=kind == "garble")
            if kind == "cut":
                self._hang_up()
        finally:
            upstream.close()

    def _copy(self, answer: http.client.HTTPResponse, size: int, *, garble: bool) -> None:
        while size and (chunk := answer.read(min(_CHUNK, size))):
            size -= len(chunk)
            self.wfile.write(bytes([chunk[0] ^ 1]) + chunk[1:] if garble else chunk)
            garble = False

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with suppress(OSError):  # who asked has gone
            super().handle()

    def finish(self) -> None:
        with suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def faulty(upstream: str, handler: type[Handler] = Handler) -> Iterator[Faulty]:
    """Run a proxy in front of a server for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=True)
    server.daemon_threads = True
    proxy = Faulty(url=f"http://127.0.0.1:{server.server_port}", upstream=upstream)
    server.RequestHandlerClass = type("Handler", (handler,), {"proxy": proxy})
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
