from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfimage.errors import InputError, OutputError
from mfimage.runtime.calls.coroutines import CoroutineDispatcher
from mfimage.runtime.calls.queue import Call, Dispatcher, Outcome, call_many, call_one
from mfimage.runtime.calls.threads import ThreadDispatcher, ThreadOptions
from mfimage.runtime.loading.loader import LiveFunction
from tests.runtime.packages import live


class Boom(Exception):
    """What the function raises for negative numbers."""


def one(data: int) -> int:
    if data < 0:
        raise Boom(data)
    return data * 2


def many(data: list[int]) -> list[int]:
    return [one(number) for number in data]


async def later(data: int) -> int:
    await asyncio.sleep(0.0001 * (data % 3))
    return one(data)


FUNCTIONS = {"one": (one, False), "many": (many, True), "later": (later, False)}


def dispatcher(fn: LiveFunction, **options: Any) -> Dispatcher:
    loop = asyncio.get_running_loop()
    if fn.is_async:
        return CoroutineDispatcher(fn, loop=loop, limit=options.get("limit"))
    return ThreadDispatcher(fn, loop=loop, options=ThreadOptions(**options))


async def outcomes_of(it: Dispatcher, payloads: Sequence[bytes]) -> list[Outcome]:
    loop = asyncio.get_running_loop()
    calls = [Call(payload, loop.create_future(), 0.0) for payload in payloads]
    for call in calls:
        it.submit(call)
    return await asyncio.wait_for(asyncio.gather(*(call.future for call in calls)), 20)


def check(payload: bytes, outcome: Outcome) -> None:
    """Check that an outcome is this record's own."""
    try:
        number = json.loads(payload)
    except ValueError:
        assert isinstance(outcome, InputError)
        return
    if type(number) is not int:
        assert isinstance(outcome, InputError)
    elif number < 0:
        assert isinstance(outcome, Boom)
        assert outcome.args == (number,)
    else:
        assert outcome == str(number * 2).encode()


RECORDS = st.lists(
    st.one_of(
        st.integers(-5, 10**20).map(lambda n: str(n).encode()), st.sampled_from([b'"x"', b"{", b""])
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(deadline=None, max_examples=40)
@given(payloads=RECORDS, limit=st.integers(1, 4), max_batch=st.integers(1, 8))
def test_every_record_gets_its_own_outcome(
    name: str, payloads: list[bytes], limit: int, max_batch: int
) -> None:
    function, batch = FUNCTIONS[name]
    fn = live(function, batch=batch)

    async def run() -> None:
        it = dispatcher(fn, limit=limit, max_batch=max_batch)
        for payload, outcome in zip(payloads, await outcomes_of(it, payloads), strict=True):
            check(payload, outcome)
        assert it.close()

    asyncio.run(run())
    fn.close()


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 60), max_batch=st.integers(1, 20))
def test_a_batch_function_gets_records_in_order_and_never_too_many(
    count: int, max_batch: int
) -> None:
    seen: list[list[int]] = []

    def note(data: list[int]) -> list[int]:
        seen.append(data)
        return data

    async def run() -> None:
        it = dispatcher(live(note, batch=True), limit=1, max_batch=max_batch)
        await outcomes_of(it, [str(number).encode() for number in range(count)])
        it.close()

    asyncio.run(run())
    assert [number for batch in seen for number in batch] == list(range(count))
    assert max(map(len, seen)) <= max_batch


def test_what_waits_while_a_batch_runs_goes_along_in_the_next() -> None:
    sizes: list[int] = []
    started, go = threading.Event(), threading.Event()

    def note(data: list[int]) -> list[int]:
        sizes.append(len(data))
        started.set()
        assert go.wait(10)
        return data

    async def run() -> None:
        it = dispatcher(live(note, batch=True), limit=1, max_batch=64)
        first = asyncio.create_task(outcomes_of(it, [b"0"]))
        await asyncio.to_thread(started.wait)
        rest = asyncio.create_task(outcomes_of(it, [b"1"] * 100))
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(first, rest)
        it.close()

    asyncio.run(run())
    assert sizes == [1, 64, 36]


