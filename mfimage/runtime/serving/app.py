"""The server's front: an ASGI app that answers records itself and leaves the rest to FastAPI.

Routing and validation in FastAPI cost 57 to 106 us a request, more than many a function. So the
two ``POST`` routes and the health endpoints stand before it; documentation, metrics and
everything else is FastAPI's (``openapi.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from mfimage.package.spec import FunctionSpec
from mfimage.runtime.calls.queue import Crossing, Dispatcher, Expired, Gone, Job, Outcome, Stopping
from mfimage.runtime.serving import bodies
from mfimage.runtime.serving.codecs import Wire
from mfimage.runtime.serving.content import Speech
from mfimage.runtime.serving.logs import AccessLog, request_members
from mfimage.runtime.serving.metrics import Meter, Metrics
from mfimage.runtime.serving.problems import Problem, problem_of, unavailable
from mfimage.runtime.serving.responses import (
    JSON_TYPE,
    Answers,
    App,
    Header,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
)
from mfimage.runtime.settings import Settings

# Splitting a list larger than this is done in a thread.
_LARGE = 64 * 1024
_LEFT = 499
_LOADING = "the function is still loading"
_STOPPING = "the server is shutting down"

log = logging.getLogger("mfimage.serving")


class Exchange:
    """What is known of a request from its start, and how a result is to be written."""

    __slots__ = ("request_id", "started", "written")

    def __init__(self, started: float, request_id: str) -> None:
        self.started = started
        self.request_id = request_id
        self.written: Sequence[Header] = (JSON_TYPE,)


Handle = Callable[[Headers, Receive, Exchange], Awaitable[Outcome]]


@dataclass(kw_only=True)
class Front:
    """Answers requests; the life cycle tells it what has become true.

    Attributes
    ----------
    inflight : InFlight or None
        The way to the function, once it is loaded.
    draining : bool
        Whether the server is about to end.
    """

    spec: FunctionSpec
    settings: Settings
    metrics: Metrics
    access: AccessLog | None
    loop: asyncio.AbstractEventLoop
    inflight: InFlight | None = field(init=False, default=None)
    draining: bool = field(init=False, default=False)
    _answers: Answers = field(init=False, default_factory=Answers)
    _dispatcher: Dispatcher | None = field(init=False, default=None)
    _speech: Speech | None = field(init=False, default=None)
    _pages: App | None = field(init=False, default=None)
    _pages_made: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._routes: dict[str, App] = {"/healthz": self._healthz, "/readyz": self._readyz}
        record, batch = f"/{self.spec.name}", f"/{self.spec.name}/batch"
        self._routes[record] = self._route(record, self._record, self.metrics.record)
        self._routes[batch] = self._route(batch, self._batch, self.metrics.batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            route = self._routes.get(scope["path"])
            await (route or self._other)(scope, receive, send)

    def start(self, dispatcher: Dispatcher, speech: Speech) -> None:
        """Become ready."""
        self._dispatcher = dispatcher
        self._speech = speech
        self.inflight = InFlight(self.loop, dispatcher, self.settings.timeout)
        self.metrics.ready(is_ready=not self.draining)

    def show(self, pages: App) -> None:
        """Take the app that answers everything else."""
        self._pages = pages
        self._pages_made.set()

    def drain(self) -> None:
        """Become not ready; every answer now asks its client to connect elsewhere."""
        self.draining = True
        self._answers.close_connections()
        self.metrics.ready(is_ready=False)

    def not_ready(self) -> str | None:
        """Return why the server should get no requests, if so."""
        if self.draining:
            return _STOPPING
        if self._dispatcher is None:
            return _LOADING
        timeout = self.settings.timeout
        if timeout and self._dispatcher.stalled() > timeout:
            return "calls that take longer than MFIMAGE_TIMEOUT hold every thread"
        return None

    def _way(self) -> InFlight:
        """Return the way to the function, if a request may take it."""
        inflight = self.inflight
        if inflight is None:
            raise unavailable(_LOADING)
        if len(inflight) >= self.settings.max_waiting:
            raise unavailable("too many requests wait already (MFIMAGE_MAX_WAITING)")
        return inflight

    async def _record(self, headers: Headers, receive: Receive, exchange: Exchange) -> Outcome:
        if self._speech is None:
            raise unavailable(_LOADING)
        terms = self._speech.record.agree(headers)
        exchange.written = terms.headers
        body = await bodies.read_body(headers, receive, self.settings.max_body)
        return await self._way().run(body, receive, exchange.started, terms.crossing)

    async def _batch(self, headers: Headers, receive: Receive, exchange: Exchange) -> Outcome:
        if self._speech is None:
            raise unavailable(_LOADING)
        terms = self._speech.batch.agree(headers)
        exchange.written = terms.headers
        body = await bodies.read_body(headers, receive, self.settings.max_body)
        way = self._way()
        payloads = await self._items(terms.reader, body)
        at_once = self.settings.max_batch
        outcomes: Sequence[Outcome]
        outcomes = await way.run_many(payloads, receive, exchange.started, at_once=at_once)
        if terms.writer is None:
            answer = bodies.join_list(outcomes)
        else:
            write = self.loop.run_in_executor(None, bodies.write_list, terms.writer, outcomes)
            outcomes, answer = await write
        self._log_failed_items(outcomes, exchange.request_id)
        return answer

    async def _items(self, reader: Wire | None, body: bytes) -> list[bytes]:
        """Return the JSON bytes of each record of a list."""
        if reader is not None:
            return await self.loop.run_in_executor(None, bodies.read_list, reader, body)
        if len(body) > _LARGE:
            return await self.loop.run_in_executor(None, bodies.split_list, body)
        return bodies.split_list(body)

    def _log_failed_items(self, outcomes: Sequence[Outcome], request_id: str) -> None:
        failed = [item for item in outcomes if not isinstance(item, bytes)]
        failed = [item for item in failed if problem_of(item).status == 500]
        if failed:
            message = "%s failed for %d of %d records; the first reason follows"
            arguments = (self.spec.name, len(failed), len(outcomes))
            log.error(message, *arguments, exc_info=failed[0], extra={"request_id": request_id})

    async def _healthz(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._status(scope, send, b'{"status":"alive"}')

    async def _readyz(self, scope: Scope, receive: Receive, send: Send) -> None:
        reason = self.not_ready()
        await self._status(scope, send, unavailable(reason) if reason else b'{"status":"ready"}')

    async def _status(self, scope: Scope, send: Send, outcome: Outcome) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            outcome = _not_allowed(scope["method"])
        request_id = self._answers.request_id(dict(scope["headers"]))
        await self._answers.send(send, outcome, request_id, body=scope["method"] != "HEAD")

    def _route(self, path: str, handle: Handle, meter: Meter) -> App:
        """Return a ``POST`` route: counted, logged, and never without an answer."""
        answers, outcome_of, access = self._answers, self._outcome, self.access
        # A function may well be called "docs" or "healthz".
        otherwise = self._routes.get(path, self._other)
        members = request_members("POST", path)

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] != "POST":
                await otherwise(scope, receive, send)
                return
            started = time.monotonic()
            headers = headers_of(scope["headers"])
            request_id = answers.request_id(headers)
            status = _LEFT
            meter.begin()
            try:
                exchange = Exchange(started, request_id)
                outcome = await outcome_of(handle, headers, receive, exchange)
                if not isinstance(outcome, Gone):
                    status = await answers.send(send, outcome, request_id, written=exchange.written)
            finally:
                seconds = time.monotonic() - started
                meter.end(status, seconds)
                if access is not None:
                    access.write(members, request_id, status, seconds)

        return route

    async def _outcome(
        self, handle: Handle, headers: Headers, receive: Receive, exchange: Exchange
    ) -> Outcome:
        outcome: Outcome
        try:
            outcome = await handle(headers, receive, exchange)
        except Exception as error:  # noqa: BLE001  (each becomes an answer)
            outcome = error
        if not isinstance(outcome, bytes | Gone) and problem_of(outcome).status == 500:
            extra = {"request_id": exchange.request_id}
            log.error("%s failed", self.spec.name, exc_info=outcome, extra=extra)
        return outcome

    async def _other(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = self._answers.request_id(dict(scope["headers"]))
        if scope["path"] == "/metrics":
            await self._page(scope, receive, send, request_id)
            return
        started = time.monotonic()
        meter = self.metrics.other
        meter.begin()
        status = 500
        try:
            status = await self._page(scope, receive, send, request_id)
        finally:
            seconds = time.monotonic() - started
            meter.end(status, seconds)
            if self.access is not None:
                members = request_members(scope["method"], scope["path"])
                self.access.write(members, request_id, status, seconds)

    async def _page(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Let FastAPI answer; return the status."""
        if self.inflight is None:
            return await self._answers.send(send, unavailable(_LOADING), request_id)
        await self._pages_made.wait()
        assert self._pages is not None
        scope["mfimage.request_id"] = request_id
        status = 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = self._answers.headers(request_id)
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._pages(scope, receive, send_on)
        return status


