"""A client's connection: HTTP/1.1 with limits from its first byte on."""

from __future__ import annotations

import asyncio
import logging
import time
import urllib.parse
from collections import deque
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from mfimage.runtime.serving.app import CLOSE, App
from mfimage.runtime.serving.content import Header
from mfimage.runtime.serving.problems import Problem, late, unavailable
from mfimage.runtime.serving.route import REFUSED, WHOLE, Message, Scope
from mfimage.runtime.settings import Settings

# Of the headers of a request, of a chunk's extensions, and of trailers.
_MAX_HEAD = 64 * 1024
# Of a body that the app has not received: no more is read meanwhile.
_MAX_UNRECEIVED = 64 * 1024
# For a client that still sends when it is refused: it must find the response before the reset.
_LINGER = 1.0
_LINGER_BYTES = 1024**2
_IDLE, _HEAD, _BODY, _REFUSED = range(4)

log = logging.getLogger("mfimage.serving")


class Cycle:
    """A request and its response; uvicorn's, for any ASGI app, takes 4 us more of each."""

    __slots__ = (
        "_connection", "_expects", "_news", "_parts", "_size", "_waiter", "disconnected",
        "keep_alive", "more_body", "response_complete", "scope", "task",
    )  # fmt: skip

    def __init__(self, connection: Connection, scope: Scope, *, keep_alive: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.more_body = True
        self.disconnected = self.response_complete = False
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._expects = connection.expects_continue
        self._parts: list[bytes] = []
        self._size = 0
        self._news = False
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, app: App) -> None:
        """Let the app respond."""
        connection = self._connection
        try:
            await app.serve(self.scope, self.receive, self.respond)
        except Exception:
            log.exception("the server failed")
            connection.fail(self)
        finally:
            connection.server_state.tasks.discard(self.task)

    def feed(self, body: bytes) -> bool:
        """Add a part of the body; return whether more of it should wait."""
        self._parts.append(body)
        self._size += len(body)
        self.notify()
        return self._size > _MAX_UNRECEIVED

    def end(self) -> None:
        """End the body."""
        self.more_body = self._expects = False
        if len(self._parts) == 1:
            self.scope[WHOLE] = self._parts[0]
        self.notify()

    def notify(self) -> None:
        """Wake the app if it waits in ``receive``."""
        self._news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def receive(self) -> Message:
        """Return what has arrived of the body since the last call, or that the client has left."""
        connection = self._connection
        if not (self.disconnected or self.response_complete):
            if self._expects and not connection.transport.is_closing():
                self._expects = False
                connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.resume_reading()
            if not self._news:
                self._waiter = connection.loop.create_future()
                await self._waiter
            self._news = False
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def respond(self, status: int, headers: list[Header], body: bytes) -> None:
        """Write the response."""
        connection = self._connection
        if not connection.writable.is_set():
            await connection.writable.wait()
        if self.disconnected:
            return
        if CLOSE in headers:
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append(CLOSE)
        headers += connection.server_state.default_headers
        lines = [b"%b: %b\r\n" % header for header in headers]
        connection.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.response_complete = True
        self.notify()
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()


