"""From the server's loop to the function and back: jobs, and the two ways they are called.

A job is one record's bytes and a future of its outcome. Whatever turns bytes into a result
(parse, call, dump) runs away from the server's loop, so that neither a slow function nor a large
record holds up the health endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

# A result's bytes, JSON unless the job says otherwise, or what went wrong instead.
Outcome = bytes | BaseException


class Expired(Exception):
    """The job took longer than the timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopping(Exception):
    """The server ends before the job could."""


class Gone(Exception):
    """The client left."""


class Crossing(Protocol):
    """How a record comes in and its result goes out."""

    @property
    def parse(self) -> Callable[[bytes], Any]:
        """Bytes of one record -> the record."""

    @property
    def dump(self) -> Callable[[Any], bytes]:
        """A result -> bytes."""


class Runnable(Crossing, Protocol):
    """What a live function can do with bytes, of JSON, and records."""

    @property
    def batch(self) -> bool:
        """Whether the function takes a list of records."""

    def invoke(self, record: Any) -> Any:
        """Run it on one record."""

    def invoke_many(self, records: Sequence[Any]) -> list[Any]:
        """Run it on records; an exception stands in the place of its result."""

    def ainvoke(self, record: Any) -> Awaitable[Any]:
        """Run an ``async def`` function on one record."""


class Job:
    """One record on its way.

    Attributes
    ----------
    payload : bytes
        The record.
    future : asyncio.Future
        Of the outcome, on the server's loop. Once it is done nobody waits for the job.
    started : float
        ``time.monotonic()`` when the request came.
    crossing : Crossing or None
        How the record comes in and its result goes out; None for the function's own way, JSON.
    """

    __slots__ = ("crossing", "future", "payload", "receive", "started", "task", "watcher")

    def __init__(
        self,
        payload: bytes,
        future: asyncio.Future[Outcome],
        started: float,
        crossing: Crossing | None = None,
    ) -> None:
        self.payload = payload
        self.future = future
        self.started = started
        self.crossing = crossing
        self.receive: Callable[[], Awaitable[Any]] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None


class Dispatcher(Protocol):
    """Runs jobs somewhere else."""

    def submit(self, job: Job) -> None:
        """Take a job; its future gets the outcome."""

    def abandon(self, job: Job) -> None:
        """Learn that nobody waits for a job any more."""

    def stalled(self) -> float:
        """Return for how many seconds jobs have waited without any being taken."""

    def close(self) -> bool:
        """End; return whether nothing of the function runs any more."""


class Mailbox:
    """Carries outcomes from any thread to the server's loop.

    However many outcomes come at once, the loop is woken once: waking costs a system call, and
    turns of the interpreter's lock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcomes: deque[tuple[Job, Outcome]] = deque()
        self._woken = False

    def put(self, job: Job, outcome: Outcome) -> None:
        """Leave an outcome; the loop finds it when it is woken or looks."""
        self._outcomes.append((job, outcome))

    def wake(self) -> None:
        """Let the loop look, unless it is about to."""
        if self._outcomes and not self._woken:
            self._woken = True
            # Once the loop has ended, nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Give every outcome to whoever waits for it; on the loop."""
        # Before looking: what arrives after the last look must wake the loop again.
        self._woken = False
        outcomes = self._outcomes
        while outcomes:
            job, outcome = outcomes.popleft()
            if not job.future.done():
                job.future.set_result(outcome)


def call_one(fn: Runnable, payload: bytes, crossing: Crossing | None = None) -> Outcome:
    """Run a function on one record's bytes."""
    way = crossing or fn
    try:
        return way.dump(fn.invoke(way.parse(payload)))
    except BaseException as error:  # noqa: BLE001  (SystemExit must not end a thread silently)
        return error


def call_many(
    fn: Runnable, payloads: Sequence[bytes], crossings: Sequence[Crossing | None] | None = None
) -> list[Outcome]:
    """Run a function on many records' bytes in one call; one that is bad fails alone.

    Each record may come in and go out in a way of its own.
    """
    ways = [crossing or fn for crossing in crossings or [None] * len(payloads)]
    records: list[Any] = []
    refused: dict[int, BaseException] = {}
    for index, (way, payload) in enumerate(zip(ways, payloads, strict=True)):
        try:
            records.append(way.parse(payload))
        except BaseException as error:  # noqa: BLE001
            refused[index] = error
    try:
        results = iter(fn.invoke_many(records) if records else ())
    except BaseException as error:  # noqa: BLE001
        return [refused.get(index, error) for index in range(len(payloads))]
    return [
        refused[index] if index in refused else _dumped(way, next(results))
        for index, way in enumerate(ways)
    ]


def _dumped(way: Crossing, result: Any) -> Outcome:
    if isinstance(result, BaseException):
        return result
    try:
        return way.dump(result)
    except BaseException as error:  # noqa: BLE001
        return error
