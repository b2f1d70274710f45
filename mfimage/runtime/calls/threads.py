"""Calling a function in threads: as few as it needs, at most as many as the limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue

from mfimage.runtime.calls.queue import Call, Mailbox, Runnable, call_many, call_one

# As many as a FastAPI ``def`` endpoint gets.
DEFAULT_THREADS = 40
TICK = 0.005
# In an idle process, threads are added when calls have waited this long.
_IDLE_TICKS = 2
_IDLE_SHARE = 0.3
_LATE = 0.005
# In a busy process, a thread is added when one call has delayed the others this long.
_STALLED = 2 * TICK
_STUCK = 1.0
_STUCK_THREADS = 4
_COMPUTING_THREADS = 8
_LEAVE_AFTER = 10.0
_WAKE_EVERY = 0.001

log = logging.getLogger("mfimage.serving")


@dataclass(frozen=True, kw_only=True)
class ThreadOptions:
    """How many threads, and how large their batches."""

    limit: int = DEFAULT_THREADS
    # The records in one call of a batch function, and the seconds that it waits for more.
    max_batch: int = 64
    batch_wait: float = 0.0
    # Whether one thread stays however long nothing is called.
    keep_one: bool = True


class ThreadDispatcher:
    """Runs calls in threads, in the order in which they came.

    One thread does the work while it keeps up. Another is added only when calls wait and it would
    help: when the process computes next to nothing (the calls wait for something: a database,
    a sleep), or when one call occupies the only thread for long and there are processors left.
    Threads that only compute in Python would take turns anyway, and the server's own thread would
    have to queue with them: 40 such threads delayed a health check by 2.6 s, one by some
    milliseconds.
    """

    def __init__(
        self, fn: Runnable, *, loop: asyncio.AbstractEventLoop, options: ThreadOptions,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:  # fmt: skip
        self._fn = fn
        self._loop = loop
        self._options = options
        self._on_batch = on_batch
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        self._submitted: list[Call] = []  # not queued yet
        self._mailbox = Mailbox(loop)
        self._threads: set[threading.Thread] = set()
        self._taken = self._since = time.monotonic()
        self._pace = _Pace()
        self._ticking = False
        self._dead = 0
        self._closed = False

    def submit(self, call: Call) -> None:
        """Queue a call; those of a batch function together, so that few batches are small."""
        if self._fn.batch:
            self._submitted.append(call)
            if len(self._submitted) == 1:
                self._loop.call_soon(self._hand_over, 0)
        else:
            self._queue.put(call)
            self._watch()

    def _hand_over(self, before: int) -> None:
        """Queue what was submitted, unless the last turn of the loop brought more."""
        count = len(self._submitted)
        if before < count < self._options.max_batch:
            self._loop.call_soon(self._hand_over, count)
            return
        for call in self._submitted:
            self._queue.put(call)
        self._submitted.clear()
        self._watch()

    def _watch(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._since = time.monotonic()
            self._pace.start(self._since)
            if not self._threads:
                self._add(1)
            self._loop.call_later(TICK, self._tick)

    def abandon(self, call: Call) -> None:
        """Drop a call whose future is done; one that runs already keeps its thread."""
        call.payload = b""
        self._dead += 1
        if self._dead > 1024:
            # Take dead calls out of the queue, which a stuck function would never do.
            self._dead = 0
            calls = []
            with contextlib.suppress(Empty):
                while True:
                    calls.append(self._queue.get_nowait())
            for each in calls:
                if each is None or not each.future.done():
                    self._queue.put(each)

    def stalled(self) -> float:
        """Return for how many seconds calls have waited without any being started."""
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

    def _tick(self) -> None:
        self._mailbox.deliver()
        waiting = self._queue.qsize()
        if not waiting or self._closed:
            self._ticking = False
            return
        threads = len(self._threads)
        if threads < self._options.limit:
            # The last one may have left while a call came.
            more = self._pace.more(waiting, threads, self.stalled()) if threads else 1
            self._add(min(more, self._options.limit - threads))
        self._loop.call_later(TICK, self._tick)

    def _add(self, count: int) -> None:
        run = self._run_batches if self._fn.batch else self._run_singly
        for _ in range(count):
            stays = self._options.keep_one and not self._threads
            leave_after = None if stays else _LEAVE_AFTER
            thread = threading.Thread(
                target=run, args=(leave_after,), name="mfimage-call", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                log.warning("cannot start more than %d threads", len(self._threads))
                self._options = replace(self._options, limit=len(self._threads))
                return
            self._threads.add(thread)

    def _run_singly(self, leave_after: float | None) -> None:
        fn, queue, mailbox = self._fn, self._queue, self._mailbox
        woken = 0.0
        while True:
            try:
                call = queue.get_nowait()
            except Empty:
                mailbox.wake()
                call = self._next(leave_after)
            if call is None:
                break
            if call.future.done():
                continue
            self._taken = now = time.monotonic()
            # Waking the server's loop costs two turns of the interpreter's lock, more than a
            # quick call. While calls wait, it is woken now and then, or delivers at a tick.
            if now - woken > _WAKE_EVERY:
                mailbox.wake()
                woken = now
            mailbox.put(call, call_one(fn, call.payload, call.converter))
        mailbox.wake()
        self._threads.discard(threading.current_thread())

    def _next(self, leave_after: float | None) -> Call | None:
        """Wait for a call; return None to end the thread."""
        try:
            return self._queue.get(True, leave_after)
        except Empty:
            return None

    def _run_batches(self, leave_after: float | None) -> None:
        ending = False
        while not ending:
            calls, ending = self._gather(self._next(leave_after))
            if calls:
                self._taken = time.monotonic()
                self._on_batch(len(calls))
                payloads = [call.payload for call in calls]
                outcomes = call_many(self._fn, payloads, [call.converter for call in calls])
                for call, outcome in zip(calls, outcomes, strict=True):
                    self._mailbox.put(call, outcome)
                self._mailbox.wake()
        self._threads.discard(threading.current_thread())

    def _gather(self, call: Call | None) -> tuple[list[Call], bool]:
        """Return a batch that starts with a call, and whether to end the thread after it."""
        calls: list[Call] = []
        until = time.monotonic() + self._options.batch_wait if self._options.batch_wait else 0.0
        limit = self._options.max_batch
        get, get_nowait = self._queue.get, self._queue.get_nowait
        while call is not None:
            if not call.future.done():
                calls.append(call)
            if len(calls) >= limit:
                return calls, False
            try:
                call = get(True, max(0.0, until - time.monotonic())) if until else get_nowait()
            except Empty:
                return calls, False
        return calls, True


class _Pace:
    """Decides when more threads would help; see ``ThreadDispatcher``."""

    def __init__(self) -> None:
        # macOS does not say which of them this process may use.
        own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
        self._computing = min(len(own), _COMPUTING_THREADS)
        self._then = self._cpu = 0.0
        self._idle_ticks = 0

    def start(self, now: float) -> None:
        """Begin to measure."""
        self._then, self._cpu = now, time.process_time()
        self._idle_ticks = 0

    def more(self, waiting: int, threads: int, stalled: float) -> int:
        """Return how many threads to add now."""
        now = time.monotonic()
        wall, cpu = now - self._then, time.process_time()
        share = (cpu - self._cpu) / wall if wall else math.inf
        self._then, self._cpu = now, cpu
        # After a late tick nothing is known: this process did not get to run.
        idle = share < _IDLE_SHARE and wall < TICK + _LATE
        self._idle_ticks = self._idle_ticks + 1 if idle else 0
        if self._idle_ticks >= _IDLE_TICKS:
            return min(waiting, threads)
        if stalled > _STALLED and threads < self._computing:
            return 1
        return int(stalled > _STUCK and threads < _STUCK_THREADS)
