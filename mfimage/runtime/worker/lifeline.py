"""A process that ends when another one does, however that one ends.

The other process holds the write end of a pipe and never writes. Once it is gone, the kernel
itself sends the signals: no code of this process has to run, so C code that keeps the interpreter
from running stops nothing.

As a script, ``lifeline.py FD COMMAND [ARGUMENT ...]`` becomes COMMAND, tied like that.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys


def die_with(lifeline: int) -> None:
    """End this process as soon as the last write end of a pipe is closed.

    A process that leads its process group takes the group along: its members get SIGTERM, which
    leaves those that clean up for others (as the resource tracker of ``multiprocessing``) time
    to do it.

    Parameters
    ----------
    lifeline : int
        The pipe's read end.
    """
    if os.getpgrp() == os.getpid():
        # An open file has one owner and one signal: the group needs an open file of its own.
        _signal_at_end(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY), -os.getpid(), "SIGTERM")
    _signal_at_end(lifeline, os.getpid(), "SIGKILL")
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it went before the signals were asked for
        os._exit(1)


def _signal_at_end(file: int, owner: int, name: str) -> None:
    fcntl.fcntl(file, fcntl.F_SETOWN, owner)
    fcntl.fcntl(file, fcntl.F_SETSIG, getattr(signal, name))
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_ASYNC)


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  (no shell is wanted)
