"""Functions whose modules have the names of other modules: each group in a process of its own.

A process has one module of a name. The server's process has an ``Apart`` for every other group of
functions, which starts ``ApartProcess`` and hands it whole requests over a socket; that one has an
app of its own, and loads, limits and batches as the server's process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mfimage.runtime.calls.coroutines import new_loop
from mfimage.runtime.calls.queue import Call
from mfimage.runtime.loading import packages
from mfimage.runtime.loading.modules import share
from mfimage.runtime.serving import logs
from mfimage.runtime.serving.app import App
from mfimage.runtime.serving.body import read_body
from mfimage.runtime.serving.contract import routes
from mfimage.runtime.serving.loads import Loads
from mfimage.runtime.serving.metrics import Metrics, count_as
from mfimage.runtime.serving.route import HttpRequest, Message, Response
from mfimage.runtime.serving.served import Served
from mfimage.runtime.serving.service import Handler, Service, State
from mfimage.runtime.serving.services import Services
from mfimage.runtime.settings import Settings
from mfimage.runtime.worker.lifeline import die_with

# Of a message: its kind, the number of its request, the length of its payload. The payload of a
# request or a response is the length of its head, the head as JSON, and the body.
_HEADER = struct.Struct("<BIQ")
_HEAD = struct.Struct("<I")
_REQUEST, _CANCEL, _RESPONSE, _STATE = range(4)
_END_SECONDS = 1.0

log = logging.getLogger("mfimage.serving")


def group(folder: Path) -> list[list[str]]:
    """Return the names of an image's functions, those that share a process together."""
    found = packages.find_all(folder)
    by_code: dict[Path, list[str]] = {}
    for name, each in found.items():
        by_code.setdefault(each.code, []).append(name)
    groups = share(by_code) if len(by_code) > 1 else [list(by_code)]
    return [[name for code in codes for name in by_code[code]] for codes in groups]


def _pack(head: Any, body: bytes) -> bytes:
    data = json.dumps(head).encode()
    return _HEAD.pack(len(data)) + data + body


def _unpack(payload: bytes) -> tuple[Any, bytes]:
    (length,) = _HEAD.unpack_from(payload)
    end = _HEAD.size + length
    return json.loads(payload[_HEAD.size : end]), payload[end:]


def _texts(headers: Any) -> list[list[str]]:
    return [[name.decode("latin-1"), value.decode("latin-1")] for name, value in headers]


def _bytes(headers: Any) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


class _Messages(asyncio.Protocol):
    """One end of the socket."""

    def __init__(
        self, received: Callable[[int, int, bytes], None], lost: Callable[[], None]
    ) -> None:
        self._received = received
        self._lost = lost
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not one by class

    def connection_lost(self, error: Exception | None) -> None:
        self._lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEADER.size:
            kind, number, length = _HEADER.unpack_from(buffer)
            end = _HEADER.size + length
            if len(buffer) < end:
                return
            payload = bytes(memoryview(buffer)[_HEADER.size : end])
            del buffer[:end]
            self._received(kind, number, payload)

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        assert self._transport is not None
        self._transport.writelines((_HEADER.pack(kind, number, len(payload)), payload))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Apart:
    """The server's side of a process of functions; it is the dispatcher of their calls.

    ``changed`` is called when the state of one has changed, ``ended`` when the process has ended
    unasked: as a crash in the server's own process, that ends the server.
    """

    def __init__(
        self, folder: Path, services: Services, names: Sequence[str], *, identity: str,
        changed: Callable[[Service, BaseException | None], None],
        ended: Callable[[Apart], None],
    ) -> None:  # fmt: skip
        self.names = names
        self._arguments = (identity, str(folder.absolute()), services.served.default or "", *names)
        self._services = services
        self._changed = changed
        self._ended = ended
        self._messages = _Messages(self._receive, self._lose)
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._closing = False
        self._next = 0
        self._calls: dict[int, Call] = {}
        self._numbers: dict[Call, int] = {}
        for name in names:
            services.by_name[name].wrap = self._forward

    async def start(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        inherited, self._lifeline = os.pipe()
        files = (theirs.fileno(), inherited)
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-m", __name__]  # type: ignore[attr-defined]
        try:
            self._process = subprocess.Popen(
                [*command, *map(str, files), *self._arguments],
                stdin=subprocess.DEVNULL, pass_fds=files, start_new_session=True,
            )  # fmt: skip
        finally:
            theirs.close()
            os.close(inherited)
        await self._services.loop.create_connection(lambda: self._messages, sock=ours)
        if self._services.settings.load == "lazy":
            for name in self.names:
                self._services.by_name[name].connect(self)

    def _forward(self, handler: Handler) -> Handler:
        async def handle(service: Service, request: HttpRequest) -> Response | BaseException:
            if service.loading:
                raise service.unavailable()
            calls = service.admit()
            body = await calls.arrive(request.started, read_body(request, service))
            scope = request.scope
            head = {
                "method": scope["method"], "path": scope["path"], "id": request.id,
                "query": scope.get("query_string", b"").decode("latin-1"),
                "headers": _texts(scope["headers"]),
            }  # fmt: skip
            outcome = await calls.run(_pack(head, body), request.receive, request.started)
            if not isinstance(outcome, bytes):
                return outcome
            found, content = _unpack(outcome)
            return Response(content, _bytes(found["headers"]), found["status"])

        return handle

    def submit(self, call: Call) -> None:
        """Send a request."""
        self._next = number = (self._next + 1) % 2**32
        self._calls[number], self._numbers[call] = call, number
        self._messages.send(_REQUEST, number, call.payload)
        call.payload = b""

    def abandon(self, call: Call) -> None:
        """End a request that nothing waits for."""
        number = self._numbers.pop(call, None)
        if number is not None:
            del self._calls[number]
            self._messages.send(_CANCEL, number)

    def stalled(self) -> float:
        """Return 0: every request is sent as it comes."""
        return 0.0

    def close(self) -> bool:
        """End the process; return whether no call ran."""
        idle = not self._calls
        self._closing = True
        self._messages.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)  # which ends it, whatever it does
            self._lifeline = -1
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        return idle

    def _receive(self, kind: int, number: int, payload: bytes) -> None:
        if kind == _STATE:
            self._apply(json.loads(payload))
            return
        call = self._calls.pop(number, None)
        if call is not None:
            del self._numbers[call]
            if not call.future.done():
                call.future.set_result(payload)

    def _apply(self, found: Mapping[str, str]) -> None:
        service, state = self._services.by_name[found["name"]], State(found["state"])
        if state is State.FAILED:
            service.fail(found["failed"])
        elif state is State.LOADED and service.inflight is None:
            service.connect(self)
        service.state = state
        self._changed(service, None)

    def _lose(self) -> None:
        if not self._closing:
            self._ended(self)


