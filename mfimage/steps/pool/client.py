"""Runs one item in a pool: `main`, with ``FOLDER PYTHON -- python flow.py ... step ...``.

For Python without site-packages. Metaflow starts it in the place of the command line that follows
``--``; that one writes to this process's own stdout and stderr, and this process exits as it does.

Each item pays for what this process imports: see `protocol`. It is not a script, as Python compiles
a script each time.
"""

from __future__ import annotations

import posix
import sys
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

from mfimage.steps.pool.protocol import LOCK, SOCKET, TaskCommand, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# That of command lines, as `os.fsencode` has it.
ENCODING = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
# How often to look whether the server listens.
PAUSE = 0.002
# Metaflow tries a task again unless its exit status is 202.
UNAVAILABLE = 1


def main() -> NoReturn:
    """Run the command line after ``--``, and exit as it does."""
    folder, python, _, *argv = sys.argv[1:]
    leave(run(folder, python, argv))


def run(folder: str, python: str, argv: list[str]) -> int:
    """Run a command line; return its exit status, 128 + n after signal n."""
    if sys.executable != python:
        # A decorator such as @conda has put the step's Python in the place of the run's, which now
        # executes this script instead.
        argv[0] = sys.executable
    connection = connect(folder)
    if connection is None:
        write("error: the pool of workers has ended\nhint: the run's own output says why\n")
        return UNAVAILABLE
    item = TaskCommand(
        posix.getcwdb(),
        [each.encode(*ENCODING) for each in argv],
        [name + b"=" + value for name, value in posix.environ.items()],
    )
    send(connection, item.pack(), (0, 1, 2))
    forward_signals(connection)
    if (answer := receive(connection)) is None:
        write("error: the pool of workers ended before the item did\n")
        return UNAVAILABLE
    (status, message), _ = answer
    if message:
        posix.write(2, message)
    return int(status)


def connect(folder: str) -> socket | None:
    """Return a connection to the server, once it listens; None if there is none."""
    try:
        file = posix.open(folder, posix.O_PATH)
    except FileNotFoundError:
        return None
    path = f"/proc/self/fd/{file}/{SOCKET}"  # that of a socket has at most 107 characters
    while True:
        connection = socket(AF_UNIX, SOCK_STREAM)
        try:
            connection.connect(path)
        except OSError:
            connection.close()
            if ended(folder):
                return None
            import time

            time.sleep(PAUSE)
        else:
            return connection


def ended(folder: str) -> bool:
    """Return whether the server has ended, which holds a lock as long as it lives."""
    import fcntl

    try:
        file = posix.open(f"{folder}/{LOCK}", posix.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        posix.close(file)
    return True


def forward_signals(connection: socket) -> None:
    """Pass on the signals that ask a process to end; its exit status follows as usual."""
    # Each item pays for what this process imports, and `signal` would import `enum`.
    import _signal  # type: ignore[import-not-found]

    def forward(number: int, frame: object) -> None:
        try:
            connection.send(number.to_bytes(1, "big"))
        except OSError:  # the item has just ended
            connection.shutdown(SHUT_WR)

    for number in (_signal.SIGINT, _signal.SIGTERM):
        _signal.signal(number, forward)


def write(text: str) -> None:
    """Write to stderr."""
    posix.write(2, text.encode())


def leave(status: int) -> NoReturn:
    """Exit as the item did: Metaflow words a signal otherwise than an exit status."""
    if status > 128:
        import resource
        import signal

        number = status - 128
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would be the client's
        if number in signal.valid_signals():
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
            posix.kill(posix.getpid(), number)
    posix._exit(status)
