"""Messages between client, server and worker: fields of bytes, with open files.

A message is its length, then fields separated by NUL: none of a command line, a folder and
variables can hold one.

`client` starts once an item, and imports this module: it imports only what is compiled into Python,
or nearly. `os`, `array`, `typing` and `collections.abc` would take longer than all the rest.
"""

from __future__ import annotations

import sys
from _socket import MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET, socket
from posix import close

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SOCKET = "socket"
LOCK = "lock"
# That of a C int, which a file descriptor is.
INT = 4


class TaskCommand:
    """One attempt of a task: what a worker runs."""

    def __init__(self, cwd: bytes, argv: Sequence[bytes], env: Sequence[bytes]) -> None:
        self.cwd = cwd
        self.argv = list(argv)
        self.env = list(env)

    def pack(self) -> list[bytes]:
        """Return its fields."""
        return [self.cwd, str(len(self.argv)).encode(), *self.argv, *self.env]

    @classmethod
    def unpack(cls, fields: Sequence[bytes]) -> TaskCommand:
        """Return what `pack` packed."""
        cwd, count, *rest = fields
        return cls(cwd, rest[: int(count)], rest[int(count) :])


def send(connection: socket, fields: Sequence[bytes], files: Sequence[int] = ()) -> None:
    """Send a message, and open files with it."""
    data = b"\0".join(fields)
    head = len(data).to_bytes(4, "big")
    rights = b"".join(each.to_bytes(INT, sys.byteorder) for each in files)
    connection.sendmsg([head], [(SOL_SOCKET, SCM_RIGHTS, rights)] if files else [])
    connection.sendall(data)


def receive(connection: socket) -> tuple[list[bytes], list[int]] | None:
    """Receive a message and its open files; None at the end of the connection.

    The caller closes the files.
    """
    files: list[int] = []
    try:
        head, rights, _, _ = connection.recvmsg(4, 128, MSG_CMSG_CLOEXEC)
        for level, kind, data in rights:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                ends = range(INT, len(data) + 1, INT)
                files += [int.from_bytes(data[end - INT : end], sys.byteorder) for end in ends]
        data = head and _exactly(connection, 4 - len(head), head)
        data = data and _exactly(connection, int.from_bytes(data, "big"), b"")
    except OSError:
        data = b""
    if not data:
        for file in files:
            close(file)
        return None
    return data.split(b"\0"), files


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
