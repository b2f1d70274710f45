"""Calling ``async def`` functions on an event loop in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

from mfimage.runtime.calls.queue import Call, Mailbox, Outcome, Runnable


class LoopThread:
    """Runs coroutines on a loop of its own, so that they do not block the caller's."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def is_alive(self) -> bool:
        """Return whether its thread runs; after a fork it does not."""
        return self._thread.is_alive()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a new event loop: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class CoroutineDispatcher:
    """Runs calls of an ``async def`` function as tasks on a loop in a thread, ``limit`` at once."""

    def __init__(
        self, fn: Runnable, *, loop: asyncio.AbstractEventLoop, limit: int | None = None
    ) -> None:
        self._fn = fn
        self._mailbox = Mailbox(loop)
        self._inbox: deque[Call] = deque()
        self._woken = False
        self._limit = asyncio.Semaphore(limit) if limit else contextlib.nullcontext()
        self._tasks: set[asyncio.Task[None]] = set()
        self._own = new_loop()
        self._thread = threading.Thread(
            target=self._own.run_forever, name="mfimage-calls", daemon=True
        )
        self._started = False  # with the first call

    def submit(self, call: Call) -> None:
        """Queue a call."""
        self._inbox.append(call)
        if not self._started:
            self._started = True
            self._thread.start()
        if not self._woken:
            self._woken = True
            self._own.call_soon_threadsafe(self._start)

    def abandon(self, call: Call) -> None:
        """Cancel a call whose future is done."""
        self._own.call_soon_threadsafe(lambda: call.task and call.task.cancel())

    def stalled(self) -> float:
        """Return 0: every call is started as soon as it comes."""
        return 0.0

    def close(self) -> bool:
        """Cancel what runs and end the loop; return whether no call runs any more."""
        if not self._started:
            self._own.close()
            return True
        ended = asyncio.run_coroutine_threadsafe(self._cancel_all(), self._own)
        try:
            idle = ended.result(0.5)
        except concurrent.futures.TimeoutError:
            return False
        self._own.call_soon_threadsafe(self._own.stop)
        self._thread.join()
        self._own.close()
        return idle

    async def _cancel_all(self) -> bool:
        tasks = [task for task in self._tasks if not task.done()]
        for task in tasks:
            task.cancel()
        return not tasks or not (await asyncio.wait(tasks, timeout=0.3))[1]

    def _start(self) -> None:
        self._woken = False
        while self._inbox:
            call = self._inbox.popleft()
            if not call.future.done():
                call.task = self._own.create_task(self._run(call))
                self._tasks.add(call.task)
                call.task.add_done_callback(self._tasks.discard)

    async def _run(self, call: Call) -> None:
        outcome: Outcome
        converter = call.converter or self._fn
        try:
            async with self._limit:
                record = converter.parse(call.payload)
                outcome = converter.dump(await self._fn.ainvoke(record))
        except BaseException as error:  # noqa: BLE001  (every error is an outcome)
            outcome = error
        self._mailbox.put(call, outcome)
        self._mailbox.wake()
