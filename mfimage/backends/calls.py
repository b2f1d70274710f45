"""Calls to a function that runs in another process: encoded, sent, decoded, also from threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from mfimage.errors import BackendError, InputError
from mfimage.function import json as json_values
from mfimage.runtime.worker.exceptions import rebuild
from mfimage.runtime.worker.frames import FAILURE, RESULT, Frame


class RemoteBackend(ABC):
    """Calls by frames: ``call`` returns the reply to one encoded record."""

    def __init__(
        self,
        name: str,
        *,
        call: Callable[[bytes], Frame],
        close: Callable[[], None],
        max_threads: int,
    ) -> None:
        self._name = name
        self._call = call
        self._max_threads = max_threads
        self._lock = threading.Lock()
        self._threads: CallThreads | None = None
        self._finalizer = weakref.finalize(self, close)

    @abstractmethod
    def _root(self) -> str:
        """Return the name of the function's first parameter, once it is imported."""

    def __call__(self, record: Any) -> Any:
        """Return the result for one record."""
        frame = self._call(json_values.dumps(record, root=self._root(), error=InputError))
        if frame.kind == FAILURE:
            raise remote_error(self._name, frame.payload)
        if frame.kind == RESULT:
            with contextlib.suppress(ValueError):
                return json_values.loads(frame.payload)
        raise invalid_reply(self._name)

    async def acall(self, record: Any) -> Any:
        """Return the result for one record; a thread waits for it."""
        return await asyncio.wrap_future(self.submit(record))

    def submit(self, record: Any) -> Future[Any]:
        """Start a call in a thread."""
        with self._lock:
            if self._threads is None:
                self._threads = CallThreads(f"mfimage-{self._name}", self._max_threads)
                weakref.finalize(self, self._threads.end)
            return self._threads.submit(self, record)

    def close(self) -> None:
        """End the function's processes; running calls fail."""
        self._finalizer()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.end()


_Item = tuple["Future[Any]", Callable[[Any], Any], Any]


class CallThreads:
    """Daemon threads that make calls: a call that hangs does not keep the interpreter alive."""

    def __init__(self, name: str, maximum: int) -> None:
        self._name = name
        self._maximum = maximum
        self._count = 0
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()

    def submit(self, call: Callable[[Any], Any], record: Any) -> Future[Any]:
        """Have a thread make a call; one more thread starts with each, up to the maximum."""
        future: Future[Any] = Future()
        self._queue.put((future, call, record))
        if self._count < self._maximum:
            self._count += 1
            name = f"{self._name}-{self._count}"
            threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True).start()
        return future

    def end(self) -> None:
        """Let the threads end when the queue is empty."""
        for _ in range(self._count):
            self._queue.put(None)


def _work(queue: SimpleQueue[_Item | None]) -> None:
    while item := queue.get():
        future, call, record = item
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(record))
            except BaseException as error:  # noqa: BLE001  (raised where the result is read)
                future.set_exception(error)
        del item, future, call, record  # a waiting thread keeps nothing alive


class Resend(Exception):
    """The worker ended before it began this request, so another one can take it."""


def remote_error(name: str, payload: bytes) -> Exception:
    """Return the exception that a worker of the function ``name`` describes."""
    try:
        return rebuild(payload)
    except ValueError:
        return invalid_reply(name)


def invalid_reply(name: str) -> BackendError:
    """Return the error for a reply that cannot be decoded."""
    return BackendError(
        f"{name}: its worker sent an invalid reply",
        hint="does the function write to file descriptors that it did not open?",
    )
