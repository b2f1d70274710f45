"""Calling a function in threads: as few as it needs, as many as it may have."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from mfimage.runtime.calls.queue import Job, Mailbox, Runnable, call_many, call_one

# As many as a FastAPI ``def`` endpoint gets.
DEFAULT_THREADS = 40
TICK = 0.005
# How long jobs may wait, in a process that computes nothing, before threads are added.
_IDLE_TICKS = 2
_IDLE_SHARE = 0.3
_LATE = 0.005
# How long one call may keep the others waiting before a thread is added all the same.
_STALLED = 2 * TICK
_STUCK = 1.0
_STUCK_THREADS = 4
_COMPUTING_THREADS = 8
_LEAVE_AFTER = 10.0
_WAKE_EVERY = 0.001

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class ThreadOptions:
    """How many threads, and how large their batches.

    Attributes
    ----------
    limit : int
        The most calls at once.
    max_batch : int
        The most records that go into one call of a batch function.
    batch_wait : float
        Seconds that a call of a batch function waits for more records.
    """

    limit: int = DEFAULT_THREADS
    max_batch: int = 64
    batch_wait: float = 0.0


class ThreadDispatcher:
    """Runs jobs in threads, in the order in which they came.

    One thread does the work while it keeps up. Another joins only when jobs wait and it would
    help: when the process computes next to nothing (so the calls wait for something: a database,
    a sleep), or when one call holds the only thread for long and there are processors left.
    Threads that only compute in Python would take turns anyway, and the server's own thread would
    have to queue with them: 40 such threads held a health check up for 2.6 s, one for some
    milliseconds.
    """

    def __init__(
        self,
        fn: Runnable,
        *,
        loop: asyncio.AbstractEventLoop,
        options: ThreadOptions,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._fn = fn
        self._loop = loop
        self._options = options
        self._on_batch = on_batch
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._mailbox = Mailbox(loop)
        self._threads: set[threading.Thread] = set()
        self._taken = self._since = time.monotonic()
        self._pace = _Pace(processors())
        self._ticking = False
        self._dead = 0
        self._closed = False
        self._add(1)

    @property
    def threads(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def submit(self, job: Job) -> None:
        """Take a job."""
        self._queue.put(job)
        if not self._ticking:
            self._ticking = True
            self._since = time.monotonic()
            self._pace.start(self._since)
            self._loop.call_later(TICK, self._tick)

    def abandon(self, job: Job) -> None:
        """Drop a job that nobody waits for; one that runs already keeps its thread."""
        job.payload = b""
        self._dead += 1
        if self._dead > 1024:
            self._purge()

    def stalled(self) -> float:
        """Return for how many seconds jobs have waited without any being taken."""
        if not self._queue.qsize():
            return 0.0
        return time.monotonic() - max(self._taken, self._since)

    def close(self) -> bool:
        """End the threads that are idle; return whether all were."""
        self._closed = True
        threads = list(self._threads)
        for _ in threads:
            self._queue.put(None)
        for thread in threads:
            thread.join(0.2 / len(threads))
        return not any(thread.is_alive() for thread in threads)

    def _purge(self) -> None:
        """Take dead jobs out of the queue, which a stuck function would never do."""
        self._dead = 0
        alive = []
        try:
            while True:
                job = self._queue.get_nowait()
                if job is None or not job.future.done():
                    alive.append(job)
        except Empty:
            for job in alive:
                self._queue.put(job)

    def _tick(self) -> None:
        self._mailbox.deliver()
        waiting = self._queue.qsize()
        if not waiting or self._closed:
            self._ticking = False
            return
        threads = len(self._threads)
        if threads < self._options.limit:
            more = self._pace.more(waiting, threads, self.stalled())
            self._add(min(more, self._options.limit - threads))
        self._loop.call_later(TICK, self._tick)

    def _add(self, count: int) -> None:
        run = self._run_batches if self._fn.batch else self._run_singly
        for _ in range(count):
            leave_after = _LEAVE_AFTER if self._threads else None
            thread = threading.Thread(
                target=run, args=(leave_after,), name="mfimage-call", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                log.warning("no more than %d threads are to be had", len(self._threads))
                self._options = replace(self._options, limit=len(self._threads))
                return
            self._threads.add(thread)

    def _run_singly(self, leave_after: float | None) -> None:
        fn, queue, mailbox = self._fn, self._queue, self._mailbox
        woken = 0.0
        while True:
            try:
                job = queue.get_nowait()
            except Empty:
                mailbox.wake()
                job = self._next(leave_after)
            if job is None:
                break
            if job.future.done():
                continue
            self._taken = now = time.monotonic()
            # Each waking of the server's loop costs two turns of the interpreter's lock, more
            # than a quick call. While jobs wait, it is woken now and then, or looks at a tick.
            if now - woken > _WAKE_EVERY:
                mailbox.wake()
                woken = now
            mailbox.put(job, call_one(fn, job.payload, job.crossing))
        mailbox.wake()
        self._threads.discard(threading.current_thread())

    def _next(self, leave_after: float | None) -> Job | None:
        """Wait for a job; None to leave."""
        try:
            return self._queue.get(True, leave_after)
        except Empty:
            return None

    def _run_batches(self, leave_after: float | None) -> None:
        ending = False
        while not ending:
            jobs, ending = self._gather(self._next(leave_after))
            if jobs:
                self._taken = time.monotonic()
                self._on_batch(len(jobs))
                payloads = [job.payload for job in jobs]
                outcomes = call_many(self._fn, payloads, [job.crossing for job in jobs])
                for job, outcome in zip(jobs, outcomes, strict=True):
                    self._mailbox.put(job, outcome)
                self._mailbox.wake()
        self._threads.discard(threading.current_thread())

    def _gather(self, job: Job | None) -> tuple[list[Job], bool]:
        """Return the first job and what goes along with it, and whether to end after them."""
        jobs: list[Job] = []
        until = time.monotonic() + self._options.batch_wait if self._options.batch_wait else 0.0
        most = self._options.max_batch
        get, get_nowait = self._queue.get, self._queue.get_nowait
        while job is not None:
            if not job.future.done():
                jobs.append(job)
            if len(jobs) >= most:
                return jobs, False
            try:
                job = get(True, max(0.0, until - time.monotonic())) if until else get_nowait()
            except Empty:
                return jobs, False
        return jobs, True


class _Pace:
    """Decides when more threads would help; see ``ThreadDispatcher``."""

    def __init__(self, cores: int) -> None:
        self._computing = min(cores, _COMPUTING_THREADS)
        self._then = self._cpu = 0.0
        self._idle_ticks = 0

    def start(self, now: float) -> None:
        """Begin to watch."""
        self._then, self._cpu = now, time.process_time()
        self._idle_ticks = 0

    def more(self, waiting: int, threads: int, stalled: float) -> int:
        """Return how many threads to add now."""
        now = time.monotonic()
        wall, cpu = now - self._then, time.process_time()
        share = (cpu - self._cpu) / wall if wall else math.inf
        self._then, self._cpu = now, cpu
        # A late tick means that this process did not get to run: no sign of idle calls.
        idle = share < _IDLE_SHARE and wall < TICK + _LATE
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks >= _IDLE_TICKS:
            return min(waiting, threads)
        if stalled > _STALLED and threads < self._computing:
            return 1
        return int(stalled > _STUCK and threads < _STUCK_THREADS)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