class ApartProcess:
    """The process: serves some of an image's functions, for requests over a socket."""

    def __init__(self, folder: Path, names: Sequence[str], default: str, identity: str) -> None:
        # The server's own app has the headers for pages of other origins.
        settings = replace(Settings.from_environ(), cors_origins=())
        logs.configure(settings.log_level)
        if identity:
            count_as(identity)
        found = packages.find_all(folder)
        self._loop = new_loop()
        served = Served.together(
            (found[name].spec for name in names), default if default in names else None
        )
        self._services = Services(
            served=served, settings=settings, metrics=Metrics(several=True), loop=self._loop
        )
        self._loads = Loads(folder, self._services, names, self._change)
        # The server's own process counts and logs.
        table = [
            replace(each, endpoint=None)
            for each in routes(served.placed(settings))
            if each.function or each.chooses
        ]
        self._app = App(self._services, table, access=None)
        self._messages = _Messages(self._receive, self._leave)
        self._gone: dict[int, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, sock: socket.socket) -> None:
        """Serve until the other side closes the socket."""
        connecting = self._loop.create_connection(lambda: self._messages, sock=sock)
        self._loop.run_until_complete(connecting)
        self._loads.start()
        self._loop.run_forever()

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(0)

    def _change(self, service: Service, error: BaseException | None) -> None:
        state = {"name": service.name, "state": service.state.value, "failed": service.failed}
        self._messages.send(_STATE, 0, json.dumps(state).encode())

    def _receive(self, kind: int, number: int, payload: bytes) -> None:
        if kind == _CANCEL:
            if number in self._gone:
                self._gone[number].set()
            return
        self._gone[number] = asyncio.Event()
        task = self._loop.create_task(self._respond(number, payload))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, number: int, payload: bytes) -> None:
        head, body = _unpack(payload)
        scope = {
            "type": "http", "method": head["method"], "path": head["path"],
            "query_string": head["query"].encode("latin-1"),
            "headers": [*_bytes(head["headers"]), (b"x-request-id", head["id"].encode())],
        }  # fmt: skip
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])
        del payload, body
        status, headers = 0, []

        async def receive() -> Message:
            for message in messages:
                return message
            await self._gone[number].wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [each for each in message["headers"] if each[0] not in _ADDED]
            else:
                found = {"status": status, "headers": _texts(headers)}
                self._messages.send(_RESPONSE, number, _pack(found, message["body"]))

        try:
            await self._app(scope, receive, send)
        finally:
            del self._gone[number]


# What the server's own app adds.
_ADDED = (b"content-length", b"x-request-id")


def main(arguments: Sequence[str]) -> None:
    """Be such a process."""
    control, lifeline, identity, folder, default, *names = arguments
    die_with(int(lifeline))
    sock = socket.socket(fileno=int(control))
    # What the function forks must not hold the socket.
    os.register_at_fork(after_in_child=sock.close)
    ApartProcess(Path(folder), names, default, identity).run(sock)


if __name__ == "__main__":
    main(sys.argv[1:])
