"""Threads that wait for a worker, first come, first served. The pool's lock guards all of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from threading import get_ident

from mfimage.backends.process.process import Launch
from mfimage.backends.process.workers import Resend, Ticket, Worker, start_worker
from mfimage.errors import BackendError
from mfimage.runtime.worker.frames import Frame


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


# Workers, and who has which: a thread takes one, uses it alone, and gives it back.

# How long a worker may take to end by itself: to flush files, to run the function's exit hooks.
_GRACE_SECONDS = 2.0
_MOST_RESENDS = 3


class WorkerPool:
    """A number of workers for one function.

    They start at once and import the function while the caller goes on; one that ends is replaced.

    Parameters
    ----------
    launch : Launch
        How to start one.
    size : int
        How many.
    """

    def __init__(self, launch: Launch, size: int) -> None:
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
        self._waiters = Waiters()
        self._closed = False

    def call(self, kind: int, payload: bytes) -> Frame:
        """Return the answer to a request, from any worker.

        Raises
        ------
        Exception
            When there is none: the worker ended, or the function cannot be imported.
        """
        for _ in range(_MOST_RESENDS):
            worker = self.take()
            assert worker is not None
            try:
                ticket = worker.post(kind, payload)
                worker.collect(ticket)
            except Resend:
                continue
            except BaseException:
                self._interrupted(worker)
                raise
            finally:
                self.give_back(worker)
            if isinstance(ticket.answer, Frame):
                return ticket.answer
            if ticket.answer is not None and not isinstance(ticket.answer, Resend):
                raise ticket.answer
        raise self._dying()

    def post(self, kind: int, payload: bytes, records: int, *, wait: bool) -> Ticket | None:
        """Send a request to the worker with the least to do, and leave the answer for later.

        Parameters
        ----------
        wait : bool
            Whether to wait for a worker while others have them all; else return None.
        """
        for _ in range(_MOST_RESENDS):
            worker = self.take(wait=wait)
            if worker is None:
                return None
            try:
                return worker.post(kind, payload, records)
            except Resend:
                continue
            except BaseException:
                self._interrupted(worker)
                raise
            finally:
                self.give_back(worker)
        raise self._dying()

    def collect(self, ticket: Ticket) -> None:
        """Wait until a ticket has its answer."""
        while ticket.answer is None:
            worker = self.take(ticket.worker)
            if worker is None:  # it is gone; most often the ticket says why
                ticket.answer = ticket.answer or Resend()
                continue
            try:
                worker.collect(ticket)
            except BaseException:
                self._interrupted(worker)
                raise
            finally:
                self.give_back(worker)

    def take(self, wanted: Worker | None = None, *, wait: bool = True) -> Worker | None:
        """Return a worker that is ready, for the calling thread alone.

        Parameters
        ----------
        wanted : Worker, optional
            That one; None is returned when it is gone.
        wait : bool
            Whether to wait while all are taken; else None is returned.

        Raises
        ------
        Exception
            When the function cannot be imported, or the pool is closed.
        """
        worker = self._take_any_state(wanted, wait=wait)
        if worker is not None and worker.data is None:
            try:
                worker.wait_ready()
            except BaseException as error:
                self._interrupted(worker)
                self.give_back(worker)
                if isinstance(error, Exception):
                    with self._lock:  # the next worker would import the same function
                        self._waiters.fail(error)
                raise
        return worker

    def _take_any_state(self, wanted: Worker | None, *, wait: bool) -> Worker | None:
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
                waiter = self._waiters.join(wanted)
            worker = self._wait(waiter)
            if worker is not None:
                return worker

    def _recover(self) -> bool:
        """Replace workers that nobody has any more: Ctrl-C may come between any two steps."""
        mine = (0, get_ident())
        lost = [each for each in self._workers if each.user in mine and each not in self._free]
        for worker in lost:
            self._interrupted(worker)
            self._replace(worker)
        return bool(lost)

    def _wait(self, waiter: Waiter) -> Worker | None:
        try:
            waiter.woken.acquire()
        except BaseException:  # Ctrl-C, while a worker may already be on its way
            with self._lock:
                if not self._waiters.leave(waiter):
                    if waiter.found is not None:
                        self._hand_out(waiter.found)
                    else:
                        self._waiters.wake_one()
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.found

    def _pick(self, wanted: Worker | None) -> Worker | None:
        if wanted is None:
            wanted = self._best()
        elif wanted not in self._free:
            return None
        if wanted is not None:
            wanted.user = get_ident()
            self._free.remove(wanted)
        return wanted

    def _best(self) -> Worker | None:
        """Return the free worker with the least to do."""
        if not self._free and len(self._workers) < self._size:
            self._start()
        if not self._free:
            return None
        # The one used last, if it is idle: its memory is still near.
        last = self._free[-1]
        if last.data is not None and not last.pending:
            return last
        return min(reversed(self._free), key=lambda each: (not each.is_ready(), len(each.pending)))

    def give_back(self, worker: Worker) -> None:
        """Let others have a worker; one that ended is replaced."""
        with self._lock:
            worker.user = 0
            if self._closed:
                self._interrupted(worker)
            elif worker.alive:
                self._hand_out(worker)
            elif worker in self._workers:
                self._replace(worker)

    def _hand_out(self, worker: Worker) -> None:
        if not self._waiters.give(worker):
            self._free.append(worker)

    def _replace(self, worker: Worker) -> None:
        self._workers.discard(worker)
        self._waiters.wake_for(worker)
        # One that could not even start is replaced when somebody asks: the next may not, either.
        if worker.data is not None and not self._closed:
            try:
                self._start()
                self._hand_out(self._free.pop())
            except BackendError:
                pass  # told to whoever asks next
            else:
                return
        self._waiters.wake_one()

    def _start(self) -> None:
        worker = start_worker(self._launch)
        self._workers.add(worker)
        self._free.append(worker)

    def _interrupted(self, worker: Worker) -> None:
        """Drop a worker whose stream was left in the middle, or that is of no use."""
        worker.drop(BackendError(f"{self._launch.name}: its worker was stopped by an interrupt"))

    def _dying(self) -> BackendError:
        return BackendError(
            f"{self._launch.name}: its workers end before they get a record",
            hint="does the function start a thread that crashes? stderr may tell",
        )

    def close(self) -> None:
        """End the workers; calls that still run fail."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
            taken = self._workers - set(free)
            self._workers = set()
            self._waiters.wake_all()
        for worker in taken:
            worker.process.stop()  # whoever has it sees that, and cleans up
        for worker in free:
            worker.process.sock.close()
        limit = time.monotonic() + _GRACE_SECONDS
        for worker in free:
            worker.drop(BackendError(f"{self._launch.name} was closed"), limit - time.monotonic())

    def forget(self) -> None:
        """Start anew in a process that was forked: the workers are its parent's."""
        workers = self._workers
        closed = self._closed
        self._reset()
        self._closed = closed
        for worker in workers:
            worker.forget()
