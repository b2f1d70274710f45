"""A gRPC server for one connection, without any I/O: bytes in, bytes out.

BuildKit calls its client back for secrets, registry credentials and the build's files. It does so
as a gRPC client, over HTTP/2, on a connection that the client opened.
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote

import h2.config
import h2.connection
import h2.events
import h2.exceptions

INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, DATA_LOSS = (
    3,
    5,
    8,
    12,
    13,
    15,
)
_MAX_REQUEST = 1 << 20
_PREFIX = struct.Struct(">BI")

Metadata = Mapping[str, list[str]]
Handler = Callable[[Metadata, deque[bytes]], Iterator["bytes | None"]]
"""Serves one call: takes its metadata and the queue of messages as they arrive; yields the messages
to answer, or None to wait for more to arrive. Raises `CallError` to refuse."""


class CallError(Exception):
    """A call's refusal: a gRPC status code and a message that is shown to the caller."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def unary(answer: Callable[[bytes], bytes]) -> Handler:
    """Make a handler of a function from one request message to one answer message."""

    def handle(metadata: Metadata, inbox: deque[bytes]) -> Iterator[bytes | None]:
        while not inbox:
            yield None
        yield answer(inbox.popleft())

    return handle


@dataclass(kw_only=True)
class _Call:
    """One call in progress: its messages as they arrive, its answers as they leave."""

    inbox: deque[bytes]
    answers: Iterator[bytes | None]
    arriving: bytearray = field(default_factory=bytearray)
    leaving: memoryview = field(default_factory=lambda: memoryview(b""))
    headers_sent: bool = False
    half_closed: bool = False


class GrpcServer:
    """Answers calls on one HTTP/2 connection.

    Parameters
    ----------
    handlers : mapping of str to Handler
        By path, as ``/package.Service/Method``. Other paths are answered ``UNIMPLEMENTED``.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._calls: dict[int, _Call] = {}
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self._http.initiate_connection()

    def pending(self) -> bytes:
        """Return what is to be sent, such as the greeting before anything was received."""
        return self._http.data_to_send()

    def receive(self, data: bytes) -> bytes:
        """Take bytes that arrived; return the bytes to send.

        Raises
        ------
        ConnectionError
            If the peer does not speak HTTP/2 or has closed the connection in an orderly way.
        """
        try:
            for event in self._http.receive_data(data):
                self._handle(event)
            for stream, call in list(self._calls.items()):
                self._serve(stream, call)
        except h2.exceptions.ProtocolError as error:
            raise ConnectionError(f"HTTP/2: {error}") from None
        return self._http.data_to_send()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event)
        elif isinstance(event, h2.events.DataReceived):
            self._take(event)
        elif isinstance(event, h2.events.StreamEnded):
            if call := self._calls.get(event.stream_id):
                call.half_closed = True
        elif isinstance(event, h2.events.StreamReset):
            self._calls.pop(event.stream_id, None)
        elif isinstance(event, h2.events.ConnectionTerminated):
            raise ConnectionError("the engine closed the session")

    def _open(self, event: h2.events.RequestReceived) -> None:
        metadata: dict[str, list[str]] = {}
        for name, value in event.headers or ():
            metadata.setdefault(str(name), []).append(str(value))
        inbox: deque[bytes] = deque()
        handler = self._handlers.get(metadata[":path"][0], _unknown)
        self._calls[event.stream_id] = _Call(inbox=inbox, answers=handler(metadata, inbox))

    def _take(self, event: h2.events.DataReceived) -> None:
        self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        call = self._calls.get(event.stream_id)
        if call is None or event.data is None:
            return
        call.arriving += event.data
        while len(call.arriving) >= _PREFIX.size:
            compressed, size = _PREFIX.unpack_from(call.arriving)
            if compressed or size > _MAX_REQUEST:
                call.answers = _refuse(RESOURCE_EXHAUSTED, "message is too large or compressed")
                return
            end = _PREFIX.size + size
            if len(call.arriving) < end:
                return
            call.inbox.append(bytes(call.arriving[_PREFIX.size : end]))
            del call.arriving[:end]

    def _serve(self, stream: int, call: _Call) -> None:
        """Let a call answer, as far as it can and the peer's flow-control windows let it."""
        try:
            while call.leaving or self._next(call):
                if not self._send(stream, call):
                    return
        except StopIteration:
            self._close(stream, call, 0)
        except CallError as error:
            self._close(stream, call, error.code, str(error))
        except h2.exceptions.ProtocolError:
            raise
        except Exception as error:  # noqa: BLE001  (the engine waits for an answer, always)
            # Only the type: a message could quote the value that could not be handled.
            self._close(stream, call, INTERNAL, type(error).__name__)

    def _next(self, call: _Call) -> bool:
        """Fetch the next answer; say whether there is one by now."""
        message = next(call.answers)
        if message is not None:
            call.leaving = memoryview(_PREFIX.pack(0, len(message)) + message)
            return True
        if call.half_closed and not call.inbox:
            raise CallError(INVALID_ARGUMENT, "the request is cut short")
        return False

    def _send(self, stream: int, call: _Call) -> bool:
        """Send from what is leaving; say whether all of it is gone."""
        if not call.headers_sent:
            call.headers_sent = True
            self._http.send_headers(
                stream, [(":status", "200"), ("content-type", "application/grpc")]
            )
        while call.leaving:
            window = self._http.local_flow_control_window(stream)
            size = min(window, self._http.max_outbound_frame_size, len(call.leaving))
            if size <= 0:
                return False
            self._http.send_data(stream, bytes(call.leaving[:size]))
            call.leaving = call.leaving[size:]
        return True

    def _close(self, stream: int, call: _Call, code: int, message: str = "") -> None:
        self._calls.pop(stream, None)
        headers = [("grpc-status", str(code))]
        if message:
            headers.append(("grpc-message", quote(message, safe=" /:,.'\"")))
        if not call.headers_sent:
            headers[:0] = [(":status", "200"), ("content-type", "application/grpc")]
        # The engine may have given the call up meanwhile.
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self._http.send_headers(stream, headers, end_stream=True)


def _unknown(metadata: Metadata, inbox: deque[bytes]) -> Iterator[bytes | None]:
    return _refuse(UNIMPLEMENTED, f"unknown method {metadata[':path'][0]}")


def _refuse(code: int, message: str) -> Iterator[bytes | None]:
    raise CallError(code, message)
    yield  # makes it a generator: the refusal is for when an answer is asked for
