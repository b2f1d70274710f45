"""One thread for the calls of many functions, as long as each is quick.

A thread for each function is woken for almost every call when calls go to hundreds of functions in
turn: with 500 that took more than half of the requests a second. A function that keeps the shared
thread for long, or takes much of it while calls wait, gets threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import Empty, SimpleQueue

from mfimage.runtime.calls.queue import Call, Mailbox, Runnable, call_one
from mfimage.runtime.calls.threads import TICK, ThreadDispatcher, ThreadOptions

# A call that takes this long is slow.
_STALLED = 2 * TICK
# When calls have waited this long, a function that took this share of the time is slow.
_WAITED, _SHARE, _WINDOW = 4 * TICK, 0.25, 10 * TICK
# For so long a slow function has threads of its own.
_APART = 60.0
_WAKE_EVERY = 0.001
# How often an idle thread looks whether it is to leave: another may have taken its place just when
# its last call ended.
_LOOK = 0.5


class Lane:
    """The shared thread; everything but the thread itself runs on the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[LaneDispatcher, Call, float] | None] = SimpleQueue()
        self._mailbox = Mailbox(loop)
        self._worker: _Worker | None = None
        self._ticking = self._idle = False
        self._until = 0.0
        self._waited = 0.0
        # Those called in this window, and its number: each counts the time that it has spent.
        self._called: list[LaneDispatcher] = []
        self._window = 0

    def submit(self, dispatcher: LaneDispatcher, call: Call) -> None:
        """Queue a call."""
        now = time.monotonic()
        self._queue.put((dispatcher, call, now))
        if self._worker is None:
            self._worker = _Worker(self._run)
        if not self._ticking:
            self._ticking, self._idle = True, False
            self._begin_window(now)
            self._loop.call_later(TICK, self._tick)

    def close(self) -> bool:
        """End the thread; return whether it was idle."""
        if self._worker is None:
            return True
        self._queue.put(None)
        return self._worker.join(0.2)

    def _begin_window(self, now: float) -> None:
        self._until, self._waited = now + _WINDOW, 0.0
        self._called, self._window = [], self._window + 1

    def _tick(self) -> None:
        self._mailbox.deliver()
        now, worker = time.monotonic(), self._worker
        running = worker.running if worker is not None else None
        if worker is not None and running is not None and now - worker.began > _STALLED:
            worker.leaves, self._worker = True, None
            self._part_with(running, now, worker)
        elif now > self._until:
            if self._waited > _WAITED:
                most = max(self._called, key=_spent)
                if most.spent > _SHARE * sum(map(_spent, self._called)):
                    self._part_with(most, now, None)
            self._begin_window(now)
        idle = not self._queue.qsize() and running is None
        # At the first such tick the thread may have a call that it has not begun.
        if idle and self._idle:
            self._ticking = False
            return
        self._idle = idle
        self._loop.call_later(TICK, self._tick)

    def _part_with(self, slow: LaneDispatcher, now: float, worker: _Worker | None) -> None:
        """Hand what waits for a function to its own threads, and leave the rest to the lane."""
        slow.part(now + _APART, worker)
        items = []
        with contextlib.suppress(Empty):
            while (item := self._queue.get_nowait()) is not None:
                items.append(item)
        for dispatcher, call, since in items:
            if dispatcher is slow:
                slow.submit(call)
            else:
                self._queue.put((dispatcher, call, since))
        if self._worker is None and self._queue.qsize():
            self._worker = _Worker(self._run)

    def _run(self, me: _Worker) -> None:
        queue, mailbox, now_of = self._queue, self._mailbox, time.monotonic
        woken = 0.0
        while not me.leaves:
            try:
                item = queue.get_nowait()
            except Empty:
                mailbox.wake()
                try:
                    item = queue.get(timeout=_LOOK)
                except Empty:
                    continue
            if item is None:
                break
            dispatcher, call, since = item
            if call.future.done():
                continue
            me.began = now = now_of()
            me.running = dispatcher
            # See ThreadDispatcher.
            if now - woken > _WAKE_EVERY:
                mailbox.wake()
                woken = now
            mailbox.put(call, call_one(dispatcher.fn, call.payload, call.converter))
            me.running = None
            if dispatcher.window != self._window:
                dispatcher.window, dispatcher.spent = self._window, 0.0
                self._called.append(dispatcher)
            dispatcher.spent += now_of() - now
            self._waited = max(self._waited, now - since)
        mailbox.wake()
        me.end(self._loop)


def _spent(dispatcher: LaneDispatcher) -> float:
    return dispatcher.spent


class _Worker:
    """A thread of the lane: what it runs, and whether it leaves after that."""

    def __init__(self, run: Callable[[_Worker], None]) -> None:
        self.running: LaneDispatcher | None = None
        self.began = 0.0
        self.leaves = False
        self.ended = False
        self.after: Callable[[], None] | None = None  # called on the loop at its end
        self._thread = threading.Thread(target=run, args=(self,), name="mfimage-call", daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the thread; return whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say on the loop that the thread has ended; in the thread."""

        def tell() -> None:
            self.ended = True
            if self.after is not None:
                self.after()

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell)


class LaneDispatcher:
    """The calls of one function: in the lane, or while it is slow in threads of its own.

    With a limit of one call at a time it stays there, and starts when the lane's call has ended.
    """

    # Of hundreds of functions, what every call reads should be in few lines of a cache.
    __slots__ = (
        "_apart_until", "_before", "_held", "_lane", "_loop", "_options", "_own", "_single", "fn",
        "spent", "window",
    )  # fmt: skip

    def __init__(
        self, fn: Runnable, lane: Lane, *, loop: asyncio.AbstractEventLoop, options: ThreadOptions
    ) -> None:
        self.fn = fn
        self._lane = lane
        self._loop = loop
        self._single = options.limit == 1
        # One of its calls may still be in the lane.
        self._options = options if self._single else replace(options, limit=options.limit - 1)
        self._own: ThreadDispatcher | None = None
        self._apart_until = 0.0
        self._before: _Worker | None = None  # has a call that must end first
        self._held: list[Call] = []
        self.spent = 0.0  # seconds of a window
        self.window = 0

    def submit(self, call: Call) -> None:
        """Queue a call."""
        if not self._apart_until or time.monotonic() > self._apart_until:
            self._lane.submit(self, call)
        elif self._before is not None and not self._before.ended:
            self._held.append(call)
        else:
            self._threads().submit(call)

    def part(self, until: float, worker: _Worker | None) -> None:
        """Use threads of its own until some time; ``worker`` runs a call of it."""
        self._apart_until = math.inf if self._single else until
        if self._single and worker is not None:
            self._before, worker.after = worker, self._release

    def abandon(self, call: Call) -> None:
        """Drop a call whose future is done."""
        if self._own is not None:
            self._own.abandon(call)
        call.payload = b""

    def stalled(self) -> float:
        """Return for how many seconds calls have waited without any being started."""
        if self._held and self._before is not None:
            return time.monotonic() - self._before.began
        return self._own.stalled() if self._own is not None else 0.0

    def close(self) -> bool:
        """End its own threads; return whether no call runs."""
        idle = self._before is None or self._before.ended
        return (self._own is None or self._own.close()) and idle

    def _release(self) -> None:
        held, self._held = self._held, []
        for call in held:
            self._threads().submit(call)

    def _threads(self) -> ThreadDispatcher:
        if self._own is None:
            self._own = ThreadDispatcher(self.fn, loop=self._loop, options=self._options)
        return self._own
