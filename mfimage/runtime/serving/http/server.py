"""uvicorn's server, with a start, a shutdown and connections of its own.

`main_loop`, `startup`, `shutdown` and what a protocol is made with are internals of uvicorn: the
extra ``serve`` allows the versions that were tried.
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

import uvicorn

from mfimage.errors import OptionError
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.http.connection import Connection
from mfimage.runtime.settings import Settings

_BACKLOG = 2048
_POLL = 0.02
# Longer than a packet takes.
_ON_THEIR_WAY = 0.1
_SO_ATTACH_FILTER = 26

log = logging.getLogger("mfimage.serving")


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
            heads += connection.in_head
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