def _not_allowed(method: str) -> Problem:
    detail = f"{method} is not answered here"
    return Problem(405, detail, headers=[(b"allow", b"GET, HEAD")])


# The requests that wait for the function: their timeouts, and clients that leave.


_TICK = 0.05
# Watching for a client's leave costs a task; quick requests do without.
_PATIENCE = 0.1


class InFlight:
    """Submits jobs and waits for them.

    One timer looks after all of them: a timer and a task for each request would cost more than
    the rest of its way through here.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The server's.
    dispatcher : Dispatcher
        Runs the jobs.
    timeout : float
        Seconds from the request to ``Expired``; 0 for never.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, dispatcher: Dispatcher, timeout: float
    ) -> None:
        self._loop = loop
        self._dispatcher = dispatcher
        self._timeout = timeout
        self._tick = max(0.001, min(_TICK, timeout / 10)) if timeout else _TICK
        self._jobs: dict[Job, None] = {}
        self._ticking = False
        self._submit = dispatcher.submit

    def __len__(self) -> int:
        return len(self._jobs)

    async def run(
        self, payload: bytes, receive: Receive, started: float, crossing: Crossing | None = None
    ) -> Outcome:
        """Return the outcome of one record.

        Parameters
        ----------
        payload : bytes
            The record.
        receive : callable
            The request's; it tells when the client leaves.
        started : float
            ``time.monotonic()`` when the request came.
        crossing : Crossing, optional
            How the record comes in and its result goes out, if not as JSON.
        """
        job = self._start(payload, started, crossing)
        job.receive = receive
        try:
            return await job.future
        finally:
            self._forget(job)

    async def run_many(
        self, payloads: Sequence[bytes], receive: Receive, started: float, *, at_once: int
    ) -> list[Outcome]:
        """Return the outcomes of the records of one request, in order; see ``run``.

        Only ``at_once`` of them stand in the queue together, so that other requests get a turn.

        Raises
        ------
        Gone
            When the client left.
        """
        gone = self._loop.create_task(_until_gone(receive))
        outcomes: list[Outcome] = []
        try:
            for start in range(0, len(payloads), at_once):
                chunk = payloads[start : start + at_once]
                outcomes += await self._run_chunk(chunk, gone, started)
        finally:
            gone.cancel()
        return outcomes

    async def _run_chunk(
        self, payloads: Sequence[bytes], gone: asyncio.Task[None], started: float
    ) -> list[Outcome]:
        jobs = [self._start(payload, started) for payload in payloads]
        try:
            everything = asyncio.gather(*(job.future for job in jobs))
            await asyncio.wait((everything, gone), return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                return everything.result()
            everything.cancel()
            raise Gone
        finally:
            for job in jobs:
                self._forget(job)

    def stop(self) -> None:
        """Answer everything that still waits with ``Stopping``."""
        for job in self._jobs:
            self._end(job, Stopping())

    def _start(self, payload: bytes, started: float, crossing: Crossing | None = None) -> Job:
        job = Job(payload, self._loop.create_future(), started, crossing)
        self._jobs[job] = None
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(self._tick, self._look)
        self._submit(job)
        return job

    def _forget(self, job: Job) -> None:
        del self._jobs[job]
        if job.watcher is not None:
            job.watcher.cancel()
        if job.future.cancelled():
            self._dispatcher.abandon(job)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if not job.future.done():
            job.future.set_result(outcome)
            self._dispatcher.abandon(job)

    def _look(self) -> None:
        now = time.monotonic()
        for job in self._jobs:
            age = now - job.started
            if self._timeout and age >= self._timeout:
                self._end(job, Expired(self._timeout))
            elif age >= _PATIENCE and job.receive is not None and job.watcher is None:
                job.watcher = self._loop.create_task(self._watch(job, job.receive))
        self._ticking = bool(self._jobs)
        if self._ticking:
            self._loop.call_later(self._tick, self._look)

    async def _watch(self, job: Job, receive: Receive) -> None:
        await _until_gone(receive)
        self._end(job, Gone())


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
