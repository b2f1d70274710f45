from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mfimage.runtime.calls.queue import Call, Disconnected, Expired, Outcome, Stopping
from mfimage.runtime.serving.service import InFlight


class Idle:
    """Takes calls and does what it is told with them."""

    def __init__(self, answer: Callable[[Call], None] = lambda call: None) -> None:
        self.submitted: list[Call] = []
        self.abandoned: list[Call] = []
        self._answer = answer

    def submit(self, call: Call) -> None:
        self.submitted.append(call)
        self._answer(call)

    def abandon(self, call: Call) -> None:
        self.abandoned.append(call)

    def stalled(self) -> float:
        return 0.0

    def close(self) -> bool:
        return True


async def silent() -> Any:
    await asyncio.sleep(60)


async def leaves() -> Any:
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


def echo(call: Call) -> None:
    call.future.set_result(call.payload)


def inflight(idle: Idle, timeout: float = 0.0) -> InFlight:
    return InFlight(asyncio.get_running_loop(), idle, timeout)


def run(coroutine: Awaitable[Any]) -> Any:
    async def wait() -> Any:
        return await asyncio.wait_for(coroutine, 10)

    return asyncio.run(wait())


def test_a_request_expires_and_leaves_nothing_behind() -> None:
    idle = Idle()

    async def go() -> tuple[Outcome, float]:
        it = inflight(idle, 0.1)
        begin = time.monotonic()
        outcome = await it.run(b"1", silent, begin)
        assert len(it) == 0
        return outcome, time.monotonic() - begin

    outcome, seconds = run(go())
    assert isinstance(outcome, Expired)
    assert 0.1 <= seconds < 1
    assert idle.abandoned == idle.submitted


def test_a_client_that_leaves_takes_its_call_along() -> None:
    idle = Idle()

    async def go() -> Outcome:
        return await inflight(idle).run(b"1", leaves, time.monotonic())

    assert isinstance(run(go()), Disconnected)
    assert idle.abandoned == idle.submitted


def test_a_cancelled_request_abandons_its_call() -> None:
    idle = Idle()

    async def go() -> None:
        it = inflight(idle)
        task = asyncio.create_task(it.run(b"1", silent, time.monotonic()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(it) == 0

    run(go())
    assert idle.abandoned == idle.submitted


def test_stopping_answers_everybody() -> None:
    async def go() -> list[Outcome]:
        it = inflight(Idle())
        tasks = [asyncio.create_task(it.run(b"1", silent, time.monotonic())) for _ in range(3)]
        await asyncio.sleep(0)
        it.stop()
        return await asyncio.gather(*tasks)

    assert [type(outcome) for outcome in run(go())] == [Stopping] * 3


def test_only_some_records_of_a_list_stand_in_the_queue_at_once() -> None:
    most = 0
    it: InFlight

    def answer_soon(call: Call) -> None:
        nonlocal most
        most = max(most, len(it))
        asyncio.get_running_loop().call_soon(echo, call)

    async def go() -> list[Outcome]:
        nonlocal it
        it = inflight(Idle(answer_soon))
        payloads = [b"%d" % number for number in range(10)]
        return await it.run_many(payloads, silent, time.monotonic(), at_once=4)

    assert run(go()) == [b"%d" % number for number in range(10)]
    assert most == 4


def test_records_that_made_it_are_kept_when_the_rest_of_a_list_expires() -> None:
    def answer_some(call: Call) -> None:
        if call.payload < b"3":
            echo(call)

    async def go() -> list[Outcome]:
        it = inflight(Idle(answer_some), 0.1)
        payloads = [b"%d" % number for number in range(6)]
        outcomes = await it.run_many(payloads, silent, time.monotonic(), at_once=2)
        assert len(it) == 0
        return outcomes

    outcomes = run(go())
    assert outcomes[:3] == [b"0", b"1", b"2"]
    assert [type(outcome) for outcome in outcomes[3:]] == [Expired] * 3


def test_a_client_that_leaves_takes_its_list_along() -> None:
    idle = Idle()

    async def go() -> None:
        it = inflight(idle)
        with pytest.raises(Disconnected):
            await it.run_many([b"1"] * 5, leaves, time.monotonic(), at_once=3)
        assert len(it) == 0

    run(go())
    assert len(idle.submitted) == 3
    assert idle.abandoned == idle.submitted