class Connection(asyncio.Protocol):
    """A connection of uvicorn's server; what comes before the app has its limits here.

    The app limits the size of a body, and the time in which it arrives.
    """

    transport: asyncio.Transport

    def __init__(
        self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        self.app: App = config.loaded_app
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.cycle: Cycle | None = None
        self.state = _IDLE
        self.writable = asyncio.Event()
        self.writable.set()
        self.expects_continue = False
        self._pipeline: deque[Cycle] = deque()
        self._paused = False
        self._parser = self._new_parser()
        self._began = self._sent = time.monotonic()
        self._unsent = 0
        # Bytes fed without progress: of a head, a chunk's extension, trailers; and of this feed.
        self._fed = self._length = 0

    @property
    def in_head(self) -> bool:
        """Whether the head of a request is arriving."""
        return self.state == _HEAD

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # A pipelined request may follow one that asks to close.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment]
        self.server_state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the app know."""
        self.server_state.connections.discard(self)
        if self.cycle is not None:
            self.cycle.disconnected = not self.cycle.response_complete
            self.cycle.notify()
        self.writable.set()
        del self._parser  # it refers to this connection

    def pause_writing(self) -> None:
        """Let responses wait."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """Let responses be written."""
        self.writable.set()

    def pause_reading(self) -> None:
        """Let the client wait with what it sends."""
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; refuse what it refuses, and what is too long."""
        while data:
            self._length = len(data)
            self._fed += self._length
            if self.state == _REFUSED:
                if self._fed > _LINGER_BYTES:
                    self.transport.abort()
                return
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                if self.state != _REFUSED:
                    self.refuse(Problem(400, f"not HTTP: {error or type(error).__name__}"))
                return
            if self._fed > _MAX_HEAD:
                self.refuse(_HEAD_TOO_LARGE)
            return

    def _without_upgrade(self) -> bytes:
        """Return the head again as a plain request's, for a new parser: no protocol is offered.

        llhttp takes the body of such a request for another protocol.
        """
        if self.state != _HEAD:  # CONNECT
            return b""
        version = self._parser.get_http_version().encode()
        line = b"%s %s HTTP/%s" % (self._parser.get_method(), self.url, version)
        headers = [b"%s: %s" % each for each in self.headers if each[0] != b"upgrade"]
        self._parser = self._new_parser()
        return b"\r\n".join([line, *headers, b"\r\n"])

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expects_continue = False
        self._began = time.monotonic()
        self.state = _HEAD

    def on_url(self, url: bytes) -> None:
        """Add a part of the target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header."""
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expects_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Start the app, unless the head is too large or has an upgrade to ignore."""
        if self._fed > _MAX_HEAD or self._length > _MAX_HEAD:  # with a body, say
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > _MAX_HEAD:
                self.refuse(_HEAD_TOO_LARGE)
                raise ValueError
        parser, before = self._parser, self.cycle
        method = parser.get_method().decode("ascii")
        if parser.should_upgrade() and method != "CONNECT":
            return
        version = parser.get_http_version()
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        scope = {
            "type": "http", "asgi": _ASGI, "http_version": version, "method": method,
            "scheme": "http", "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": target.path, "query_string": target.query or b"", "root_path": "",
            "headers": self.headers,
        }  # fmt: skip
        keep_alive = version != "1.0" and parser.should_keep_alive()
        self.cycle = Cycle(self, scope, keep_alive=keep_alive)
        if before is None or before.response_complete:
            self._start(self.cycle)
        else:
            self.pause_reading()
            self._pipeline.append(self.cycle)
        self.state = _BODY
        self._fed = 0

    def _start(self, cycle: Cycle) -> None:
        cycle.task = self.loop.create_task(cycle.run(self.app))
        self.server_state.tasks.add(cycle.task)

    def on_chunk_header(self) -> None:
        """Count from here."""
        self._fed = 0

    def on_body(self, body: bytes) -> None:
        """Hand it to the app, which may have responded already."""
        self._fed = 0
        cycle = self.cycle
        assert cycle is not None
        if not cycle.response_complete and cycle.feed(body):
            self.pause_reading()

    def on_message_complete(self) -> None:
        """End a request, or the head of one whose upgrade is ignored."""
        if self.state == _BODY:
            self._fed = 0
            self.state = _IDLE
            assert self.cycle is not None
            self.cycle.end()

    def on_response_complete(self) -> None:
        """Start the next request that is here; ``check`` closes idle connections, not a timer."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.resume_reading()
            if self.state == _IDLE:
                self._began = time.monotonic()
            if self._pipeline:
                self._start(self._pipeline.popleft())

    def refuse(self, problem: Problem) -> None:
        """Send a problem, unless the app has a response to send; then close."""
        in_body, cycle = self.state == _BODY, self.cycle
        self.state = _REFUSED
        if cycle is None or cycle.response_complete:
            if not in_body:
                self._send(problem)
            self._began = time.monotonic()
            self.transport.write_eof()
            return
        cycle.keep_alive = False
        if in_body:
            cycle.scope[REFUSED] = problem
            cycle.notify()

    def fail(self, cycle: Cycle) -> None:
        """Send a problem in place of the app, if it has not responded; then close."""
        if not (cycle.response_complete or cycle.disconnected):
            self._send(Problem(500, "the server failed; the log has the reason"))
        self.transport.close()

    def shutdown(self) -> None:
        """Close now, or after the response."""
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _send(self, problem: Problem) -> None:
        reply = self.app.refuse(problem, self._began)
        headers = dict(reply.headers)
        headers |= {b"content-length": b"%d" % len(reply.body), b"connection": b"close"}
        lines = [b"%s: %s\r\n" % header for header in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[reply.status], *lines, b"\r\n", reply.body]))

    def check(self, now: float, settings: Settings, crowded: bool) -> None:
        """Close a connection that takes too long, or whose headers are too many at once."""
        patience = settings.timeout or Settings.timeout
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self._sent = unsent, now
        age = now - self._began
        limit = {_IDLE: settings.keep_alive, _REFUSED: _LINGER}.get(self.state, patience)
        if unsent and now - self._sent > patience:
            self.transport.abort()
        elif self.transport.is_closing() or (self.cycle and not self.cycle.response_complete):
            pass  # the app has its own limits
        elif self.state == _HEAD and (age > limit or crowded):
            self.refuse(unavailable(_CROWDED) if crowded else late(patience))
        elif age > limit:
            self.transport.close()


_HEAD_TOO_LARGE = Problem(431, f"expected headers of at most {_MAX_HEAD} bytes")
_CROWDED = "too many requests are arriving (MFIMAGE_MAX_WAITING)"
_ASGI = {"version": "3.0", "spec_version": "2.3"}
