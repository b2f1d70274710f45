"""Ties a process to another one: it ends when the other does, however that one ends.

The other process holds the write end of a pipe and never writes. Once that is closed, the kernel
sends the signals, even while C code keeps this process's interpreter from running.

As a script, ``lifeline.py FD COMMAND [ARGUMENT ...]`` executes COMMAND, tied by a process beside
it: on every platform, and with time to end by itself.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time

_GRACE_SECONDS = 2.0
_POLL_SECONDS = 1.0


def die_with(lifeline: int) -> None:
    """End this process when the last write end of the pipe ``lifeline`` is closed."""
    # If this process leads its process group, the group gets SIGTERM: those that clean up for
    # others, as the resource tracker of ``multiprocessing``, can still do it.
    if os.getpgrp() == os.getpid():
        # An open file has one owner and one signal, so the group needs another open file.
        _signal_at_end(os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY), -os.getpid(), "SIGTERM")
    _signal_at_end(lifeline, os.getpid(), "SIGKILL")
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # closed before the signals were set up
        os._exit(1)


def _signal_at_end(file: int, owner: int, name: str) -> None:
    fcntl.fcntl(file, fcntl.F_SETOWN, owner)
    fcntl.fcntl(file, fcntl.F_SETSIG, getattr(signal, name))
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_ASYNC)


def watch(lifeline: int) -> None:
    """Fork a process that ends this one when the last write end of ``lifeline`` is closed."""
    owner = os.getpid()
    if os.fork():
        os.close(lifeline)
        return
    os.closerange(0, lifeline)
    os.closerange(lifeline + 1, 1 << 10)
    while os.getppid() == owner:
        if select.select([lifeline], [], [], _POLL_SECONDS)[0]:
            _end(owner)
    os._exit(0)


def _end(owner: int) -> None:
    os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while os.getppid() == owner:
        if time.monotonic() > deadline:
            os.kill(owner, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    watch(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606  (without a shell)
