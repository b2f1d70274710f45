"""Threads that make calls whose callers do not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

Call = Callable[[Any], Any]


class CallThreads:
    """Daemon threads that make calls: one that hangs does not keep the interpreter from ending.

    Parameters
    ----------
    name : str
        What the threads' names start with.
    most : int
        How many there may be; one starts with each call until then.
    """

    def __init__(self, name: str, most: int) -> None:
        self._name = name
        self._most = most
        self._count = 0
        self._queue: SimpleQueue[tuple[Future[Any], Call, Any] | None] = SimpleQueue()

    def submit(self, call: Call, record: Any) -> Future[Any]:
        """Have a thread make a call, and return its future."""
        future: Future[Any] = Future()
        self._queue.put((future, call, record))
        if self._count < self._most:
            self._count += 1
            name = f"{self._name}-{self._count}"
            threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True).start()
        return future

    def end(self) -> None:
        """Let the threads end once they are through."""
        for _ in range(self._count):
            self._queue.put(None)


def _work(queue: SimpleQueue[tuple[Future[Any], Call, Any] | None]) -> None:
    while item := queue.get():
        future, call, record = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(record))
            except BaseException as error:  # noqa: BLE001  (it is the future's)
                future.set_exception(error)
        del item, future, call, record  # nothing is kept while the thread waits
