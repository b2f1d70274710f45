from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mfimage.runtime.calls.queue import Call
from mfimage.runtime.calls.threads import ThreadDispatcher, ThreadOptions
from tests.runtime.packages import live


class Counting:
    """Counts how many calls run at once."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._now = self.most = 0

    def __call__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._work()
        with self._lock:
            self._now -= 1


def spin() -> None:
    until = time.thread_time() + 0.03
    while time.thread_time() < until:
        pass


async def flood(work: Callable[[], object], count: int, **options: Any) -> ThreadDispatcher:
    def call(data: int) -> int:
        work()
        return data

    loop = asyncio.get_running_loop()
    it = ThreadDispatcher(live(call), loop=loop, options=ThreadOptions(**options))
    calls = [Call(b"1", loop.create_future(), 0.0) for _ in range(count)]
    for call in calls:
        it.submit(call)
    await asyncio.gather(*(call.future for call in calls))
    return it


def test_calls_that_wait_run_side_by_side() -> None:
    counting = Counting(lambda: time.sleep(0.1))

    async def run() -> float:
        begin = time.monotonic()
        (await flood(counting, 120, limit=40)).close()
        return time.monotonic() - begin

    seconds = asyncio.run(run())
    assert 20 < counting.most <= 40
    assert seconds < 4  # one after another: 12


def test_calls_that_compute_do_not_get_a_crowd_of_threads() -> None:
    counting = Counting(spin)

    async def run() -> None:
        (await flood(counting, 40, limit=40)).close()

    asyncio.run(run())
    assert counting.most <= 8


def test_with_one_thread_calls_never_overlap() -> None:
    counting = Counting(lambda: time.sleep(0.005))

    async def run() -> None:
        (await flood(counting, 30, limit=1)).close()

    asyncio.run(run())
    assert counting.most == 1


def test_a_machine_without_more_threads_is_made_do_with(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(lambda: time.sleep(0.01))
    start = threading.Thread.start
    started: list[threading.Thread] = []

    # Only this dispatcher's threads count: under load, those of another test may end later.
    def refuse(thread: threading.Thread) -> None:
        if len(started) >= 3:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def run() -> None:
        (await flood(counting, 60, limit=40)).close()

    asyncio.run(run())
    assert counting.most <= len(started) == 3


def test_a_call_that_never_ends_does_not_hold_the_others_up() -> None:
    never = threading.Event()
    first = threading.Lock()

    def hang_once() -> None:
        if first.acquire(blocking=False):
            never.wait(20)

    async def run() -> None:
        begin = time.monotonic()
        task = asyncio.create_task(flood(hang_once, 20, limit=2))
        await asyncio.sleep(1.5)
        never.set()
        it = await task
        assert time.monotonic() - begin < 10
        assert it.close()

    asyncio.run(run())


def test_a_quick_answer_does_not_wait_for_a_slow_call_behind_it() -> None:
    def call(data: float) -> float:
        time.sleep(data)
        return data

    async def run() -> float:
        loop = asyncio.get_running_loop()
        it = ThreadDispatcher(live(call), loop=loop, options=ThreadOptions(limit=1))
        quick, slow = (Call(text, loop.create_future(), 0.0) for text in (b"0.0", b"0.5"))
        begin = time.monotonic()
        it.submit(quick)
        it.submit(slow)
        await quick.future
        seconds = time.monotonic() - begin
        await slow.future
        it.close()
        return seconds

    assert asyncio.run(run()) < 0.3


def test_stalled_calls_are_noticed_and_dead_ones_do_not_pile_up() -> None:
    go = threading.Event()

    def wait(data: int) -> int:
        go.wait(20)
        return data

    async def run() -> None:
        loop = asyncio.get_running_loop()
        it = ThreadDispatcher(live(wait), loop=loop, options=ThreadOptions(limit=1))
        assert it.stalled() == 0.0
        running = Call(b"1", loop.create_future(), 0.0)
        it.submit(running)
        await asyncio.sleep(0.05)
        assert it.stalled() == 0.0  # nothing waits
        for _ in range(3000):
            call = Call(b"1", loop.create_future(), 0.0)
            it.submit(call)
            call.future.cancel()
            it.abandon(call)
        last = Call(b"2", loop.create_future(), 0.0)
        it.submit(last)
        await asyncio.sleep(0.05)
        assert it.stalled() >= 0.05
        assert it._queue.qsize() < 1200
        assert not it.close()  # one call still runs
        go.set()
        assert await running.future == b"1"
        assert await last.future == b"2"

    asyncio.run(run())
