"""Threads that wait for a worker, first come, first served. The pool's lock guards all of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from threading import get_ident

from mfimage.backends.workers import Worker


@dataclass(eq=False, kw_only=True)
class Waiter:
    """A thread that waits.

    Attributes
    ----------
    wanted : Worker or None
        One worker in particular; None for any.
    found : Worker or None
        What it got; None to look again.
    error : Exception or None
        What it is to raise.
    """

    wanted: Worker | None
    found: Worker | None = None
    error: Exception | None = None
    thread: int = field(default_factory=get_ident)
    woken: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.woken.acquire()

    def would_take(self, worker: Worker) -> bool:
        """Tell whether it waits for that one or for any."""
        return self.wanted is None or self.wanted is worker


class Waiters:
    """Those who wait, in order."""

    def __init__(self) -> None:
        self._line: list[Waiter] = []

    def join(self, wanted: Worker | None) -> Waiter:
        """Put the calling thread in line."""
        waiter = Waiter(wanted=wanted)
        self._line.append(waiter)
        return waiter

    def leave(self, waiter: Waiter) -> bool:
        """Take a thread out of the line; tell whether it still stood there."""
        if waiter not in self._line:
            return False
        self._line.remove(waiter)
        return True

    def give(self, worker: Worker) -> bool:
        """Give a worker to the first who would take it; tell whether there is one."""
        for waiter in self._line:
            if waiter.would_take(worker):
                waiter.found = worker
                worker.user = waiter.thread
                self._wake(waiter)
                return True
        return False

    def wake_for(self, worker: Worker) -> None:
        """Let those look again who wait for a worker that is gone."""
        for waiter in [each for each in self._line if each.wanted is worker]:
            self._wake(waiter)

    def wake_one(self) -> None:
        """Let the first look again who would take any."""
        for waiter in self._line:
            if waiter.wanted is None:
                self._wake(waiter)
                return

    def wake_all(self) -> None:
        """Let everybody look again."""
        for waiter in list(self._line):
            self._wake(waiter)

    def fail(self, error: Exception) -> None:
        """Let everybody fail who would take any."""
        for waiter in [each for each in self._line if each.wanted is None]:
            waiter.error = error
            self._wake(waiter)

    def _wake(self, waiter: Waiter) -> None:
        self._line.remove(waiter)
        waiter.woken.release()
