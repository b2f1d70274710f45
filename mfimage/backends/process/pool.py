"""The workers of one function: a thread takes one, uses it alone, and gives it back.

Threads wait in line, first come, first served. The pool's lock guards all state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import get_ident

from mfimage.backends.calls import Resend
from mfimage.backends.process.worker import Worker, WorkerLaunch, WorkerRequest, start_worker
from mfimage.errors import BackendError
from mfimage.runtime.worker.frames import Frame

# How long a worker may take to end by itself: to flush files and run the function's exit hooks.
_GRACE_SECONDS = 2.0
_MAX_SENDS = 3


@dataclass(eq=False, kw_only=True)
class _Waiter:
    """A thread that waits for one worker, or for any (None)."""

    wanted: Worker | None
    found: Worker | None = None  # None when woken: look again
    error: Exception | None = None
    thread: int = field(default_factory=get_ident)
    woken: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.woken.acquire()


class WorkerPool:
    """``size`` workers; they start at once, and one that ends is replaced.

    Workers import the function while the caller goes on; a failure is raised by the first call.
    """

    def __init__(self, launch: WorkerLaunch, size: int) -> None:
        self._launch = launch
        self._size = size
        self._reset()
        try:
            for _ in range(size):
                self._start()
        except BaseException:
            self.close()
            raise

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()
        self._free: list[Worker] = []
        self._line: list[_Waiter] = []
        self._closed = False

    def data(self) -> str:
        """Return the name of the function's first parameter, once it is imported."""
        worker = self.take()
        assert worker is not None
        assert worker.data is not None
        self.give_back(worker)
        return worker.data

    def call(self, kind: int, payload: bytes) -> Frame:
        """Return the reply to a request, from any worker; raise why there is none."""
        request = self.post(kind, payload, 1, collect=True)
        assert request is not None
        if isinstance(request.reply, Exception):
            raise request.reply
        assert request.reply is not None
        return request.reply

    def post(
        self, kind: int, payload: bytes, records: int, *, wait: bool = True, collect: bool = False
    ) -> WorkerRequest | None:
        """Send a request to the least busy worker; None when all are in use and not ``wait``."""
        for _ in range(_MAX_SENDS):
            worker = self.take(wait=wait)
            if worker is None:
                return None
            try:
                request = worker.post(kind, payload, records)
                if collect:
                    worker.collect(request)
            except Resend:
                continue
            except BaseException:
                self._drop(worker)
                raise
            finally:
                self.give_back(worker)
            if not isinstance(request.reply, Resend):
                return request
        raise BackendError(
            f"{self._launch.name}: its workers end before they get a record",
            hint="does the function start a thread that crashes? see stderr",
        )

    def collect(self, request: WorkerRequest) -> None:
        """Wait until a request has its reply."""
        while request.reply is None:
            worker = self.take(request.worker)
            if worker is None:  # it is gone, which usually has set the reply
                request.reply = request.reply or Resend()
                continue
            try:
                worker.collect(request)
            except BaseException:
                self._drop(worker)
                raise
            finally:
                self.give_back(worker)

    def take(self, wanted: Worker | None = None, *, wait: bool = True) -> Worker | None:
        """Return a ready worker for this thread alone; None: it is gone, or all are in use."""
        worker = self._take_starting(wanted, wait=wait)
        if worker is not None and worker.data is None:
            try:
                worker.wait_ready()
            except BaseException as error:
                self._drop(worker)
                self.give_back(worker)
                if isinstance(error, Exception):
                    with self._lock:  # the next worker would import the same function
                        self._wake([each for each in self._line if each.wanted is None], error)
                raise
        return worker

    def _take_starting(self, wanted: Worker | None, *, wait: bool) -> Worker | None:
        while True:
            with self._lock:
                if self._closed:
                    raise BackendError(f"{self._launch.name} was closed")
                if wanted is not None and wanted not in self._workers:
                    return None
                worker = self._pick(wanted)
                if worker is not None or not wait:
                    return worker
                if self._recover():
                    continue
                waiter = _Waiter(wanted=wanted)
                self._line.append(waiter)
            worker = self._wait(waiter)
            if worker is not None:
                return worker

    def _recover(self) -> bool:
        """Replace workers without a user: Ctrl-C may arrive between any two steps."""
        mine = (0, get_ident())
        lost = [each for each in self._workers if each.user in mine and each not in self._free]
        for worker in lost:
            self._drop(worker)
            self._replace(worker)
        return bool(lost)

    def _wait(self, waiter: _Waiter) -> Worker | None:
        try:
            waiter.woken.acquire()
        except BaseException:  # Ctrl-C, perhaps after another thread has handed over a worker
            with self._lock:
                if waiter in self._line:
                    self._line.remove(waiter)
                elif waiter.found is not None:
                    self._hand_out(waiter.found)
                else:
                    self._wake_one()
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.found

    def _wake(self, waiters: Iterable[_Waiter], error: Exception | None = None) -> None:
        for waiter in waiters:
            waiter.error = error
            self._line.remove(waiter)
            waiter.woken.release()

    def _wake_one(self) -> None:
        self._wake([each for each in self._line if each.wanted is None][:1])

    def _pick(self, wanted: Worker | None) -> Worker | None:
        if wanted is None:
            wanted = self._least_busy()
        elif wanted not in self._free:
            return None
        if wanted is not None:
            wanted.user = get_ident()
            self._free.remove(wanted)
        return wanted

    def _least_busy(self) -> Worker | None:
        if not self._free and len(self._workers) < self._size:
            self._start()
        if not self._free:
            return None
        # The one used last, if it is idle: its memory is still in the processor's caches.
        last = self._free[-1]
        if last.data is not None and not last.pending:
            return last
        return min(reversed(self._free), key=lambda each: (not each.is_ready(), len(each.pending)))

    def give_back(self, worker: Worker) -> None:
        """Let other threads have a worker; one that ended is replaced."""
        with self._lock:
            worker.user = 0
            if self._closed:
                self._drop(worker)
            elif worker.alive:
                self._hand_out(worker)
            elif worker in self._workers:
                self._replace(worker)

    def _hand_out(self, worker: Worker) -> None:
        for waiter in self._line:
            if waiter.wanted is None or waiter.wanted is worker:
                waiter.found = worker
                worker.user = waiter.thread
                self._wake([waiter])
                return
        self._free.append(worker)

    def _replace(self, worker: Worker) -> None:
        self._workers.discard(worker)
        self._wake([each for each in self._line if each.wanted is worker])
        # One that could not even start is replaced on demand: the next may fail the same way.
        if worker.data is not None and not self._closed:
            try:
                self._start()
                self._hand_out(self._free.pop())
            except BackendError:
                pass  # raised by the next call
            else:
                return
        self._wake_one()

    def _start(self) -> None:
        worker = start_worker(self._launch)
        self._workers.add(worker)
        self._free.append(worker)

    def _drop(self, worker: Worker) -> None:
        """End a worker that failed, or whose stream was left in the middle of a message."""
        worker.drop(BackendError(f"{self._launch.name}: its worker was stopped by an interrupt"))

    def close(self) -> None:
        """End the workers; running calls fail."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            taken = self._workers - set(free)
            self._workers = set()
            self._wake(list(self._line))
        for worker in taken:
            worker.stop()  # the thread that uses it notices, and cleans up
        for worker in free:
            worker.hang_up()
        limit = time.monotonic() + _GRACE_SECONDS
        for worker in free:
            worker.drop(BackendError(f"{self._launch.name} was closed"), limit - time.monotonic())

    def forget(self) -> None:
        """Start anew in a forked process: the workers are its parent's."""
        workers, closed = self._workers, self._closed
        self._reset()
        self._closed = closed
        for worker in workers:
            worker.forget()
