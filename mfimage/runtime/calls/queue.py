"""Calls of a function, and what carries them from an event loop to the function and back.

Parsing, calling and writing the result all run away from the server's loop, so that neither a
slow function nor a large record delays the health endpoints.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# The bytes of a result, or what went wrong.
Outcome = bytes | BaseException


class Expired(Exception):
    """The call took longer than the timeout."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopping(Exception):
    """The server stops before the call has ended."""


class Disconnected(Exception):
    """The client closed the connection."""


class Converter(Protocol):
    """Bytes to a record, and a result to bytes."""

    @property
    def parse(self) -> Callable[[bytes], Any]:
        """Bytes of one record -> the record."""

    @property
    def dump(self) -> Callable[[Any], bytes]:
        """A result -> bytes."""


class Runnable(Converter, Protocol):
    """A live function; as a converter it reads and writes JSON."""

    @property
    def batch(self) -> bool:
        """Whether the function takes a list of records."""

    def invoke(self, record: Any) -> Any:
        """Run it on one record."""

    def invoke_many(self, records: Sequence[Any]) -> list[Any]:
        """Run it on records; an exception stands in the place of its result."""

    def ainvoke(self, record: Any) -> Awaitable[Any]:
        """Run an ``async def`` function on one record."""


@dataclass(eq=False, slots=True)
class Call:
    """A call of the function on one record, for a request that came at ``started``.

    Once its future, of the server's loop, is done, it need not be made any more. Without a
    converter the function's own reads the record and writes the result.
    """

    payload: bytes
    future: asyncio.Future[Outcome]
    started: float  # of time.monotonic()
    converter: Converter | None = None
    receive: Callable[[], Awaitable[Any]] | None = None
    watcher: asyncio.Task[None] | None = None
    task: asyncio.Task[None] | None = None


class Dispatcher(Protocol):
    """Runs calls outside the server's loop."""

    def submit(self, call: Call) -> None:
        """Queue a call; its future gets the outcome."""

    def abandon(self, call: Call) -> None:
        """Drop a call whose future is done."""

    def stalled(self) -> float:
        """Return for how many seconds calls have waited without any being started."""

    def close(self) -> bool:
        """Stop; return whether no call runs any more."""


class Mailbox:
    """Carries outcomes from any thread to the server's loop.

    However many outcomes come at once, the loop is woken once: waking costs a system call, and
    turns of the interpreter's lock.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outcomes: deque[tuple[Call, Outcome]] = deque()
        self._woken = False

    def put(self, call: Call, outcome: Outcome) -> None:
        """Add an outcome; it is delivered at the next ``wake`` or ``deliver``."""
        self._outcomes.append((call, outcome))

    def wake(self) -> None:
        """Let the loop deliver, unless it is about to."""
        if self._outcomes and not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Set the futures; on the loop."""
        # First: an outcome that is added after the last check must wake the loop again.
        self._woken = False
        outcomes = self._outcomes
        while outcomes:
            call, outcome = outcomes.popleft()
            if not call.future.done():
                call.future.set_result(outcome)


def call_one(fn: Runnable, payload: bytes, converter: Converter | None = None) -> Outcome:
    """Run a function on one record's bytes."""
    converter = converter or fn
    try:
        return converter.dump(fn.invoke(converter.parse(payload)))
    except BaseException as error:  # noqa: BLE001  (SystemExit must not end a thread silently)
        return error


def call_many(
    fn: Runnable, payloads: Sequence[bytes], converters: Sequence[Converter | None] | None = None
) -> list[Outcome]:
    """Run a function on many records' bytes in one call; an invalid record fails alone."""
    chosen = [converter or fn for converter in converters or [None] * len(payloads)]
    records: list[Any] = []
    refused: dict[int, BaseException] = {}
    for index, (converter, payload) in enumerate(zip(chosen, payloads, strict=True)):
        try:
            records.append(converter.parse(payload))
        except BaseException as error:  # noqa: BLE001  (it takes the result's place)
            refused[index] = error
    try:
        results = iter(fn.invoke_many(records) if records else ())
    except BaseException as error:  # noqa: BLE001  (it takes the result's place)
        return [refused.get(index, error) for index in range(len(payloads))]
    return [
        refused[index] if index in refused else _dump(converter, next(results))
        for index, converter in enumerate(chosen)
    ]


def _dump(converter: Converter, result: Any) -> Outcome:
    try:
        return result if isinstance(result, BaseException) else converter.dump(result)
    except BaseException as error:  # noqa: BLE001  (it takes the result's place)
        return error
