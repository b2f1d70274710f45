"""A function as handlers see it: whether it is ready, and its calls in flight."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from mfimage.package.spec import CallableSpec
from mfimage.runtime.calls.coroutines import CoroutineDispatcher
from mfimage.runtime.calls.lane import Lane, LaneDispatcher
from mfimage.runtime.calls.queue import (
    Call,
    Converter,
    Disconnected,
    Dispatcher,
    Expired,
    Outcome,
    Stopping,
)  # fmt: skip
from mfimage.runtime.calls.threads import DEFAULT_THREADS, ThreadDispatcher, ThreadOptions
from mfimage.runtime.serving.content import MediaTypes
from mfimage.runtime.serving.problems import STOPPING, Problem, late, unavailable
from mfimage.runtime.settings import Settings

if TYPE_CHECKING:
    from mfimage.runtime.loading.loader import LiveFunction

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_Body = TypeVar("_Body")

LOADING = "the function is still loading"
_TICK = 0.05
# Watching for a disconnect costs a task; quick requests do without.
_WATCH_AFTER = 0.1


class Timer:
    """The calls in flight of some functions, with one timeout: checked while there are any."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float) -> None:
        self._loop = loop
        self._tick = max(0.001, min(_TICK, timeout / 10)) if timeout else _TICK
        self.calls: dict[Call, InFlight] = {}
        self.arriving: dict[asyncio.Task[Any], tuple[InFlight, float]] = {}
        self.ticking = False

    def start(self) -> None:
        """Check them until there are none."""
        self.ticking = True
        self._loop.call_later(self._tick, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        for call, calls in self.calls.items():
            calls.check(call, now)
        for task, (calls, started) in self.arriving.items():
            calls.check_arrival(task, started, now)
        self.ticking = bool(self.calls or self.arriving)
        if self.ticking:
            self._loop.call_later(self._tick, self._check)


class InFlight:
    """Submits calls to the dispatcher and waits for them, at most ``timeout`` seconds; 0: for ever.

    A request whose body has not arrived counts, too, and has as long: without a timeout, the
    default one.

    One timer has all of them, and those of other functions: a timer and a task for each request
    would cost more than all else that is done here.
    """

    __slots__ = (
        "_count", "_dispatcher", "_ended", "_loop", "_patience", "_submit", "_timeout", "_timer",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher, timeout: float,
        timer: Timer | None = None,
    ) -> None:  # fmt: skip
        self._loop = loop
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._timer = timer or Timer(loop, timeout)
        self._patience = timeout or Settings.timeout
        self._count = 0  # of calls and arriving bodies
        self._ended: dict[asyncio.Task[Any], BaseException] = {}
        self._submit = dispatcher.submit

    def __len__(self) -> int:
        return self._count

    async def arrive(self, started: float, body: Coroutine[Any, Any, _Body]) -> _Body:
        """Return the body of a request that came at ``started``; raise what ended it."""
        task = asyncio.current_task()
        assert task is not None
        self._timer.arriving[task] = self, started
        self._count += 1
        if not self._timer.ticking:
            self._timer.start()
        try:
            return await body
        except asyncio.CancelledError:
            error = self._ended.pop(task, None)
            if error is None:
                raise
        finally:
            del self._timer.arriving[task]
            self._count -= 1
        raise error

    async def run(
        self, payload: bytes, receive: Receive, started: float, converter: Converter | None = None
    ) -> Outcome:
        """Return the outcome of one record of a request that came at ``started``."""
        call = self._start(payload, started, converter)
        call.receive = receive
        try:
            return await call.future
        finally:
            self._forget(call)

    async def run_many(
        self, payloads: Sequence[bytes], receive: Receive, started: float, *, at_once: int
    ) -> list[Outcome]:
        """Return the outcomes of a request's records, in order, queued ``at_once`` at a time."""
        gone = self._loop.create_task(_disconnect(receive))
        outcomes: list[Outcome] = []
        calls: list[Call] = []
        try:
            for start in range(0, len(payloads), at_once):
                chunk = payloads[start : start + at_once]
                calls = [self._start(payload, started) for payload in chunk]
                together = asyncio.gather(*(call.future for call in calls))
                await asyncio.wait((together, gone), return_when=asyncio.FIRST_COMPLETED)
                if not together.done():
                    together.cancel()
                    raise Disconnected
                outcomes += together.result()
                while calls:
                    self._forget(calls.pop())
        finally:
            gone.cancel()
            for call in calls:
                self._forget(call)
        return outcomes

    def stop(self) -> int:
        """End what still runs, waits or arrives with ``Stopping``; return how many bodies did."""
        for call, calls in self._timer.calls.items():
            if calls is self:
                self._end(call, Stopping())
        tasks = [task for task, (calls, _) in self._timer.arriving.items() if calls is self]
        for task in tasks:
            self._end_arrival(task, Stopping())
        return len(tasks)

    def _start(self, payload: bytes, started: float, converter: Converter | None = None) -> Call:
        call = Call(payload, self._loop.create_future(), started, converter)
        timer = self._timer
        timer.calls[call] = self
        self._count += 1
        if not timer.ticking:
            timer.start()
        self._submit(call)
        return call

    def _forget(self, call: Call) -> None:
        del self._timer.calls[call]
        self._count -= 1
        if call.watcher is not None:
            call.watcher.cancel()
        if call.future.cancelled():
            self._dispatcher.abandon(call)

    def _end(self, call: Call, outcome: Outcome) -> None:
        if not call.future.done():
            call.future.set_result(outcome)
            self._dispatcher.abandon(call)

    def _end_arrival(self, task: asyncio.Task[Any], error: BaseException) -> None:
        if task not in self._ended:
            self._ended[task] = error
            task.cancel()

    def check(self, call: Call, now: float) -> None:
        """End a call that takes too long, or watch for its client to leave."""
        age = now - call.started
        if self._timeout and age >= self._timeout:
            self._end(call, Expired(self._timeout))
        elif age >= _WATCH_AFTER and call.receive is not None and call.watcher is None:
            call.watcher = self._loop.create_task(self._watch(call, call.receive))

    def check_arrival(self, task: asyncio.Task[Any], started: float, now: float) -> None:
        """End the wait for a body that takes too long."""
        if now - started >= self._patience:
            self._end_arrival(task, late(self._patience))

    async def _watch(self, call: Call, receive: Receive) -> None:
        await _disconnect(receive)
        self._end(call, Disconnected())


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Bodies:
    """Counts the bytes of the bodies of unanswered requests, of all functions together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0

    def hold(self, size: int) -> None:
        """Count bytes of a body, until the request ends; raise a 503 when they are too many."""
        if self.held + size > self.limit:
            raise unavailable(f"request bodies of {self.limit} bytes in total wait already")
        self.held += size


class State(enum.Enum):
    """Whether a function is loaded."""

    UNLOADED = "unloaded"  # it is loaded when it is called
    LOADING = "loading"
    LOADED = "loaded"
    FAILED = "failed"


# Of a request: gets the service and the request.
Handler = Callable[["Service", Any], Awaitable[Any]]


@dataclass(kw_only=True, slots=True)
class Service:
    """A function that is served; it has media types and calls once it is loaded."""

    name: str
    spec: CallableSpec
    settings: Settings
    loop: asyncio.AbstractEventLoop
    bodies: Bodies
    observe: Callable[[int], None]  # how many records a call of a batch function has
    timer: Timer
    lane: Lane | None  # the thread that it shares with others, if it is one of several
    media_types: MediaTypes | None = field(init=False, default=None)
    inflight: InFlight | None = field(init=False, default=None)
    draining: bool = field(init=False, default=False)  # the server is about to end
    state: State = field(init=False)
    failed: str = field(init=False, default="")  # why it cannot be loaded
    using: int = field(init=False, default=0)  # requests for it, where it is loaded on demand
    # Wraps a handler of its requests: one that loads it first, or has another process respond.
    wrap: Callable[[Handler], Handler] | None = field(init=False, default=None)
    _dispatcher: Dispatcher | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.state = State.LOADING if self.settings.load == "eager" else State.UNLOADED

    def start(self, fn: LiveFunction, media_types: MediaTypes) -> None:
        """Become ready, with the dispatcher that suits the kind of the function."""
        settings, loop = self.settings, self.loop
        if fn.is_async and not fn.batch:
            self._dispatcher = CoroutineDispatcher(fn, loop=loop, limit=settings.threads)
        else:
            options = ThreadOptions(
                limit=settings.threads or (1 if fn.batch else DEFAULT_THREADS),
                max_batch=settings.max_batch,
                batch_wait=settings.batch_wait,
                keep_one=self.lane is None,
            )
            if self.lane is not None and not fn.batch:
                self._dispatcher = LaneDispatcher(fn, self.lane, loop=loop, options=options)
            else:
                self._dispatcher = ThreadDispatcher(
                    fn, loop=loop, options=options, on_batch=self.observe
                )
        self.media_types = media_types
        self.inflight = InFlight(loop, self._dispatcher, settings.timeout, self.timer)
        self.state = State.LOADED

    def unload(self) -> Dispatcher:
        """Become what is loaded when it is called; return the dispatcher, which is to be closed."""
        dispatcher = self._dispatcher
        assert dispatcher is not None
        self._dispatcher = self.media_types = self.inflight = None
        self.state = State.UNLOADED
        return dispatcher

    def connect(self, dispatcher: Dispatcher) -> None:
        """Hand calls to a dispatcher whose function is in another process."""
        self._dispatcher = dispatcher
        self.inflight = InFlight(self.loop, dispatcher, self.settings.timeout, self.timer)

    def fail(self, reason: str) -> None:
        """Become what cannot be loaded."""
        self.state, self.failed = State.FAILED, reason

    def close(self) -> bool:
        """End the dispatcher; return whether no call runs and the function is not loading."""
        if self._dispatcher is not None:
            return self._dispatcher.close()
        return self.state is not State.LOADING

    @property
    def loading(self) -> str | None:
        """Why the function cannot be called, if so."""
        if self.inflight is not None:
            return None
        return f"{self.name} cannot be loaded: {self.failed}" if self.failed else LOADING

    def unavailable(self) -> Problem:
        """Return the 503 of a function that cannot be called."""
        if self.failed:  # which trying again does not change
            return Problem(503, self.loading or "")
        return unavailable(LOADING)

    @property
    def must_load(self) -> bool:
        """Whether the server is not ready before this is loaded."""
        return self.state is State.FAILED or (
            self.settings.load == "eager" and self.state is not State.LOADED
        )

    def not_ready(self) -> str | None:
        """Return why the function should get no requests, if so."""
        if self.draining:
            return STOPPING
        if self.must_load:
            return self.loading or LOADING
        if self._dispatcher is None:
            return None
        timeout = self.settings.timeout
        if timeout and self._dispatcher.stalled() > timeout:
            return "calls that take longer than MFIMAGE_TIMEOUT occupy every thread"
        return None

    def admit(self) -> InFlight:
        """Return the calls in flight, or raise a 503 when another must not join them."""
        assert self.inflight is not None
        if len(self.inflight) >= self.settings.max_waiting:
            raise unavailable("too many requests are waiting (MFIMAGE_MAX_WAITING)")
        return self.inflight
