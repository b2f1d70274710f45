"""Messages between a caller and its worker: a header, then a payload, over a stream socket.

At most two copies are made of a payload on its way: into the kernel, and out of it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<BxxxIQ")
_LONGEST_TIME: Final = (1 << 32) - 1

# To a worker.
START: Final = 1  # what to load, as JSON
CALL: Final = 2  # one record
BATCH: Final = 3  # records, one a line

# From a worker.
READY: Final = 16  # the function is imported; JSON
RESULT: Final = 17  # one result
FAILURE: Final = 18  # what was raised instead; see `mfimage.runtime.worker.exceptions`
RESULTS: Final = 19  # results, one a line
MIXED: Final = 20  # one a line: "+" and a result, or "-" and what was raised
ARRAY: Final = 22  # results, as one JSON array

# From a Ray actor beside these: the process that ran the function ended; what is said of that.
DIED: Final = 21
PARTS: Final = 23  # the answers to several batches, each with its kind and length; see `join_parts`

_KINDS: Final = frozenset((START, CALL, BATCH, READY, RESULT, FAILURE, RESULTS, MIXED, ARRAY))


_PART: Final = struct.Struct("<BQ")


class ProtocolError(OSError):
    """What arrived is no message."""


class Frame(NamedTuple):
    """One message.

    Attributes
    ----------
    kind : int
        One of this module's constants.
    payload : bytes
        JSON; text lines of it where the kind says so.
    micros : int
        In an answer: how long it took to make, in microseconds.
    """

    kind: int
    payload: bytes
    micros: int = 0


def send_frame(
    sock: socket.socket, kind: int, payload: bytes, micros: int = 0, flags: int = 0
) -> memoryview:
    """Send a message, and return what is left to send: nothing, but for flags or signals.

    Raises
    ------
    OSError
        When nobody reads any more, or ``flags`` has ``MSG_DONTWAIT`` and nothing could be sent.
    """
    header = _HEADER.pack(kind, min(micros, _LONGEST_TIME), len(payload))
    sent = sock.sendmsg((header, payload), (), flags)
    if sent < len(header):
        sock.sendall(header[sent:])
    return memoryview(payload)[max(0, sent - len(header)) :]


def receive_frame(sock: socket.socket) -> Frame:
    """Wait for a message.

    Raises
    ------
    EOFError
        When the other side is gone.
    OSError
        When it is gone, what comes is no message, or the socket's own limit of time has passed.
    """
    kind, micros, length = _HEADER.unpack(_receive(sock, _HEADER.size))
    if kind not in _KINDS:
        raise ProtocolError
    return Frame(kind, _receive(sock, length) if length else b"", micros)


def _receive(sock: socket.socket, length: int) -> bytes:
    data = sock.recv(length, socket.MSG_WAITALL)
    return data if len(data) == length else _receive_rest(sock, data, length)


def _receive_rest(sock: socket.socket, first: bytes, length: int) -> bytes:
    """Go on where a signal, or the most that one call moves, has cut a payload short."""
    parts, missing = [first], length - len(first)
    while missing:
        if not parts[-1]:
            raise EOFError
        parts.append(sock.recv(missing, socket.MSG_WAITALL))
        missing -= len(parts[-1])
    return b"".join(parts)


def join_parts(parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the payload of ``PARTS``."""
    return b"".join(_PART.pack(kind, len(payload)) + payload for kind, payload in parts)


def split_parts(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what ``join_parts`` joined."""
    place = 0
    while place < len(payload):
        kind, length = _PART.unpack_from(payload, place)
        place += _PART.size
        yield kind, payload[place : place + length]
        place += length
