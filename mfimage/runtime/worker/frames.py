"""Messages between a caller and its worker: a header and a payload, over a stream socket.

A payload is copied twice at most: into the kernel, and out of it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<BxxxIQ")
_MAX_MICROS: Final = (1 << 32) - 1

# To a worker.
START: Final = 1  # what to load, as JSON
CALL: Final = 2  # one record
BATCH: Final = 3  # records, one a line

# From a worker.
READY: Final = 16  # the function is imported; JSON
RESULT: Final = 17  # one result
FAILURE: Final = 18  # an exception; see `mfimage.runtime.worker.exceptions`
RESULTS: Final = 19  # results, one a line
MIXED: Final = 20  # one a line: "+" and a result, or "-" and an exception
ARRAY: Final = 22  # results, as one JSON array

# From a Ray actor, too.
DIED: Final = 21  # the process that ran the function ended; the exception for that
PARTS: Final = 23  # the replies to several batches; see `join_parts`

_KINDS: Final = frozenset((START, CALL, BATCH, READY, RESULT, FAILURE, RESULTS, MIXED, ARRAY))
_PART: Final = struct.Struct("<BQ")


class ProtocolError(OSError):
    """The received bytes are not a message."""


class Frame(NamedTuple):
    """One message; the payload is JSON or lines of it. A reply has the microseconds it took."""

    kind: int
    payload: bytes
    micros: int = 0


def send_frame(
    sock: socket.socket, kind: int, payload: bytes, micros: int = 0, flags: int = 0
) -> memoryview:
    """Send a message; return the unsent rest, which only flags or signals can leave.

    ``OSError`` when the other side is gone, or with ``MSG_DONTWAIT`` nothing could be sent.
    """
    header = _HEADER.pack(kind, min(micros, _MAX_MICROS), len(payload))
    sent = sock.sendmsg((header, payload), (), flags)
    if sent < len(header):
        sock.sendall(header[sent:])
    return memoryview(payload)[max(0, sent - len(header)) :]


def receive_frame(sock: socket.socket) -> Frame:
    """Wait for a message; ``OSError`` when it is not one or late, ``EOFError`` when none comes."""
    kind, micros, length = _HEADER.unpack(_receive(sock, _HEADER.size))
    if kind not in _KINDS:
        raise ProtocolError
    return Frame(kind, _receive(sock, length) if length else b"", micros)


def _receive(sock: socket.socket, length: int) -> bytes:
    data = sock.recv(length, socket.MSG_WAITALL)
    return data if len(data) == length else _receive_rest(sock, data, length)


def _receive_rest(sock: socket.socket, first: bytes, length: int) -> bytes:
    """Receive the rest of a payload that a signal, or the limit of one call, has cut short."""
    parts, missing = [first], length - len(first)
    while missing:
        if not parts[-1]:
            raise EOFError
        parts.append(sock.recv(missing, socket.MSG_WAITALL))
        missing -= len(parts[-1])
    return b"".join(parts)


def join_parts(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the payload of ``PARTS``: each reply's kind, length and payload."""
    return b"".join(_PART.pack(kind, len(payload)) + payload for kind, payload in parts)


def split_parts(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the replies in the payload of ``PARTS``."""
    place = 0
    while place < len(payload):
        kind, length = _PART.unpack_from(payload, place)
        place += _PART.size
        yield kind, payload[place : place + length]
        place += length