def test_a_batch_waits_for_more_only_when_asked_to() -> None:
    sizes: list[int] = []

    def note(data: list[int]) -> list[int]:
        sizes.append(len(data))
        return data

    async def run(wait: float) -> None:
        it = dispatcher(live(note, batch=True), limit=1, batch_wait=wait, max_batch=3)
        first = asyncio.create_task(outcomes_of(it, [b"1"]))
        await asyncio.sleep(0.1)
        await asyncio.gather(first, outcomes_of(it, [b"2", b"3"]))
        it.close()

    asyncio.run(run(0.0))
    assert sizes[0] == 1
    sizes.clear()
    asyncio.run(run(20.0))  # ends as soon as the batch is full
    assert sizes == [3]


def test_calls_that_come_turn_by_turn_share_a_batch_while_they_fit() -> None:
    sizes: list[int] = []

    def note(data: list[int]) -> list[int]:
        sizes.append(len(data))
        return data

    async def run() -> None:
        it = dispatcher(live(note, batch=True), limit=1, max_batch=8)
        calls = []
        for _ in range(8):
            calls.append(asyncio.create_task(outcomes_of(it, [b"1"])))
            await asyncio.sleep(0)
            time.sleep(0.002)  # a thread that was woken would run
        await asyncio.gather(*calls)
        it.close()

    asyncio.run(run())
    assert sizes == [8]


def test_a_batch_of_the_wrong_length_fails_as_a_whole() -> None:
    outcomes = call_many(live(lambda_like, batch=True), [b"1", b"x", b"3"])
    assert [type(outcome) for outcome in outcomes] == [OutputError, InputError, OutputError]


def lambda_like(data: list[int]) -> list[int]:
    return [1]


def test_one_bad_result_fails_alone() -> None:
    def odd(data: list[int]) -> list[Any]:
        return [object() if number == 2 else number for number in data]

    first, second, third = call_many(live(odd, batch=True), [b"1", b"2", b"3"])
    assert (first, third) == (b"1", b"3")
    assert isinstance(second, OutputError)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_function_that_wants_to_end_the_process_only_fails(error: BaseException) -> None:
    def leave(data: int) -> int:
        raise error

    def leave_all(data: list[int]) -> list[int]:
        raise error

    assert call_one(live(leave), b"1") is error
    assert call_many(live(leave_all, batch=True), [b"1", b"2"]) == [error, error]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_that_nobody_waits_for_is_not_started(name: str) -> None:
    function, batch = FUNCTIONS[name]
    parsed: list[Any] = []
    fn = live(function, batch=batch)
    parse = fn.parse
    fn.parse = lambda payload: (parsed.append(payload), parse(payload))[1]

    async def run() -> None:
        it = dispatcher(fn, limit=1, max_batch=1)
        loop = asyncio.get_running_loop()
        calls = [Call(b"%d" % number, loop.create_future(), 0.0) for number in range(3)]
        calls[1].future.cancel()
        for call in calls:
            it.submit(call)
        await calls[2].future
        it.close()

    asyncio.run(run())
    fn.close()
    assert b"1" not in parsed


def test_a_coroutine_that_nobody_waits_for_is_cancelled() -> None:
    ended: list[str] = []

    async def wait(data: int) -> int:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return data

    async def run() -> None:
        it = dispatcher(live(wait))
        call = Call(b"1", asyncio.get_running_loop().create_future(), 0.0)
        it.submit(call)
        await asyncio.sleep(0.05)
        call.future.cancel()
        it.abandon(call)
        until = time.monotonic() + 10
        while not ended and time.monotonic() < until:
            await asyncio.sleep(0.01)
        assert it.close()

    asyncio.run(run())
    assert ended == ["cancelled"]


def test_coroutines_run_side_by_side_up_to_the_limit() -> None:
    now = most = 0

    async def wait(data: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return data

    async def run(limit: int | None) -> None:
        it = dispatcher(live(wait), limit=limit)
        await outcomes_of(it, [b"1"] * 20)
        it.close()

    asyncio.run(run(None))
    assert most == 20
    most = 0
    asyncio.run(run(3))
    assert most == 3
