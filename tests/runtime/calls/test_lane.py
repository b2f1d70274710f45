"""Many functions share a thread while they are quick, and only then."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mfimage.runtime.calls.lane import Lane, LaneDispatcher
from mfimage.runtime.calls.queue import Call
from mfimage.runtime.calls.threads import ThreadOptions
from tests.runtime.packages import live


@pytest.fixture(autouse=True)
def turns() -> Iterator[None]:
    """Give the loop a turn as often as a server's process does; else threads may starve it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    yield
    sys.setswitchinterval(before)


class Shared:
    """Functions in a lane; each call's thread, and how many ran at once, are kept."""

    def __init__(self, limit: int = 40) -> None:
        self.loop = asyncio.get_running_loop()
        self.lane = Lane(self.loop)
        self.limit = limit
        self.threads: dict[str, list[str]] = {}
        self.running: dict[str, int] = {}
        self.most: dict[str, int] = {}

    def add(self, name: str, work: Callable[[float], Any]) -> LaneDispatcher:
        def predict(data: float) -> float:
            self.running[name] = self.running.get(name, 0) + 1
            self.most[name] = max(self.most.get(name, 0), self.running[name])
            self.threads.setdefault(name, []).append(threading.current_thread().name)
            self.seen.add(threading.get_ident())
            work(data)
            self.running[name] -= 1
            return data

        self.seen: set[int] = set()
        options = ThreadOptions(limit=self.limit, keep_one=False)
        return LaneDispatcher(live(predict), self.lane, loop=self.loop, options=options)

    def call(self, dispatcher: LaneDispatcher, data: float = 0.0) -> asyncio.Future[Any]:
        call = Call(b"%r" % data, self.loop.create_future(), time.monotonic())
        dispatcher.submit(call)
        return call.future


def test_quick_functions_share_one_thread() -> None:
    async def run() -> None:
        shared = Shared()
        quick = [shared.add(f"f{n}", lambda data: None) for n in range(50)]
        found = [shared.call(each, float(n)) for n, each in enumerate(quick * 4)]
        assert await asyncio.gather(*found) == [b"%r" % float(n) for n in range(200)]
        assert len(shared.seen) < 5, "one, unless the machine is busy"
        assert all([each.close() for each in quick])  # noqa: C419
        assert shared.lane.close()

    asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 40])
def test_a_slow_function_gets_threads_of_its_own(limit: int) -> None:
    async def run() -> None:
        shared = Shared(limit)
        slow, quick = shared.add("slow", time.sleep), shared.add("quick", lambda data: None)
        waits = [shared.call(slow, 0.6) for _ in range(3)]
        began = time.monotonic()
        await asyncio.gather(*(shared.call(quick) for _ in range(20)))
        assert time.monotonic() - began < 0.5, "not behind the slow one"
        await asyncio.gather(*waits)
        took = time.monotonic() - began
        assert shared.most["slow"] == (1 if limit == 1 else 3)
        assert took > 1.7 if limit == 1 else took < 1.5
        assert all([slow.close(), quick.close(), shared.lane.close()])

    asyncio.run(run())


def test_what_takes_most_of_the_thread_while_others_wait_gets_its_own() -> None:
    def spin(data: float) -> None:
        until = time.monotonic() + data
        while time.monotonic() < until:
            pass

    async def run() -> None:
        shared = Shared()
        hog, quick = shared.add("hog", spin), shared.add("quick", lambda data: None)
        many = [shared.call(hog, 0.004) for _ in range(500)]
        await shared.call(quick)
        assert not all(each.done() for each in many), "no call of it is slow, all of them are"
        await asyncio.gather(*many)
        assert hog._apart_until
        assert all([hog.close(), quick.close(), shared.lane.close()])

    asyncio.run(run())
