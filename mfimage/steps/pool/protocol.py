"""Messages between client, server and worker: fields of bytes, with open files.

A message is its length, then fields separated by NUL: none of a command line, a folder and
variables can hold one. Imports next to nothing, as `client` starts once an item.
"""

from __future__ import annotations

import array
import os
from _socket import MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket
from collections.abc import Sequence
from typing import NamedTuple

SOCKET = "socket"
LOCK = "lock"


class TaskCommand(NamedTuple):
    """One attempt of a task: what a worker runs."""

    cwd: bytes
    argv: list[bytes]
    env: list[bytes]

    def pack(self) -> list[bytes]:
        """Return its fields."""
        return [self.cwd, str(len(self.argv)).encode(), *self.argv, *self.env]

    @classmethod
    def unpack(cls, fields: Sequence[bytes]) -> TaskCommand:
        """Return what `pack` packed."""
        cwd, count, *rest = fields
        return cls(cwd, list(rest[: int(count)]), list(rest[int(count) :]))


def send(connection: socket, fields: Sequence[bytes], files: Sequence[int] = ()) -> None:
    """Send a message, and open files with it."""
    data = b"\0".join(fields)
    head = len(data).to_bytes(4, "big")
    rights = [(SOL_SOCKET, SCM_RIGHTS, array.array("i", files))] if files else []
    connection.sendmsg([head], rights)
    connection.sendall(data)


def receive(connection: socket) -> tuple[list[bytes], list[int]] | None:
    """Receive a message and its open files; None at the end of the connection.

    The caller closes the files.
    """
    files = array.array("i")
    try:
        head, rights, _, _ = connection.recvmsg(4, 128, MSG_CMSG_CLOEXEC)
        for level, kind, data in rights:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                files.frombytes(data[: len(data) - len(data) % files.itemsize])
        data = head and _exactly(connection, 4 - len(head), head)
        data = data and _exactly(connection, int.from_bytes(data, "big"), b"")
    except OSError:
        data = b""
    if not data:
        for file in files:
            os.close(file)
        return None
    return data.split(b"\0"), list(files)


def _exactly(connection: socket, size: int, data: bytes) -> bytes:
    """Return ``data`` and ``size`` more bytes; nothing if the connection ends before."""
    chunks = [data]
    while size:
        chunk = connection.recv(min(size, 1 << 20))
        if not chunk:
            return b""
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
