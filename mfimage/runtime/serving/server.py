"""uvicorn's server, with a start, a shutdown and limits of its own.

`main_loop`, `startup`, `shutdown`, the protocol's methods and its `cycle` are internals of uvicorn:
the extra ``serve`` allows the versions that were tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from mfimage.errors import OptionError
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.problems import Problem, late, unavailable
from mfimage.runtime.serving.route import REFUSED, Scope
from mfimage.runtime.settings import Settings

_BACKLOG = 2048
_POLL = 0.02
# Longer than a packet takes.
_ON_THEIR_WAY = 0.1
_SO_ATTACH_FILTER = 26
# Of the headers of a request, of a chunk's extensions, and of trailers.
_MAX_HEAD = 64 * 1024
# For a client that still sends when it is refused: it must find the response before the reset.
_LINGER = 1.0
_LINGER_BYTES = 1024**2
_IDLE, _HEAD, _BODY, _REFUSED = range(4)

log = logging.getLogger("mfimage.serving")


class Connection(HttpToolsProtocol):
    """A connection with limits from its first byte on; what comes before the app is its own part.

    The app limits the size of a body, and the time in which it arrives.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.state = _IDLE
        self._began = self._sent = time.monotonic()
        self._unsent = 0
        # Bytes fed without progress: of a head, a chunk's extension, trailers; and of this feed.
        self._fed = self._length = 0

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
                self.parser.feed_data(data)
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
        version = self.parser.get_http_version().encode()
        line = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)
        headers = [b"%s: %s" % each for each in self.headers if each[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"\r\n".join([line, *headers, b"\r\n"])

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._began = time.monotonic()
        self.state = _HEAD

    def on_headers_complete(self) -> None:
        """Start the app, unless the head is too large or has an upgrade to ignore."""
        if self._fed > _MAX_HEAD or self._length > _MAX_HEAD:  # with a body, say
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > _MAX_HEAD:
                self.refuse(_HEAD_TOO_LARGE)
                raise ValueError
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return
        super().on_headers_complete()
        self.state = _BODY
        self._fed = 0

    def on_chunk_header(self) -> None:
        """Count from here."""
        self._fed = 0

    def on_body(self, body: bytes) -> None:
        """Hand it to the app, which may have responded already."""
        self._fed = 0
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        """End a request, or the head of one whose upgrade is ignored."""
        if self.state == _BODY:
            self._fed = 0
            self.state = _IDLE
            self.cycle.more_body = False
            self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Start the next request that is here; ``check`` closes idle connections, not a timer."""
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.state == _IDLE:
                self._began = time.monotonic()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())

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
            cast("Scope", cycle.scope)[REFUSED] = problem
            cycle.message_event.set()

    def _send(self, problem: Problem) -> None:
        reply = cast(App, self.app).refuse(problem, self._began)
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


class Server(uvicorn.Server):
    """A server that loses no request when it shuts down; its socket opens with the gate."""

    def __init__(self, app: App, settings: Settings, gate: asyncio.Event | None) -> None:
        config = uvicorn.Config(
            app, http=Connection, interface="asgi3", ws="none", lifespan="off",
            log_config=None, access_log=False, proxy_headers=False, server_header=False,
            backlog=_BACKLOG,
        )  # fmt: skip
        super().__init__(config)
        self._services = app.services
        self._settings = settings
        self._gate = gate
        self._stopping = asyncio.Event()
        self._linger = 0.0
        self.cut = 0  # requests that the end of the grace period cut off

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: ``Process`` handles them."""
        yield

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin to shut down; SIGINT does not wait for load balancers."""
        if not self.should_exit:
            self._linger = self._settings.drain if number == signal.SIGTERM else 0.0
            self.abort()

    def abort(self) -> None:
        """Shut down without serving new connections."""
        self.should_exit = True
        self._services.drain()
        self._stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the sockets, once the gate is open."""
        if self._gate is not None:
            waits = [asyncio.ensure_future(e.wait()) for e in (self._gate, self._stopping)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if not self.should_exit:
            await super().startup(sockets=sockets)
            self._sweep()
            for sock in sockets or ():
                address, port = sock.getsockname()[:2]
                log.info("listening on %s:%d", address, port, extra={"port": port})

    def _sweep(self) -> None:
        """Check every connection, again and again."""
        now = time.monotonic()
        heads = 0
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Connection)
            heads += connection.state == _HEAD
            crowded = heads > self._settings.max_waiting
            connection.check(now, self._settings, crowded)
        tick = min(1.0, (self._settings.timeout or Settings.timeout) / 10)
        asyncio.get_running_loop().call_later(tick, self._sweep)

    async def main_loop(self) -> None:
        """Tick until the shutdown begins, and return at once then."""
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 0.1)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve for a moment, close the sockets, finish what is in flight."""
        deadline = time.monotonic() + self._settings.grace
        log.info("shutting down", extra={"in_flight": len(self.server_state.tasks)})
        linger = min(self._linger, self._settings.grace)
        await asyncio.sleep(linger)
        if linger:
            for sock in sockets or ():
                _drop_newcomers(sock)
            await asyncio.sleep(_ON_THEIR_WAY)
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()
        await self._finish(deadline, patience=_ON_THEIR_WAY if linger else 0.0)
        if self.server_state.tasks:
            self.cut = len(self.server_state.tasks)
            # A client that has not sent its request has lost none.
            self.cut -= self._services.stop()
            await self._finish(time.monotonic() + 1.0)

    async def _finish(self, deadline: float, *, patience: float = 0.0) -> None:
        """Close idle connections now, busy ones after their response."""
        patient_until = time.monotonic() + patience
        while True:
            patient = time.monotonic() < patient_until
            for connection in list(self.server_state.connections):
                cycle = connection.cycle  # type: ignore[union-attr]
                if cycle is not None and not cycle.response_complete:
                    # uvicorn 0.44's own shutdown would report a disconnect to the app.
                    cycle.keep_alive = False
                elif not (patient and cycle is None):
                    # The first request of a connection may still be on its way.
                    connection.shutdown()
            if not (patient or self.server_state.tasks) or time.monotonic() > deadline:
                return
            await asyncio.sleep(_POLL)


def _drop_newcomers(sock: socket.socket) -> None:
    """Let a listening socket ignore requests for new connections, while it is still there.

    Closing it resets the connections that wait to be accepted: without this, the tests that send
    SIGTERM under load lose requests in every run. So the socket first gets a packet filter that
    drops what has the SYN flag: connected clients are served, later ones try again and find the
    port closed.
    """
    if sys.platform != "linux":
        return
    # Load the flags' byte of the TCP header; if SYN: drop, else: keep.
    steps = (0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF)
    program = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # some sandboxes have no packet filters
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, head)


def open_socket(settings: Settings, *, shared: bool = False) -> socket.socket:
    """Bind the server's address; the kernel spreads connections over shared sockets."""
    host, port = settings.host, settings.port
    sock = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sock = socket.socket(found[0][0], socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(found[0][4])
    except OSError as error:
        if sock is not None:
            sock.close()
        raise OptionError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="set PORT or MFIMAGE_HOST to an address that is free",
        ) from None
    sock.set_inheritable(False)
    return sock
